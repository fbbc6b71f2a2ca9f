"""How to time: in one process, interleaved, warmed up, blocked until ready, compilation apart.

Machines are noisy, so the figure to quote is the ratio of two medians of the same run.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib


def command(
    description: str,
    measure: Callable[[argparse.Namespace], Mapping[str, Any]],
    markdown: Callable[[Any], str],
    add_arguments: Callable[[argparse.ArgumentParser], Any] = lambda parser: None,
) -> None:
    """A benchmark's command line: measure under a heading that says where, and keep the result;
    or print the table of one that was kept."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--output", type=Path, help="also write the result as JSON")
    add_arguments(parser)
    parser.add_argument("--table", type=Path, help="print such a file's table for the README")
    options = parser.parse_args()
    if options.table:
        print(markdown(json.loads(options.table.read_text())))
        return
    where = conditions()
    print(f"{where['command']}\n{where['processor']}, {where['device']}, jax {where['jax']}")
    result = measure(options)
    if options.output:
        write(options.output, result)


class Contender(NamedTuple):
    """A compiled function and what compiling it came to."""

    run: Callable[[], Any]
    compile_seconds: float
    temporary_bytes: int


class Timing(NamedTuple):
    """Seconds a call."""

    median: float
    lower: float  # the quartiles
    upper: float


def compiled(function: Callable[..., Any], *args: Any) -> Contender:
    """Compile a function for these arguments, ahead of time."""
    start = time.perf_counter()
    executable = jax.jit(function).lower(*args).compile()
    seconds = time.perf_counter() - start
    return Contender(
        run=lambda: executable(*args),
        compile_seconds=seconds,
        temporary_bytes=executable.memory_analysis().temp_size_in_bytes,
    )


def interleaved(
    contenders: Mapping[str, Contender], *, rounds: int = 21, sample_seconds: float = 0.02
) -> dict[str, Timing]:
    """Time the contenders in turn, A B C A B C ..., so that a slow spell of the machine hits all.

    A sample repeats a call, doubling, until it lasts long enough to be measured.
    """
    repeats = {}
    for name, contender in contenders.items():
        repeats[name] = 1
        _sample(contender, 1)  # warm up
        while _sample(contender, repeats[name]) * repeats[name] < sample_seconds:
            repeats[name] *= 2
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            samples[name].append(_sample(contender, repeats[name]))
    return {name: _timing(values) for name, values in samples.items()}


def _sample(contender: Contender, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        result = contender.run()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / repeats


def _timing(values: list[float]) -> Timing:
    lower, median, upper = statistics.quantiles(values, n=4)
    return Timing(median, lower, upper)


def conditions() -> dict[str, Any]:
    """Where and with what a result was measured."""
    return {
        "command": f"python -m {_module()}",
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "precision": str(jax.config.jax_default_matmul_precision or "default"),
    }


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else f"benchmarks.{Path(sys.argv[0]).stem}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} × {models[0]}" if models else platform.processor()


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result with its conditions as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"conditions": conditions(), **result}, indent=2) + "\n")
