"""Per example: gradients, norms and moments of single examples, from (z, δ) of one backward pass.

    gₙ = ∂Lₙ/∂W + l2·W,  ∂Lₙ/∂W = δₙ zₙᵀ,  ∂Lₙ/∂b = δₙ      the gradient of one example
    ∇E = Σₙ shareₙ gₙ,  shareₙ = wₙ / Σ w                   their mean is the batch's

gₙ is the gradient of the objective of a batch of example n alone.  An example's weight says how
often it counts: it does not change gₙ, only its share in every mean.  An example is a row of x,
which has the axes (B, D), or (D,) for one example; with more axes it would not be clear what counts
as an example, and all functions here raise ValueError.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbp.curvature import hessian_vector_product
from jaxbp.gradient import Batch, example_shares, per_example_pass
from jaxbp.initialisation import check_key
from jaxbp.mlp import gradients
from jaxbp.model import (
    MLP,
    Deltas,
    Layer,
    Params,
    Residual,
    Residuals,
    penalised,
    penalty,
    with_penalty,
)
from jaxbp.products import outer_products, product
from jaxbp.targets import numbers
from jaxbp.trees import check_bools, wide_enough

Reduction = Literal["mean", "sum"]
MaxNorm = float | Sequence[float] | Array  # of the whole gradient, or of every layer's


def per_example_gradients(model: MLP, params: Params, batch: Batch) -> Params:
    """gₙ = δₙ zₙᵀ + l2·W and δₙ of every layer: the tree of params with leading axes (B,).

    They take B times the memory of a gradient; the functions below find norms, clipped sums and
    moments without forming them.
    """
    _, residuals, deltas = _pass(model, params, batch)
    pairs = zip(residuals, deltas, strict=True)
    data = tuple(Layer(outer_products(d, r.input), d) for r, d in pairs)
    return with_penalty(model, params, data)


def per_example_norms(model: MLP, params: Params, batch: Batch, per_layer: bool = False) -> Array:
    """‖gₙ‖ (B,), biases and penalty included, or with per_layer that of every layer (B, L).

    ‖gₙ‖² = Σ ‖δₙ‖² (‖zₙ‖² + 1) + 2 l2 δₙᵀ W zₙ + l2² ‖W‖² over layers (Goodfellow 2015, eq. 4, for
    l2 = 0): no gradient is formed.

    >>> from jaxbp import activations, heads
    >>> model = MLP((2, 1), activations.identity, heads.linear_half_squared_error)
    >>> params = (Layer(weight=jnp.zeros((1, 2)), bias=jnp.zeros(1)),)
    >>> batch = Batch(x=jnp.array([[2.0, 2.0], [0.0, 0.0]]), target=jnp.array([[1.0], [5.0]]))
    >>> per_example_norms(model, params, batch).tolist()
    [3.0, 5.0]
    """
    check_bools(per_layer=per_layer)
    _, residuals, deltas = _pass(model, params, batch)
    squares = _squared_norms(residuals, deltas)
    if penalised(model):
        squares = squares + _squares_of_penalty(model.l2, params, residuals, deltas)
    squares = squares if per_layer else jnp.sum(squares, axis=-1)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


# Clipped, and noisy


def clipped_gradient(
    model: MLP,
    params: Params,
    batch: Batch,
    max_norm: MaxNorm,
    per_layer: bool = False,
    *,
    reduction: Reduction = "mean",
) -> tuple[Array, Params]:
    """The objective, and the mean (or sum) of the examples' gradients, none longer than max_norm.

    Σₙ shareₙ cₙ ∂Lₙ/∂W + l2·W with cₙ = min(1, C / ‖∂Lₙ‖): the norms are known from (z, δ), so the
    δₙ are scaled by cₙ and contracted.  That is one backward pass, where others take two or keep
    every gradient (Abadi et al. 2016, algorithm 1; Goodfellow 2015; Lee and Kifer 2021).

    model, params, batch: as for ``backprop``; an example's weight is its share in the mean.
    max_norm: C > 0, the largest norm of an example's gradient; with per_layer also (L,).  With ∞
        nothing is clipped.
    per_layer: whether each layer's part is clipped by itself; False unless given.
    reduction: "mean", or "sum", which is B times the mean, and zeros for an empty batch.

    The penalty belongs to no example and is added unclipped.
    ``functools.partial(clipped_gradient, max_norm=1.0)`` is a ``gradient=`` for ``fit``.  Raises
    ValueError where max_norm is not positive, or has neither one entry nor one a layer, and for the
    mean of an empty batch.
    """
    check_bools(per_layer=per_layer)
    _check_reduction(reduction)
    loss, residuals, deltas = _pass(model, params, batch)
    squares = _squared_norms(residuals, deltas)
    squares = squares if per_layer else jnp.sum(squares, axis=-1, keepdims=True)
    bounds = _bounds(max_norm, per_layer, len(params)).astype(squares.dtype)
    bounds = jnp.broadcast_to(bounds, squares.shape)  # (B, L), or (B, 1)
    share = _shares(batch, loss, reduction)
    tiny = jnp.finfo(squares.dtype).tiny  # type: ignore[no-untyped-call]
    norms = jnp.sqrt(jnp.maximum(squares, tiny))
    clipped = jnp.minimum(1, bounds / norms)
    factors = share[..., None] * clipped.astype(share.dtype)
    scaled = tuple(
        delta * factors[..., index if per_layer else 0, None] for index, delta in enumerate(deltas)
    )
    grads = with_penalty(model, params, gradients(residuals, scaled))
    value = jnp.sum(share * loss) + penalty(model, params)
    return value, grads if reduction == "mean" else _scaled(loss.size, grads)


def noisy_clipped_gradient(
    model: MLP,
    params: Params,
    batch: Batch,
    max_norm: MaxNorm,
    per_layer: bool = False,
    *,
    noise_multiplier: float | Array,
    key: Array,
    reduction: Reduction = "mean",
) -> tuple[Array, Params]:
    """``clipped_gradient`` with normal noise: the gradient of differentially private SGD.

    The noise has the standard deviation noise_multiplier · S, where S = C · maxₙ shareₙ is the
    distance that the clipped mean moves when one example's gradient is replaced by 0 and the
    divisor stays: C/B where weights are equal (per layer, C is the root of the sum of the layers'
    C²).  That is the Gaussian mechanism (Abadi et al. 2016, algorithm 1), for batches whose size is
    not secret; rows padded with a weight of 0 would change the divisor, so do not pad here.  The
    sum's noise is B times that, noise_multiplier · C where weights are equal, and so for an empty
    batch too: a step on no example must not be told from another.

    model, params, batch, max_norm, per_layer, reduction: as for ``clipped_gradient``.
    noise_multiplier: the noise relative to S, at least 0.
    key: of this step; ``fit`` gives another one at every step.

    ``partial(noisy_clipped_gradient, max_norm=1.0, noise_multiplier=1.1)`` is a ``gradient=`` for
    ``fit``.  The returned loss is of the data, and not private.  An accountant, such as the package
    dp-accounting, computes the total privacy cost of the steps; mind what it assumes about how
    minibatches are drawn: ``fit`` shuffles.
    Raises ValueError as ``clipped_gradient`` does, for a negative noise_multiplier, and for a
    max_norm of ∞.
    """
    check_bools(per_layer=per_layer)
    check_key(key)
    _real("noise_multiplier", noise_multiplier)
    if not _known(noise_multiplier, 0) >= 0:
        raise ValueError(f"noise_multiplier: got {noise_multiplier}, expected at least 0")
    value, grads = clipped_gradient(model, params, batch, max_norm, per_layer, reduction=reduction)
    bounds = _bounds(max_norm, per_layer, len(params))
    if not np.all(np.isfinite(_known(max_norm, 1))):
        raise ValueError(f"max_norm: got {max_norm}, expected finite numbers, as noise is in them")
    bound = jnp.linalg.norm(jnp.broadcast_to(bounds, len(params) if per_layer else 1))
    share = _shares(batch, jnp.ones(jnp.shape(batch.x)[:-1], value.dtype), reduction)
    largest = jnp.max(share) if share.size else jnp.ones((), share.dtype)
    if reduction == "sum" and share.size:
        largest = share.size * largest
    scale = (noise_multiplier * bound).astype(share.dtype) * largest
    leaves, tree = jax.tree.flatten(grads)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + scale * jax.random.normal(leaf_key, leaf.shape, leaf.dtype)
        for leaf, leaf_key in zip(leaves, keys, strict=True)
    ]
    return value, cast(Params, jax.tree.unflatten(tree, noisy))


# Moments


class Moments(NamedTuple):
    """Moments of the examples' gradients, entry by entry: three trees like params."""

    mean: Params  # Σₙ shareₙ gₙ, the batch's gradient
    second_moment: Params  # Σₙ shareₙ gₙ²
    variance: Params  # Σₙ shareₙ (gₙ - mean)²: over B, not B - 1


def gradient_moments(model: MLP, params: Params, batch: Batch) -> Moments:
    """Mean, second moment and variance of every entry of gₙ over the examples of a batch.

    The data's second moment is Σₙ shareₙ (δₙ²)(zₙ²)ᵀ, one contraction more and no gradient of an
    example (Dangel et al. 2020, table 1).  The variance is the batch's own, divided by B; times
    B / (B - 1) it estimates that of the examples' distribution.  It is computed as second moment
    minus mean²; in float32 nothing but rounding is left where the mean is 1000 times the spread.
    """
    loss, residuals, deltas = _pass(model, params, batch)
    share = example_shares(batch, loss)
    mean = weighted_gradients(share, residuals, deltas)
    squared = tuple(Residual(residual.input**2, residual.slope) for residual in residuals)
    second = weighted_gradients(share, squared, tuple(delta**2 for delta in deltas))
    variance = jax.tree.map(lambda m, s: jnp.maximum(s - m**2, 0), mean, second)
    mean = with_penalty(model, params, mean)
    return Moments(mean, jax.tree.map(lambda m, v: m**2 + v, mean, variance), variance)


def signal_to_noise(model: MLP, params: Params, batch: Batch) -> Params:
    """|mean| / √variance of every entry of gₙ; 0 where the mean is 0.

    The ratio says how clearly the examples agree on an entry: the mean over B of them is known to
    1 / (√B · ratio) of itself.  Where all examples agree it is infinite, or large: rounding may be
    left of their variance, as ``gradient_moments`` says.
    """

    def ratio(mean: Array, variance: Array) -> Array:
        return jnp.where(mean == 0, 0, _ratio_or_inf(jnp.abs(mean), jnp.sqrt(variance)))

    moments = gradient_moments(model, params, batch)
    return cast(Params, jax.tree.map(ratio, moments.mean, moments.variance))


class NoiseScale(NamedTuple):
    """How noisy the gradient of a minibatch is, as the batch size at which noise equals signal."""

    simple: Array  # tr Σ / |G|², infinite where the noise of this batch hides G altogether
    curved: Array | None  # tr(HΣ) / GᵀHG, H the Hessian; None without a key
    signal: Array  # |G|², unbiased: |∇E|² - tr Σ / B, which can come out negative
    noise: Array  # tr Σ, unbiased


def gradient_noise_scale(
    model: MLP, params: Params, batch: Batch, *, key: Array | None = None, probes: int = 16
) -> NoiseScale:
    """tr Σ / |G|², Σ the covariance of the gₙ and G their mean, and with a key tr(HΣ) / GᵀHG.

    Both estimators of McCandlish et al. (2018): the simple one (eq. 2.9; unbiased as in appendix
    A.1, with batches of one example and of B) and the one that weighs directions by their curvature
    (eq. 2.8), whose trace is estimated along random probes Σₙ √shareₙ εₙ (gₙ - G).

    model, params, batch: as for ``backprop``; at least two examples.
    key: for the probes; without it the second estimator is left out.
    probes: number of probes, 16 unless given.

    To choose a batch size: well below the noise scale twice the batch is almost twice the progress
    a step; well above it, almost none.  At the noise scale a run takes twice the fewest possible
    steps, and twice the fewest examples (section 2.3).  It grows as the loss falls, so measure it
    after some training, on a batch large enough that signal is clearly positive.  Raises ValueError
    for a batch of less than two examples of a weight above 0, and for less than one probe.
    """
    loss, residuals, deltas = _pass(model, params, batch)
    if loss.size < 2:
        raise ValueError(
            f"x: got shape {jnp.shape(batch.x)}, expected at least two examples, for their "
            "gradients to differ"
        )
    if batch.weight is not None and np.count_nonzero(_known(batch.weight, np.nan) > 0) == 1:
        raise ValueError("weight: got one example with all of it, expected at least two")
    share = example_shares(batch, loss)
    others = 1 - jnp.sum(share**2)
    correction = 1 / jnp.where(others > 0, others, jnp.nan)  # B / (B - 1) where weights are equal
    data = weighted_gradients(share, residuals, deltas)
    square = jnp.sum(share * jnp.sum(_squared_norms(residuals, deltas), axis=-1))
    noise = correction * jnp.maximum(square - _dot(data, data), 0)
    grads = with_penalty(model, params, data)
    signal = _dot(grads, grads) - noise * jnp.sum(share**2)
    simple = _ratio_or_inf(noise, signal)
    if key is None:
        return NoiseScale(simple, None, signal, noise)
    if probes < 1:
        raise ValueError(f"probes: got {probes}, expected at least 1")
    times_hessian = partial(hessian_vector_product, model, params, batch)

    def probe(probe_key: Array) -> Array:
        signs = jnp.sqrt(share) * jax.random.rademacher(probe_key, share.shape, share.dtype)
        factors = signs - share * jnp.sum(signs)  # so that every gₙ is taken less their mean
        along = weighted_gradients(factors, residuals, deltas)
        return _dot(along, times_hessian(along))

    trace = correction * jnp.mean(jax.lax.map(probe, jax.random.split(key, probes)))
    slope = _dot(grads, times_hessian(grads)) - trace * jnp.sum(share**2)  # unbiased, as signal is
    return NoiseScale(simple, _ratio_or_inf(trace, slope), signal, noise)


# Contractions of (z, δ)


def _pass(model: MLP, params: Params, batch: Batch) -> tuple[Array, Residuals, Deltas]:
    """``per_example_pass`` of examples that are rows.  Raises ValueError where x has more axes."""
    if jnp.ndim(batch.x) > 2:
        raise ValueError(f"x: got shape {jnp.shape(batch.x)}, expected (B, D), an example a row")
    return per_example_pass(model, params, batch)


def _shares(batch: Batch, loss: Array, reduction: Reduction) -> Array:
    """The examples' shares of the mean; none for the sum over an empty batch."""
    return example_shares(batch, loss) if loss.size or reduction == "mean" else loss


def weighted_gradients(factors: Array, residuals: Residuals, deltas: Deltas) -> Params:
    """Σₙ cₙ δₙ zₙᵀ and Σₙ cₙ δₙ of every layer, for one factor (B,) an example."""
    return gradients(residuals, tuple(factors[..., None] * delta for delta in deltas))


def _squared_norms(residuals: Residuals, deltas: Deltas) -> Array:
    """‖δₙ‖² (‖zₙ‖² + 1) of every layer, (B, L): the squared norm of δₙ zₙᵀ and of δₙ.

    It is summed in float32 or wider, because squares soon overflow in half precision.
    """
    wide = wide_enough(deltas[0])
    squares = [
        jnp.sum(delta.astype(wide) ** 2, axis=-1)
        * (jnp.sum(residual.input.astype(wide) ** 2, axis=-1) + 1)
        for residual, delta in zip(residuals, deltas, strict=True)
    ]
    return jnp.stack(squares, axis=-1)


def _squares_of_penalty(l2: float, params: Params, residuals: Residuals, deltas: Deltas) -> Array:
    """2 l2 ⟨δₙ zₙᵀ, W⟩ + l2² ‖W‖² of every layer, (B, L): what l2·W adds to a squared norm."""
    added = [
        2 * l2 * jnp.sum(delta * product(residual.input, layer.weight.T, delta), axis=-1)
        + l2**2 * jnp.sum(layer.weight**2)
        for layer, residual, delta in zip(params, residuals, deltas, strict=True)
    ]
    return jnp.stack(added, axis=-1)


def _ratio_or_inf(a: Array, b: Array) -> Array:
    """a / b, infinite where b is not positive."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), jnp.inf)


def _dot(a: Params, b: Params) -> Array:
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), a, b)
    return jnp.sum(jnp.stack(jax.tree.leaves(products)))


def _scaled(factor: float, tree: Params) -> Params:
    return cast(Params, jax.tree.map(lambda leaf: factor * leaf, tree))


def _check_reduction(reduction: Reduction) -> None:
    if reduction not in {"mean", "sum"}:
        raise ValueError(f"reduction: got {reduction!r}, expected 'mean' or 'sum'")


def _bounds(max_norm: MaxNorm, per_layer: bool, layers: int) -> Array:
    bounds = _real("max_norm", max_norm)
    shapes = [(), (layers,)] if per_layer else [()]
    if bounds.shape not in shapes:
        expected = "one number" + (f", or one for each of {layers} layers" if per_layer else "")
        raise ValueError(f"max_norm: got shape {bounds.shape}, expected {expected}")
    if not np.all(_known(max_norm, 1) > 0):
        raise ValueError(f"max_norm: got {max_norm}, expected more than 0")
    return bounds


def _real(name: str, value: Any) -> Array:
    """An argument as an array of floats.  Raises TypeError for a truth value, and for text."""
    array = numbers(name, value)
    if array.dtype == bool:
        raise TypeError(f"{name}: got {value!r}, expected a number")
    return array.astype(jnp.result_type(float))


def _known(value: Any, otherwise: float) -> np.ndarray:
    """A value to check, which a traced one cannot be."""
    try:
        return np.asarray(value, float)
    except jax.errors.TracerArrayConversionError:
        return np.asarray(otherwise)
