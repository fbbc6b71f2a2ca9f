"""The protocol of every benchmark: how contenders are timed, and how results are kept and printed.

Contenders are timed in one process, in turn, warmed up, blocked until ready, with compilation
apart.  Machines are noisy, so the figure to quote is a ratio within one run: of two calls of the
same round, the median over all rounds.
"""

import argparse
import importlib.metadata
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jaxlib

import jaxbp

Cells = TypeVar("Cells")


def command(
    description: str,
    measure: Callable[[argparse.Namespace], Mapping[str, Any]],
    markdown: Callable[[Any], str],
    add_arguments: Callable[[argparse.ArgumentParser], Any] = lambda parser: None,
) -> None:
    """Run a benchmark's command line: measure and keep a result, or print the table of a kept one.

    measure: takes the command's options, prints what it measures and returns the result.
    markdown: turns such a result into its table for the README.
    add_arguments: adds options of the benchmark's own; none unless given.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--short", action="store_true", help="the cells that say most")
    extent.add_argument("--quick", action="store_true", help="the smallest cell, to see it run")
    parser.add_argument(
        "--output", type=Path, help="also write the result as JSON; in a folder, NAME-DEVICE.json"
    )
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


def extent(options: argparse.Namespace, full: Cells, short: Cells, quick: Cells) -> Cells:
    """The cells that the options ask for: all, with --short fewer, with --quick the smallest."""
    return quick if options.quick else short if options.short else full


class Contender(NamedTuple):
    """A compiled function and the cost of compiling it; None where XLA cannot tell."""

    run: Callable[[], Any]
    compile_seconds: float | None = None
    temporary_bytes: int | None = None
    flops: float | None = None  # as XLA counts them in the compiled program
    bytes_accessed: float | None = None


class Timing(NamedTuple):
    """Seconds a call, and the first contender's time over this one's."""

    median: float
    lower: float  # quartile
    upper: float  # quartile
    ratio: float  # of the first contender's time to this one's in the same round: the median
    rounds: int


def compiled(function: Callable[..., Any], *args: Any) -> Contender:
    """A function, compiled for these arguments ahead of time."""
    start = time.perf_counter()
    executable = jax.jit(function).lower(*args).compile()
    seconds = time.perf_counter() - start
    cost = executable.cost_analysis()
    return Contender(
        run=lambda: executable(*args),
        compile_seconds=seconds,
        temporary_bytes=executable.memory_analysis().temp_size_in_bytes,
        flops=cost.get("flops"),
        bytes_accessed=cost.get("bytes accessed"),
    )


def compiled_in_turn(
    first: Callable[..., Any], second: Callable[..., Any], *args: Any
) -> Contender:
    """Two programs, the second taking the first one's result, which counts as temporary memory."""
    start = time.perf_counter()
    one = jax.jit(first).lower(*args).compile()
    two = jax.jit(second).lower(jax.eval_shape(first, *args)).compile()
    seconds = time.perf_counter() - start
    of_one, of_two = one.memory_analysis(), two.memory_analysis()
    temporary = max(of_one.temp_size_in_bytes, of_two.temp_size_in_bytes)
    return Contender(
        run=lambda: two(one(*args)),
        compile_seconds=seconds,
        temporary_bytes=of_one.output_size_in_bytes + temporary,
    )


def agreeing(
    build: Callable[[], dict[str, Contender]],
    *,
    unlike: tuple[str, ...] = (),
    tolerance: float = 1e-4,
) -> dict[str, Contender]:
    """Build the contenders and check that their answers are the first one's, up to rounding.

    They answer at the highest precision of a matrix product; where that is not the default, those
    to be timed are built anew.  Raises AssertionError where two answers differ.

    build: makes the contenders, by name.
    unlike: names of those that answer another question and are not compared.
    tolerance: largest relative error that counts as rounding; 1e-4 unless given.
    """
    with jax.default_matmul_precision("highest"):
        contenders = build()
        answers = [each.run() for name, each in contenders.items() if name not in unlike]
    for answer in answers[1:]:
        comparison = jaxbp.compare(answer, answers[0])
        assert comparison.relative_error < tolerance, comparison
    return contenders if jax.default_backend() == "cpu" else build()


def interleaved(
    contenders: Mapping[str, Contender],
    *,
    rounds: int = 21,
    sample_seconds: float = 0.02,
    at_most_seconds: float = math.inf,
    pause_seconds: float = 0.0,
) -> dict[str, Timing]:
    """Time the contenders in turn: A B C C B A ...

    So a slow spell of the machine hits all, and the traces of one contender in caches and memory do
    not always hit the same other.  Each sample repeats a call as often as sample_seconds need.

    contenders: by name; ratios are of the first.
    rounds: samples of each; 21 unless given.
    sample_seconds: how long a sample lasts at the least; 0.02 unless given.
    at_most_seconds: how long all rounds may take; where they would take longer there are fewer
        rounds, 3 at the least.
    pause_seconds: wait before each sample, in which the threads of another library go to sleep;
        OpenMP's spin for a while after a call, on the cores of the next contender.
    """
    repeats: dict[str, int] = {}
    round_seconds = 0.0
    for name, contender in contenders.items():
        repeats[name], seconds = 1, _sample(contender, 1)  # warm up
        if seconds < 10 * sample_seconds:
            while (seconds := _sample(contender, repeats[name]) * repeats[name]) < sample_seconds:
                repeats[name] *= 2
        round_seconds += seconds
    if round_seconds * rounds > at_most_seconds:
        rounds = max(3, int(at_most_seconds / round_seconds))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    in_turn = list(contenders)
    for _ in range(rounds):
        for name in in_turn:
            time.sleep(pause_seconds)
            samples[name].append(_sample(contenders[name], repeats[name]))
        in_turn.reverse()
    first = next(iter(samples.values()), [])
    return {name: _timing(values, first) for name, values in samples.items()}


def timed(contenders: Mapping[str, Contender], **limits: Any) -> dict[str, dict[str, Any]]:
    """Time the contenders, within the limits that ``interleaved`` takes -> the entry of each."""
    timings = interleaved(contenders, **limits)
    return {name: entry(contenders[name], timings[name]) for name in contenders}


def entry(contender: Contender, timing: Timing) -> dict[str, Any]:
    """A contender and its timing, as a result keeps them."""
    size = contender.temporary_bytes
    return {
        "seconds": timing._asdict(),
        "temporary_mib": None if size is None else size / 2**20,
        "compile_seconds": contender.compile_seconds,
        "flops": contender.flops,
        "bytes_accessed": contender.bytes_accessed,
    }


def ratio(entry: Mapping[str, Any]) -> float:
    """The first contender's time over that of this entry."""
    return entry["seconds"]["ratio"]


def median(entry: Mapping[str, Any]) -> float:
    """Seconds a call of this entry."""
    return entry["seconds"]["median"]


def heading(*columns: str) -> str:
    """The first two lines of a markdown table."""
    return f"{line(*columns)}\n{'|---' * len(columns)}|"


def line(*entries: str) -> str:
    """A line of a markdown table."""
    return f"| {' | '.join(entries)} |"


def table(columns: Iterable[str], rows: Iterable[str], text: str) -> str:
    """A markdown table, and the paragraph below it."""
    return "\n".join([heading(*columns), *rows, "", text.replace("\n", " ")])


def _sample(contender: Contender, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        result = contender.run()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / repeats


def _timing(values: list[float], first: list[float]) -> Timing:
    lower, median, upper = statistics.quantiles(values, n=4)
    ratio = statistics.median(a / b for a, b in zip(first, values, strict=True))
    return Timing(median, lower, upper, ratio, len(values))


def device_name() -> str:
    """The device as a part of a file's name: cpu, nvidia-h100-80gb-hbm3."""
    return jax.devices()[0].device_kind.lower().replace(" ", "-")


def versions(*packages: str) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def conditions() -> dict[str, Any]:
    """The command, machine and versions of a measurement."""
    flags = [flag for flag in ("--short", "--quick") if flag in sys.argv]
    return {
        "command": " ".join([f"python -m {_module()}", *flags]),
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "machine": platform.machine(),
        "dtype": "float32",
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
    """Write a result with its conditions as JSON; into a folder, as NAME-DEVICE.json."""
    if path.is_dir():
        path = path / f"{_module().removeprefix('benchmarks.')}-{device_name()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"conditions": conditions(), **result}, indent=2) + "\n")
