"""Is a run that is killed, again and again, the run that it would have been?

    python -m benchmarks.kills [--kills 100] [--output results.json] [--short | --quick]
    python -m benchmarks.kills --table results.json

A process trains, and is killed (SIGKILL) at a moment that is drawn uniformly from the time that it
takes from its start to its end; then another goes on with the run, until it is complete.  It is
compared with a run that nobody killed: parameters and history, to the last bit.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import jaxbp
from benchmarks import protocol
from benchmarks.problems import random_batch
from jaxbp import activations, cli, heads
from jaxbp.training.saved import newest, steps_in

KILLS = 100  # of each way to train
EPOCHS = {"command": 20, "fit": 30}
MODEL = jaxbp.MLP((30, 64, 3), activations.tanh, heads.linear_squared_error)


def command(run: Path) -> None:
    """``jaxbp train``, or ``jaxbp train --resume`` where there is something to go on with."""
    begin = ["breast_cancer", "--epochs", str(EPOCHS["command"]), "--hidden", "64"]
    goes_on = ["--resume", str(run)] if (run / "options.json").exists() else begin
    place = [] if goes_on is not begin else ["--output", str(run), "--overwrite"]
    with contextlib.redirect_stdout(io.StringIO()):
        status = cli.main(["train", *goes_on, *place, "--checkpoint-every", "1"])
    assert status == 0


def fit(run: Path) -> None:
    """``fit`` with the folder of its checkpoints as what it goes on with, and saved at its end."""
    batch = random_batch(MODEL, 500, 0, dtype=np.float32)
    optimizer, folder = optax.adam(0.01), run / "checkpoints"
    if steps_in(folder)[-1:] != [EPOCHS["fit"]]:
        jaxbp.fit(
            MODEL,
            batch,
            optimizer=optimizer,
            epochs=EPOCHS["fit"],
            batch_size=16,
            key=jax.random.key(0),
            validation=batch,
            checkpoint=folder,
            checkpoint_every=1,
            resume=folder,
        )
    params = jaxbp.load_run(folder, optimizer).params
    jaxbp.save(run / "model.safetensors", MODEL, params, overwrite=True)


def quietly(way: str, run: Path) -> None:
    """One session, in a process of its own.

    A kill may leave half an entry in JAX's compilation cache, which it then warns of and compiles.
    """
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
    WAYS[way](run)


WAYS: dict[str, Callable[[Path], None]] = {"command": command, "fit": fit}


def outcome(way: str, run: Path) -> Any:
    """The parameters of a complete run, and a line of numbers for each epoch."""
    if way == "command":
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        lines = [{**line, "seconds": None} for line in lines]
    else:
        saved = newest(run / "checkpoints", optax.adam(0.01))
        lines = [epoch._asdict() for epoch in saved.record]
    return jaxbp.load(run / "model.safetensors").params, lines


def is_equal(one: Any, other: Any) -> bool:
    """Whether two outcomes are the same, to the last bit."""
    params = zip(jax.tree.leaves(one[0]), jax.tree.leaves(other[0]), strict=True)
    return one[1] == other[1] and all(np.array_equal(a, b) for a, b in params)


def measured(cell: tuple[str, int]) -> dict[str, Any]:
    """Kill one way to train so many times."""
    way, kills = cell
    rng = np.random.default_rng(kills)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["jaxbp.cli", "benchmarks.protocol"])

    def session(run: Path, seconds: float | None = None) -> tuple[bool, float]:
        """Start a process; whether it came to its end before it was killed, and when it ended."""
        start = time.monotonic()
        process = processes.Process(target=quietly, args=(way, run))
        process.start()
        process.join(seconds)
        ended = process.exitcode is not None
        process.kill()
        process.join()
        assert not ended or process.exitcode == 0, f"{way}: exit status {process.exitcode}"
        return ended, time.monotonic() - start

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for number in range(2):  # the first compiles, and the second finds what is compiled
            (place / f"whole-{number}").mkdir()
            _, seconds = session(place / f"whole-{number}")
        expected = outcome(way, place / "whole-1")
        runs, equal, done, lost, in_writing = 0, 0, 0, 0, 0
        while done < kills or runs == 0:
            run = place / f"killed-{runs}"
            run.mkdir()
            ended = False
            while not ended:
                before = steps_in(run / "checkpoints")[-1:]
                ended, _ = session(run, rng.uniform(0, seconds) if done < kills else None)
                if not ended:
                    done += 1
                    print(f"{way}: killed {done} times", end="\r", flush=True)
                    lost += steps_in(run / "checkpoints")[-1:] < before
                    in_writing += any(run.glob("checkpoints/*.orbax-checkpoint-tmp"))
            runs, equal = runs + 1, equal + is_equal(outcome(way, run), expected)
    return {
        "way": way,
        "epochs": EPOCHS[way],
        "seconds": seconds,
        "kills": done,
        "in_writing": in_writing,
        "runs": runs,
        "equal": equal,
        "lost": lost,
    }


COLUMNS = ("way", "kills", "while one was written", "runs", "equal", "checkpoints lost")
EXPLANATION = """\
One checkpoint an epoch. Kills: processes that were killed before their end; while one was written:
those that left a checkpoint that was not whole. Runs: complete in the end; equal: to the last bit,
in parameters and in every number of the history. Checkpoints lost: whole ones that a kill took."""


def markdown(result: Mapping[str, Any]) -> str:
    """A line a way to train."""
    names = {"command": "`jaxbp train --resume`", "fit": "`fit(..., resume=folder)`"}
    columns = ("kills", "in_writing", "runs", "equal", "lost")
    lines = [
        protocol.line(names[cell["way"]], *(str(cell[column]) for column in columns))
        for cell in result["cells"]
    ]
    return protocol.table(COLUMNS, lines, EXPLANATION)


def measure(run: protocol.Run) -> dict[str, Any]:
    """Kill, and print the table."""
    asked = getattr(run.options, "kills", None)
    kills = asked or protocol.extent(run, KILLS, 20, 4)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache  # of the processes
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        wanted = [(way, kills) for way in WAYS]
        cells = run.kept(run.cells(wanted, measured), partial(print, flush=True))
    result = {"cells": cells}
    protocol.show(markdown(result))
    for cell in cells:
        assert (cell["equal"], cell["lost"]) == (cell["runs"], 0), cell
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--kills", type=int, help="of each way to train")


if __name__ == "__main__":
    protocol.command(__doc__, measure, markdown, add_arguments)
