"""Products: what the equations multiply, in which dtype they sum it, and on which devices.

In mixed precision alone the dtypes differ: factors (W, z, h', δ) have the weights' dtype, sums
(Wz + b, Wᵀδ, W̄, b̄) the biases'.  See ``precision``.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from jaxbp.model import Layer


def affine(layer: Layer, z: Array) -> Array:
    """a = W z + b for every row of z: (B, I) -> (B, O), in the dtype of b."""
    bias = jnp.expand_dims(layer.bias, range(z.ndim - 1))  # rows, for jax_numpy_rank_promotion
    return product(z, layer.weight.T, layer.bias) + bias


def product(a: Array, b: Array, like: Array) -> Array:
    """a b, multiplied in the dtype that both have and summed in like's."""
    return jnp.matmul(a, b, preferred_element_type=like.dtype)


def times_slope(slope: Array, back: Array) -> Array:
    """h' ⊙ back, rounded once, to the dtype of h': a factor of the products that follow."""
    return (slope.astype(back.dtype) * back).astype(slope.dtype)


def sum_of_outer_products(delta: Array, z: Array, dtype: DTypeLike | None = None) -> Array:
    """Σₙ δₙ zₙᵀ, (B, O) and (B, I) -> (O, I), summed in dtype.

    Where the rows are sharded over a mesh with Explicit axes, JAX asks how the sum is to be: as its
    own derivative has it, sharded as the units are, the devices' parts added up.
    """
    sharding, units = None, jax.typeof(delta).sharding
    if not units.mesh.empty:
        axes = units.spec[-1], jax.typeof(z).sharding.spec[-1]  # of O and I
        sharding = NamedSharding(units.mesh, PartitionSpec(*axes))  # type: ignore[no-untyped-call]
    return jnp.einsum(
        "...o,...i->oi", delta, z, preferred_element_type=dtype, out_sharding=sharding
    )
