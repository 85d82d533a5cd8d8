import numpy as np
import pytest

from jaxptft.data import Labels
from jaxptft.data.labels import label_name
from jaxptft.data.validate import Refused


def test_strings_in_alphabetical_order_and_numbers_in_numerical_order():
    assert Labels.learn(["pos", "neg", "pos", "neutral"]).names == ("neg", "neutral", "pos")
    assert Labels.learn([str(number) for number in range(12)]).names == tuple(map(str, range(12)))
    assert Labels.learn(["10", "9", "ten"]).names == ("10", "9", "ten")


def test_encode():
    encoded = Labels(("neg", "pos")).encode(["pos", "neg", "pos"])
    np.testing.assert_array_equal(encoded, [1, 0, 1])  # places in the names, by hand
    assert encoded.dtype == np.int32
    with pytest.raises(KeyError, match="maybe"):
        Labels(("neg", "pos")).encode(["maybe"])


def test_repeated_name():
    with pytest.raises(ValueError, match="label name 'pos' is given twice"):
        Labels(("pos", "neg", "pos"))


@pytest.mark.parametrize(
    ("value", "name"),
    [(3, "3"), (np.int64(3), "3"), (" pos ", "pos"), (True, "true"), (b"pos", "pos"), ("01", "01"), ("2", "2")],
)
def test_name_of_a_value(value, name):
    assert label_name(value) == name


def test_declared_classes_give_numbers_their_names():
    assert label_name(1, ("negative", "positive")) == "positive"
    with pytest.raises(Refused, match="is 2, expected a class from 0 to 1"):
        label_name(2, ("negative", "positive"))
    with pytest.raises(Refused, match="is -1, which marks an unlabelled row"):
        label_name(-1, ("negative", "positive"))
