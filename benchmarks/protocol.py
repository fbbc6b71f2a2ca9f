"""The protocol of every benchmark: how contenders are timed, and how results are kept and printed.

Contenders are timed in one process, in turn, warmed up, blocked until ready, with compilation
apart.  Machines are noisy, so the figure to quote is a ratio within one run: of two calls of the
same round, the median over all rounds.

A benchmark is a list of cells.  A ``Run`` measures them as long as there is time, and writes the
result anew after each: a run that is cut off loses one cell.
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jaxlib

import jaxbp
from jaxbp.precision import default_precision

BUILDING = 0.6  # share of the time left in which compiling may begin
WIDTH = 100  # of a line of a result in JSON
ROUNDED = 0.02  # relative error of gradients whose products are TF32 or bfloat16, at most

Item = TypeVar("Item")
Cells = TypeVar("Cells")


@dataclass
class Run:
    """One run of a benchmark: which cells it has, until when, and what came of them.

    quick, short: fewer cells, by ``extent``; all unless given.
    minutes: how long it may take; without end unless given.
    output: a file for the result, or a folder; none unless given.
    options: all options of the command, those of the benchmark's own included.
    """

    quick: bool = False
    short: bool = False
    minutes: float = math.inf
    output: Path | None = None
    options: argparse.Namespace = field(default_factory=argparse.Namespace)

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + 60 * self.minutes
        self.left_out: list[str] = []  # names of the cells that there was no time for
        self.failed: dict[str, str] = {}  # errors, by the names of the cells that raised them

    def seconds_left(self) -> float:
        """The time until the deadline; below 0 after it."""
        return self.deadline - time.monotonic()

    def cells(
        self,
        items: Iterable[Item],
        measure: Callable[[Item], Cells],
        name: Callable[[Item], str] = str,
        *,
        build: Callable[[Item], Any] | None = None,
        expected: float = 0.0,
    ) -> Iterator[Cells]:
        """Measure the items one by one -> what came of each, as soon as it is there.

        No item is begun that would not end in time, if it took as long as the longest so far.  An
        item that fails does not take the others with it.  Both are said, here and in the result.

        items: what there is to measure, that which says most first.
        measure: makes a cell of an item, or of an item and what was built for it; what it raises is
            kept in ``failed``.
        name: an item's name, where it is left out or fails; its text unless given.
        build: compiles what an item needs; nothing unless given.  On an accelerator all items are
            built side by side before the first is measured, as that takes most of the time there.
        expected: seconds that an item takes at least, before one is measured; 0 unless given.
        """
        longest, items = expected, list(items)
        for item, measured in zip(items, self._measures(items, measure, build), strict=True):
            if measured is None or self.seconds_left() <= longest:
                self.left_out.append(name(item))
                print(f"left out, as the time is over: {name(item)}", flush=True)
                continue
            start = time.monotonic()
            try:
                cell = measured()
            except Exception as error:
                words = " ".join(str(error).split())
                self.failed[name(item)] = f"{type(error).__name__}: {words}"[:500]
                print(f"FAILED: {name(item)}: {self.failed[name(item)]}", file=sys.stderr)
            else:
                yield cell
            longest = max(longest, time.monotonic() - start)

    def _measures(
        self,
        items: list[Item],
        measure: Callable[..., Cells],
        build: Callable[[Item], Any] | None,
    ) -> list[Callable[[], Cells] | None]:
        """A function of each item, to measure it; None where there was no time to build it."""
        if build is None:
            return [partial(measure, item) for item in items]
        if on_cpu():
            return [lambda item=item: measure(item, build(item)) for item in items]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            futures = [pool.submit(build, item) for item in items]
            left = self.seconds_left()
            wait(futures, None if math.isinf(left) else max(0.0, BUILDING * left))
            for future in futures:
                future.cancel()  # unless it has begun; then its end is waited for here
        return [
            None
            if future.cancelled()
            else lambda item=item, built=future: measure(item, built.result())
            for item, future in zip(items, futures, strict=True)
        ]

    def kept(
        self, cells: Iterable[Cells], tell: Callable[[Cells], None] | None = None
    ) -> list[Cells]:
        """All cells, as a list: each is told and written as soon as it is there.

        cells: as ``cells`` gives them.
        tell: prints one; nothing unless given.
        """
        found: list[Cells] = []
        for cell in cells:
            if tell is not None:
                tell(cell)
            found.append(cell)
            self.keep({"cells": found})
        return found

    def keep(self, result: Mapping[str, Any], *, complete: bool = False) -> dict[str, Any]:
        """Write the result so far, if there is an output -> the result with its conditions.

        complete: whether nothing more will come; it then counts as complete unless cells are
            missing.
        """
        whole = {
            "conditions": conditions(),
            "complete": complete and not self.left_out and not self.failed,
            "left_out": self.left_out,
            "failed": self.failed,
            **result,
        }
        if self.output is not None:
            write(self.output, whole)
        return whole


def command(
    description: str,
    measure: Callable[[Run], Mapping[str, Any]],
    markdown: Callable[[Any], str],
    add_arguments: Callable[[argparse.ArgumentParser], Any] = lambda parser: None,
) -> None:
    """Run a benchmark's command line: measure and keep a result, or print the table of a kept one.

    The exit status is 1 where a cell failed.

    measure: takes the run, prints what it measures and returns the result.
    markdown: turns such a result into its table for the page.
    add_arguments: adds options of the benchmark's own; none unless given.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--short", action="store_true", help="the cells that say most")
    extent.add_argument("--quick", action="store_true", help="the smallest cell, to see it run")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="leave out what comes later"
    )
    parser.add_argument(
        "--output", type=Path, help="also write the result as JSON; in a folder, NAME-DEVICE.json"
    )
    add_arguments(parser)
    parser.add_argument("--table", type=Path, help="print such a file's table for the page")
    options = parser.parse_args()
    if options.table:
        result = json.loads(options.table.read_text())
        print("\n\n".join(filter(None, [markdown(result), missing(result)])))
        return
    share_the_memory()
    run = Run(options.quick, options.short, options.minutes, options.output, options)
    where = conditions()
    print(f"{where['command']}\n{where['processor']}, {where['device']}, jax {where['jax']}")
    result = run.keep(measure(run), complete=True)
    show(missing(result))
    if run.failed:
        sys.exit(1)


def share_the_memory() -> None:
    """Leave an accelerator's memory to other processes as well, before JAX asks for any.

    By default JAX takes three quarters of it at once, and neither PyTorch nor a process of its own
    that trains alone would find any.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def extent(
    run: Run,
    full: Cells,
    short: Cells,
    quick: Cells,
    accelerator: tuple[Cells, Cells] | None = None,
) -> Cells:
    """The cells that are asked for: all, with --short fewer, with --quick the smallest.

    run: whose options ask.
    full, short, quick: the cells.
    accelerator: (full, short) where JAX does not compute on a CPU, as compiling takes a GPU longer
        than timing; those of a CPU unless given.
    """
    if accelerator is not None and not on_cpu():
        full, short = accelerator
    return quick if run.quick else short if run.short else full


def on_cpu(result: Mapping[str, Any] | None = None) -> bool:
    """Whether a result was measured on a CPU; without one, whether JAX computes on one."""
    if result is None:
        return jax.default_backend() == "cpu"
    return result["conditions"]["device"] == "cpu"


def missing(result: Mapping[str, Any]) -> str:
    """The sentences that say what is missing from a result; none where it is complete."""
    sentences = []
    if not result.get("complete", True):
        sentences.append("This run did not measure everything.")
    if result.get("left_out"):
        sentences.append(f"Left out for lack of time: {', '.join(result['left_out'])}.")
    for name, error in result.get("failed", {}).items():
        sentences.append(f"Failed: {name} ({error}).")
    return " ".join(sentences)


class Contender(NamedTuple):
    """A compiled function and the cost of compiling it; None where XLA cannot tell."""

    run: Callable[[], Any]
    compile_seconds: float | None = None
    temporary_bytes: int | None = None
    flops: float | None = None  # as XLA counts them in the compiled program
    bytes_accessed: float | None = None
    text: Callable[[], str] | None = None  # of the compiled program


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
        text=executable.as_text,
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

    On a CPU they answer at the highest precision of a product, which is the default there.  Where
    it is not, they are compared as they are timed, at the default one: compiling each for another
    precision as well would take a GPU longer than all of the timing.
    Raises AssertionError where two answers differ.

    build: makes the contenders, by name.
    unlike: names of those that answer another question and are not compared.
    tolerance: largest relative error that counts as rounding; 1e-4 unless given, and at least
        ``ROUNDED`` on an accelerator.
    """
    contenders = build()
    answers = [each.run() for name, each in contenders.items() if name not in unlike]
    tolerance = tolerance if on_cpu() else max(tolerance, ROUNDED)
    for answer in answers[1:]:
        comparison = jaxbp.compare(answer, answers[0])
        assert comparison.relative_error < tolerance, comparison
    return contenders


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


def show(table: str | None) -> None:
    """Print a table or a text, if there is one, below what has been printed."""
    if table:
        print(f"\n{table}", flush=True)


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
        "precision": default_precision(),
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
    """Write a result as JSON; into a folder, as NAME-DEVICE.json.

    Whoever reads the file meanwhile, or after a run that was killed, finds a whole result.
    """
    if path.is_dir():
        path = path / f"{_module().removeprefix('benchmarks.')}-{device_name()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(_short_lines(json.dumps(result, indent=2)) + "\n")
    os.replace(unfinished, path)


def _short_lines(text: str) -> str:
    """JSON in which a list or an object without others inside stands in one line, where it fits."""

    def line(match: re.Match[str]) -> str:
        joined = re.sub(r"\n\s*", " ", match[0])
        return joined if len(joined) <= WIDTH else match[0]

    return re.sub(r"[\[{]\n[^\[\]{}]*\n\s*[\]}]", line, text)
