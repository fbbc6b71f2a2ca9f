"""Programs that are compiled once, although their pieces are written anew at every call.

``jax.jit`` knows a function by its identity, so a piece that is written inline, as a lambda or by a
function that makes one, would be compiled at every call.  Here two are one where they trace to one
program: the same operations on the same operands, in the same order.  What cannot be traced, or
calls back to Python, is known by its identity.

The last 64 programs of a kind are kept; older ones are released.
"""

from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from hashlib import sha256
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from jaxbp.trees import opened, shaped, subjaxprs

KEPT = 64  # programs of a kind


class Known:
    """A piece that is known by what it traces to in a call: another one is equal if it does the
    same there, by JAX's settings of now.

    So it may stand for another where a compiled program is looked up, for this call alone.
    """

    def __init__(self, piece: Any, program: Hashable) -> None:
        self.piece, self._program = piece, (program, settings())
        self._hash = hash(self._program)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Known) and self._program == other._program

    def __hash__(self) -> int:
        return self._hash


def known(piece: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """The piece as ``Known`` by ``function(piece, *arguments)``, of arrays or shapes; itself, where
    it cannot be traced or compared.

    It is traced anew each time, as it may have changed.
    """
    shapes, tree = shapes_in(arguments)
    trace = jax.make_jaxpr(partial(function, piece), return_shape=True)
    try:
        jaxpr, result = trace(*tree.unflatten(shapes))
        return Known(piece, (as_value(jaxpr), jax.tree.structure(result)))
    except Exception:  # of the user's pieces, which are about to be checked
        return piece


def settings() -> tuple[Any, ...]:
    """The settings of JAX that a traced program may depend on."""
    return tuple(getattr(jax.config, name) for name in _SETTINGS)


_SETTINGS = (
    *("jax_enable_x64", "jax_default_matmul_precision", "jax_numpy_dtype_promotion"),
    *("jax_numpy_rank_promotion", "jax_default_prng_impl", "jax_threefry_partitionable"),
)


def compiled_for_each(
    function: Callable[..., Any], *, runs_once: bool = False, **options: Any
) -> Callable[[Any], Any]:
    """``jax.jit`` of function for each first argument apart, as ``compiled(first)(*others)``.

    The first argument may be ``Known``.  Unlike by ``static_argnums`` a program is released when it
    is not among the last ones.  One that runs once is compiled on a CPU without LLVM's
    optimisations, which would take longer than it.
    """

    @lru_cache(maxsize=KEPT)
    def compiled(first: Any) -> Any:
        quick = {"xla_backend_optimization_level": "0"}
        chosen = quick if runs_once and jax.default_backend() == "cpu" else None
        piece = first.piece if isinstance(first, Known) else first
        return jax.jit(partial(function, piece), compiler_options=chosen, **options)

    return compiled


def compiled_ahead(jitted: Any, *arguments: Any, **static: Any) -> Any:
    """The executable of a jitted function for arguments like these, to be called by any thread.

    static: arguments by name that it is not called with.
    """
    return _compiled_ahead(jitted, *shapes_in(arguments), tuple(static.items()), settings())


@lru_cache(maxsize=KEPT)
def _compiled_ahead(
    jitted: Any, shapes: tuple[Any, ...], tree: Any, static: Any, settings: Any
) -> Any:
    return jitted.lower(*tree.unflatten(shapes), **dict(static)).compile()


def shapes_in(tree: Any) -> tuple[tuple[Any, ...], Any]:
    """The shapes and dtypes of a tree's arrays, and how it is built; one that is bound to a device
    stays so.
    """
    leaves, structure = jax.tree.flatten(tree)

    def shape(leaf: Any) -> Any:
        sharding = leaf.sharding if getattr(leaf, "committed", False) else None
        return shaped(leaf.shape, leaf.dtype, sharding)

    return tuple(map(shape, leaves)), structure


def as_value(tree: Any) -> Hashable:
    """A tree with jaxprs and arrays in it as a value that can be compared.

    A jaxpr is its operations, each with its operands by their places; a function with a derivative
    rule of its own is what it computes, as a program that is run is not differentiated any more.
    Raises TypeError for what cannot be compared.
    """
    if hasattr(tree, "eqns"):
        return _operations(tree)
    if isinstance(tree, list | tuple):
        return type(tree), tuple(map(as_value, tree))
    if isinstance(tree, dict):
        return tuple((key, as_value(item)) for key, item in tree.items())
    if isinstance(tree, np.ndarray | jax.Array):
        array = np.asarray(tree)
        return array.dtype, array.shape, sha256(array.tobytes()).digest()
    hash(tree)  # raises for what cannot be compared
    return tree  # type: ignore[no-any-return]


def _operations(jaxpr: Any) -> Hashable:
    inner = opened(jaxpr)
    place: dict[Any, int] = {}

    def operand(variable: Any) -> Hashable:
        if isinstance(variable, Literal):
            return variable.aval, as_value(np.asarray(variable.val))
        return place.setdefault(variable, len(place)), variable.aval

    def operands(variables: Any) -> Hashable:
        return tuple(map(operand, variables))

    return (
        operands((*inner.constvars, *inner.invars)),
        tuple(
            (
                equation.primitive,
                operands(equation.invars),
                _settings(equation),
                operands(equation.outvars),
            )
            for equation in inner.eqns
        ),
        operands(inner.outvars),
        as_value(tuple(getattr(jaxpr, "consts", ()))),
    )


def _settings(equation: Any) -> Hashable:
    if "callback" in equation.primitive.name:
        raise TypeError("a call to Python is compared by the identity of who makes it")
    if equation.primitive.name.startswith(("custom_jvp_call", "custom_vjp_call")):
        return as_value(tuple(subjaxprs(equation)))
    return as_value(equation.params)
