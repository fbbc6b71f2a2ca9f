"""Pieces of your own: heads, activations and gradients, checked before they train.

Shapes and dtypes are checked while the network is traced, which compiles nothing.  Values are
compared once, and of no piece of the package, which its tests prove:

    activation   c h'(a) with the vector-Jacobian product of h along c, (B, O)
    head         cₙ δₙ with that of the losses along c, (B,); they with those of half the rows
    gradient     ∇E with ``autodiff`` and E with ``objective``, on the first minibatch

a, c and the logits are drawn at random, near 0 and farther out, so that no kink is met and an entry
or a row that depends on another one shows.  A relative error of √ε is rounding: 3e-4 in float32,
1.5e-8 in float64.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jaxbp import activations, heads
from jaxbp.activations import Activation
from jaxbp.gradient import Batch, Gradient, autodiff, backprop
from jaxbp.model import MLP, Params, units_of
from jaxbp.per_example import clipped_gradient, noisy_clipped_gradient
from jaxbp.precision import mixed_precision
from jaxbp.reprs import short
from jaxbp.same_program import compiled_for_each, known
from jaxbp.trees import named_leaves, shaped

Pairs = tuple[tuple[Any, Any], ...]  # of trees: what a piece claims, and what is right

_UNITS = {*activations.BY_NAME.values()}
_LOSSES = {head.loss for head in heads.BY_NAME.values()}
_GRADIENTS = {backprop, autodiff, clipped_gradient, noisy_clipped_gradient}
_SCALES = (1.0, 5.0)  # of what is drawn: some pieces change where a is large
_AS_IT_IS = "check=False trains with it as it is"


def held_to_shapes(model: MLP) -> MLP:
    """The model, whose head and activations raise where what they give has another shape."""
    units = tuple(partial(_checked_unit, unit) for unit in units_of(model)[:-1])
    head = model.head._replace(loss=partial(_checked_loss, model.head.loss))
    return model._replace(activation=units, head=head)


def are_the_packages(model: MLP, gradient: Gradient) -> bool:
    """Whether head, activations and gradient are those of the package, which are the same at every
    call."""
    units = set(units_of(model))
    return units <= _UNITS and model.head.loss in _LOSSES and gradient in _GRADIENTS


def looked_up(program: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """A ``Program`` to compile for: itself, if it is made of what is the same at every call, or has
    a kernel; else as it is known by ``function(program, *arguments)``."""
    ours = are_the_packages(program.model, program.gradient) and program.optimizer.lifted
    if ours or program.kernel is not None:
        return program
    return known(program, function, *arguments)


def check_pieces(
    model: MLP,
    params: Params | Callable[[], Params],
    batch: Batch,
    batch_size: int | None,
    gradient: Gradient,
    key: Array | None,
    dtype: DTypeLike,
) -> None:
    """Raise TypeError or ValueError for a piece that is not what it claims to be.

    model: its head and activations have the right shapes.
    params: at the start, or a function that draws them, called where they are needed.
    batch: all rows, on the device.
    batch_size: rows of the first minibatch; None: all.
    gradient: of the user's signature, before it is mixed with another dtype.
    key: for a gradient that draws at random, of which the values are not compared, as they differ
        at every draw; None for one that does not.
    dtype: of params.

    Nor are the values of a piece compared that JAX cannot differentiate in reverse.
    """
    widths = dict(zip(units_of(model)[:-1], model.sizes[1:], strict=False))
    units = {unit: width for unit, width in widths.items() if _innermost(unit) not in _UNITS}
    gradient = _innermost(gradient)
    own_loss, own_gradient = _innermost(model.head.loss) not in _LOSSES, gradient not in _GRADIENTS
    if not (units or own_loss or own_gradient):
        return
    batch = jax.tree.map(lambda array: jax.lax.slice_in_dim(array, 0, batch_size), batch)
    batch = batch._replace(x=batch.x.astype(dtype))
    tolerance = float(jnp.finfo(dtype).eps) ** 0.5  # type: ignore[no-untyped-call]
    rng, rows = np.random.default_rng(0), len(batch.x)

    def draw(*shape: int, scale: float = 1.0) -> Array:
        values = np.asarray(scale * rng.normal(size=shape)).astype(dtype)
        drawn: Array = jax.device_put(values)
        return drawn

    for unit, width in units.items():
        claim = f"activation: the slope of {short(unit)} is not the derivative of h, entry by entry"
        for scale in _SCALES:
            drawn = draw(8, width, scale=scale), draw(8, width)
            _compare(tolerance, {claim: "jax.grad"}, _activation_pairs, unit, *drawn)
    if own_loss:
        claim = "head: the error of its loss is not the derivative of the losses, row by row"
        for scale in _SCALES:
            given = draw(rows, model.sizes[-1], scale=scale), draw(rows), batch.target
            _compare(tolerance, {claim: "jax.grad"}, _head_pairs, model.head.loss, *given)
        claim = "head: the loss of a row depends on the other rows, or on how many there are"
        logits, by = draw(rows, model.sizes[-1]), "half the rows alone"
        _compare(tolerance, {claim: by}, _row_pairs, model.head.loss, logits, batch.target)
    if not own_gradient:
        return
    params = params() if callable(params) else params
    drawn_with = {} if key is None else {"key": shaped(key.shape, key.dtype)}
    check_gradient = partial(_checked_gradient, gradient, model)
    jax.eval_shape(check_gradient, params, batch, **drawn_with)
    if key is not None:
        return
    objective = "the objective on the first minibatch"
    claims = {
        f"gradient: {short(gradient)} is not the derivative of {objective}": "jax.grad "
        "(jaxbp.gradcheck tells more)",
        f"gradient: the loss of {short(gradient)} is not {objective}, the mean of the losses and "
        "½·l2·Σ‖W‖²": "jaxbp.objective",
    }
    with jax.default_matmul_precision("highest"):
        _compare(tolerance, claims, _gradient_pairs, (model, gradient), params, batch)


def _compare(
    tolerance: float,
    claims: dict[str, str],
    pairs: Callable[..., Pairs],
    piece: Any,
    *given: Any,
) -> None:
    """Raise ValueError where what a piece claims is not what JAX computes.

    tolerance: the relative error that rounding makes at most.
    claims: what is wrong with each pair, and by what it was found.
    pairs: of trees, what is claimed and what is right, by a piece and the given arguments.

    Nothing is compared where JAX cannot differentiate, nor an entry that it finds infinite.
    """
    try:
        compared = _compiled_pairs(pairs)(known(piece, pairs, *given))(*given)
    except (NotImplementedError, TypeError, ValueError):
        return
    for (wrong, by), pair in zip(claims.items(), compared, strict=True):
        error = _relative_error(*pair)
        if not error <= tolerance:
            raise ValueError(
                f"{wrong}: a relative error of {error:.1e} by {by}, where rounding makes at most "
                f"{tolerance:.0e}; {_AS_IT_IS}"
            )


_compiled_pairs = cache(compiled_for_each)


def _relative_error(claimed: Any, expected: Any) -> float:
    wide = [
        np.concatenate([np.ravel(leaf).astype(float) for leaf in jax.tree.leaves(tree)])
        for tree in (claimed, expected)
    ]
    claims, right = (values[np.isfinite(wide[1])] for values in wide)
    size, off = np.linalg.norm(right), np.linalg.norm(claims - right)
    return float(off / size) if size else float("inf") if off else 0.0


def _activation_pairs(unit: Activation, a: Array, along: Array) -> Pairs:
    _, pull = jax.vjp(lambda a: unit(a)[0], a)
    return ((along * unit(a)[1], pull(along)[0]),)


def _head_pairs(loss: Any, logits: Array, along: Array, target: Array) -> Pairs:
    _, pull = jax.vjp(lambda logits: loss(logits, target)[0], logits)
    return ((along[:, None] * loss(logits, target)[1], pull(along)[0]),)


def _row_pairs(loss: Any, logits: Array, target: Array) -> Pairs:
    half = (len(logits) + 1) // 2
    return ((loss(logits, target)[0][:half], loss(logits[:half], target[:half])[0]),)


def _gradient_pairs(pieces: tuple[MLP, Gradient], params: Params, batch: Batch) -> Pairs:
    model, gradient = pieces
    (value, grads), (objective, right) = (
        each(model, params, batch) for each in (gradient, autodiff)
    )
    return (grads, right), (value, objective)


def _innermost(piece: Any) -> Any:
    """A piece without keywords that are set, and a gradient without mixed precision."""
    while isinstance(piece, partial):
        piece = piece.func
    wrapped = getattr(piece, "__wrapped__", None)
    if callable(wrapped) and any(
        mixed_precision(wrapped, dtype) is piece for dtype in (jnp.bfloat16, jnp.float32)
    ):
        return _innermost(wrapped)
    return piece


# Shapes and dtypes


@contextmanager
def traced(what: str) -> Iterator[None]:
    """Raise TypeError, naming the piece, where it asks for numbers that are not there yet."""
    try:
        yield
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
        raise TypeError(
            f"{what} asks for the numbers of an array, as NumPy, float() and if do, but it is "
            "compiled before there are any; expected functions of jax.numpy alone, such as "
            "jnp.tanh and jnp.where"
        ) from error


def _checked_unit(unit: Activation, a: Array) -> tuple[Array, Array]:
    with traced(f"activation: {short(unit)}"):
        pair = unit(a)
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise TypeError(
            f"activation: {short(unit)} gives no (h, slope); jaxbp.with_slope makes one"
        )
    for what, values in zip(("h", "slope"), pair, strict=True):
        _check_array(f"activation: {what} of {short(unit)}", values, a.shape, a.dtype)
    return pair


def _checked_loss(loss: Any, logits: Array, target: Array) -> tuple[Array, Array]:
    with traced("head: its loss"):
        pair = loss(logits, target)
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise TypeError(
            f"head: its loss gives {_kind(pair)}, expected (loss, error); jaxbp.with_error makes a "
            "head of a loss alone"
        )
    _check_array("head: the loss", pair[0], logits.shape[:-1], logits.dtype)
    _check_array("head: the error", pair[1], logits.shape, logits.dtype)
    return pair[0], pair[1]


def _checked_gradient(
    gradient: Gradient, model: MLP, params: Params, batch: Batch, **key: Array
) -> tuple[Array, Params]:
    with traced(f"gradient: {short(gradient)}"):
        pair: Any = gradient(model, params, batch, **key)
    alone = str(jax.tree.structure(pair)) == str(jax.tree.structure(params))
    if alone or not isinstance(pair, tuple) or len(pair) != 2:
        got = "grads alone" if alone else _kind(pair)
        raise TypeError(f"gradient: got {got}, expected (loss, grads)")
    loss, grads = pair
    if not isinstance(loss, Array | np.ndarray | np.generic | float | int):
        raise TypeError(f"gradient: got a loss that is {_kind(loss)}, expected a number")
    if jnp.shape(loss) != ():
        raise ValueError(f"gradient: got a loss of shape {jnp.shape(loss)}, expected a number")
    got, expected = (str(jax.tree.structure(tree)) for tree in (grads, params))
    if got != expected:
        raise ValueError(f"gradient: got the tree {got}, expected that of params, {expected}")
    like = jax.tree.leaves(params)
    for (name, leaf), of in zip(named_leaves(grads, "grads").items(), like, strict=True):
        _check_array(f"gradient: {name}", leaf, of.shape, of.dtype)
    return pair[0], pair[1]


def _check_array(what: str, values: Any, shape: tuple[int, ...], dtype: Any) -> None:
    got = jnp.shape(values), jnp.result_type(values)
    if got != (shape, dtype):
        raise ValueError(
            f"{what}: got {got[1]} of shape {got[0]}, expected {dtype} of shape {shape}"
        )


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"an array of shape {shape}"
