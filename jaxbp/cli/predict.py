"""``jaxbp predict``: the predictions of a run folder's network for new rows, as CSV."""

import csv
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from tyro.conf import arg

from jaxbp.checkpoint import Checkpoint, CheckpointError, load
from jaxbp.cli.files import new_file
from jaxbp.data.preparation import transform
from jaxbp.data.sources import read_features
from jaxbp.mlp import predict


@dataclass(frozen=True)
class Predict:
    """Predict with a trained network: labels and probabilities, or quantities, as CSV."""

    run: Annotated[
        tyro.conf.Positional[Path],
        arg(metavar="RUN", help="a run folder of jaxbp train, or a model.safetensors"),
    ]
    data: Annotated[
        tyro.conf.Positional[str],
        arg(
            metavar="DATA",
            help="rows to predict: a .csv with the columns trained on (others are ignored), an "
            ".npz with an array x, or the name of a bundled set",
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


def run(options: Predict, console: Console) -> int:
    """Carry out the command; the exit status."""
    new_file("--output", options.output)
    path = options.run / "model.safetensors" if options.run.is_dir() else options.run
    trained = load(path)
    if trained.preparation is None:
        raise CheckpointError(
            f"{path}: saved without a preparation, so raw rows mean nothing to it"
        )
    rows = read_features(options.data, trained.preparation.features)
    header, table = tabulate(trained, rows)
    output = options.output
    with nullcontext(sys.stdout) if output is None else output.open("x", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(table)
    if output is not None:
        console.print(f"{len(table)} predictions in {output}", soft_wrap=True)
    return 0


def tabulate(trained: Checkpoint, rows: np.ndarray) -> tuple[list[str], list[list[str]]]:
    """Column names and cells: each row's label and every label's probability, or its quantities."""
    preparation = trained.preparation
    assert preparation is not None
    prediction = np.asarray(predict(trained.model, trained.params, transform(preparation, rows)))
    labels = preparation.labels
    if labels is None:
        quantities = prediction * preparation.target_scale + preparation.target_mean
        several = quantities.shape[1] > 1
        names = [f"prediction_{i}" if several else "prediction" for i in range(quantities.shape[1])]
        return names, [[f"{value:.6g}" for value in row] for row in quantities]
    if prediction.shape[1] == 1:  # one sigmoid unit: the probability of the second label
        prediction = np.hstack([1 - prediction, prediction])
    header = ["label", *(f"probability_{label}" for label in labels)]
    return header, [
        [labels[row.argmax()], *(f"{probability:.6f}" for probability in row)] for row in prediction
    ]
