"""Checking: how far two gradients are apart, and what a derivative is when only values are asked.

    ∂E/∂w = (E(w + ε) - E(w - ε)) / 2ε + O(ε²)

Numerical differentiation is the judge because it shares nothing with either way of differentiating:
analytical derivatives, the lectures say, must be compared with it.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array

Tree = TypeVar("Tree")


def relative_error(claimed: Tree, reference: Tree) -> Array:
    """The largest ‖claimed - reference‖ / ‖reference‖ of any leaf, leaf by leaf, so that a small
    leaf is not drowned by a large one; where a reference is all zero, ‖claimed‖ itself.

    Raises ValueError where the trees differ in structure or in a leaf's shape.

    >>> print(relative_error({"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([3.0, 4.5])}).round(4))
    0.0925
    """
    shapes = [[leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (claimed, reference)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"claimed: got leaves of shapes {shapes[0]}, expected {shapes[1]}")

    def leaf_error(claimed: Array, reference: Array) -> Array:
        size = jnp.linalg.norm(reference.ravel())
        difference = jnp.linalg.norm((claimed - reference).ravel())
        return jnp.where(size == 0, difference, difference / size)

    errors = jax.tree.map(leaf_error, claimed, reference)
    return jnp.max(jnp.stack(jax.tree.leaves(errors)))


def central_difference(
    f: Callable[[Tree], Array], at: Tree, direction: Tree, step: float = 1e-6
) -> Array:
    """(f(at + ε d) - f(at - ε d)) / 2ε along a direction d: the slope ⟨∇f, d⟩ up to O(ε²).

    The best ε balances that against rounding in f, about the cube root of the dtype's resolution
    (Press et al. 2007, section 5.7): the default is for float64.

    >>> print(central_difference(jnp.sin, jnp.float32(0.0), jnp.float32(1.0), step=1e-2).round(4))
    1.0
    """

    def shifted(by: float) -> Array:
        return f(jax.tree.map(lambda leaf, d: leaf + by * d, at, direction))

    return jnp.asarray((shifted(step) - shifted(-step)) / (2 * step))
