"""The rules of moves: primitives that put the entries of their operands in other places.

A move computes nothing.  Made with the entries' indices in place of their values, it tells where
each entry of y comes from, and the entry's adjoint goes back there.  Broadcasting uses an entry
several times, and its adjoint is a sum (``unbroadcast``).
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxbp.graph.symbols import Symbol, atom, call


def pull_of_move(count: int | None, formula: Callable[..., str]) -> Callable[..., Any]:
    """The pull of a primitive that makes y of the entries of its first ``count`` operands.

    formula(gy, operand, **params) is the text of the adjoint that an operand receives.
    """

    def pull(i: int, gy: Any, y: Any, /, *operands: Any, **params: Any) -> Any:
        if isinstance(gy, Symbol):
            return Symbol(formula(atom(gy), operands[i], **params))
        primitive = params.pop("primitive")
        if "fill_value" in params:
            params["fill_value"] = 0
        moved = operands[:count]
        ends = np.cumsum([1, *(operand.size for operand in moved)])  # 0 is the index of no entry
        indices = [
            jnp.arange(start, end, dtype=jnp.int32).reshape(operand.shape)
            for operand, (start, end) in zip(moved, pairwise(ends), strict=True)
        ]
        origin = primitive.bind(*indices, *operands[len(moved) :], **params)
        entries = jnp.zeros(ends[-1], gy.dtype).at[jnp.maximum(origin, 0)].add(gy)
        return entries[ends[i] : ends[i + 1]].reshape(operands[i].shape)

    return pull


def unbroadcast(gy: Any, operand: Any) -> Any:
    """Σ gy over the entries of y that one entry of the operand was broadcast to."""
    if gy.shape == operand.shape:
        return gy
    if isinstance(gy, Symbol):
        return Symbol("0" if str(gy) == "0" else f"sum({gy})", shape=operand.shape)
    missing = gy.ndim - operand.ndim
    sizes = ((1,) * missing + operand.shape, gy.shape)
    repeated = [axis for axis, (one, size) in enumerate(zip(*sizes, strict=True)) if one != size]
    return jnp.sum(gy, axis=repeated).reshape(operand.shape)


# Notations


def _shaped(name: str, key: str) -> Callable[..., str]:
    return lambda a, **params: f"{name}({a}, {'×'.join(map(str, params[key])) or 'a number'})"


def _transposed(a: Any, *, permutation: tuple[int, ...], **_: Any) -> str:
    return f"{atom(a)}ᵀ" if len(permutation) == 2 else f"transpose({a}, {permutation})"


def _brackets(
    *, start_indices: Any, limit_indices: Any, strides: Any, squeezed: Any = (), **_: Any
) -> str:
    """[1:3, 0]: a range an axis, and one index where the axis is taken away."""
    strides = strides or (1,) * len(start_indices)
    texts = []
    for axis, start in enumerate(start_indices):
        step = f":{strides[axis]}" if strides[axis] != 1 else ""
        texts.append(str(start) if axis in squeezed else f"{start}:{limit_indices[axis]}{step}")
    return f"[{', '.join(texts)}]"


def _sliced(a: Any, **limits: Any) -> str:
    return atom(a) + _brackets(**limits)


def _unsliced(gy: str, a: Any, **limits: Any) -> str:
    return f"{gy} at {_brackets(**limits)}"


def _unbroadcast(gy: str, a: Any, *, shape: Any, broadcast_dimensions: Any, **_: Any) -> str:
    if math.prod(a.shape) == math.prod(shape):
        return f"reshape({gy})"
    kept = dict(zip(broadcast_dimensions, a.shape, strict=True))
    axes = [str(axis) for axis, size in enumerate(shape) if kept.get(axis, 1) != size]
    return f"sum({gy}, axis={', '.join(axes)})" if a.ndim else f"sum({gy})"


MOVES: dict[str, tuple[int | None, Callable[..., str], Callable[..., str]]] = {
    # primitive: operands whose entries it moves (None: all), y, what the operand receives
    "reshape": (1, _shaped("reshape", "new_sizes"), lambda gy, a, **_: f"reshape({gy})"),
    "squeeze": (1, call("squeeze"), lambda gy, a, **_: f"reshape({gy})"),
    "broadcast_in_dim": (1, _shaped("broadcast", "shape"), _unbroadcast),
    "transpose": (1, _transposed, lambda gy, a, **_: f"{gy}ᵀ"),
    "rev": (1, call("reverse"), lambda gy, a, **_: f"reverse({gy})"),
    "slice": (1, _sliced, _unsliced),
    "index": (1, _sliced, _unsliced),
    "dynamic_slice": (1, call("dynamic_slice"), lambda gy, a, **_: f"{gy} at its place"),
    "gather": (1, lambda a, i, **_: f"{atom(a)}[{i}]", lambda gy, a, **_: f"{gy} at its place"),
    "concatenate": (None, call("concatenate"), lambda gy, a, **_: f"part of {gy}"),
    "stack": (None, call("stack"), lambda gy, a, **_: f"part of {gy}"),
    "pad": (2, call("pad"), lambda gy, a, **_: f"part of {gy}"),
}
