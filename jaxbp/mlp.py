"""The multilayer perceptron: forward propagate and store, backpropagate the errors, contract.

    a⁽ˡ⁾ = W⁽ˡ⁾ z⁽ˡ⁻¹⁾ + b⁽ˡ⁾,  z⁽ˡ⁾ = h(a⁽ˡ⁾)        forward, storing z and h'(a)
    δ⁽ˡ⁾ = h'(a⁽ˡ⁾) ⊙ (W⁽ˡ⁺¹⁾ᵀ δ⁽ˡ⁺¹⁾)                 backward, from the head's error
    W̄⁽ˡ⁾ = Σₙ δₙ⁽ˡ⁾ zₙ⁽ˡ⁻¹⁾ᵀ,  b̄⁽ˡ⁾ = Σₙ δₙ⁽ˡ⁾          gradient ∂L/∂W, ∂L/∂b = δ × input

In the code an example is a row: Wz reads ``z @ W.T`` and Wᵀδ ``delta @ W``, in ``products``.  After
Rumelhart, Hinton and Williams (1986) and Bishop (2006), section 5.3.  forward broadcasts the
parameters over the batch axes, so the gradients sum over them.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxbp.activations import Activation
from jaxbp.model import MLP, Deltas, Layer, Params, Residual, Residuals, checked_input, units_of
from jaxbp.products import affine, is_on_one_device, product, sum_of_outer_products, times_slope

_AT_ONCE = 2**24  # numbers of a layer, in a part of many rows


def forward(model: MLP, params: Params, x: ArrayLike) -> tuple[Array, Residuals]:
    """Step 1, forward propagate *and store*: x (B, D) -> logits (B, K) and a residual a layer.

    Raises TypeError for an invalid model, ValueError where params or x do not fit its sizes.
    """
    units, z = units_of(model), checked_input(model, params, x)
    residuals = []
    for layer, unit in zip(params, units, strict=True):
        z = z.astype(layer.weight.dtype)
        a = affine(layer, z)  # a = W z + b
        h, slope = _value_and_slope(unit, a.astype(z.dtype))  # h(a), h'(a)
        residuals.append(Residual(input=z, slope=slope))
        z = h
    return a, tuple(residuals)


def backward(params: Params, residuals: Residuals, error: Array) -> Deltas:
    """Step 3, backpropagate: error (B, K) = ∂L/∂logits -> δ (B, O) = ∂L/∂a of every layer.

    δ⁽ˡ⁾ = h'(a⁽ˡ⁾) ⊙ (W⁽ˡ⁺¹⁾ᵀ δ⁽ˡ⁺¹⁾), that is δⱼ = h'(aⱼ) Σₖ δₖ wₖⱼ (Bishop 2006, eq. 5.56).
    """
    deltas = [times_slope(residuals[-1].slope, error)]  # δ = h' ⊙ error
    for above, residual in zip(params[:0:-1], residuals[-2::-1], strict=True):
        back = product(deltas[-1], above.weight, error)  # Wᵀ δ of the layer above
        deltas.append(times_slope(residual.slope, back))  # δ = h' ⊙ Wᵀ δ
    return tuple(reversed(deltas))


def gradients(residuals: Residuals, deltas: Deltas, dtype: DTypeLike | None = None) -> Params:
    """Step 4, gradient = δ × input: W̄ = Σₙ δₙ zₙᵀ, b̄ = Σₙ δₙ (Bishop 2006, eq. 5.53), in dtype."""
    layers = []
    for residual, delta in zip(residuals, deltas, strict=True):
        z = residual.input
        weight = sum_of_outer_products(delta, z, dtype)  # Σₙ δₙ zₙᵀ
        bias = jnp.sum(delta, range(delta.ndim - 1), dtype)  # Σₙ δₙ
        layers.append(Layer(weight, bias))
    return tuple(layers)


def predict(model: MLP, params: Params, x: ArrayLike) -> Array:
    """ŷ, the head's output unit on the logits: values, probabilities or rates; (B, D) -> (B, K).

    Many rows on one device go through the network in parts, of which the activations take up to 64
    MiB a layer; under trace, as in ``jax.jit``, they go at once.
    """
    in_parts = is_on_one_device(x)
    logits = logits_in_parts(model, params, x) if in_parts else forward(model, params, x)[0]
    return model.head.predict(logits)


def logits_in_parts(model: MLP, params: Params, x: ArrayLike) -> Array:
    """The logits (B, K) of rows (B, D), as by ``forward``, so many at once as memory is bounded."""
    z, rows = checked_input(model, params, x), max(1, _AT_ONCE // max(model.sizes))
    if z.ndim != 2 or len(z) <= rows:
        return forward(model, params, z)[0]
    logits: Array = jax.lax.map(lambda row: forward(model, params, row)[0], z, batch_size=rows)
    return logits


def _value_and_slope(unit: Activation, a: Array) -> tuple[Array, Array]:
    pair = unit(a)
    if not isinstance(pair, tuple):
        raise TypeError(f"activation: {unit} gives no (h, slope); jaxbp.with_slope makes one")
    return pair
