"""Metrics: the loss on a batch, and accuracy or R²."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxbp import heads
from jaxbp.gradient import Batch, backprop, example_shares
from jaxbp.heads import Head
from jaxbp.mlp import logits_in_parts
from jaxbp.model import MLP, Params, penalty
from jaxbp.precision import matmul_precision
from jaxbp.same_program import compiled_for_each, known
from jaxbp.training.checks import checked_batch
from jaxbp.training.constants import with_l2, without_l2
from jaxbp.training.device import wait_for
from jaxbp.training.pieces import are_the_packages, traced
from jaxbp.training.stacks import laid_out
from jaxbp.training.streams import Batches, Stream


class Evaluation(NamedTuple):
    """The loss and the metric of a network on a batch."""

    loss: float  # the objective, L2 included
    metric: float  # accuracy in [0, 1] where the head decides, else R² ≤ 1


def evaluate(
    model: MLP, params: Params, batch: Batch | Stream, *, precision: str | None = None
) -> Evaluation:
    """The objective on a batch, and the accuracy or R² of its predictions.

    Accuracy where the head decides between classes: the share of rows (for sigmoid units: of
    outputs) whose decision is the target's.  Else R² = 1 - Σ(t - ŷ)² / Σ(t - t̄)², averaged over
    outputs; an output whose target never varies counts 1 if it is met exactly and 0 if not.  Both
    are weighted like the loss.  precision is that of products, as for ``fit``.  A stream of batches
    (see ``jaxbp.training.streams``) is read once, and the two numbers are those of all its rows.
    Raises ValueError where the batch does not fit the model.
    """
    if not isinstance(batch, Batch):
        batches = Batches(batch, "batch", epoch=None, epochs=1)
        check_metric(model, params, batches.checked_first(model, params), precision)
        return evaluation_over(model, params, batches, precision, None)(params)
    batch = checked_batch(model, params, batch, "batch")
    check_metric(model, params, batch, precision)
    return compiled_evaluation(model, params, batch, precision)


def metric_name(head: Head) -> str:
    """The metric that ``evaluate`` measures for a head: "accuracy" or "r2"."""
    return "r2" if head.decide is None else "accuracy"


def loss_and_metric(
    model: MLP, params: Params, batch: Batch, precision: str | None
) -> tuple[Array, Array]:
    """The two numbers of an ``Evaluation``, to be compiled."""
    value, logits, share = _objective(model, params, batch, precision)
    prediction, target = model.head.predict(logits), jnp.asarray(batch.target)
    if model.head.decide is None:
        return value, _r2(prediction, target, share)
    return value, _accuracy(model.head.decide, prediction, target, _weights(batch, share))


def _objective(
    model: MLP, params: Params, batch: Batch, precision: str | None
) -> tuple[Array, Array, Array]:
    """E(W), as ``jaxbp.objective`` has it, the logits (B, K), and the examples' shares (B,)."""
    with matmul_precision(precision):
        logits = logits_in_parts(model, params, batch.x)
    loss, _ = model.head.loss(logits, batch.target)
    share = example_shares(batch, loss)
    return jnp.sum(share * loss) + penalty(model, params), logits, share


def evaluation_of(
    of: tuple[MLP, str | None], l2: Array | None, params: Params, batch: Batch
) -> tuple[Array, Array]:
    """``loss_and_metric`` of a model, its l2 apart, at a precision."""
    model, precision = of
    return loss_and_metric(with_l2(model, l2), params, batch, precision)


_compiled = compiled_for_each(evaluation_of)


def check_metric(model: MLP, params: Params, batch: Batch, precision: str | None) -> None:
    """Raise TypeError or ValueError where the head's predict or decide do not give a metric.

    The arguments are those of ``compiled_evaluation``, which is traced and not run.
    """
    if _is_the_packages(model):
        return
    with traced("head: its predict or decide"):
        model, l2 = without_l2(model, params)
        jax.eval_shape(partial(evaluation_of, (model, precision)), l2, params, batch)


def compiled_evaluation(
    model: MLP, params: Params, batch: Batch, precision: str | None
) -> Evaluation:
    """``evaluate`` on a batch that is checked already, and on the device."""
    return evaluation_on(model, params, batch, precision)(params)


def evaluation_on(
    model: MLP, params: Params, batch: Batch, precision: str | None
) -> Callable[[Params], Evaluation]:
    """``compiled_evaluation`` as a function of params like these."""
    compiled = _of_model(_compiled, evaluation_of, model, params, batch, precision)

    def evaluation(params: Params) -> Evaluation:
        loss, metric = compiled(params, batch)
        return Evaluation(loss=float(loss), metric=float(metric))

    return evaluation


def evaluation_over(
    model: MLP, params: Params, batches: Batches, precision: str | None, mesh: Mesh | None
) -> Callable[[Params], Evaluation]:
    """``evaluation_on`` over the batches of a stream, of which each call reads all, on the devices
    of a mesh where there is one."""
    bare, _ = without_l2(model, params)  # for the checks, as l2 may be an array
    rows = batches.checked_first(bare, params)
    compiled = _of_model(_compiled_part, part_of, model, params, rows, precision)

    def evaluation(params: Params) -> Evaluation:
        whole, running = _Whole(), None
        for batch in laid_out(batches.epoch(None, bare, params), mesh, "validation"):
            begun = compiled(params, batch)
            if running is not None:
                whole.add(running)
            running = begun
        assert running is not None
        whole.add(running)
        return Evaluation(loss=whole.loss, metric=whole.metric)

    return evaluation


def _of_model(
    compiled: Callable[[Any], Callable[..., Any]],
    function: Callable[..., Any],
    model: MLP,
    params: Params,
    batch: Batch,
    precision: str | None,
) -> Callable[[Params, Batch], Any]:
    """A compiled function of params and rows: that of a model, at a precision, with its l2 given.

    compiled: makes it of the model without its l2 and the precision.
    function: that is compiled.
    model: that it is for; one of other pieces than the package's is looked up by what it does.
    params, batch: like those that it will be called with.
    precision: of the products.
    """
    bare, l2 = without_l2(model, params)
    piece = bare, precision
    same = piece if _is_the_packages(model) else known(piece, function, l2, params, batch)
    return partial(compiled(same), l2)


class _Part(NamedTuple):
    """The share of one batch in the evaluation of all."""

    weight: Array  # Σₙ wₙ
    loss: Array  # the objective
    accuracy: Array | None  # where the head decides
    moments: "_Moments | None"  # else


class _Moments(NamedTuple):
    """Statistics of each output, over the rows of a batch that have a weight."""

    low: Array  # of the targets
    high: Array
    mean: Array
    total: Array  # mean of (t - t̄)²
    unexplained: Array  # mean of (t - ŷ)²


def part_of(of: tuple[MLP, str | None], l2: Array | None, params: Params, batch: Batch) -> _Part:
    """The share of a batch, by a model, its l2 apart, at a precision."""
    model, precision = of
    value, logits, share = _objective(with_l2(model, l2), params, batch, precision)
    prediction, target = model.head.predict(logits), jnp.asarray(batch.target)
    weight = len(batch.x) if batch.weight is None else jnp.sum(batch.weight)
    weight = jnp.asarray(weight, value.dtype)
    if model.head.decide is None:
        return _Part(weight, value, None, _moments(prediction, target, share))
    weights = _weights(batch, share)
    return _Part(weight, value, _accuracy(model.head.decide, prediction, target, weights), None)


_compiled_part = compiled_for_each(part_of)


class _Whole:
    """The evaluation of the batches so far, in float64 (Chan, Golub and LeVeque 1983)."""

    def __init__(self) -> None:
        self._weight = self._loss = self._accuracy = 0.0
        self._moments: Any = None

    def add(self, part: _Part) -> None:
        """Add a batch, for whose numbers the device is waited for."""
        wait_for(part)
        weight, loss, accuracy, moments = jax.tree.map(lambda leaf: np.asarray(leaf, float), part)
        if not weight:
            return
        before, self._weight = self._weight, self._weight + weight
        share = weight / self._weight
        self._loss += share * (loss - self._loss)
        if accuracy is not None:
            self._accuracy += share * (accuracy - self._accuracy)
        elif self._moments is None:
            self._moments = moments
        else:
            so_far, off = self._moments, moments.mean - self._moments.mean
            self._moments = _Moments(
                low=np.minimum(so_far.low, moments.low),
                high=np.maximum(so_far.high, moments.high),
                mean=so_far.mean + share * off,
                total=so_far.total
                + share * (moments.total - so_far.total)
                + share * (before / self._weight) * off**2,
                unexplained=so_far.unexplained + share * (moments.unexplained - so_far.unexplained),
            )

    @property
    def loss(self) -> float:
        """The objective."""
        return float(self._loss)

    @property
    def metric(self) -> float:
        """Accuracy or R²."""
        return float(self._accuracy if self._moments is None else _explained(self._moments))


def _is_the_packages(model: MLP) -> bool:
    return are_the_packages(model, backprop) and model.head in heads.BY_NAME.values()


def _objective_of(
    of: tuple[MLP, str | None], l2: Array | None, params: Params, batch: Batch
) -> Array:
    model, precision = of
    return _objective(with_l2(model, l2), params, batch, precision)[0]


_compiled_objective = compiled_for_each(_objective_of)


def compiled_objective(model: MLP, params: Params, batch: Batch, precision: str | None) -> float:
    """The loss of ``compiled_evaluation`` alone, for a head whose metric is asked for nowhere."""
    model, l2 = without_l2(model, params)
    return float(_compiled_objective((model, precision))(l2, params, batch))


def _weights(batch: Batch, share: Array) -> Array:
    """The examples' weights (B,), 1 where there are none, in the dtype of their shares or wider."""
    dtype = jnp.promote_types(share.dtype, jnp.float32)
    if batch.weight is None:
        return jnp.ones_like(share, dtype)
    return jnp.asarray(batch.weight, dtype)


def _accuracy(
    decide: Callable[[Array], Array], prediction: Array, target: Array, weights: Array
) -> Array:
    """The share of right decisions: of equal weights one count divided by another."""
    decision = decide(prediction)
    label = decide(target) if target.shape == prediction.shape else target
    if decision.shape != label.shape or decision.shape[:1] != weights.shape:
        raise ValueError(
            f"head: it decides by an array of shape {decision.shape}, expected one or more labels "
            f"for each of {len(weights)} rows, as {target.shape} targets have"
        )
    correct = decision == label
    outputs = correct.size // len(weights)
    wrong = jnp.sum(~correct, axis=range(weights.ndim, correct.ndim), dtype=weights.dtype)
    total = jnp.sum(weights) * outputs
    # Without the barrier XLA multiplies by the inverse of a constant, which rounds twice.
    total = jax.lax.optimization_barrier(total)  # type: ignore[no-untyped-call]
    right = jnp.maximum(total - jnp.sum(weights * wrong), 0)  # all right is 1 exactly
    return jnp.where(total == 0, 1, right / jnp.where(total == 0, 1, total))


def _r2(prediction: Array, target: Array, share: Array) -> Array:
    if prediction.shape != target.shape:
        raise ValueError(
            f"head: it predicts an array of shape {prediction.shape}, for {target.shape} targets; "
            "a head for classes needs a function decide"
        )
    explained: Array = _explained(_moments(prediction, target, share))
    return explained


def _moments(prediction: Array, target: Array, share: Array) -> _Moments:
    share = jnp.expand_dims(share, range(1, target.ndim))  # beside (B, K), or (B,)
    mean = jnp.sum(share * target, axis=0, keepdims=True)
    return _Moments(
        low=jnp.min(jnp.where(share > 0, target, jnp.inf), axis=0),
        high=jnp.max(jnp.where(share > 0, target, -jnp.inf), axis=0),
        mean=mean[0],
        total=jnp.sum(share * (target - mean) ** 2, axis=0),
        unexplained=jnp.sum(share * (target - prediction) ** 2, axis=0),
    )


def _explained(moments: _Moments) -> Any:
    """R², averaged over outputs, by JAX or NumPy."""
    numeric = jnp if isinstance(moments.low, Array) else np
    varies, unexplained = moments.low < moments.high, moments.unexplained
    explained = 1 - unexplained / numeric.where(varies, moments.total, 1)
    met = (unexplained == 0).astype(explained.dtype)
    return numeric.mean(numeric.where(varies, explained, met))
