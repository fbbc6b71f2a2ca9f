"""The programs of the estimators: an epoch, an evaluation, the objective for L-BFGS, a prediction.

    E(W) = Σₙ wₙ Lₙ / Σₙ wₙ + ½·alpha·Σ‖W‖² / Σₙ wₙ        of a minibatch, wₙ = 1 without weights

That is scikit-learn's objective: the penalty is divided by the minibatch's rows, or their weights.
All numbers are arguments of the programs, so that another alpha or rate is no reason to compile.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.scipy.special import xlogy
from jax.typing import ArrayLike
from scipy import sparse

from jaxbp import activations, heads
from jaxbp.activations import Activation
from jaxbp.gradient import Batch, Gradient, backprop, example_shares
from jaxbp.heads import Head
from jaxbp.mlp import forward
from jaxbp.model import MLP, Layer, Params, penalty
from jaxbp.precision import mixed_precision
from jaxbp.same_program import compiled_for_each, known
from jaxbp.training.constants import Constants, with_l2
from jaxbp.training.dropout import with_dropout
from jaxbp.training.epoch import Program, epoch_key, one_epoch, repeated
from jaxbp.training.pieces import check_pieces

#: activations by scikit-learn's names, and by this package's
ACTIVATIONS: dict[str, Activation] = {"logistic": activations.sigmoid, **activations.BY_NAME}


def poisson_deviance(logits: Array, target: ArrayLike) -> tuple[Array, Array]:
    """Half the Poisson deviance, Σ (y ln y - y a - y + eᵃ); error eᵃ - y; counts y ≥ 0 (B, K)."""
    loss, error = heads.poisson(logits, target)
    y = jnp.asarray(target).astype(loss.dtype)
    return loss + jnp.sum(xlogy(y, y) - y, axis=-1), error


#: heads of the regressor, by the name of their loss
LOSSES: dict[str, Head] = {
    "squared_error": heads.linear_half_squared_error,
    "poisson": heads.exp_poisson._replace(loss=poisson_deviance),
    "huber": heads.linear_huber,
    "absolute_error": heads.linear_absolute_error,
}


_AT_ONCE = 4096  # rows
_OURS = {*activations.BY_NAME.values(), *heads.BY_NAME.values(), *LOSSES.values()}


class Weighted(NamedTuple):
    """The targets of examples and their weights, which are relative to the minibatch alone."""

    target: Any  # (B, K)
    weight: Any  # (B,); None: all equal


def batch_of(x: Any, target: Any, weight: Any) -> Batch:
    """Rows x (B, D) with their ``Weighted`` targets."""
    weighted: Any = Weighted(target, weight)
    return Batch(x, weighted)


@lru_cache(maxsize=64)  # the same gradient gives the same function, and an epoch is compiled once
def of_minibatch(gradient: Gradient, mean_of: int = 1) -> Gradient:
    """The gradient of scikit-learn's objective, of a batch whose target is ``Weighted``.

    The model's l2 is alpha.  The loss is divided by mean_of, and the gradient is not: scikit-learn
    reports the mean of squared errors over outputs, and descends along the gradient of their sum.
    """

    def weighted(model: MLP, params: Params, batch: Batch, **key: Array) -> tuple[Array, Params]:
        target, weight = batch.target
        total = len(batch.x) if weight is None else jnp.sum(weight)
        model = with_l2(model, jnp.where(total == 0, 0, model.l2 / total))
        loss, grads = gradient(model, params, Batch(batch.x, target, weight), **key)
        if mean_of > 1:
            added = penalty(model, params)
            loss = (loss - added) / mean_of + added
        return loss, grads

    return weighted


def gradient_of(estimator: Any, mean_of: int = 1) -> Gradient:
    """The gradient that an estimator's parameters ask for, as by ``of_minibatch``."""
    gradient = with_dropout(estimator.dropout)(backprop) if estimator.dropout else backprop
    if estimator.compute_dtype is not None:
        gradient = mixed_precision(gradient, estimator.compute_dtype)
    return of_minibatch(gradient, mean_of)


def is_ours(model: MLP) -> bool:
    """Whether activation and head are the same objects at every call."""
    return {model.activation, model.head} <= _OURS


def check_own_pieces(model: MLP, params: Params, batch: Batch, batch_size: int | None) -> None:
    """Raise TypeError or ValueError for an activation or a head that is not what it claims to be.

    model, params: of the network, at its start.
    batch: all rows, with ``Weighted`` targets.
    batch_size: rows of a minibatch; None: all.
    """
    if not is_ours(model):
        batch = Batch(batch.x, *batch.target)
        check_pieces(model, params, batch, batch_size, backprop, None, params[0].weight.dtype)


def _epochs(
    program: Program,
    params: Params,
    state: optax.OptState,
    batch: Batch,
    orders: Array,
    first: Array,
    count: Array,
    key: Array | None,
    constants: Constants,
) -> tuple[Params, optax.OptState, Array]:
    """Take the first so many of some epochs -> (params, state, their losses in front).

    program: without its constants.
    params, state: to start from, left as they are.
    batch: all N rows, on the device.
    orders: (epochs, N) row numbers.
    first: number of the first epoch, from 1.
    count: how many to take.
    key: for a random gradient; else None.
    constants: of the program.
    """
    given = program.given(constants)

    def epoch(place: Array, held: Any) -> tuple[Any, Array]:
        of_epoch = None if key is None else epoch_key(key, first + place)
        params, state = held
        params, state, loss, _ = one_epoch(given, params, state, batch, orders[place], of_epoch)
        return (params, state), loss

    empty = jnp.zeros(len(orders), params[0].weight.dtype)
    (params, state), losses = repeated(epoch, (params, state), empty, count)
    return params, state, losses


_compiled_epochs = compiled_for_each(_epochs)


def compiled_epochs(program: Program, *arguments: Any, ours: bool) -> Callable[..., Any]:
    """``_epochs`` of a program, for arguments like these.

    ours: whether all pieces are the same objects at every call.  Others are known by what they do.
    """
    run: Callable[..., Any] = _compiled_epochs(
        program if ours else known(program, _epochs, *arguments)
    )
    return run


def _evaluated(of: tuple[MLP, int], params: Params, batch: Batch) -> tuple[Array, Array]:
    """Predictions (B, K) and the mean loss, without penalty, of a batch with ``Weighted``."""
    model, mean_of = of
    target, weight = batch.target
    logits, _ = forward(model, params, batch.x)
    loss, _ = model.head.loss(logits, target)
    share = example_shares(batch._replace(weight=weight), loss)
    return model.head.predict(logits), jnp.sum(share * loss) / mean_of


_compiled_evaluation = compiled_for_each(_evaluated)


def evaluation(of: tuple[MLP, int], params: Params, batch: Batch) -> tuple[np.ndarray, float]:
    """``_evaluated`` of many rows, which may be sparse, in parts."""
    run, predicted, loss, total = _compiled_evaluation(of), [], 0.0, 0.0
    for start in range(0, batch.x.shape[0], _AT_ONCE):
        part = rows_of(batch, slice(start, start + _AT_ONCE))
        _, weight = part.target
        share = float(len(part.x) if weight is None else weight.sum())
        values, mean = run(params, part)
        predicted.append(np.asarray(values))
        loss, total = loss + share * float(mean), total + share
    return np.concatenate(predicted), loss / total if total else float("nan")


def rows_of(batch: Batch, chosen: Any) -> Batch:
    """Some rows of a batch, dense."""
    batch = jax.tree.map(lambda array: array[chosen], batch)
    return batch._replace(x=dense(batch.x))


def _objective(
    of: tuple[MLP, Gradient], packed: Array, alpha: Array, batch: Batch
) -> tuple[Array, Array]:
    """The objective and its gradient at packed parameters, all W (I, O) and then all b."""
    model, gradient = of
    params = unpacked(model.sizes, packed)
    loss, grads = gradient(with_l2(model, alpha), params, batch)
    parts = *(layer.weight.T for layer in grads), *(layer.bias for layer in grads)
    return loss, jnp.concatenate([jnp.ravel(part) for part in parts])


objective = compiled_for_each(_objective)


def packed(coefs: Any, intercepts: Any) -> np.ndarray:
    """The parameters as one vector of float64, all weights and then all biases."""
    return np.concatenate([np.ravel(part) for part in (*coefs, *intercepts)], dtype=np.float64)


def take(estimator: Any, params: Params) -> None:
    """Make an estimator's ``coefs_`` and ``intercepts_`` of params: arrays that may be written."""
    estimator.coefs_ = [np.array(np.asarray(layer.weight).T, order="C") for layer in params]
    estimator.intercepts_ = [np.array(layer.bias) for layer in params]


def params_of(coefs: Any, intercepts: Any) -> Params:
    """The parameters of weights (I, O) and biases."""
    return tuple(Layer(weight.T, bias) for weight, bias in zip(coefs, intercepts, strict=True))


def unpacked(sizes: tuple[int, ...], packed: Any) -> Params:
    """The parameters of what ``_objective`` packs."""
    shapes = [*pairwise(sizes), *((size,) for size in sizes[1:])]
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes])
    pieces = [
        packed[end - np.prod(shape, dtype=int) : end].reshape(shape)
        for shape, end in zip(shapes, ends.tolist(), strict=True)
    ]
    return params_of(pieces[: len(sizes) - 1], pieces[len(sizes) - 1 :])


def _prediction(model: MLP, coefs: Any, intercepts: Any, x: Array) -> Array:
    logits, _ = forward(model, params_of(coefs, intercepts), x)
    return model.head.predict(logits)


_compiled_prediction = compiled_for_each(_prediction)


def prediction(model: MLP, coefs: Any, intercepts: Any, x: Any) -> np.ndarray:
    """ŷ (N, K) in the dtype of coefs, of rows x (N, D), which may be sparse.

    Rows go in parts, each filled up to a power of two, so that few programs are compiled for any
    number of rows.
    """
    run, dtype, (count, width) = _compiled_prediction(model), coefs[0].dtype, x.shape
    predicted = np.empty((count, model.sizes[-1]), dtype)
    with jax.enable_x64(dtype == np.float64):
        for start in range(0, count, _AT_ONCE):
            rows = dense(x[start : start + _AT_ONCE])
            filled = np.zeros((1 << (len(rows) - 1).bit_length(), width), dtype)
            filled[: len(rows)] = rows
            found = np.asarray(run(coefs, intercepts, filled))
            predicted[start : start + _AT_ONCE] = found[: len(rows)]
    return predicted


def dense(x: Any) -> Any:
    """Rows as they are, or those of a sparse matrix as an array."""
    return x.toarray() if sparse.issparse(x) else x
