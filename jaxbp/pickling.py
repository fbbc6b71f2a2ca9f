"""Pickling: functions that cannot be pickled themselves, by their name."""

from collections.abc import Callable
from contextlib import suppress
from pkgutil import resolve_name
from types import FunctionType
from typing import Any


def by_name(fn: Callable[..., Any]) -> Any:
    """Return fn, or its name, to stand for fn in a pickle or a copy and become fn there.

    What ``jax.jit`` and ``jax.custom_jvp`` make, such as ``jnp.sin``, cannot be pickled.
    """
    if not isinstance(fn, FunctionType):
        with suppress(AttributeError, ImportError, ValueError):  # of one that has no name
            name = f"{fn.__module__}:{fn.__qualname__}"
            if resolve_name(name) is fn:
                return _Named(name)
    return fn


class _Named:
    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return resolve_name, (self.name,)
