"""How near predicted numbers are: mean squared error, and Pearson's and Spearman's correlations by scipy."""

from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxptft.recipes.report import Report

Numbers = Float[np.ndarray, " rows"]


def regression_metrics(predicted: Numbers, targets: Numbers) -> dict[str, float]:
    """`regression/mse`, `regression/pearson` and `regression/spearman`.

    A correlation is NaN where it is undefined: of fewer than two rows, or where all predictions, or all targets, are
    one number.
    """
    from scipy.stats import pearsonr, spearmanr

    predicted, targets = np.asarray(predicted, np.float64), np.asarray(targets, np.float64)
    pearson = spearman = float("nan")
    if not _undefined(predicted, targets):
        pearson, spearman = (float(np.asarray(of(predicted, targets))[0]) for of in (pearsonr, spearmanr))
    mse = float(np.mean((predicted - targets) ** 2))
    return {"regression/pearson": pearson, "regression/spearman": spearman, "regression/mse": mse}


def _undefined(predicted: Numbers, targets: Numbers) -> str:
    """Why there is no correlation; "" where there is one."""
    if len(targets) < 2:
        return "there is one row only"
    for name, values in (("prediction", predicted), ("target", targets)):
        if np.all(values == values[0]):
            return f"every {name} is {values[0]:g}"
    return ""


def regression_report(predicted: Numbers, targets: Numbers) -> Report:
    """The metrics that are defined, why another is not, and predictions against targets as a picture."""
    predicted, targets = np.asarray(predicted, np.float64), np.asarray(targets, np.float64)
    metrics = {name: value for name, value in regression_metrics(predicted, targets).items() if np.isfinite(value)}
    errors = np.abs(predicted - targets)
    lines = [f"{name.removeprefix('regression/'):<10} {value:.4f}" for name, value in metrics.items()]
    lines += [f"{'mae':<10} {errors.mean():.4f}", f"{'largest':<10} {errors.max():.4f} off, of {len(targets)} rows"]
    details: dict[str, object] = {"mean_absolute_error": float(errors.mean()), "largest_error": float(errors.max())}
    if reason := _undefined(predicted, targets):
        lines.append(f"Pearson's and Spearman's correlations are undefined: {reason}")
        details["undefined"] = {"regression/pearson": reason, "regression/spearman": reason}
    picture = partial(plot_predictions, predicted=predicted, targets=targets)
    return Report(metrics, "\n".join(lines), details, {"predictions": picture})


def plot_predictions(path: Path, *, predicted: Numbers, targets: Numbers) -> None:
    """Each row as a point, and the line on which predictions are right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(targets, predicted, s=10, alpha=0.5)
    ends = [min(targets.min(), predicted.min()), max(targets.max(), predicted.max())]
    axes.plot(ends, ends, color="black", linewidth=0.8, linestyle="--")
    axes.set(xlabel="target", ylabel="prediction")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
