"""Products: what the equations multiply, in which dtype they sum it, and on which devices.

In mixed precision alone the dtypes differ: factors (W, z, h', δ) have the weights' dtype, sums
(Wz + b, Wᵀδ, W̄, b̄) the biases'.  See ``precision``.
"""

from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, reshard
from jax.typing import ArrayLike, DTypeLike

from jaxbp.model import Layer


def affine(layer: Layer, z: Array) -> Array:
    """a = W z + b for every row of z: (B, I) -> (B, O), in the dtype of b."""
    bias = jnp.expand_dims(layer.bias, range(z.ndim - 1))  # rows, for jax_numpy_rank_promotion
    return product(z, layer.weight.T, layer.bias) + bias


def product(a: Array, b: Array, like: Array) -> Array:
    """a b, multiplied in the dtype that both have and summed in like's."""
    return jnp.matmul(
        a,
        b,
        preferred_element_type=like.dtype,
        out_sharding=_sharding(a, (*_axes(a)[:-1], _axes(b)[-1])),
    )


def times_slope(slope: Array, back: Array) -> Array:
    """h' ⊙ back, rounded once, to the dtype of h': a factor of the products that follow."""
    return (slope.astype(back.dtype) * back).astype(slope.dtype)


def sum_of_outer_products(delta: Array, z: Array, dtype: DTypeLike | None = None) -> Array:
    """Σₙ δₙ zₙᵀ, (B, O) and (B, I) -> (O, I), summed in dtype.

    It is sharded as the units are, and the devices' parts of the sum are added up.
    """
    return jnp.einsum(
        "...o,...i->oi",
        delta,
        z,
        preferred_element_type=dtype,
        out_sharding=_sharding(delta, (_axes(delta)[-1], _axes(z)[-1])),
    )


def outer_products(delta: Array, z: Array) -> Array:
    """δₙ zₙᵀ for every row, (B, O) and (B, I) -> (B, O, I), sharded as rows and units are."""
    sharding = _sharding(delta, (*_axes(delta), _axes(z)[-1]))
    return jnp.einsum("...o,...i->...oi", delta, z, out_sharding=sharding)


def is_on_one_device(x: ArrayLike) -> bool:
    """Whether an array is not under trace, and is on one device, or NumPy's."""
    if isinstance(x, jax.core.Tracer):
        return False
    return not isinstance(x, Array) or len(x.devices()) == 1


# Arrays that are sharded over a mesh with Explicit axes, as ``jax.make_mesh`` makes it


def whole(array: Array) -> Array:
    """The array, all of it on every device, as sorting needs it."""
    sharding = _sharding(array, (None,) * array.ndim)
    if sharding is None:
        return array
    resharded: Array = reshard(array, sharding)  # type: ignore[no-untyped-call]
    return resharded


def mesh_of(*trees: Any) -> AbstractContextManager[Any]:
    """Enter the mesh that arrays are sharded over, as JAX's derivatives outside jit need it."""
    leaves = jax.tree.leaves(trees)
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        for leaf in leaves:
            mesh = getattr(getattr(leaf, "sharding", None), "mesh", None)
            if isinstance(mesh, Mesh) and AxisType.Explicit in mesh.axis_types:
                with suppress(ValueError):  # under trace, where JAX needs none
                    return jax.set_mesh(mesh)
    return nullcontext()


def _axes(array: Array) -> tuple[Any, ...]:
    """The axis of the mesh, or the axes, that each axis of an array is sharded over, or None."""
    return (*jax.typeof(array).sharding.spec,)


def _sharding(of: Array, axes: tuple[Any, ...]) -> NamedSharding | None:
    """How a product is to be sharded, which JAX asks for where its factors' sum is; None without a
    mesh.  Of an axis of the mesh that would shard two axes, the second is whole."""
    mesh, spec = jax.typeof(of).sharding.mesh, []
    taken: set[str] = set()
    for axis in axes:
        names = set(axis) if isinstance(axis, tuple) else {axis} - {None}
        spec.append(None if names & taken else axis)
        taken |= names
    return None if mesh.empty else NamedSharding(mesh, PartitionSpec(*spec))  # type: ignore[no-untyped-call]
