"""The multilayer perceptron: forward propagate and store, backpropagate the errors, contract.

    a⁽ˡ⁾ = W⁽ˡ⁾ z⁽ˡ⁻¹⁾ + b⁽ˡ⁾,  z⁽ˡ⁾ = h(a⁽ˡ⁾)        forward, storing z and h'(a)
    δ⁽ˡ⁾ = h'(a⁽ˡ⁾) ⊙ (W⁽ˡ⁺¹⁾ᵀ δ⁽ˡ⁺¹⁾)                 backward, from the head's error
    W̄⁽ˡ⁾ = Σₙ δₙ⁽ˡ⁾ zₙ⁽ˡ⁻¹⁾ᵀ,  b̄⁽ˡ⁾ = Σₙ δₙ⁽ˡ⁾          gradient ∂L/∂W, ∂L/∂b = δ × input

In the code an example is a row: Wz reads ``z @ W.T`` and Wᵀδ ``delta @ W``.  After Rumelhart,
Hinton and Williams (1986) and Bishop (2006), section 5.3.  The letters of every shape: B batch, D
inputs, I and O a layer's inputs and outputs, K outputs of the network.  For B, no axis or several
may stand as well: forward broadcasts the parameters over them, so the gradients sum over them.
What is multiplied (W, z, h', δ) has the weights' dtype, what is summed (Wz + b, Wᵀδ, W̄, b̄) the
biases': they differ in mixed precision alone.
"""

from itertools import pairwise
from numbers import Integral
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxbp.activations import Activation, identity
from jaxbp.heads import Head


class MLP(NamedTuple):
    """The network's description: no arrays, hashable, a static argument under ``jit``."""

    sizes: tuple[int, ...]  # (D, hidden..., K)
    activation: Activation | tuple[Activation, ...]  # of all hidden layers, or one each
    head: Head  # the output unit and its loss
    l2: float = 0.0  # adds ½·l2·Σ‖W‖² to the objective: weights, not biases


class Layer(NamedTuple):
    """The parameters of one layer; a network's are a tuple of them."""

    weight: Array  # (O, I): row k holds the weights into unit k
    bias: Array  # (O,)


class Residual(NamedTuple):
    """What the backward pass needs of one layer."""

    input: Array  # (B, I) z, what the layer's weights were multiplied with
    slope: Array  # (B, O) h'(a)


Params = tuple[Layer, ...]
Residuals = tuple[Residual, ...]
Deltas = tuple[Array, ...]  # (B, O) of every layer


def forward(model: MLP, params: Params, x: ArrayLike) -> tuple[Array, Residuals]:
    """Step 1, forward propagate *and store*: x (B, D) -> logits (B, K) and a residual a layer.

    Raises TypeError for what is no model, ValueError where params or x do not fit its sizes.
    """
    units, z = units_of(model), _checked_input(model, params, x)
    residuals = []
    for layer, unit in zip(params, units, strict=True):
        z = z.astype(layer.weight.dtype)
        a = jnp.matmul(z, layer.weight.T, preferred_element_type=layer.bias.dtype) + layer.bias
        pair = unit(a.astype(z.dtype))
        if not isinstance(pair, tuple):
            raise TypeError(f"activation: {unit} gives no (h, slope); jaxbp.with_slope makes one")
        h, slope = pair
        residuals.append(Residual(input=z, slope=slope))
        z = h
    return a, tuple(residuals)


def backward(params: Params, residuals: Residuals, error: Array) -> Deltas:
    """Step 3, backpropagate: error (B, K) = ∂L/∂logits -> δ (B, O) = ∂L/∂a of every layer.

    δ⁽ˡ⁾ = h'(a⁽ˡ⁾) ⊙ (W⁽ˡ⁺¹⁾ᵀ δ⁽ˡ⁺¹⁾), that is δⱼ = h'(aⱼ) Σₖ δₖ wₖⱼ (Bishop 2006, eq. 5.56).
    """
    deltas = [error.astype(residuals[-1].slope.dtype) * residuals[-1].slope]
    for above, residual in zip(params[:0:-1], residuals[-2::-1], strict=True):
        back = jnp.matmul(deltas[-1], above.weight, preferred_element_type=error.dtype)
        deltas.append((back * residual.slope.astype(back.dtype)).astype(residual.slope.dtype))
    return tuple(reversed(deltas))


def gradients(residuals: Residuals, deltas: Deltas, dtype: DTypeLike | None = None) -> Params:
    """Step 4, gradient = δ × input: W̄ = Σₙ δₙ zₙᵀ, b̄ = Σₙ δₙ (Bishop 2006, eq. 5.53), in dtype."""
    layers = []
    for residual, delta in zip(residuals, deltas, strict=True):
        z, axes = residual.input, range(delta.ndim - 1)
        weight = jnp.einsum("...o,...i->oi", delta, z, preferred_element_type=dtype)
        layers.append(Layer(weight, bias=jnp.sum(delta, axes, dtype)))
    return tuple(layers)


def predict(model: MLP, params: Params, x: ArrayLike) -> Array:
    """ŷ, the head's output unit on the logits: values, probabilities or rates; (B, D) -> (B, K)."""
    logits, _ = forward(model, params, x)
    return model.head.predict(logits)


def units_of(model: MLP) -> tuple[Activation, ...]:
    """One activation a layer; the last is linear, for the output unit belongs to the head."""
    if not isinstance(model, MLP):
        raise TypeError(f"model: got {type(model).__name__}, expected a jaxbp.MLP")
    sizes, activation, head, _ = model
    if not isinstance(head, Head):
        raise TypeError(f"head: got {head!r}, expected one of jaxbp.heads, or a jaxbp.Head")
    if not isinstance(sizes, tuple) or not all(isinstance(size, Integral) for size in sizes):
        raise TypeError(f"sizes: got {sizes!r}, expected a tuple of ints (D, hidden..., K)")
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes: got {sizes}, expected at least (D, K), every size positive")
    hidden = len(sizes) - 2
    units = activation if isinstance(activation, tuple) else (activation,) * hidden
    if not all(map(callable, units)):
        raise TypeError(f"activation: got {activation!r}, expected functions a -> (h, slope)")
    if len(units) != hidden:
        raise ValueError(f"activation: got {len(units)}, expected one, or {hidden} for {sizes}")
    return (*units, identity)


def _checked_input(model: MLP, params: Params, x: ArrayLike) -> Array:
    expected = [((o, i), (o,)) for i, o in pairwise(model.sizes)]
    shapes = [(jnp.shape(layer.weight), jnp.shape(layer.bias)) for layer in params]
    if shapes != expected:
        raise ValueError(f"params: got weights and biases {shapes}, expected {expected}")
    z = jnp.asarray(x)
    if z.shape[-1:] != model.sizes[:1]:
        raise ValueError(f"x: got shape {z.shape}, expected (..., {model.sizes[0]})")
    return z
