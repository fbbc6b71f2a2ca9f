"""Reprs: a record of the package in one line, whatever arrays it holds."""

from functools import partial
from typing import Any


def short(value: Any) -> str:
    """Arrays by dtype and shape, functions by name, numbers with six digits, tuples by their ends.

    Fields that are None are left out.

    >>> import jax.numpy as jnp
    >>> from jaxbp.model import Layer
    >>> print(short(Layer(weight=jnp.ones((3, 2)), bias=jnp.ones(3))))
    Layer(weight=float32[3,2], bias=float32[3])
    """
    if hasattr(value, "_fields"):  # a named tuple
        return f"{type(value).__name__}({_listed(value._asdict())})"
    if isinstance(value, tuple | list | dict):
        return _by_its_ends(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if hasattr(value, "shape"):
        kind = getattr(value, "dtype", type(value).__name__)  # pandas' table has many dtypes
        return f"{kind}[{','.join(map(str, value.shape))}]"
    if isinstance(value, partial) and value.keywords:
        return f"{part(value.func)}({_listed(value.keywords)})"
    return str(getattr(value, "__name__", repr(value)))


def part(value: Any) -> str:
    """A value within a record: one that prints in words of its own, as a head does, by these."""
    in_words = hasattr(value, "_fields") and "__str__" in vars(type(value))
    return str(value) if in_words else short(value)


def _by_its_ends(value: Any) -> str:
    if isinstance(value, dict):
        first, last = "{}"
        parts = [f"{name!r}: {part(each)}" for name, each in value.items()]
    else:
        first, last = "[]" if isinstance(value, list) else ("(", ",)" if len(value) == 1 else ")")
        parts = [part(each) for each in value]
    return f"{first}{', '.join(parts if len(parts) < 6 else [*parts[:2], '...', parts[-1]])}{last}"


def _listed(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name}={part(value)}" for name, value in fields.items() if value is not None)
