"""``jaxbp evaluate``: how well a run folder's network does on labelled rows."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import arg

from jaxbp.cli.options import DecimalSign, Encoding, TrainedRun, Weights
from jaxbp.cli.plan import DECIMAL
from jaxbp.cli.run_folder import record_of, trained_network
from jaxbp.cli.score_tables import further_tables, scores_table
from jaxbp.cli.scores import baselines, score
from jaxbp.data.loading import load_labelled
from jaxbp.data.sources import Target
from jaxbp.text import align, counted


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a trained network on rows whose target is known: loss and metrics.

    RUN and DATA come first: jaxbp evaluate runs/flowers-1 more_flowers.csv
    """

    run: TrainedRun
    data: Annotated[
        tyro.conf.Positional[str],
        arg(
            metavar="DATA",
            help="a table with the columns trained on and the target, an .npz with arrays x and y, "
            "or the name of a bundled set",
        ),
    ]
    target: Annotated[
        str | None,
        arg(
            metavar="COLUMN",
            help="the target: a table's column by name or position, several with commas between, "
            "or the name of an .npz array",
            help_behavior_hint="(default: the one that the run learnt)",
        ),
    ] = None
    weights: Weights = None
    encoding: Encoding = None
    decimal: DecimalSign = "auto"
    json: Annotated[bool, arg(help="print the scores as JSON and nothing else")] = False


def run(options: Evaluate, console: Console) -> int:
    """Carry out the command; the exit status."""
    trained = trained_network(options.run)
    preparation = trained.preparation
    assert preparation is not None
    record = record_of(options.run)
    target: Target = options.target
    if target is None and Path(options.data).suffix.lower() == ".npz":
        target = record.get("target") or None  # the array's name
    batch, told = load_labelled(
        preparation,
        options.data,
        target=target,
        counts=trained.model.head.target == "counts",
        weights=options.weights,
        encoding=options.encoding,
        decimal=DECIMAL[options.decimal],
    )
    rows = counted(len(batch.x), "row")
    found = score(rows, trained, batch)
    if record.get("weights") and options.weights is None:
        told.append(f"all rows count alike; the run was trained by --weights {record['weights']}")
    for each in told:
        console.print(f"{options.data}: {each}", soft_wrap=True)
    if options.json:
        classes = {} if preparation.labels is None else {"classes": preparation.labels}
        print(json.dumps({"rows": len(batch.x), **classes, **found.to_dict()}, indent=2))
        return 0
    simplest = baselines(preparation, batch, rows, batch)[:1]  # what DATA teach is no contender
    table = scores_table([found], simplest, preparation, batch)
    tables = (table, *further_tables(found, preparation))
    text = "\n\n".join(align(each, console.width) for each in tables)
    console.print(text, soft_wrap=True)
    return 0
