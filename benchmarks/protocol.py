"""How to time: in one process, interleaved, warmed up, blocked until ready, compilation apart.

Machines are noisy, so the figure to quote is the ratio of two medians of the same run.
"""

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
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
    """A benchmark's command line: measure under a heading that says where, and keep the result;
    or print the table of one that was kept."""
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
    """The cells that the options ask for."""
    return quick if options.quick else short if options.short else full


class Contender(NamedTuple):
    """A compiled function and what compiling it came to; None where it is not XLA's to know."""

    run: Callable[[], Any]
    compile_seconds: float | None = None
    temporary_bytes: int | None = None
    flops: float | None = None  # as XLA counts them in the compiled program
    bytes_accessed: float | None = None


class Timing(NamedTuple):
    """Seconds a call, and how many times the first contender's."""

    median: float
    lower: float  # the quartiles
    upper: float
    ratio: float  # the first contender's over this one's, round by round: the median
    rounds: int


def compiled(function: Callable[..., Any], *args: Any) -> Contender:
    """Compile a function for these arguments, ahead of time."""
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
    """Two programs, the second of what the first returns; that counts as temporary memory."""
    start = time.perf_counter()
    one = jax.jit(first).lower(*args).compile()
    two = jax.jit(second).lower(jax.eval_shape(first, *args)).compile()
    seconds = time.perf_counter() - start
    memory = one.memory_analysis(), two.memory_analysis()
    return Contender(
        run=lambda: two(one(*args)),
        compile_seconds=seconds,
        temporary_bytes=memory[0].output_size_in_bytes
        + max(each.temp_size_in_bytes for each in memory),
    )


def agreeing(
    build: Callable[[], dict[str, Contender]],
    *,
    unlike: tuple[str, ...] = (),
    tolerance: float = 1e-4,
) -> dict[str, Contender]:
    """The contenders, once their answers are found to be the first one's, up to rounding.

    They are asked at the highest precision of a matrix product; where that is not the default,
    those to be timed are built anew.  Those named unlike answer another question.
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
    """Time the contenders in turn, A B C C B A ..., so that a slow spell of the machine hits all,
    and whatever one leaves behind does not always hit the same other.

    A sample repeats a call, doubling, until it lasts long enough to be measured.  The rounds are
    fewer, though at least 3, where all of them would take longer than at_most_seconds.  A pause
    before each sample lets the threads of another library go to sleep: OpenMP's spin for a while
    after a call, on the cores of whoever is next.
    """
    repeats, round_seconds = {}, 0.0
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


def entry(contender: Contender, timing: Timing) -> dict[str, Any]:
    """What a result keeps of a contender."""
    size = contender.temporary_bytes
    return {
        "seconds": timing._asdict(),
        "temporary_mib": None if size is None else size / 2**20,
        "compile_seconds": contender.compile_seconds,
        "flops": contender.flops,
        "bytes_accessed": contender.bytes_accessed,
    }


def ratio(entry: Mapping[str, Any]) -> float:
    """The time of the first contender over this one's."""
    return entry["seconds"]["ratio"]


def device_name() -> str:
    """The device as a part of a file's name: cpu, nvidia-h100-80gb-hbm3."""
    return jax.devices()[0].device_kind.lower().replace(" ", "-")


def median(entry: Mapping[str, Any]) -> float:
    """Seconds a call of such an entry."""
    return entry["seconds"]["median"]


def heading(*columns: str) -> str:
    """The first two lines of a markdown table."""
    return f"{line(*columns)}\n{'|---' * len(columns)}|"


def line(*entries: str) -> str:
    """A line of a markdown table."""
    return f"| {' | '.join(entries)} |"


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


def conditions() -> dict[str, Any]:
    """Where and with what a result was measured."""
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
    """Write a result with its conditions as JSON, in a folder under the device's name."""
    if path.is_dir():
        path = path / f"{_module().removeprefix('benchmarks.')}-{device_name()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"conditions": conditions(), **result}, indent=2) + "\n")
