"""Precision: what is multiplied in which dtype, and how exactly.

A product of float32 arrays is not everywhere a float32 product.  JAX's ``default_matmul_precision``
says how exact it is; ``fit(..., precision=)`` sets it for a run, by JAX's own names:

    device                    "default"                       "highest"
    CPU                       float32                         float32
    NVIDIA GPU from 2020 on   TF32, 10 binary digits of 23    float32
    TPU                       bfloat16, 7 binary digits       float32, by several products

Mixed precision goes further: what is kept for the backward pass is rounded as well.

    W, z, h'(a), δ              bfloat16: what is multiplied, and what is kept for the backward pass
    Wz + b, Wᵀδ, W̄, b̄           bfloat16 operands, summed in float32
    a, logits, loss, error      float32; a is rounded for the activation, δ for the next product
    master weights, l2, update  float32

``jaxbp.products`` decides it: what is multiplied has the weights' dtype, what is summed the
biases'.  So all that is done here is to round the weights and leave the biases as they are.
bfloat16 has float32's range, so that no δ underflows and no loss needs scaling; its 8 bits of
precision make an error of about 1 % in the gradient.  After Micikevicius et al. (2018), section 3.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, wraps
from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxbp.gradient import Batch, Gradient
from jaxbp.model import MLP, Layer, Params, penalty, with_penalty

_ambient = attrgetter("jax_default_matmul_precision")  # which JAX's older types do not know


def matmul_precision(precision: str | None) -> AbstractContextManager[None]:
    """The context in which products of float32 arrays have a precision, by JAX's name for it.

    None leaves it as the caller has it.  Raises ValueError for a name that JAX does not know.
    """
    if precision is None:
        return nullcontext()
    try:
        context: AbstractContextManager[None] = jax.default_matmul_precision(precision)
    except ValueError:
        raise ValueError(
            f"precision: got {precision!r}, expected a name of jax.default_matmul_precision, such "
            'as "default", "high" or "highest"'
        ) from None
    return context


def default_precision() -> str:
    """JAX's name for the precision that products have here, "default" unless it is set."""
    return str(_ambient(jax.config) or "default")


def mixed_precision(gradient: Gradient, compute_dtype: DTypeLike = jnp.bfloat16) -> Gradient:
    """A gradient like ``backprop`` or ``autodiff``, whose products run in compute_dtype.

    (model, params, batch) -> (loss, grads), both in params' dtype; the penalty ½·l2·Σ‖W‖² is of
    the weights as they are, not as rounded.  Raises ValueError for a compute_dtype other than
    bfloat16 and float32 (in float16 small δ would become zero), or wider than params'.

    >>> from jaxbp import activations, backprop, compare, heads
    >>> model = MLP((1, 1), activations.tanh, heads.linear_half_squared_error)
    >>> params, batch = (Layer(jnp.array([[1 / 3]]), jnp.zeros(1)),), Batch(jnp.ones((1, 1)), [[0]])
    >>> _, exact = backprop(model, params, batch)
    >>> _, rounded = mixed_precision(backprop)(model, params, batch)  # δ = ŷ, of 8 binary digits
    >>> print(f"{exact[0].bias.item():.6f} {rounded[0].bias.item():.6f}")
    0.333333 0.333984
    """
    try:
        dtype = jnp.dtype(compute_dtype)
    except TypeError:
        dtype = None
    if dtype not in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)):
        raise ValueError(f"compute_dtype: got {compute_dtype!r}, expected bfloat16 or float32")
    return _in_dtype(gradient, dtype)


@lru_cache(maxsize=64)  # the same gradient gives the same function, and jit compiles a model once
def _in_dtype(gradient: Gradient, dtype: Any) -> Gradient:
    @wraps(gradient)  # so that it is seen to take a key, where the gradient does
    def rounded(
        model: MLP, params: Params, batch: Batch, **keywords: Array
    ) -> tuple[Array, Params]:
        held = params[0].weight.dtype
        if dtype.itemsize > held.itemsize:
            raise ValueError(f"compute_dtype: got {dtype}, expected none wider than params' {held}")
        low = tuple(Layer(layer.weight.astype(dtype), layer.bias) for layer in params)
        loss, grads = gradient(model._replace(l2=0.0), low, batch, **keywords)
        grads = jax.tree.map(lambda grad, leaf: grad.astype(leaf.dtype), grads, params)
        return loss + penalty(model, params), with_penalty(model, params, grads)

    return rounded
