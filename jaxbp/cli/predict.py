"""``jaxbp predict``: the predictions of a run folder's network for new rows, as CSV."""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from tyro.conf import arg

from jaxbp.checkpoint import Checkpoint
from jaxbp.cli.files import new_file, written
from jaxbp.cli.options import DecimalSign, Encoding, TrainedRun
from jaxbp.cli.plan import DECIMAL
from jaxbp.cli.run_folder import record_of, trained_network
from jaxbp.cli.scores import names_of_outputs, outputs
from jaxbp.data.loading import load_rows
from jaxbp.text import counted


@dataclass(frozen=True)
class Predict:
    """Predict with a trained network: labels and probabilities, or quantities, as CSV.

    RUN and DATA come first: jaxbp predict runs/flowers-1 new_flowers.csv --output predictions.csv
    """

    run: TrainedRun
    data: Annotated[
        tyro.conf.Positional[str],
        arg(
            metavar="DATA",
            help="rows to predict: a table with the columns trained on, in any order (others are "
            "ignored), an .npz with an array x, a .npy, or the name of a bundled set",
        ),
    ]
    output: Annotated[
        Path | None,
        arg(
            metavar="FILE",
            help="the CSV to write, a new file",
            help_behavior_hint="(default: standard output)",
        ),
    ] = None
    encoding: Encoding = None
    decimal: DecimalSign = "auto"


def run(options: Predict, console: Console) -> int:
    """Carry out the command; the exit status."""
    new_file("--output", options.output, make_folder=True)
    trained = trained_network(options.run)
    preparation = trained.preparation
    assert preparation is not None
    x, told = load_rows(
        preparation,
        options.data,
        encoding=options.encoding,
        decimal=DECIMAL[options.decimal],
    )
    for each in told:
        console.print(f"{options.data}: {each}", soft_wrap=True)
    header, table = tabulate(trained, x)
    for line in told_of_probabilities(options.run, trained):
        console.print(line, soft_wrap=True)
    if options.output is None:
        write_csv(sys.stdout, header, table)
        return 0
    with written(options.output) as file:
        write_csv(file, header, table)
    console.print(f"{counted(len(table), 'prediction')} in {options.output}", soft_wrap=True)
    return 0


def told_of_probabilities(run: Path, trained: Checkpoint) -> list[str]:
    """Say where probabilities are not those of the data: by the run's record, and by the head."""
    record, told = record_of(run), []
    smoothing = record.get("label_smoothing")
    if record.get("class_weight") == "balanced":
        told.append(
            "probabilities are those of classes that are equally frequent: train with "
            "--class-weight none for the data's own"
        )
    if isinstance(smoothing, int | float) and smoothing:
        told.append(
            f"probabilities are those of labels smoothed by {smoothing:g}, and so drawn towards "
            "each other: train with --label-smoothing 0 for the classes' own"
        )
    if _against_the_others(trained):
        told.append(
            "probabilities are those of a class against all others, and need not sum to 1: train "
            "with --head softmax_cross_entropy for those that do"
        )
    return told


def _against_the_others(trained: Checkpoint) -> bool:
    """Whether each of several classes has an output unit that knows nothing of the others."""
    several = trained.preparation is not None and trained.preparation.several_labels
    return trained.model.head.target == "labels" and trained.model.sizes[-1] > 1 and not several


def write_csv(file: IO[str], header: list[str], table: list[list[str]]) -> None:
    """Write a header and rows."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(table)


def tabulate(trained: Checkpoint, x: np.ndarray) -> tuple[list[str], list[list[str]]]:
    """Column names and cells: each row's label, or several with semicolons between, and every
    label's probability; or its quantities.

    x (N, I) is prepared.  A number is the shortest text that reads back as the same float32.
    """
    preparation = trained.preparation
    assert preparation is not None
    found = outputs(trained, x)
    labels = preparation.labels
    if labels is None:
        columns = zip(found.T, preparation.target_mean, preparation.target_scale, strict=True)
        texts = [list(map(_text, _as_exact_as_needed(*column))) for column in columns]
        return names_of_outputs(preparation), list(map(list, zip(*texts, strict=True)))
    probabilities = [f"probability_{label}" for label in labels]
    if preparation.several_labels:
        chosen = [";".join(np.array(labels)[row > 0.5].tolist()) for row in found]
        return ["labels", *probabilities], [
            [these, *map(_text, row)] for these, row in zip(chosen, found, strict=True)
        ]
    return ["label", *probabilities], [[labels[row.argmax()], *map(_text, row)] for row in found]


def _text(value: np.floating[Any]) -> str:
    return str(float(str(value)))  # NumPy's digits, as Python writes them: 1000100.0, 1e-08


def _as_exact_as_needed(values: np.ndarray, mean: float, scale: float) -> np.ndarray:
    """Quantities (N,) in float32, or in float64 where float32 would round what varies.

    A date in seconds since 1970 is a multiple of 128 in float32.
    """
    if np.spacing(np.float32(abs(mean))) <= 1e-3 * scale:
        return values.astype(np.float32)
    return np.round(values, max(0, 7 - int(np.log10(scale))))  # the network's own digits
