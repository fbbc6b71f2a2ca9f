"""Several devices: how a network and its minibatches are laid out over a mesh.

A mesh may have two axes: over "data" the rows of every minibatch are split, over "model" the units
of every other layer.  Two layers in a row then need one sum over the devices, an all-reduce:

    layer     weight (O, I)          forward                        backward
    first     its rows, by units     some units, from all inputs    Wᵀδ is summed over the devices
    second    its columns            W z is summed                  Wᵀδ of some units, from all δ

The last layer is always a second one, so that every device has the logits whole.  After Shoeybi et
al. (2019), section 3.  Sums over "data" are those of the gradient: each device adds up its rows.

``layout`` says so array by array, and XLA's partitioner makes the program of one device of that of
all (Xu et al. 2021): forward and backward pass are the same lines as on one device.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, partial
from hashlib import sha256
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxbp.gradient import Batch, Gradient
from jaxbp.model import MLP, Layer, Params, units_of
from jaxbp.text import Table, align

AXES = ("data", "model")


def layout(model: MLP, mesh: Mesh) -> tuple[Any, ...]:
    """How each array of the parameters lies over a mesh: a ``Layer`` of shardings for each layer.

    Layers whose common width is no multiple of the axis "model" are whole on every device, as all
    are without that axis.  Raises TypeError and ValueError for what is no such mesh.

    >>> from jaxbp import activations, heads
    >>> model = MLP((4, 8, 3), activations.relu, heads.softmax_cross_entropy)
    >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
    >>> [layer.weight.is_fully_replicated for layer in layout(model, mesh)]
    [True, True]
    """
    found, mesh = [], checked_mesh(mesh)
    for number in range(len(units_of(model))):
        inputs, units = model.sizes[number : number + 2]
        if (len(model.sizes) - number) % 2:  # the first of two
            axis = _model_axis(mesh, units)
            shardings: Any = _sharding(mesh, axis, None), _sharding(mesh, axis)
        else:
            axis = _model_axis(mesh, inputs)
            shardings = _sharding(mesh, None, axis), _sharding(mesh)
        found.append(Layer(*shardings))
    return tuple(found)


def describe(model: MLP, mesh: Mesh) -> str:
    """The layout as a table: of every array, what is split, and the part of it on each device.

    ``jax.debug.visualize_sharding(shape, sharding)`` draws one of them.

    >>> from jaxbp import activations, heads
    >>> model = MLP((4, 8, 3), activations.relu, heads.softmax_cross_entropy)
    >>> print(describe(model, jax.sharding.Mesh(jax.devices()[:1], ("data",))))
    layer  array   shape  split  on each device
        1  weight  8×4    no     8×4
        1  bias    8      no     8
        2  weight  3×8    no     3×8
        2  bias    3      no     3
    """
    rows = []
    for number, layer in enumerate(layout(model, mesh), 1):
        inputs, units = model.sizes[number - 1 : number + 1]
        for name, shape, sharding in zip(
            Layer._fields, ((units, inputs), (units,)), layer, strict=True
        ):
            axes = [axis for axis, over in zip(("units", "inputs"), sharding.spec) if over]  # noqa: B905
            sizes = ["×".join(map(str, each)) for each in (shape, sharding.shard_shape(shape))]
            rows.append((str(number), name, sizes[0], "".join(axes) or "no", sizes[1]))
    return align(Table(("layer", "array", "shape", "split", "on each device"), rows))


def split(gradient: Gradient, mesh: Mesh) -> Gradient:
    """The gradient, under trace, with the minibatch's rows split over "data", and laid out as the
    parameters are."""
    rows = _sharding(mesh, "data" if "data" in mesh.axis_names else None)

    def of_parts(
        model: MLP, params: Params, batch: Batch, **keywords: Array
    ) -> tuple[Array, Params]:
        batch = jax.tree.map(lambda leaf: _laid(leaf, rows), batch)
        loss, grads = gradient(model, params, batch, **keywords)
        return loss, _laid(grads, layout(model, mesh))

    return of_parts


def whole(tree: Any, mesh: Mesh) -> Any:
    """A tree of arrays, under trace, each whole on every device of a mesh."""
    return _laid(tree, _sharding(mesh))


def spread(model: MLP, mesh: Mesh, params: Params, rest: Any) -> tuple[Params, Any]:
    """The parameters as ``layout`` has them, and a tree of other arrays on all devices.

    Of the rest, what has the shape of params, as a moment of Adam, lies as they do; what is split
    over axes of the mesh already stays so; all else is whole on every device.
    """
    laid_out, on_all = layout(model, mesh), _sharding(mesh)
    shapes = jax.tree.map(jax.numpy.shape, params)

    def is_like_params(node: Any) -> bool:
        return isinstance(node, tuple) and jax.tree.map(jax.numpy.shape, node) == shapes

    def placed(node: Any) -> Any:
        if is_like_params(node):
            return jax.tree.map(put, node, laid_out)
        axes = tuple(getattr(getattr(node, "sharding", None), "spec", ()))
        lies_here = {*axes} <= {*mesh.axis_names, None}
        return put(node, _sharding(mesh, *axes) if lies_here else on_all)

    rest = jax.tree.map(placed, rest, is_leaf=is_like_params)
    return jax.tree.map(put, params, laid_out), rest


def everywhere(tree: Any, mesh: Mesh | None) -> Any:
    """A tree of the host's arrays on every device of a mesh; on the default one without a mesh."""
    if mesh is None:
        return jax.device_put(tree)
    return jax.tree.map(lambda leaf: put(leaf, _sharding(mesh)), tree)


def put(leaf: Any, sharding: NamedSharding) -> Array:
    """An array as it is to lie; on devices of other processes too, which hold the same numbers."""
    array: Array
    if sharding.is_fully_addressable or not getattr(leaf, "is_fully_addressable", True):
        array = jax.device_put(leaf, sharding)
    elif jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        numbers = put(jax.random.key_data(leaf), sharding)
        array = jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf))
    else:
        here = np.asarray(leaf)
        array = jax.make_array_from_callback(here.shape, sharding, here.__getitem__)
    return array


def place_among(mesh: Mesh | None) -> tuple[int, int]:
    """Which of how many processes this one is among those of a mesh, from 0; 0 of 1 without one."""
    if mesh is None or not spans_processes(mesh):
        return 0, 1
    processes = _processes(mesh)
    return processes.index(jax.process_index()), len(processes)


def spans_processes(mesh: Mesh | None) -> bool:
    """Whether a mesh has devices of several processes, which then have to do the same."""
    return mesh is not None and len(_processes(mesh)) > 1


def _processes(mesh: Mesh) -> list[int]:
    """The numbers of the processes whose devices a mesh has, in their order."""
    return sorted({device.process_index for device in mesh.devices.flat})


def is_first(mesh: Mesh | None) -> bool:
    """Whether this process is the first of a mesh's, which alone writes; any is without a mesh."""
    if mesh is None:
        return True
    return _processes(mesh)[0] == jax.process_index()


def largest(values: Any, mesh: Mesh | None) -> np.ndarray:
    """The largest of each of the numbers that the processes of a mesh have, in all of them.

    Each waits for the others.  By this they decide together what each would decide for itself: when
    to stop, or how many epochs are one program.
    """
    array = np.asarray(values)
    if mesh is None or not spans_processes(mesh):
        return array
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    line = Mesh(mesh.devices.reshape(-1), ("all",), axis_types=(AxisType.Auto,))
    given = jax.make_array_from_callback(
        (mesh.size, *array.shape),
        NamedSharding(line, PartitionSpec("all")),  # type: ignore[no-untyped-call]
        lambda _: array[None],
    )
    return np.asarray(_largest_of(line)(given))


@cache
def _largest_of(line: Mesh) -> Any:
    """``max`` over the first axis, which lies over a mesh, with the result on every device."""
    return jax.jit(lambda each: jnp.max(each, axis=0), out_shardings=_sharding(line))


def differing(mesh: Mesh | None, given: Mapping[str, Any]) -> list[str]:
    """The names of what the processes of a mesh have been given differently, in all of them.

    Arrays, numbers and text are compared by digests.  An array that lies over several processes
    already is one for all of them.
    """
    if not spans_processes(mesh):
        return []
    own = np.array([_digest(tree) for tree in given.values()], np.int32)
    highest, lowest = largest(np.concatenate([own, -own]), mesh).reshape(2, -1)
    return [name for name, high, low in zip(given, highest, -lowest, strict=True) if high != low]


def check_same(mesh: Mesh | None, **given: Any) -> None:
    """Raise ValueError, in all processes of a mesh, for what they have been given differently."""
    if names := differing(mesh, given):
        raise ValueError(
            f"{names[0]}: not the same in all processes of the mesh; each has to be given all of "
            "it, or an array of JAX that lies over them (jax.make_array_from_process_local_data)"
        )


def _digest(tree: Any) -> int:
    """31 bits of the SHA-256 of the arrays that this process has whole."""
    digest = sha256()
    for leaf in jax.tree.leaves(tree):
        if getattr(leaf, "is_fully_addressable", True):
            is_key = jnp.issubdtype(getattr(leaf, "dtype", int), jax.dtypes.prng_key)
            array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return int.from_bytes(digest.digest()[:4]) >> 1


def whole_here(tree: Any, mesh: Mesh | None) -> Any:
    """The tree, with what lies in parts on devices of other processes whole on every device."""
    if mesh is None or all(map(is_readable, jax.tree.leaves(tree))):
        return tree
    return jax.tree.map(
        lambda leaf: leaf if is_readable(leaf) else _whole_of(_sharding(mesh))(leaf), tree
    )


@cache
def _whole_of(sharding: NamedSharding) -> Any:
    return jax.jit(lambda array: array, out_shardings=sharding)


def is_readable(leaf: Any) -> bool:
    """Whether this process has all numbers of an array."""
    return getattr(leaf, "is_fully_addressable", True) or bool(leaf.is_fully_replicated)


def rows_here(array: Array) -> np.ndarray:
    """The rows that this process has of an array that is split by rows."""
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def rows_over(mesh: Mesh, array: Any, rows: Sequence[int], axis: int) -> Array:
    """An array whose rows each process has some of, as one over the devices of a mesh.

    mesh: as ``check_rows_are_dealt`` takes it.
    array: the rows of this process, of NumPy or on devices of its own.
    rows: how many each process has; all of them are in the result, in an order of the devices.
    axis: of the rows.

    Where each device takes as many they are split over "data", else whole on every device.
    """
    if isinstance(array, jax.Array) and len(array.devices()) > 1:
        array = np.asarray(array)  # its parts need not be those of this mesh
    lanes = _lanes(mesh)
    of_lanes, processes = [lane[0].process_index for lane in lanes], _processes(mesh)
    each = len(lanes) // len(processes)  # lanes of a process
    size = max(-(-count // each) for count in rows)  # rows of a lane
    own, others = array.shape[axis], array.ndim - axis - 1
    before = (slice(None),) * axis
    filled = [(0, 0)] * axis + [(0, each * size - own)] + [(0, 0)] * others
    padded = np.pad(array, filled) if own < each * size else array
    parts, valid = [], []
    for number, (lane, process) in enumerate(zip(lanes, of_lanes, strict=True)):
        start = size * of_lanes[:number].count(process)
        left = rows[processes.index(process)] - start
        valid.append(number * size + np.arange(min(max(left, 0), size)))
        if process == jax.process_index():
            part = padded[(*before, slice(start, start + size))]
            parts += [jax.device_put(part, device) for device in lane]
    shape = (*array.shape[:axis], len(lanes) * size, *array.shape[axis + 1 :])
    names = "data" if "data" in mesh.axis_names else None
    split = _sharding(mesh, *(None,) * axis, names)
    over: Array = jax.make_array_from_single_device_arrays(shape, split, parts)
    if sum(rows) == len(lanes) * size:
        return over
    chosen = put(np.concatenate(valid).astype(np.int32), _sharding(mesh))
    whole: Array = _rows_of(_sharding(mesh), axis)(over, chosen)
    return whole


@cache
def _rows_of(sharding: NamedSharding, axis: int) -> Any:
    """``jnp.take`` along an axis, with the result laid out so."""
    return jax.jit(partial(jnp.take, axis=axis), out_shardings=sharding)


def check_rows_are_dealt(mesh: Mesh) -> None:
    """Raise ValueError for a mesh over whose axis "data" the rows of a batch cannot be dealt to its
    processes: each must have as many of its places, and no place be that of two processes."""
    of_lanes = [{device.process_index for device in lane} for lane in _lanes(mesh)]
    places = Counter(chain.from_iterable(of_lanes))
    if any(len(each) > 1 for each in of_lanes) or len({*places.values()}) > 1:
        raise ValueError(
            f'mesh: its axis "data" has the processes {of_lanes}, expected as many places of it '
            'for each process, and "model" over the devices of one process, beside a stream'
        )


def _lanes(mesh: Mesh) -> list[list[jax.Device]]:
    """The devices of each place of the axis "data"; of all, where there is no such axis."""
    devices = mesh.devices
    if "data" not in mesh.axis_names:
        return [devices.reshape(-1).tolist()]
    first = np.moveaxis(devices, mesh.axis_names.index("data"), 0)
    return first.reshape(len(first), -1).tolist()


def of_each_process(values: np.ndarray, mesh: Mesh | None) -> np.ndarray:
    """The numbers that each of the P processes of a mesh has, (P, ...), in all of them.

    Each waits for the others.
    """
    if mesh is None or not spans_processes(mesh):
        return values[None]
    of_devices = [device.process_index for device in mesh.devices.flat]
    here = of_devices.count(jax.process_index())
    every = rows_of_all([values[None]] * here, mesh)
    return every[[of_devices.index(process) for process in _processes(mesh)]]


def rows_of_all(parts: list[np.ndarray], mesh: Mesh) -> np.ndarray:
    """The rows of all devices of a mesh, one device after another, in all of its processes.

    parts: as many rows for each device of this process.  Each waits for the others.
    """
    line = Mesh(mesh.devices.reshape(-1), ("all",), axis_types=(AxisType.Auto,))
    size, *rest = parts[0].shape
    here = [each for each in line.devices if each.process_index == jax.process_index()]
    arrays = [jax.device_put(part, device) for part, device in zip(parts, here, strict=True)]
    shape = (mesh.size * size, *rest)
    split = NamedSharding(line, PartitionSpec("all"))  # type: ignore[no-untyped-call]
    array = jax.make_array_from_single_device_arrays(shape, split, arrays)
    return np.asarray(_whole_of(_sharding(line))(array))


def checked_mesh(mesh: Any) -> Mesh:
    """The mesh with axes of XLA's own choice (``AxisType.Auto``), as ``split`` needs them.

    Raises TypeError for what is no mesh of devices, and ValueError for axes of other names.
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh: got {type(mesh).__name__}, expected one of jax.make_mesh")
    if not mesh.axis_names or not set(mesh.axis_names) <= set(AXES):
        raise ValueError(f'mesh: got the axes {mesh.axis_names}, expected "data", "model" or both')
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def _model_axis(mesh: Mesh, width: int) -> str | None:
    """The axis that a width is split over: "model" where it is a multiple of it, else none."""
    size = mesh.shape.get("model", 1)
    return "model" if size > 1 and width % size == 0 else None


def _sharding(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """The sharding of an array whose axes are split over those of the mesh that are named."""
    return NamedSharding(mesh, PartitionSpec(*axes) if any(axes) else PartitionSpec())  # type: ignore[no-untyped-call]


def _laid(tree: Any, sharding: Any) -> Any:
    return jax.lax.with_sharding_constraint(tree, sharding)  # type: ignore[no-untyped-call]
