"""Activations: what a unit does with its pre-activation a, and how steeply.

Every activation is a plain function ``a -> (h, slope)``: its value h(a) together with exactly what
the backward pass needs, the derivative h'(a), both elementwise and of a's shape and dtype.  The
slope is written in terms of the *output* wherever the mathematics allows, as the lectures do
(tanh' = 1 - h²): XLA then keeps one array a layer for the backward pass instead of two.
A keyword is set once with ``functools.partial(leaky_relu, alpha=0.2)``.
"""

from collections.abc import Callable
from functools import cache, partial, update_wrapper
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxbp.pickling import by_name

Activation = Callable[[Array], tuple[Array, Array]]


def identity(a: Array) -> tuple[Array, Array]:
    """h = a, h' = 1: the linear unit (Bishop 2006, section 5.1)."""
    return a, jnp.ones_like(a)


def sigmoid(a: Array) -> tuple[Array, Array]:
    """h = 1 / (1 + e⁻ᵃ), h' = h (1 - h) ≤ ¼: saturates on both sides (Bishop 2006, eq. 5.6)."""
    h = jax.nn.sigmoid(a)
    return h, h * (1 - h)


def tanh(a: Array) -> tuple[Array, Array]:
    """h = tanh a = 2σ(2a) - 1, h' = 1 - h² ≤ 1 (LeCun et al. 1998, section 4.4)."""
    h = jnp.tanh(a)
    return h, 1 - h * h


def relu(a: Array) -> tuple[Array, Array]:
    """h = max(0, a), h' = 1 if a > 0 else 0; relu'(0) = 0, as in JAX (Nair and Hinton 2010)."""
    h = jnp.where(a <= 0, 0, a)  # a select, not a maximum: XLA keeps h alone; a NaN passes
    return h, (h > 0).astype(h.dtype)


def leaky_relu(a: Array, *, alpha: float = 0.01) -> tuple[Array, Array]:
    """h = a if a > 0 else αa, h' = 1 or α, for α ≥ 0 (Maas et al. 2013, section 2).

    h'(0) = α, as in the lectures; ``jax.nn`` has 1.  Raises ValueError for a negative α.
    """
    if not alpha >= 0:
        raise ValueError(f"alpha: got {alpha}, expected at least 0")
    h = jnp.where(a > 0, a, alpha * a)
    return h, jnp.where(h > 0, 1, alpha).astype(h.dtype)


def elu(a: Array, *, k: float = 1.0) -> tuple[Array, Array]:
    """h = a if a > 0 else k (eᵃ - 1), h' = 1 or h + k, for k ≥ 0 (Clevert et al. 2016, sec. 3).

    Raises ValueError for a negative k.
    """
    if not k >= 0:
        raise ValueError(f"k: got {k}, expected at least 0")
    h = jnp.where(a > 0, a, k * jnp.expm1(jnp.where(a > 0, 0, a)))  # inner select: no overflow
    return h, jnp.where(h > 0, 1, h + k)


def softplus(a: Array) -> tuple[Array, Array]:
    """h = ln(1 + eᵃ), h' = σ(a) = 1 - e⁻ʰ = 2t / (1 + t): the soft ReLU (Dugas et al. 2001)."""
    h = jnp.logaddexp(a, 0)  # of the larger and a negative exponent: no overflow
    t = jnp.tanh(h / 2)  # in whose terms 1 - e⁻ʰ keeps its digits, in less time than by expm1
    return h, 2 * t / (1 + t)


def gelu(a: Array) -> tuple[Array, Array]:
    """h = a Φ(a), h' = Φ(a) + a φ(a), with Φ the normal distribution and φ its density.

    This is the exact form, without the tanh approximation (Hendrycks and Gimpel 2016, section 2).
    """
    cdf = (1 + jax.lax.erf(a * 0.5**0.5)) / 2  # not erfc: XLA would keep two arrays a layer more
    return a * cdf, cdf + a * jnp.exp(-a * a / 2) * (2 * jnp.pi) ** -0.5


def silu(a: Array) -> tuple[Array, Array]:
    """h = a σ(a), h' = σ + h (1 - σ): swish with β = 1 (Elfwing et al. 2018, section 2)."""
    s = jax.nn.sigmoid(a)
    h = a * s
    return h, s + h * (1 - s)


#: the activations that a file or a command line can name
BY_NAME: dict[str, Activation] = {
    unit.__name__: unit
    for unit in (identity, sigmoid, tanh, relu, leaky_relu, elu, softplus, gelu, silu)
}


@cache  # the same fn gives the same activation
def with_slope(fn: Callable[[Array], Array]) -> Activation:
    """Make an activation of any elementwise JAX function: a -> (fn(a), fn'(a)), by ``jax.jvp``.

    fn must treat each entry of a on its own.  Raises ValueError where it changes the shape.

    >>> h, slope = with_slope(jnp.sin)(jnp.zeros(2))
    >>> h.tolist(), slope.tolist()
    ([0.0, 0.0], [1.0, 1.0])
    """
    return update_wrapper(_WithSlope(_with_slope, fn), fn)


class _WithSlope(partial[tuple[Array, Array]]):
    def __reduce__(self) -> tuple[Any, ...]:
        return with_slope, (by_name(self.args[0]),)


def _with_slope(fn: Callable[[Array], Array], a: Array) -> tuple[Array, Array]:
    h, slope = jax.jvp(fn, (a,), (jnp.ones_like(a),))
    if h.shape != a.shape:
        raise ValueError(f"fn: maps {a.shape} to {h.shape}, expected an elementwise function")
    return h, slope
