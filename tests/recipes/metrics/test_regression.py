import json

import numpy as np
import pytest

from jaxptft.recipes.metrics.regression import regression_metrics, regression_report

TARGETS = np.array([1.0, 2.0, 3.0, 4.0])


def test_correlations_and_errors_by_hand():
    """numpy's corrcoef; Spearman's is Pearson's of the ranks, here 1, 2, 4, 3 against 1, 2, 3, 4: 1 - 6 * 2 / 60."""
    predicted = np.array([0.0, 2.0, 9.0, 4.0], np.float32)
    metrics = regression_metrics(predicted, TARGETS)
    assert metrics["regression/pearson"] == pytest.approx(np.corrcoef(predicted, TARGETS)[0, 1])
    assert metrics["regression/spearman"] == pytest.approx(0.8)
    assert metrics["regression/mse"] == pytest.approx((1 + 36) / 4)
    report = regression_report(predicted, TARGETS)
    assert report.metrics == metrics
    assert report.details["mean_absolute_error"] == pytest.approx(7 / 4)
    assert "spearman   0.8000" in report.text


@pytest.mark.parametrize(
    ("predicted", "targets", "said"),
    [
        (np.full(4, 2.5), TARGETS, "undefined: every prediction is 2.5"),
        (TARGETS, np.zeros(4), "undefined: every target is 0"),
        (TARGETS[:1], TARGETS[:1], "undefined: there is one row only"),
    ],
)
def test_what_is_undefined_is_nan_and_said_and_left_out_of_reports(predicted, targets, said, recwarn):
    metrics = regression_metrics(predicted, targets)
    assert np.isnan([metrics["regression/pearson"], metrics["regression/spearman"]]).all()
    assert metrics["regression/mse"] == pytest.approx(np.mean((predicted - targets) ** 2))
    report = regression_report(predicted, targets)
    assert set(report.metrics) == {"regression/mse"}
    assert said in report.text
    json.dumps(report.to_dict(), allow_nan=False)
    assert not recwarn.list  # scipy would warn


def test_the_picture_is_drawn(tmp_path):
    regression_report(TARGETS, TARGETS).pictures["predictions"](tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
