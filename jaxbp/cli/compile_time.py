"""Compile time: the seconds in which JAX makes programs, apart from those in which it runs them."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

from jax import monitoring

_COMPILING = "/jax/core/compile/"  # JAX's events: a function is traced, translated, then compiled
_LAST = "/jax/core/compile/backend_compile_duration"


class CompileTime:
    """The seconds of compiling while a block runs; ``tell`` is called with whether it goes on.

    A program that is found in the cache is read in that time.
    """

    def __init__(self, tell: Callable[[bool], object]) -> None:
        self.tell = tell
        self.steps: list[tuple[float, float]] = []  # when each began, and how long it took

    def __enter__(self) -> "CompileTime":
        monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        monitoring.unregister_event_duration_listener(self._hear)

    @property
    def seconds(self) -> float:
        """Those of all steps; a function that is traced within another is a part of that one."""
        return sum(duration for _, duration in self.steps)

    def _hear(self, event: str, duration_secs: float, **_: Any) -> None:
        """Count a step of compiling that has just ended."""
        if event.startswith(_COMPILING):
            began = perf_counter() - duration_secs
            while self.steps and self.steps[-1][0] >= began:  # a step of this one
                self.steps.pop()
            self.steps.append((began, duration_secs))
            self.tell(event != _LAST)
