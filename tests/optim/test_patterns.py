import jax
import numpy as np
import pytest

from jaxptft.optim import by_pattern, mask, matches, paths


def _params():
    layer = {"attention": {"query": {"kernel": 0, "bias": 0}}, "attention_norm": {"scale": 0, "bias": 0}}
    return {
        "backbone": {"embeddings": {"norm": {"scale": 0}}, **{f"layer_{i}": layer for i in (0, 1, 10)}},
        "classifier": {"kernel": 0, "bias": 0},
    }


@pytest.mark.parametrize(
    "pattern, path, expected",
    [
        # By the rules at the top of patterns.py, read by hand.
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/b", "x/a/b", False),
        ("a/*", "a/b", True),
        ("a/*", "a/b/c", False),
        ("*", "a/b", False),
        ("layer_*/k", "layer_10/k", True),
        ("l*_*0", "layer_10", True),
        ("**", "a/b/c", True),
        ("a/**", "a/b/c", True),
        ("a/**", "a", True),
        ("a/**", "ab/c", False),
        ("**/bias", "bias", True),
        ("**/bias", "a/b/bias", True),
        ("**/bias", "a/bias/b", False),
        ("**/bias", "a/my_bias", False),
        ("a/**/z", "a/z", True),
        ("a/**/z", "a/b/c/z", True),
        ("**/b/**", "a/b/c", True),
        ("**/*_norm/**", "a/mlp_norm/scale", True),
        ("**/*_norm/**", "a/norm/scale", False),
        ("{query,key}/k", "key/k", True),
        ("{query,key}/k", "value/k", False),
        ("{a*,b}", "abc", True),
        ("{,a}b", "b", True),
        ("layer_[0-3]", "layer_3", True),
        ("layer_[0-3]", "layer_4", False),
        ("layer_[0-3]", "layer_10", False),
        ("layer_[!0-3]", "layer_4", True),
        ("layer_[!0-3]", "layer_3", False),
        ("x[^a]", "x^", True),
        ("x[^a]", "xb", False),
        ("layer_1{0,1}", "layer_11", True),
        ("layer_{[0-2],11}", "layer_2", True),
        ("w.b", "wxb", False),
        ("w+", "ww", False),
    ],
)
def test_matches(pattern, path, expected):
    assert matches(pattern, path) is expected


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("", "is empty or has an empty segment"),
        ("/a", "pattern '/a' is empty or has an empty segment"),
        ("a//b", "empty segment"),
        ("a/", "empty segment"),
        ("a**/b", r"'\*\*' must be a segment of its own, got 'a\*\*'"),
        ("a/{b,c", "'{b,c' has an unclosed, empty or nested bracket"),
        ("a/b}", "unclosed, empty or nested bracket"),
        ("a/{b,{c}}", "unclosed, empty or nested bracket"),
        ("a/[0-3", "unclosed, empty or nested bracket"),
        ("a/[]", "unclosed, empty or nested bracket"),
        ("a/[3-0]", r"'\[3-0\]' is not a pattern \(bad character range"),
    ],
)
def test_malformed_patterns(pattern, message):
    with pytest.raises(ValueError, match=message):
        matches(pattern, "a/b")
    with pytest.raises(ValueError, match=message):
        mask({"a": 1}, pattern, strict=False)


def test_a_pattern_is_a_string():
    with pytest.raises(TypeError, match="a pattern is a string such as 'backbone/\\*\\*', got True"):
        mask({"a": 1}, [True])


def test_paths_follow_the_order_of_the_leaves():
    tree = {"b": [1, {"c": 2}], "a": (3,), "n": None}
    assert paths(tree) == ["a/0", "b/0", "b/1/c"]
    assert jax.tree.leaves(tree) == [3, 1, 2]


def test_mask_marks_what_any_pattern_matches():
    chosen = mask(_params(), ["**/bias", "backbone/layer_[01]/**"])
    assert [path for path, value in zip(paths(chosen), jax.tree.leaves(chosen), strict=True) if value] == [
        *(
            f"backbone/layer_{i}/{name}"
            for i in (0, 1)
            for name in (
                "attention/query/bias",
                "attention/query/kernel",
                "attention_norm/bias",
                "attention_norm/scale",
            )
        ),
        "backbone/layer_10/attention/query/bias",
        "backbone/layer_10/attention_norm/bias",
        "classifier/bias",
    ]
    assert jax.tree.structure(chosen) == jax.tree.structure(_params())
    assert not any(jax.tree.leaves(mask(_params(), [])))


def test_mask_keeps_absent_subtrees_absent():
    assert mask({"a": {"b": 1}, "c": None}, "a/*") == {"a": {"b": True}, "c": None}


def test_a_pattern_without_match_names_the_nearest_paths():
    with pytest.raises(ValueError, match=r"'clasifier/kernel' matches nothing; nearest paths: 'classifier/kernel', '"):
        mask(_params(), ["**/bias", "clasifier/kernel"])
    with pytest.raises(ValueError, match="'a/b' matches nothing; the tree has no leaves"):
        mask({"a": None}, "a/b")
    assert not any(jax.tree.leaves(mask(_params(), "clasifier/kernel", strict=False)))


def test_by_pattern_takes_the_first_match():
    values = by_pattern(_params(), {"backbone/layer_0/**": 0.1, "**/bias": None, "backbone/**": (1, 2)}, default="rest")
    layer = values["backbone"]["layer_1"]["attention"]["query"]
    assert layer == {"kernel": (1, 2), "bias": None}
    assert values["backbone"]["layer_0"]["attention_norm"] == {"scale": 0.1, "bias": 0.1}
    assert values["classifier"] == {"kernel": "rest", "bias": None}


def test_by_pattern_errors():
    with pytest.raises(ValueError, match=r"pattern 'backbone/layer_7/\*\*' matches nothing; nearest paths: 'backbone/"):
        by_pattern(_params(), {"backbone/layer_7/**": 1.0}, default=0.0)
    late = {"backbone/**": 0.1, "backbone/layer_1/**": 0.5}
    with pytest.raises(ValueError, match=r"'backbone/layer_1/\*\*' comes too late: 'backbone/\*\*' before it takes"):
        by_pattern(_params(), late, default=0.0)
    lenient = by_pattern(_params(), {**late, "nothing": 2.0}, default=0.0, strict=False)
    np.testing.assert_array_equal(np.unique(jax.tree.leaves(lenient)), [0.0, 0.1])
