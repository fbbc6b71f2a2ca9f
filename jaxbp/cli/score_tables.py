"""Tables of scores: which metrics tell, what they are called, and with how many digits."""

import numpy as np

from jaxbp.cli.scores import Score
from jaxbp.data.preparation import Preparation
from jaxbp.gradient import Batch
from jaxbp.text import Table, cut, significant

SHOWN = {
    "loss": "loss",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "f1": "F1",
    "log_loss": "log loss",
    "auc": "AUC",
    "r2": "R²",
    "mae": "mean absolute error",
    "rmse": "root mean square error",
}
_UNEQUAL = 1.5  # the commonest class's rows over the rarest's, from which accuracy alone misleads


def scores_table(
    scores: list[Score], others: list[Score], preparation: Preparation, batch: Batch
) -> Table:
    """Tabulate scores, a line each: where a batch's classes are equal, loss and accuracy alone; of
    two classes the area under the ROC curve as well.

    scores: of the network.
    others: without a network; not shown where classes are equal.
    preparation: of the data.
    batch: whose classes are counted.
    """
    labels = preparation.labels
    if labels is None:  # the errors of several quantities have no common unit
        shown = ["loss", "r2", *(["mae", "rmse"] if len(preparation.target_mean) == 1 else [])]
    elif preparation.several_labels:
        shown = ["loss", "accuracy", "macro_f1", "log_loss"]
    elif _unequal(labels, batch):
        shown = ["loss", "accuracy", "balanced_accuracy", "macro_f1", "log_loss"]
    else:
        shown, others = ["loss", "accuracy"], []
    if labels is not None and len(labels) == 2 and not preparation.several_labels:
        shown.append("auc")
    rows = [
        (name, *(_shown(metric, metrics.get(metric)) for metric in shown))
        for name, metrics, *_ in [*scores, *others]
    ]
    return Table(("", *(SHOWN[name] for name in shown)), rows)


def further_tables(found: Score, preparation: Preparation) -> list[Table]:
    """Tabulate the metrics of each output, and how often each class is taken for each."""
    tables = []
    if found.outputs:
        shown = [name for name in SHOWN if any(name in each for each in found.outputs.values())]
        rows = [
            (output, *(_shown(metric, metrics.get(metric)) for metric in shown))
            for output, metrics in found.outputs.items()
        ]
        tables.append(Table((found.name, *(SHOWN[metric] for metric in shown)), rows))
    if found.confusion is not None:
        assert preparation.labels is not None
        names = [cut(label, 20) for label in preparation.labels]
        heading = (f"{found.name}, class", *(f"as {name}" for name in names))
        counts = zip(names, found.confusion, strict=True)
        tables.append(Table(heading, [(name, *map(str, row)) for name, row in counts]))
    return tables


def _unequal(labels: tuple[str, ...], batch: Batch) -> bool:
    """Whether a batch's classes differ so much in size that its accuracy alone would mislead."""
    counts = np.bincount(np.asarray(batch.target), minlength=len(labels))
    return bool(counts.max() > _UNEQUAL * counts.min())


def decimals(value: float) -> str:
    """A loss or a metric with four decimals, or by its order of magnitude where it is large."""
    return f"{value:.4f}" if not abs(value) >= 1e4 else f"{value:.3e}"


def _shown(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    return significant(value, 5) if metric in {"mae", "rmse"} else decimals(value)
