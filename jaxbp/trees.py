"""Trees: their leaves by name, arguments that are checked or found, and jaxprs within jaxprs."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal


def named_leaves(tree: Any, root: str = "", none: bool = False) -> dict[str, Any]:
    """The leaves of a tree by their paths, as in params[0].weight; None is a leaf if asked."""
    is_leaf = (lambda leaf: leaf is None) if none else None
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return {root + jax.tree_util.keystr(path): leaf for path, leaf in pairs}


def check_like(name: str, tree: Any, params: Any) -> None:
    """Raise ValueError, naming the argument, where a tree does not have the shapes of params."""
    got, expected = (jax.tree.map(jnp.shape, each) for each in (tree, params))
    if got != expected:
        raise ValueError(f"{name}: got {got}, expected the shapes of params, {expected}")


def check_bools(**given: Any) -> None:
    """Raise TypeError for an argument that is neither True nor False, such as "no", which is true.

    >>> check_bools(check="no")
    Traceback (most recent call last):
    TypeError: check: got 'no', expected True or False
    """
    for name, value in given.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name}: got {value!r}, expected True or False")


def check_no_mask(name: str, values: Any) -> None:
    """Raise ValueError, naming the argument, for masked values: a copy has what is below them."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError(f"{name}: some values are masked, expected an array without a mask")


def shaped(shape: tuple[int, ...], dtype: Any, sharding: Any = None) -> Any:
    """An array's shape and dtype, which is the one that JAX gives it, in its place."""
    held = jax.dtypes.canonicalize_dtype(dtype, allow_extended_dtype=True)
    return jax.ShapeDtypeStruct(shape, held, sharding=sharding)  # type: ignore[no-untyped-call]


def wide_enough(rows: jax.Array) -> jax.typing.DTypeLike:
    """A dtype to sum squares in: that of rows, or float32 where half precision would overflow."""
    return rows.dtype if rows.dtype.itemsize > 2 else jnp.float32


def argument_names(f: Callable[..., Any], count: int) -> list[str]:
    """The names of f's first positional parameters, or args[2] where f's signature has none."""
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    names = [parameter.name for parameter in parameters if parameter.kind in positional]
    return [names[i] if i < len(names) else f"args[{i}]" for i in range(count)]


def positions_of(argnums: int | Sequence[int], count: int) -> tuple[int, ...]:
    """The positions, among count arguments, that argnums means; negative ones count from the end.

    Raises ValueError if a position is out of range, or if there is none.
    """
    if not count:
        raise ValueError("args: got none, expected the arguments of f")
    given = tuple(argnums) if isinstance(argnums, Sequence) else (argnums,)
    if not given or any(not _is_whole(p) or not -count <= p < count for p in given):
        raise ValueError(f"argnums: got {argnums!r}, expected positions among {count} arguments")
    return tuple(int(p) % count for p in given)


def _is_whole(number: Any) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def subjaxprs(equation: Any) -> Iterator[Any]:
    """The jaxprs in an equation's parameters: those of jit, cond, scan, custom rules.

    Most are closed, with their constants; some are open, as that of ``jax.checkpoint``.

    >>> jaxpr = jax.make_jaxpr(lambda x: jax.lax.cond(x > 0, lambda: x, lambda: -x))(1.0)
    >>> [len(list(subjaxprs(equation))) for equation in jaxpr.eqns]
    [0, 0, 2]
    """
    return _jaxprs_among(equation.params.values())


def _jaxprs_among(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _jaxprs_among(value)
        elif hasattr(value, "eqns"):
            yield value


def opened(jaxpr: Any) -> Any:
    """A jaxpr without its constants, whether it was closed or open."""
    return getattr(jaxpr, "jaxpr", jaxpr)


#: primitives of which a jaxpr is all there is, where nothing is differentiated any more
CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call"}
COPIES = {"copy", "copy_p"}


def evaluated(
    jaxpr: Any,
    constants: Iterable[Any],
    arguments: Iterable[Any],
    literal: Callable[[Any, Any], Any] = lambda operand, equation: operand.val,
) -> list[Any]:
    """The results of a jaxpr, with its calls inlined and its copies left out.

    constants, arguments: arrays, maybe under trace.
    literal: the value of a literal operand of an equation; of a result the equation is None.
    """
    inner = opened(jaxpr)
    values = dict(zip((*inner.constvars, *inner.invars), (*constants, *arguments), strict=True))

    def value(operand: Any, equation: Any = None) -> Any:
        return literal(operand, equation) if isinstance(operand, Literal) else values[operand]

    for equation in inner.eqns:
        results = [value(operand, equation) for operand in equation.invars]
        if equation.primitive.name in CALLS:
            called = next(subjaxprs(equation))
            results = evaluated(called, getattr(called, "consts", ()), results, literal)
        elif equation.primitive.name not in COPIES:
            results = equation.primitive.bind(*results, **equation.params)
            results = results if equation.primitive.multiple_results else [results]
        values.update(zip(equation.outvars, results, strict=True))
    return list(map(value, inner.outvars))
