"""Scores: what a network's predictions are worth, and what others would score without it.

Accuracy alone is high where one class is common, and R² has no unit: beside them stand the metrics
that tell (scikit-learn's definitions), and the scores of predicting the commonest class, the mean,
or a linear function of the inputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxbp.checkpoint import Checkpoint
from jaxbp.data.cells import quoted
from jaxbp.data.preparation import Preparation
from jaxbp.data.sources import scikit_learn
from jaxbp.gradient import Batch
from jaxbp.heads import Head
from jaxbp.mlp import forward
from jaxbp.text import Table, plain, significant
from jaxbp.training.metrics import evaluate

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
MOST_CLASSES = 10  # of which a confusion matrix is shown
_UNEQUAL = 1.5  # the commonest class's rows over the rarest's, from which accuracy alone misleads
_LARGEST_LEAST_SQUARES = 1e10  # rows × columns², about two seconds of one core


class Score(NamedTuple):
    """The metrics of predictions on some rows, by the names of ``SHOWN``."""

    name: str  # of the rows, and of who predicts
    metrics: Mapping[str, float]
    outputs: Mapping[str, Mapping[str, float]] = {}  # those of each output, where there are several
    confusion: list[list[int]] | None = None  # (K, K) by class and decision, where they are few

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        further = {"outputs": self.outputs, "confusion": self.confusion}
        record: dict[str, Any] = plain(
            {**self.metrics, **{name: each for name, each in further.items() if each}}
        )
        return record


def with_outputs(head: Head, labels: tuple[str, ...] | None, batch: Batch) -> Batch:
    """Give a batch its targets as the head takes them: values, and several labels, as they are.

    Integer classes become 0 or 1 for each of a head's independent outputs; of two classes there is
    one output, which is 1 for the second.
    """
    if labels is None or head.target == "classes" or batch.target.ndim == 2:
        return batch
    ones = np.ones(1) if len(labels) == 2 else np.arange(len(labels))
    target: Any = batch.target[:, None] == ones
    return batch._replace(target=target.astype(np.float32))


def outputs(trained: Checkpoint, x: np.ndarray) -> np.ndarray:
    """Predict the probability of every class (N, K), or quantities in their own units (N, K).

    x (N, D) is scaled already.  Probabilities are float32; quantities are float64.
    """
    model, params, preparation = trained
    assert preparation is not None
    logits, _ = forward(model, params, x)
    prediction = np.asarray(model.head.predict(logits))
    if preparation.labels is None:
        return np.asarray(prediction * preparation.target_scale + preparation.target_mean)
    if prediction.shape[1] == 1:  # one sigmoid unit: σ(-a) = 1 - σ(a), however small
        prediction = np.hstack([np.asarray(model.head.predict(-logits)), prediction])
    return prediction


def score(name: str, trained: Checkpoint, batch: Batch, *, precision: str | None = None) -> Score:
    """Measure a network on a batch: its objective and every metric of its task.

    name: of the rows.
    trained: the network, with its preparation.
    batch: with integer classes or scaled values, as ``jaxbp.data.load`` gives it.
    precision: of products, as for ``fit``.
    """
    model, params, preparation = trained
    assert preparation is not None
    targets = with_outputs(model.head, preparation.labels, batch)
    loss, metric = evaluate(model, params, targets, precision=precision)
    found = outputs(trained, np.asarray(batch.x))
    if preparation.labels is None:
        truth = _quantities(preparation, batch)
        measured = {"loss": loss, **_of_quantities(truth, found), "r2": metric}
        if truth.shape[1] == 1:
            return Score(name, measured)
        columns = zip(names_of_outputs(preparation), truth.T, found.T, strict=True)
        each = {output: _of_quantities(t[:, None], y[:, None]) for output, t, y in columns}
        return Score(name, measured, each)
    if preparation.several_labels:
        assert preparation.labels is not None
        means, each = _of_labels(preparation.labels, np.asarray(batch.target), found)
        return Score(name, {"loss": loss, **means, "accuracy": metric}, each)
    truth, decided, classes = np.asarray(batch.target), found.argmax(1), found.shape[1]
    measured = {"loss": loss, **_of_classes(truth, found, decided), "accuracy": metric}
    confusion = None
    if classes <= MOST_CLASSES:
        confusion = (
            scikit_learn("metrics")
            .confusion_matrix(truth, decided, labels=np.arange(classes))
            .tolist()
        )
    return Score(name, measured, confusion=confusion)


def names_of_outputs(preparation: Preparation) -> list[str]:
    """Name the quantities that a network predicts, as ``jaxbp predict`` heads their columns."""
    count = len(preparation.target_mean)
    return [f"prediction_{i}" for i in range(count)] if count > 1 else ["prediction"]


def baselines(preparation: Preparation, fitted: Batch, name: str, batch: Batch) -> list[Score]:
    """Score what needs no network, on a batch: the commonest class, or mean and linear regression.

    preparation: of the data.
    fitted: the rows that the predictions are learnt from.
    name: of the rows that are scored.
    batch: those rows.
    """
    labels = preparation.labels
    if labels is not None and preparation.several_labels:
        shares = np.tile(np.mean(fitted.target, axis=0), (len(batch.x), 1))
        metrics, _ = _of_labels(labels, np.asarray(batch.target), shares)
        return [Score(f"{name}, always the commonest", metrics)]
    if labels is not None:
        shares = np.bincount(np.asarray(fitted.target), minlength=len(labels)) / len(fitted.x)
        rows = len(batch.x)
        common = int(shares.argmax())
        measured = _of_classes(
            np.asarray(batch.target), np.tile(shares, (rows, 1)), np.full(rows, common)
        )
        return [Score(f"{name}, always {quoted(labels[common])}", measured)]
    train, truth = _quantities(preparation, fitted), _quantities(preparation, batch)
    mean = np.tile(train.mean(0), (len(truth), 1))
    found = [Score(f"{name}, always the mean", _of_quantities(truth, mean))]
    x = np.asarray(fitted.x, np.float64)
    if x.shape[0] * x.shape[1] ** 2 <= _LARGEST_LEAST_SQUARES:
        linear = scikit_learn("linear_model").LinearRegression().fit(x, train)
        predicted = linear.predict(np.asarray(batch.x, np.float64))
        found.append(Score(f"{name}, linear regression", _of_quantities(truth, predicted)))
    return found


def _unequal(labels: tuple[str, ...], batch: Batch) -> bool:
    """Whether a batch's classes differ so much in size that its accuracy alone would mislead."""
    counts = np.bincount(np.asarray(batch.target), minlength=len(labels))
    return bool(counts.max() > _UNEQUAL * counts.min())


def scores_table(
    scores: list[Score], others: list[Score], preparation: Preparation, batch: Batch
) -> Table:
    """Tabulate scores, a line each: where a batch's classes are equal, loss and accuracy alone.

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
        shown += ["auc"] if len(labels) == 2 else []
    else:
        shown, others = ["loss", "accuracy"], []
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
        names = [label if len(label) <= 20 else f"{label[:17]}..." for label in preparation.labels]
        heading = (f"{found.name}, class", *(f"as {name}" for name in names))
        counts = zip(names, found.confusion, strict=True)
        tables.append(Table(heading, [(name, *map(str, row)) for name, row in counts]))
    return tables


def decimals(value: float) -> str:
    """A loss or a metric with four decimals, or by its order of magnitude where it is large."""
    return f"{value:.4f}" if not abs(value) >= 1e4 else f"{value:.3e}"


def _shown(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    return significant(value, 5) if metric in {"mae", "rmse"} else decimals(value)


def _quantities(preparation: Preparation, batch: Batch) -> np.ndarray:
    """The targets of a regression in their own units (N, K)."""
    target = np.asarray(batch.target, np.float64)
    return np.asarray(target * preparation.target_scale + preparation.target_mean)


def _of_classes(target: np.ndarray, shares: np.ndarray, decided: np.ndarray) -> dict[str, float]:
    """Metrics of decisions (N,) and of probabilities (N, K), each row scaled to a sum of 1.

    The log loss of probabilities that are not finite is NaN.  Of two classes the AUC, the area
    under the ROC curve, is that of the second; both have to be there.
    """
    metrics = scikit_learn("metrics")
    present = np.unique(target)
    total = shares.sum(axis=1, keepdims=True, dtype=np.float64)
    shares = np.where(total == 0, 1 / shares.shape[1], shares / np.where(total == 0, 1, total))
    finite = bool(np.isfinite(shares).all())
    measured = {
        "accuracy": float(metrics.accuracy_score(target, decided)),
        "balanced_accuracy": float(
            metrics.recall_score(target, decided, labels=present, average="macro")
        ),
        "macro_f1": float(
            metrics.f1_score(target, decided, labels=present, average="macro", zero_division=0)
        ),
        "log_loss": float(metrics.log_loss(target, shares, labels=np.arange(shares.shape[1])))
        if finite
        else np.nan,
    }
    if shares.shape[1] == 2 and len(present) == 2:
        area = metrics.roc_auc_score(target, shares[:, 1]) if finite else np.nan
        measured["auc"] = float(area)
    return measured


def _of_labels(
    labels: Sequence[str], target: np.ndarray, found: np.ndarray
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Metrics of probabilities (N, K) of K labels, each 0 or 1: their means over labels, and those
    of each.

    F1 is that of the label, the macro F1 its mean; a label that all rows have, or none, has no AUC.
    """
    f1_score = scikit_learn("metrics").f1_score
    each = {}
    for label, truth, shares in zip(labels, target.astype(int).T, found.T, strict=True):
        decided = (shares > 0.5).astype(int)
        measured = _of_classes(truth, np.stack([1 - shares, shares], axis=1), decided)
        measured["f1"] = float(f1_score(truth, decided, zero_division=0))
        shown = ("accuracy", "f1", "log_loss", "auc")
        each[label] = {name: measured[name] for name in shown if name in measured}
    means = {
        name: float(np.mean([metrics[name] for metrics in each.values()]))
        for name in ("accuracy", "f1", "log_loss")
    }
    means["macro_f1"] = means.pop("f1")
    return means, each


def _of_quantities(target: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """R², and errors in the target's units, averaged over outputs; NaN where one is not finite."""
    metrics = scikit_learn("metrics")
    found = found.reshape(target.shape)
    if not np.isfinite(found).all():
        return dict.fromkeys(("mae", "rmse", "r2"), np.nan)
    measured = {
        "mae": float(metrics.mean_absolute_error(target, found)),
        "rmse": float(metrics.root_mean_squared_error(target, found)),
    }
    if len(target) > 1:
        measured["r2"] = float(metrics.r2_score(target, found))
    return measured
