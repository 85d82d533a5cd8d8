"""Probes of frozen features, against scikit-learn and numpy."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from jaxptft.recipes import probing
from jaxptft.recipes.probing import Features


def rows(count: int, seed: int, width: int = 5, classes: int = 3) -> Features:
    """Clouds that overlap, one a class, whose columns are of very different sizes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = np.random.default_rng(99).normal(size=(classes, width))
    vectors = (centres[labels] + rng.normal(size=(count, width))) * 10.0 ** np.arange(width)
    return Features(vectors.astype(np.float32), labels.astype(np.int32))


@pytest.fixture(scope="module")
def sets():
    return rows(90, 0), rows(60, 1), rows(45, 2)


def scikit_learns(train: Features, judged: Features, strength: float) -> float:
    scaler = StandardScaler().fit(train.vectors)
    classifier = LogisticRegression(C=strength, max_iter=300).fit(scaler.transform(train.vectors), train.labels)
    return classifier.score(scaler.transform(judged.vectors), judged.labels)


def test_a_probe_of_one_strength_is_scikit_learns(sets):
    train, test, _ = sets
    found = probing.linear_probe(train, test, strengths=(0.3,))
    assert found == (pytest.approx(scikit_learns(train, test, 0.3)), 0.3)
    assert 0.5 < found.accuracy < 1.0


def test_validation_rows_choose_the_strength(sets):
    train, test, validation = sets
    strengths = (1e-6, 0.01, 1.0)
    scores = [scikit_learns(train, validation, strength) for strength in strengths]
    assert len(set(scores)) > 1
    best = strengths[int(np.argmax(scores))]
    found = probing.linear_probe(train, test, validation=validation, strengths=strengths)
    assert found == (pytest.approx(scikit_learns(train, test, best)), best)


def test_without_them_a_fifth_of_every_class_does(sets):
    train, test, _ = sets
    strengths = (1e-6, 1.0)
    kept, judged = train_test_split(np.arange(90), test_size=0.2, stratify=train.labels, random_state=4)
    one, other = (Features(train.vectors[chosen], train.labels[chosen]) for chosen in (kept, judged))
    best = strengths[int(np.argmax([scikit_learns(one, other, strength) for strength in strengths]))]
    found = probing.linear_probe(train, test, strengths=strengths, seed=4)
    assert found == (pytest.approx(scikit_learns(train, test, best)), best)


@pytest.mark.parametrize("labels", [[0, 1], [0, 0, 0, 1, 2], [0] * 9 + [1]], ids=["two", "singles", "lonely"])
def test_few_rows_of_a_class_are_no_error(labels):
    """Whatever is set aside, what is fitted has two classes."""
    vectors = np.eye(len(labels), dtype=np.float32)
    few = Features(vectors, np.array(labels))
    for seed in range(5):
        assert 0.0 <= probing.linear_probe(few, few, seed=seed).accuracy <= 1.0


def test_the_vote_is_weighted_by_similarity(sets):
    """scikit-learn's neighbours by cosine distance, with the weights of Wu et al. 2018, section 3.4."""
    train, test, _ = sets

    def weigh(distance):
        return np.exp((1 - distance) / 0.1)

    voted = KNeighborsClassifier(
        7,
        metric="cosine",
        algorithm="brute",
        weights=weigh,  # pyright: ignore[reportArgumentType]
    ).fit(train.vectors, train.labels)
    expected = voted.score(test.vectors, test.labels)
    assert probing.nearest_neighbours(train, test, k=7, temperature=0.1) == pytest.approx(expected)


def test_the_vote_by_hand(monkeypatch):
    """Two far neighbours of class 1 are outvoted by one at hand where the temperature is low, and not where it is high;
    in blocks of one query too."""
    monkeypatch.setattr(probing, "_BLOCK", 1)
    train = Features(np.array([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8], [-1.0, 0.0]]), np.array([0, 1, 1, 1]))
    asked = Features(np.array([[2.0, 0.0], [-3.0, 0.0], [0.0, 0.0]]), np.array([0, 1, 1]))
    # exp(-.4 / .1) * 2 = .037 < 1, and exp(-.4 / 10) * 2 = 1.92 > 1.
    assert probing.nearest_neighbours(train, asked._replace(vectors=asked.vectors[:2], labels=asked.labels[:2]), k=3,
                                      temperature=0.1) == 1.0  # fmt: skip
    assert probing.nearest_neighbours(train, asked, k=3, temperature=10.0) == pytest.approx(2 / 3)
    assert probing.nearest_neighbours(train, asked, k=99) == pytest.approx(1.0)  # all of them vote


def test_rows_are_drawn_by_class_and_seed(sets):
    train, _, _ = sets
    drawn = probing.draw(train, 4, seed=1)
    assert np.bincount(drawn.labels).tolist() == [4, 4, 4]
    places = [int(np.flatnonzero((train.vectors == vector).all(1))[0]) for vector in drawn.vectors]
    assert places == sorted(set(places))
    np.testing.assert_array_equal(train.labels[places], drawn.labels)
    np.testing.assert_array_equal(probing.draw(train, 4, seed=1).vectors, drawn.vectors)
    assert (probing.draw(train, 4, seed=2).vectors != drawn.vectors).any()
    with pytest.raises(ValueError, match="class 0 has 30 training rows, and 31 are asked for; ask fewer"):
        probing.draw(train, 31, seed=0)


def test_what_cannot_be_probed(sets):
    train, test, _ = sets
    alike = train._replace(labels=np.zeros_like(train.labels))
    with pytest.raises(ValueError, match="the training rows have one class; a probe tells at least two apart"):
        probing.linear_probe(alike, test)
    for strengths in ((), (0.0, 1.0)):
        with pytest.raises(ValueError, match="expected one positive number or more"):
            probing.linear_probe(train, test, strengths=strengths)
    for k, temperature in ((0, 1.0), (1, 0.0)):
        with pytest.raises(ValueError, match=f"k is {k} and temperature {temperature}; expected both above 0"):
            probing.nearest_neighbours(train, test, k=k, temperature=temperature)


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda part: part._replace(vectors=part.vectors[:, :2]), "of one width, got"),
        (lambda part: part._replace(labels=part.labels[1:]), "60 vectors and 59 labels; expected one each a row"),
        (lambda part: part._replace(vectors=part.vectors * np.inf), "the features hold NaN or infinity"),
    ],
    ids=["width", "count", "finite"],
)
def test_features_that_do_not_fit(sets, change, expected):
    for measure in (probing.linear_probe, probing.nearest_neighbours):
        with pytest.raises(ValueError, match=expected):
            measure(sets[0], change(sets[1]))
