"""Compile time: the seconds in which JAX makes programs, apart from those in which it runs them."""

from collections.abc import Callable
from typing import Any

from jax import monitoring

_COMPILING = "/jax/core/compile/"  # JAX's events: a function is traced, translated, then compiled
_LAST = "/jax/core/compile/backend_compile_duration"


class CompileTime:
    """The seconds of compiling while a block runs; ``tell`` is called with whether it goes on.

    A program that is found in the cache is read in that time.
    """

    def __init__(self, tell: Callable[[bool], object]) -> None:
        self.tell, self.seconds = tell, 0.0

    def __enter__(self) -> "CompileTime":
        monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        monitoring.unregister_event_duration_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **_: Any) -> None:
        """Count a step of compiling that has just ended."""
        if event.startswith(_COMPILING):
            self.seconds += duration_secs
            self.tell(event != _LAST)
