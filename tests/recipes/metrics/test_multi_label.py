import json

import numpy as np
import pytest
from scipy.special import logit
from sklearn.metrics import f1_score

from jaxptft.recipes.metrics.multi_label import (
    multi_label_metrics,
    multi_label_report,
    settle_thresholds,
    thresholds_of,
)

NAMES = ("a", "b", "c")
PROBABILITIES = np.array([[0.9, 0.2, 0.4], [0.6, 0.7, 0.1], [0.3, 0.8, 0.45], [0.1, 0.1, 0.2]])
TRUTH = np.array([[1, 0, 1], [0, 1, 0], [0, 1, 1], [0, 0, 0]], bool)


def test_metrics_by_hand():
    """At 1/2: a has 1 right of 2 said and 1 true, b 2 of 2 and 2, c 0 of 0 and 2; row 4 alone is right throughout."""
    metrics = multi_label_metrics(logit(PROBABILITIES), TRUTH, 0.5)
    assert metrics == {
        "multi_label/micro_f1": pytest.approx(2 * 3 / (4 + 5)),
        "multi_label/macro_f1": pytest.approx((2 / 3 + 1 + 0) / 3),
        "multi_label/subset_accuracy": 0.25,
    }


def test_settled_thresholds_come_back_by_name():
    logits = logit(PROBABILITIES)
    common = settle_thresholds(logits, TRUTH, NAMES, each=False)
    assert list(common) == ["threshold"]
    # Between 0.3 and 0.4 all five true labels are said to apply, and a's 0.6: 10 / 11, by hand.
    assert 0.3 < common["threshold"] < 0.4
    each = settle_thresholds(logits, TRUTH, NAMES, each=True)["thresholds"]
    assert list(each) == list(NAMES)
    said = thresholds_of({"thresholds": each}, NAMES) < PROBABILITIES
    assert f1_score(TRUTH, said, average="micro") == 1.0
    json.dumps([common, each])
    np.testing.assert_array_equal(thresholds_of(common, NAMES), [common["threshold"]] * 3)
    np.testing.assert_array_equal(thresholds_of({}, NAMES), [0.5] * 3)
    np.testing.assert_array_equal(thresholds_of({"thresholds": {"b": 0.2}}, NAMES), [0.5, 0.2, 0.5])


def test_the_report_uses_what_was_settled():
    logits = logit(PROBABILITIES)
    report = multi_label_report(logits, TRUTH, NAMES, {"threshold": 0.35})
    assert report.metrics == multi_label_metrics(logits, TRUTH, 0.35)
    assert "threshold: 0.3500" in report.text
    assert "all labels right in 0.7500 of the rows" in report.text
    assert report.details["thresholds"] == dict.fromkeys(NAMES, 0.35)
    each = multi_label_report(logits, TRUTH, NAMES, {"thresholds": {"a": 0.8, "b": 0.5, "c": 0.35}})
    assert each.metrics["multi_label/micro_f1"] == 1.0
    assert "thresholds: a 0.8000, b 0.5000, c 0.3500" in each.text
    json.dumps(each.to_dict(), allow_nan=False)
