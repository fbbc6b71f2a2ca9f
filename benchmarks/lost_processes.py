"""Does the end of a process end the others that train with it, and does the run go on?

    python -m benchmarks.lost_processes [--processes 3] [--kills 20] [--output results.json]
    python -m benchmarks.lost_processes --table results.json

Several processes train one network.  One of them, drawn at random, is killed (SIGKILL) after an
epoch that is drawn: the others are to end within a minute, with a line that names it, and one
process alone is to go on with the run.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxbp
from benchmarks import protocol
from jaxbp import cli

BEGUN = ["iris", "--hidden", "16", "--epochs", "60", "--batch-size", "full"]
CLOSE = 1e-4  # of parameters in float32 after 60 epochs, by one process and by several


def one_of(run: Path, count: int, number: int, port: int) -> None:
    """One of the processes of ``jaxbp train``; what it prints to standard error goes to a file."""
    os.dup2(os.open(run / f"told-{number}", os.O_CREAT | os.O_WRONLY), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    place = ["--coordinator", f"127.0.0.1:{port}", "--process", str(number)]
    place += ["--processes", str(count)]
    folder = ["--output", str(run / "run"), "--checkpoint-every", "1"]
    sys.exit(cli.main(["train", *BEGUN, *folder, *place]))


def killed_once(cell: tuple[int, int]) -> dict[str, Any]:
    """Kill one of several processes that train together, and go on with one alone."""
    count, number = cell
    rng = np.random.default_rng(number)
    victim, after = int(rng.integers(count)), int(rng.integers(1, 50))
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["jaxbp.cli", "benchmarks.protocol"])
    with tempfile.TemporaryDirectory() as name, socket.socket() as free:
        place, metrics = Path(name), Path(name) / "run" / "metrics.jsonl"
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        started = [
            processes.Process(target=one_of, args=(place, count, each, port))
            for each in range(count)
        ]
        for process in started:
            process.start()
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < after:
            assert all(process.exitcode is None for process in started), "ended by itself"
            time.sleep(0.01)
        started[victim].kill()
        at = time.monotonic()
        for process in started:
            process.join(120)
            process.kill()
        seconds = time.monotonic() - at
        others = [each for each in range(count) if each != victim]
        line = f"jaxbp: process {victim} of {count} ({socket.gethostname()}, "
        line += f"pid {started[victim].pid}) is gone"
        named = [line in (place / f"told-{each}").read_text().splitlines() for each in others]
        statuses = [started[each].exitcode for each in others]
        with contextlib.redirect_stdout(io.StringIO()):
            assert cli.main(["train", "--resume", str(place / "run")]) == 0
            if not (whole := place / "whole").exists():
                assert cli.main(["train", *BEGUN, "--output", str(whole)]) == 0
        both = [jax.tree.leaves(jaxbp.load(run).params) for run in (place / "run", whole)]
        off = max(float(np.abs(a - b).max()) for a, b in zip(*both, strict=True))
    return {
        "processes": count,
        "killed": victim,
        "after": after,
        "seconds": seconds,
        "ended": all(named) and set(statuses) == {1},
        "equal": off < CLOSE,
    }


COLUMNS = ("processes", "kills", "named, status 1", "longest", "went on alone")
EXPLANATION = """\
Named: all others ended with a line that names the one that was killed, and the status 1; longest:
until the last of them had ended. Went on alone: the run came to the parameters of a run by one
process, to 1e-4 after 60 epochs in float32."""


def markdown(result: Mapping[str, Any]) -> str:
    """A line a number of processes."""
    cells = result["cells"]
    counts = sorted({cell["processes"] for cell in cells})
    of_each = [[cell for cell in cells if cell["processes"] == count] for count in counts]
    lines = [
        protocol.line(
            str(count),
            str(len(those)),
            str(sum(cell["ended"] for cell in those)),
            f"{max(cell['seconds'] for cell in those):.1f} s",
            str(sum(cell["equal"] for cell in those)),
        )
        for count, those in zip(counts, of_each, strict=True)
    ]
    return protocol.table(COLUMNS, lines, EXPLANATION)


def measure(run: protocol.Run) -> dict[str, Any]:
    """Kill one of several processes, so many times, and print the table."""
    count = getattr(run.options, "processes", 3)
    kills = getattr(run.options, "kills", None) or protocol.extent(run, 20, 5, 1)
    wanted = [(count, number) for number in range(kills)]
    cells = run.kept(run.cells(wanted, killed_once), partial(print, flush=True))
    result = {"cells": cells}
    protocol.show(markdown(result))
    for cell in cells:
        assert (cell["ended"], cell["equal"]) == (True, True), cell
        assert cell["seconds"] < 60, cell
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--kills", type=int, help="how often; 20 unless given")
    parser.add_argument("--processes", type=int, default=3, help="that train together")


if __name__ == "__main__":
    protocol.command(__doc__, measure, markdown, add_arguments)
