"""The check before training: whether backprop is the gradient of this network on these data."""

from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console

from jaxbp.checking import central_difference, compare
from jaxbp.cli.plan import Plan
from jaxbp.gradient import Batch, autodiff, backprop, objective
from jaxbp.memory import memory_shortage_named
from jaxbp.model import MLP, Params

TRUSTED = 1e-3  # float32 rounding stays far below, a wrong formula far above
_COPIES = 9  # of the parameters in float64: what checking a large network's gradient takes
_LARGE = 2e6  # parameters, from which on one direction is measured rather than eight


def checked_gradient(plan: Plan, params: Params, console: Console) -> dict[str, float]:
    """Check the gradient and print its relative errors; none where memory has no room for that."""
    copies = [np.broadcast_to(0.0, (_COPIES, *leaf.shape)) for leaf in jax.tree.leaves(params)]
    try:
        with memory_shortage_named(copies):
            errors = cross_check(plan.model, params, plan.to_fit)
    except MemoryError:
        console.print("gradient check: left out, as its copies in float64 do not fit into memory")
        return {}
    console.print(
        f"gradient check: relative error {errors['jax_grad']:.0e} against jax.grad, "
        f"{errors['finite_differences']:.0e} against finite differences",
        soft_wrap=True,
    )
    return errors


def cross_check(model: MLP, params: Params, batch: Batch) -> dict[str, float]:
    """Measure the relative error of backprop on the first rows, in two ways.

    "jax_grad" is the error against jax.grad in the parameters' own dtype, "finite_differences" that
    against central differences in float64.  These are measured with biases off 0: where all ReLUs
    of a layer are dead, those of the next would stand on their kink, where a difference is none.
    """
    first = jax.tree.map(lambda array: np.asarray(array[:32]), batch)
    with jax.default_matmul_precision("highest"):
        by_autodiff = compare(*_both_gradients(model, params, first))
    draw = np.random.default_rng(0).normal  # on the host: cheaper than to compile a generator
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    count = 8 if size <= _LARGE else 1  # each is as large as the parameters
    with jax.enable_x64(True):
        params = tuple(
            each._replace(bias=each.bias + draw(0, 0.01, each.bias.shape)) for each in params
        )
        exact = jax.tree.map(_in_float64, (params, first))
        along = jax.tree.map(lambda leaf: draw(size=(count, *leaf.shape)), params)
        by_differences = compare(*_both_slopes(model, *exact, along))
    return {
        "jax_grad": by_autodiff.relative_error,
        "finite_differences": by_differences.relative_error,
    }


@partial(jax.jit, static_argnums=0)
def _both_gradients(model: MLP, params: Params, batch: Batch) -> tuple[Params, Params]:
    """The gradient by hand, and by jax.grad."""
    return backprop(model, params, batch)[1], autodiff(model, params, batch)[1]


@partial(jax.jit, static_argnums=0)
def _both_slopes(
    model: MLP, params: Params, batch: Batch, directions: Params
) -> tuple[jax.Array, jax.Array]:
    """The slope ⟨∇E, d⟩ along several directions d, by hand, and by differences."""
    _, grads = backprop(model, params, batch)

    def both(direction: Params) -> tuple[jax.Array, jax.Array]:
        unit = optax.tree.scale(1 / optax.tree.norm(direction), direction)
        measured = central_difference(lambda p: objective(model, p, batch), params, unit, 1e-5)
        return optax.tree.vdot(grads, unit), measured

    return jax.vmap(both)(directions)


def _in_float64(array: Any) -> np.ndarray:
    values: np.ndarray = np.asarray(array)
    return np.asarray(values, np.float64 if values.dtype.kind == "f" else None)
