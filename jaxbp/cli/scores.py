"""Scores: what a network's predictions are worth, and what others would score without it.

Accuracy alone is high where one class is common, and R² has no unit: beside them stand the metrics
that tell (scikit-learn's definitions), and the scores of predicting the commonest class, the mean,
or a linear function of the inputs.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxbp.checkpoint import Checkpoint
from jaxbp.data.cells import quoted
from jaxbp.data.errors import scikit_learn
from jaxbp.data.preparation import Preparation, in_units
from jaxbp.gradient import Batch
from jaxbp.heads import Head
from jaxbp.mlp import forward
from jaxbp.text import plain
from jaxbp.training.metrics import evaluate, metric_name

MOST_CLASSES = 10  # that a confusion matrix has
_LARGEST_LEAST_SQUARES = 1e10  # rows × columns², about two seconds of one core


class Score(NamedTuple):
    """The metrics of predictions on some rows, by the names of ``score_tables.SHOWN``."""

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
        return in_units(preparation, prediction)
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
    measured = measure(name, preparation, batch, outputs(trained, np.asarray(batch.x)))
    own = {"loss": loss}
    if preparation.labels is None or preparation.several_labels:
        own[metric_name(model.head)] = metric  # else of rows, and not of independent outputs
    return measured._replace(metrics={**measured.metrics, **own})


def names_of_outputs(preparation: Preparation) -> list[str]:
    """Name the quantities that a network predicts, as ``jaxbp predict`` heads their columns."""
    count = len(preparation.target_mean)
    if count == 1:
        return ["prediction"]
    return [f"prediction_{name}" for name in preparation.targets or range(count)]


def baselines(preparation: Preparation, fitted: Batch, name: str, batch: Batch) -> list[Score]:
    """Score what needs no network, on a batch: the commonest class, or mean and linear regression.

    Where these are learnt from the scored rows themselves, their names say so.

    preparation: of the data.
    fitted: the rows that the predictions are learnt from.
    name: of the rows that are scored.
    batch: those rows.
    """
    labels, of = preparation.labels, "their" if fitted is batch else "the"

    def always(prediction: np.ndarray, what: str) -> Score:
        rows = np.tile(prediction, (len(batch.x), 1))
        return measure(f"{name}, always {what}", preparation, batch, rows)

    weight = _weight(fitted)
    if preparation.several_labels:
        return [always(np.average(fitted.target, 0, weight), f"{of} commonest")]
    if labels is not None:
        counts = np.bincount(np.asarray(fitted.target), weight, minlength=len(labels))
        shares = counts / counts.sum()
        said = f", {of} commonest" if fitted is batch else ""
        return [always(shares, f"{quoted(labels[int(shares.argmax())])}{said}")]
    train = in_units(preparation, fitted.target)
    found = [always(np.average(train, 0, weight), f"{of} mean")]
    x = np.asarray(fitted.x, np.float64)
    if x.shape[0] * x.shape[1] ** 2 <= _LARGEST_LEAST_SQUARES:
        linear = scikit_learn("linear_model").LinearRegression().fit(x, train, weight)
        predicted = linear.predict(np.asarray(batch.x, np.float64)).reshape(len(batch.x), -1)
        found.append(measure(f"{name}, linear regression", preparation, batch, predicted))
    return found


def measure(name: str, preparation: Preparation, batch: Batch, found: np.ndarray) -> Score:
    """Measure predictions by every metric of their task, weighted as the rows are.

    A confusion matrix counts rows, whatever their weights.

    name: of the rows, and of who predicts.
    preparation: of the data.
    batch: the rows, as for ``score``.
    found: the predictions (N, K), as ``outputs`` gives them.
    """
    labels, weight = preparation.labels, _weight(batch)
    if labels is None:
        truth = in_units(preparation, batch.target)
        if truth.shape[1] == 1:
            return Score(name, _of_quantities(truth, found, weight))
        columns = zip(names_of_outputs(preparation), truth.T, found.T, strict=True)
        each = {output: _of_quantities(t[:, None], y[:, None], weight) for output, t, y in columns}
        return Score(name, _of_quantities(truth, found, weight), each)
    target = np.asarray(batch.target)
    if preparation.several_labels:
        of_labels = zip(labels, target.astype(int).T, found.T, strict=True)
        each = {label: _of_label(truth, shares, weight) for label, truth, shares in of_labels}

        def mean(metric: str) -> float:
            return float(np.mean([metrics[metric] for metrics in each.values()]))

        means = {"accuracy": mean("accuracy"), "macro_f1": mean("f1"), "log_loss": mean("log_loss")}
        return Score(name, means, each)
    confusion = None
    if len(labels) <= MOST_CLASSES:
        matrix = scikit_learn("metrics").confusion_matrix
        confusion = matrix(target, found.argmax(1), labels=np.arange(len(labels))).tolist()
    return Score(name, _of_classes(target, found, weight), confusion=confusion)


def _weight(batch: Batch) -> np.ndarray | None:
    """The weights of a batch's rows (N,); None where all are equal."""
    return None if batch.weight is None else np.asarray(batch.weight, np.float64)


def _of_classes(
    target: np.ndarray, shares: np.ndarray, weight: np.ndarray | None
) -> dict[str, float]:
    """Metrics of probabilities (N, K), each row scaled to a sum of 1, of the most probable classes.

    The log loss of probabilities that are not finite is NaN.  Of two classes the AUC, the area
    under the ROC curve, is that of the second; both have to be there.
    """
    metrics = scikit_learn("metrics")
    if weight is not None:  # a class without any weight is absent
        felt = weight > 0
        target, shares, weight = target[felt], shares[felt], weight[felt]
    present, decided = np.unique(target), shares.argmax(1)
    total = shares.sum(axis=1, keepdims=True, dtype=np.float64)
    shares = np.where(total == 0, 1 / shares.shape[1], shares / np.where(total == 0, 1, total))
    rows = {"sample_weight": weight}
    recalled = {"labels": present, "average": "macro", "zero_division": 0}  # where none was decided
    measured = {
        "accuracy": metrics.accuracy_score(target, decided, **rows),
        "balanced_accuracy": metrics.recall_score(target, decided, **recalled, **rows),
        "macro_f1": metrics.f1_score(target, decided, average="macro", zero_division=0, **rows),
        "log_loss": np.nan,
    }
    of_two = shares.shape[1] == len(present) == 2
    if of_two:
        measured["auc"] = np.nan
    if np.isfinite(shares).all():
        classes = np.arange(shares.shape[1])
        measured["log_loss"] = metrics.log_loss(target, shares, labels=classes, **rows)
        if of_two:
            measured["auc"] = metrics.roc_auc_score(target, shares[:, 1], **rows)
    return {name: float(value) for name, value in measured.items()}


def _of_label(
    target: np.ndarray, shares: np.ndarray, weight: np.ndarray | None
) -> dict[str, float]:
    """Metrics of the probabilities (N,) of a label; one that all rows have, or none, has no AUC."""
    measured = _of_classes(target, np.stack([1 - shares, shares], axis=1), weight)
    f1_score = scikit_learn("metrics").f1_score
    f1 = f1_score(target, shares > 0.5, zero_division=0, sample_weight=weight)
    kept = ("accuracy", "log_loss", "auc")
    return {"f1": float(f1), **{name: measured[name] for name in kept if name in measured}}


def _of_quantities(
    target: np.ndarray, found: np.ndarray, weight: np.ndarray | None
) -> dict[str, float]:
    """R², and errors in the target's units, averaged over outputs; NaN where one is not finite."""
    if not np.isfinite(found).all():
        return dict.fromkeys(("mae", "rmse", "r2"), np.nan)
    metrics = scikit_learn("metrics")
    rows = {"sample_weight": weight}
    measured = {
        "mae": float(metrics.mean_absolute_error(target, found, **rows)),
        "rmse": float(metrics.root_mean_squared_error(target, found, **rows)),
    }
    if len(target) > 1:
        origin = target[:1]  # so that the mean of a constant is it, without rounding
        measured["r2"] = float(metrics.r2_score(target - origin, found - origin, **rows))
    return measured
