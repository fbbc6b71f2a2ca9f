"""Reported bugs: gradients that were wrong in public projects, each beside the right one.

Every case is rebuilt from what a public report says, as small as it can be, in code of our own.
``benchmarks/checkers.py`` asks several checkers about both gradients, in float64 and in float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gradient_bugs import Case, bfloat16_product, softplus


class Reported(NamedTuple):
    """A reported bug: its source, and its right and its wrong gradient as functions of a dtype."""

    source: str
    right: Callable[[Any], Case]
    wrong: Callable[[Any], Case]


def normal(*shape: int, dtype: Any, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def with_rules(
    forward: Callable[..., Any], right: Callable[..., Any], wrong: Callable[..., Any], use: Any
) -> tuple[Any, Any]:
    """Two cases of a function with its own backward pass, one right and one wrong.

    forward: the function of one array.
    right, wrong: its backward passes, (x, cotangent) -> cotangent of x.
    use: (function, dtype) -> the Case that calls it.
    """

    def case(backward: Callable[..., Any]) -> Callable[[Any], Case]:
        rule = jax.custom_vjp(forward)
        rule.defvjp(lambda x: (forward(x), x), lambda x, c: (backward(x, c).astype(x.dtype),))
        return lambda dtype: use(rule, dtype)

    return case(right), case(wrong)


def at(*entries: float, outer: Callable[..., Any] = lambda y: y) -> Callable[..., Case]:
    """The sum of a function at these entries, as a Case."""
    return lambda rule, dtype: Case(lambda x: jnp.sum(outer(rule(x))), (np.array(entries, dtype),))


# The value of a rule


def arcsine(value: Callable[..., Any]) -> Callable[[Any], Case]:
    """arcsin by a rule with the right slope, which returns a value of its own."""
    rule = jax.custom_jvp(jnp.arcsin)
    rule.defjvp(lambda p, t: (value(*p), t[0] / jnp.sqrt(1 - p[0] ** 2)))
    return lambda dtype: at(0.5, -0.3)(rule, dtype)


# One exact point


def softplus_case(grads: Any) -> Callable[[Any], Case]:
    """A logistic loss whose logit is exactly 0 for one of three rows."""

    def make(dtype: Any) -> Case:
        x = np.array([[1.0, -1], [0.3, 0.8], [-0.5, 0.1]], dtype)
        return Case(lambda w: jnp.sum(softplus(x @ w)), (np.array([0.7, 0.7], dtype),), grads(x))

    return make


def rotation(w: Any, sine: Any, cosine: Any) -> Any:
    """exp of a rotation vector: I + sin θ/θ K + (1 - cos θ)/θ² K², with these two quotients."""
    a, b, c = w
    k = jnp.array([[0, -c, b], [c, 0, -a], [-b, a, 0]])
    return jnp.sum((sine * k + cosine * k @ k) * jnp.arange(1.0, 10).reshape(3, 3) ** 2)


def by_safe_norm(w: Any) -> Any:
    """At 0 the norm is replaced by 1, and K with it by 0."""
    square = jnp.sum(w**2)
    theta = jnp.sqrt(jnp.where(square == 0, 1, square))
    unit = jnp.where(square == 0, 0, w / theta)
    return rotation(unit, jnp.sin(theta), 1 - jnp.cos(theta))


def by_series(w: Any) -> Any:
    square = jnp.sum(w**2)
    return rotation(w, 1 - square / 6 + square**2 / 120, 1 / 2 - square / 24)


def guarded_sinc(x: Any) -> Any:
    """sin(πx)/πx, with 1 at 0."""
    safe = jnp.where(x == 0, 1.0, x)
    return jnp.where(x == 0, 1.0, jnp.sin(jnp.pi * safe) / (jnp.pi * safe))


def second_derivative(sinc: Callable[..., Any]) -> Callable[[Any], Case]:
    """The slope of sinc's slope at 0, which is -π²/3."""
    return lambda dtype: Case(jax.grad(sinc), (np.array(0.0, dtype),))


def weighted_logsumexp(gradient: Any) -> Callable[[Any], Case]:
    """log Σ b exp(a) by its weights, two of which are 0."""

    def make(dtype: Any) -> Case:
        a, b = normal(4, dtype=dtype), np.array([0.5, 0.0, 1.2, 0.0], dtype)
        return Case(lambda b: jnp.log(jnp.sum(b * jnp.exp(a))), (b,), lambda b: gradient(a, b))

    return make


def power(gradient: Any) -> Callable[[Any], Case]:
    """x^y by x, at 0 to the power of 2, of 1 and of 3."""

    def make(dtype: Any) -> Case:
        y = np.array([2.0, 1.0, 3.0], dtype)
        return Case(lambda x: jnp.sum(x**y), (np.zeros(3, dtype),), lambda x: gradient(x, y))

    return make


# Narrow arithmetic


def product(factor: float) -> Callable[[Any], Case]:
    """A product of bfloat16 matrices, whose backward pass is in bfloat16 too."""
    x, w = normal(8, 6, dtype=jnp.bfloat16), normal(6, 4, dtype=jnp.bfloat16, seed=1)
    return lambda _: Case(lambda x: bfloat16_product(factor)(x, w), (x,))


# Rules that lose or gain a factor


def entmax(x: Any) -> Any:
    """1.5-entmax, p = max(0, x/2 - τ)² with τ such that p adds up to 1 (Peters et al. 2019)."""

    def halve(_: int, ends: Any) -> Any:
        lower, upper = ends
        middle = (lower + upper) / 2
        above = jnp.sum(jnp.maximum(x / 2 - middle, 0) ** 2) > 1
        return jnp.where(above, middle, lower), jnp.where(above, upper, middle)

    highest = jnp.max(x) / 2
    lower, upper = jax.lax.fori_loop(0, 60, halve, (highest - 1, highest))
    return jnp.maximum(x / 2 - (lower + upper) / 2, 0) ** 2


def of_entmax(x: Any, cotangent: Any) -> Any:
    root = jnp.sqrt(entmax(x))
    return root * (cotangent - jnp.sum(root * cotangent) / jnp.sum(root))


def cube_root(sign: float) -> Callable[[Any], Case]:
    """The root of y³ + y = a, differentiated implicitly."""

    def newton(a: Any) -> Any:
        return jax.lax.fori_loop(0, 40, lambda _, y: y - (y**3 + y - a) / (3 * y**2 + 1), a / 2)

    rules = with_rules(
        newton, lambda a, c: sign * c / (3 * newton(a) ** 2 + 1), lambda a, c: c, at(0.4, 1.3, -2.0)
    )
    return rules[0]


def triangular(mask: bool) -> Callable[[Any], Case]:
    """A solve with the lower triangle of a matrix, by that matrix."""

    def gradient(matrix: Any, right: Any) -> Any:
        y = jax.scipy.linalg.solve_triangular(matrix, right, lower=True)
        back = jax.scipy.linalg.solve_triangular(matrix, jnp.cos(y), lower=True, trans=1)
        full = -jnp.outer(back, y)
        return jnp.tril(full) if mask else full

    def make(dtype: Any) -> Case:
        matrix = normal(3, 3, dtype=dtype) + 2 * np.eye(3, dtype=dtype)
        right = normal(3, dtype=dtype, seed=1)

        def f(matrix: Any) -> Any:
            return jnp.sum(jnp.sin(jax.scipy.linalg.solve_triangular(matrix, right, lower=True)))

        return Case(f, (matrix,), lambda matrix: gradient(matrix, right))

    return make


def eigenvector(factor: float) -> Callable[[Any], Case]:
    """The sum of the first eigenvector of a symmetric matrix, whose sign is LAPACK's choice."""

    def f(x: Any) -> Any:
        return jnp.sum(jnp.linalg.eigh((x + x.T) / 2)[1][:, 0] * jnp.arange(1.0, 4))

    def make(dtype: Any) -> Case:
        return Case(f, (normal(3, 3, dtype=dtype),), lambda x: factor * jax.grad(f)(x))

    return make


def linear_layer(wrong: bool) -> Callable[[Any], Case]:
    """x wᵀ by w; the wrong gradient divides each row of inputs by its square."""

    def make(dtype: Any) -> Case:
        x = normal(5, 3, dtype=dtype)

        def gradient(w: Any) -> Any:
            inputs = x / jnp.sum(x**2, axis=1, keepdims=True) if wrong else x
            return jnp.cos(x @ w.T).T @ inputs

        return Case(lambda w: jnp.sum(jnp.sin(x @ w.T)), (normal(2, 3, dtype=dtype),), gradient)

    return make


def tail(kept: int) -> Callable[[Any], Case]:
    """Many entries, of which the gradient's kernel computes the first ones only."""

    def make(dtype: Any) -> Case:
        x = normal(512, dtype=dtype)
        return Case(
            lambda x: jnp.sum(jnp.sin(x)),
            (x,),
            lambda x: jnp.where(jnp.arange(x.size) < kept, jnp.cos(x), 0),
        )

    return make


def tiny(factor: float) -> Callable[[Any], Case]:
    """A loss with gradients of 1e-9."""
    return lambda dtype: Case(
        lambda x: 1e-9 * jnp.sum(x**3), (normal(4, dtype=dtype),), lambda x: factor * 3e-9 * x**2
    )


def half_spectrum(x: Any, cotangent: Any) -> Any:
    """The adjoint of rfft: inner frequencies stand for two."""
    n = x.size
    spectrum = jnp.zeros(n, cotangent.dtype).at[: cotangent.size].set(cotangent)
    return jnp.real(jnp.fft.fft(spectrum))


SPECTRUM = with_rules(
    lambda x: jnp.fft.rfft(x),  # noqa: PLW0108, as a rule takes no other argument
    half_spectrum,
    lambda x, c: jnp.fft.irfft(jnp.conj(c), x.size) * x.size,
    at(0.3, -1.2, 0.8, 0.1, 0.5, -0.4, outer=lambda y: jnp.abs(y) ** 2),
)
ACTIVATION = with_rules(
    lambda x: x * jax.nn.sigmoid(2 * x),
    lambda x, c: c * jax.grad(lambda x: jnp.sum(x * jax.nn.sigmoid(2 * x)))(x),
    lambda x, c: jax.grad(lambda x: jnp.sum(x * jax.nn.sigmoid(2 * x)))(x),
    at(0.3, -1.2, 0.8, outer=jnp.sin),
)
ABSOLUTE = with_rules(
    jnp.abs,
    lambda x, c: c * jnp.sign(x),
    lambda x, c: c * jnp.where(x == 0, 2.0, jnp.sign(x)),
    at(0.0, 1.0),
)
ENTMAX = with_rules(
    entmax,
    of_entmax,
    lambda x, c: jnp.sqrt(entmax(x)) * c,
    at(0.3, -0.2, 0.8, 0.1, outer=lambda p: p * jnp.arange(4.0)),
)


REPORTED: dict[str, Reported] = {
    "arcsin's rule returns arccos": Reported(
        "google/brax PR 484", arcsine(jnp.arcsin), arcsine(jnp.arccos)
    ),
    "absolute value: slope 2 at 0": Reported("jax #12158", *ABSOLUTE),
    "softplus at a zero logit": Reported(
        "jax #2107",
        softplus_case(lambda x: lambda w: x.T @ jax.nn.sigmoid(x @ w)),
        softplus_case(lambda x: None),
    ),
    "logsumexp by weights of 0": Reported(
        "jax #22398",
        weighted_logsumexp(lambda a, b: jnp.exp(a) / jnp.sum(b * jnp.exp(a))),
        weighted_logsumexp(lambda a, b: jnp.where(b == 0, 0, jnp.exp(a) / jnp.sum(b * jnp.exp(a)))),
    ),
    "rfft without its weights": Reported("astro-informatics/s2fft #243", *SPECTRUM),
    "second derivative of sinc at 0": Reported(
        "jax #5054", second_derivative(jnp.sinc), second_derivative(guarded_sinc)
    ),
    "activation without its cotangent": Reported("pytorch #4355", *ACTIVATION),
    "backward pass in bfloat16": Reported("jax #7742", product(1.0), product(1.2)),
    "rows divided by their squares": Reported(
        "hrbigelow/transformer-aiayn", linear_layer(False), linear_layer(True)
    ),
    "entmax without its mean": Reported("deep-spin/entmax-jax PR 1", *ENTMAX),
    "rotation at the identity": Reported(
        "oarriaga/paz PR 383",
        lambda dtype: Case(by_safe_norm, (np.zeros(3, dtype),), jax.grad(by_series)),
        lambda dtype: Case(by_safe_norm, (np.zeros(3, dtype),)),
    ),
    "x^y at 0, logarithms in its rule": Reported(
        "pytorch #27134",
        power(lambda x, y: y * jnp.where(y == 1, 1, x)),
        power(lambda x, y: y * jnp.exp((y - 1) * jnp.log(x)) + 0 * jnp.log(x)),
    ),
    "implicit root: sign": Reported("google/jaxopt #141", cube_root(1.0), cube_root(-1.0)),
    "triangular solve without its mask": Reported("jax #1458", triangular(True), triangular(False)),
    "eigenvector: slope doubled": Reported("jax #7302", eigenvector(1.0), eigenvector(2.0)),
    "tiny gradient, 1 % off": Reported("NVIDIA/warp #508", tiny(1.0), tiny(1.01)),
    "last 8 of 512 entries dropped": Reported("jax #3130", tail(512), tail(504)),
}
