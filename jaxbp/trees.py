"""What a function's arguments, and the leaves of their trees, are called."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def argument_names(f: Callable[..., Any], count: int) -> list[str]:
    """The names of f's first positional parameters, args[2] where it does not tell."""
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    names = [parameter.name for parameter in parameters if parameter.kind in positional]
    return [names[i] if i < len(names) else f"args[{i}]" for i in range(count)]


def positions_of(argnums: int | Sequence[int], count: int) -> tuple[int, ...]:
    """argnums as positions among count arguments; raises ValueError where there are none such."""
    if not count:
        raise ValueError("args: got none, expected the arguments of f")
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not positions or any(not isinstance(p, int) or not -count <= p < count for p in positions):
        raise ValueError(f"argnums: got {argnums!r}, expected positions among {count} arguments")
    return tuple(p % count for p in positions)


def named_leaves(tree: Any, root: str = "", none: bool = False) -> dict[str, Any]:
    """The leaves of a tree by their paths, as in params[0].weight; None is one if asked."""
    is_leaf = (lambda leaf: leaf is None) if none else None
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return {root + jax.tree_util.keystr(path): leaf for path, leaf in pairs}


def check_like(name: str, tree: Any, params: Any) -> None:
    """Raise ValueError, naming the argument, where a tree does not have the shapes of params."""
    got, expected = (jax.tree.map(jnp.shape, each) for each in (tree, params))
    if got != expected:
        raise ValueError(f"{name}: got {got}, expected the shapes of params, {expected}")


def wide_enough(rows: jax.Array) -> jax.typing.DTypeLike:
    """A dtype to sum squares in: that of rows, or float32 where half precision would overflow."""
    return rows.dtype if rows.dtype.itemsize > 2 else jnp.float32
