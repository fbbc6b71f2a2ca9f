"""Each activation against an independent formula, its slope against differentiation."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from combinations import ACTIVATIONS, REFERENCES, cpu_compiler
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

import jaxbp
from jaxbp import activations, heads

pytestmark = pytest.mark.usefixtures("strict")

#: (value, slope) in numpy and scipy, each of them accurate on both sides of 0
FORMULAS = {
    "identity": lambda a: (a, np.ones_like(a)),
    "sigmoid": lambda a: (special.expit(a), special.expit(a) * special.expit(-a)),
    "tanh": lambda a: (np.tanh(a), 1 / np.cosh(np.clip(a, -300, 300)) ** 2),
    "relu": lambda a: (np.maximum(a, 0), np.where(a > 0, 1.0, 0.0)),
    "leaky_relu": lambda a: (np.where(a > 0, a, 0.01 * a), np.where(a > 0, 1.0, 0.01)),
    "elu": lambda a: (
        np.where(a > 0, a, np.expm1(np.minimum(a, 0))),
        np.exp(np.minimum(a, 0)),
    ),
    "softplus": lambda a: (np.logaddexp(a, 0), special.expit(a)),
    "gelu": lambda a: (
        a * special.ndtr(a),
        special.ndtr(a) + a * np.exp(-(a**2) / 2) / np.sqrt(2 * np.pi),
    ),
    "silu": lambda a: (
        a * special.expit(a),
        special.expit(a) * (1 + a * special.expit(-a)),
    ),
    "with_slope(sin)": lambda a: (np.sin(a), np.cos(a)),
}
#: every magnitude from 1e-6 to 1e4, both signs, and 0
WIDE = np.concatenate([-np.logspace(4, -6, 301), [0.0], np.logspace(-6, 4, 301)])


@cache
def evaluated(dtype):
    """The pairs of all activations there, and of a NaN at the end, by one program."""
    with jax.enable_x64(dtype == "float64"):
        a = np.append(WIDE, np.nan).astype(dtype)
        pairs = jax.jit(lambda a: {name: unit(a) for name, unit in ACTIVATIONS.items()})(a)
        return jax.tree.map(np.asarray, pairs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value_and_slope_up_to_ten_thousand(name, dtype):
    expected = FORMULAS[name](np.float64(WIDE.astype(dtype)))
    for result, right in zip(evaluated(dtype)[name], expected, strict=True):
        assert result.dtype == dtype
        assert np.isfinite(result[:-1]).all()
        resolution = 32 * np.finfo(dtype).eps
        np.testing.assert_allclose(result[:-1], right, rtol=resolution, atol=resolution)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_low_precision_stays_low_and_finite(name, dtype):
    expected = FORMULAS[name](np.float64(WIDE.astype(dtype)))
    for result, right in zip(evaluated(dtype)[name], expected, strict=True):
        assert result.dtype == dtype
        assert np.isfinite(result[:-1]).all()
        resolution = 8 * float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(np.float64(result[:-1]), right, rtol=resolution, atol=resolution)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_nan_is_not_hidden(name):
    h, _ = evaluated("float32")[name]
    assert np.isnan(h[-1])


def slope_of(fn):
    """By jax.grad, everywhere at once."""
    return jax.grad(lambda a: jnp.sum(fn(a)))


@cache
def slopes():
    """By hand, and by jax.grad of jax.nn's function and of our own, by one program."""
    drawn = np.random.default_rng(0).uniform(-1e4, 1e4, size=100)
    points = np.concatenate([WIDE, drawn, drawn / 1e3])

    @jax.jit
    def all_of(a):
        return {
            name: (unit(a)[1], slope_of(REFERENCES[name])(a), slope_of(lambda a: unit(a)[0])(a))  # noqa: B023
            for name, unit in ACTIVATIONS.items()
        }

    with jax.enable_x64(True):
        return points, jax.tree.map(np.array, all_of(points))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slope_is_the_derivative_of_jax_nns_function_and_of_our_own(name):
    points, all_slopes = slopes()
    slope, of_jax, of_ours = all_slopes[name]
    if name == "leaky_relu":
        of_jax[points == 0] = 0.01  # jax.nn's slope there is 1, the lectures' and ours α
    for derivative in (of_jax, of_ours):
        np.testing.assert_allclose(slope, derivative, rtol=1e-13, atol=1e-14)


def test_slopes_at_the_kink():
    zero = jnp.zeros(())
    assert activations.relu(zero) == (0, 0)
    assert activations.leaky_relu(zero, alpha=0.25) == (0, 0.25)
    assert activations.elu(zero, k=2.0) == (0, 2)


@given(alpha=st.sampled_from([0, 0.01, 0.3, 1]), a=st.floats(-10, 10, allow_subnormal=False))
def test_leaky_relu_takes_its_parameter(alpha, a):
    with jax.enable_x64(True):
        h, slope = activations.leaky_relu(jnp.asarray(a), alpha=alpha)
        assert h == (a if a > 0 else alpha * a)
        assert slope == (1 if h > 0 else alpha)


@given(k=st.sampled_from([0, 0.5, 1, 3]), a=st.floats(-10, 10, allow_subnormal=False))
def test_elu_takes_its_parameter(k, a):
    with jax.enable_x64(True):
        h, slope = activations.elu(jnp.asarray(a), k=k)
        np.testing.assert_allclose(h, a if a > 0 else k * np.expm1(a), rtol=1e-14, atol=1e-300)
        np.testing.assert_allclose(slope, 1 if a > 0 else k * np.exp(a), rtol=1e-9)


@pytest.mark.parametrize("value", [-0.1, np.nan])
def test_parameters_out_of_range(value):
    for name, activation in {"alpha": activations.leaky_relu, "k": activations.elu}.items():
        with pytest.raises(ValueError, match=f"{name}: got {value}, expected at least 0"):
            activation(jnp.zeros(3), **{name: value})


def test_with_slope_makes_an_activation_of_any_function():
    softsign = jaxbp.with_slope(lambda a: a / (1 + jnp.abs(a)))
    a = jnp.array([-3.0, -0.5, 2.0])
    np.testing.assert_allclose(softsign(a)[1], 1 / (1 + jnp.abs(a)) ** 2, rtol=1e-6)
    assert jaxbp.with_slope(jnp.sin) is jaxbp.with_slope(jnp.sin)  # so jit compiles once
    assert jaxbp.with_slope(jnp.sin).__name__ == "sin"


def test_with_slope_refuses_what_is_not_elementwise():
    with pytest.raises(ValueError, match=r"fn: maps \(3,\) to \(\), expected an elementwise"):
        jaxbp.with_slope(jnp.sum)(jnp.ones(3))


@pytest.mark.slow
@cpu_compiler
@pytest.mark.parametrize(
    ("name", "arrays"),
    [(name, 1) for name in ("sigmoid", "tanh", "relu", "leaky_relu", "elu", "softplus")]
    + [("silu", 2), ("gelu", 3)],
)
def test_xla_keeps_no_more_arrays_a_layer_than_it_must(name, arrays):
    """Where the slope is written in terms of the output, the output is all that is kept.  Read off
    the compiled program for 8 hidden layers, with one array's room for the recursion's own."""
    if jax.config.read("jax_disable_most_optimizations"):
        pytest.skip("a claim about XLA's optimisations, which are off")
    depth, width, rows = 8, 128, 1024
    model = jaxbp.MLP((width,) * (depth + 2), ACTIVATIONS[name], heads.linear_squared_error)
    params = jax.eval_shape(lambda key: jaxbp.init(key, model), jax.random.key(0))
    batch = jaxbp.Batch(np.ones((rows, width), "f4"), np.ones((rows, width), "f4"))
    compiled = jax.jit(jaxbp.backprop, static_argnums=0).lower(model, params, batch).compile()
    if (analysis := compiled.memory_analysis()) is None:
        pytest.skip("this backend does not analyse its memory")
    kept = analysis.temp_size_in_bytes / (rows * width * 4)
    assert kept < arrays * depth + 3
