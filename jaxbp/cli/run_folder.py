"""The folder of a run: what ``jaxbp train`` leaves there, and what other commands read again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jaxbp.checkpoint import Checkpoint, CheckpointError, load, save
from jaxbp.cli.files import (
    BEFORE,
    CONFUSION,
    CURVE,
    IMPORTANCE,
    NETWORK,
    REPORT,
    SUMMARY,
    written,
)
from jaxbp.cli.importance import MOST_COLUMNS, permuted
from jaxbp.cli.pictures import confusion_matrix, importance, learning_curve, write
from jaxbp.cli.plan import Plan
from jaxbp.cli.report import report
from jaxbp.cli.run_record import Summary
from jaxbp.cli.score_tables import SHOWN
from jaxbp.cli.scores import Score
from jaxbp.model import Params


def write_run(folder: Path, summary: Summary) -> Iterator[str]:
    """Write network, summary, pictures and, made of the same pictures, the report -> the name of
    each when it is whole."""
    plan, outcome = summary.plan, summary.outcome
    save(folder / NETWORK, plan.model, outcome.params, plan.dataset.preparation)
    yield NETWORK
    with written(folder / SUMMARY) as file:
        file.write(json.dumps(summary.to_dict(), indent=2, ensure_ascii=False) + "\n")
    yield SUMMARY
    figures = {}
    if len(outcome.history.training_loss):
        figures[CURVE] = learning_curve(
            outcome.history,
            metric=plan.shown_metric,
            title=plan.title,
            training_metric=outcome.training_metric,
        )
        figures |= pictures_of_test(plan, outcome.params, summary.scores["test"])
    for name, figure in figures.items():
        write(figure, folder / name)
        yield name
    page = report(folder, summary, figures)  # before there is a file: it says that all is there
    with written(folder / REPORT) as file:
        file.write(page)
    yield REPORT


def pictures_of_test(plan: Plan, params: Params, test: Score) -> dict[str, Figure]:
    """Draw what the test rows tell: the confusion matrix, and the importance of a table's columns.

    plan: of the run.
    params: trained.
    test: their score on the test rows.
    """
    preparation, figures = plan.dataset.preparation, {}
    if test.confusion is not None:
        title, labels = f"{plan.options.data}: test rows", preparation.labels or ()
        figures[CONFUSION] = confusion_matrix(test.confusion, labels, title=title)
    if preparation.columns is not None and len(preparation.columns) <= MOST_COLUMNS:
        trained = Checkpoint(plan.model, params, preparation)
        drops = permuted(trained, plan.dataset.test, plan.options.seed)
        metric = SHOWN["accuracy" if preparation.labels else "r2"]
        figures[IMPORTANCE] = importance(
            preparation.features, drops, metric=metric, title=plan.title
        )
    return figures


# Read again


def _model_file(run: Path) -> Path:
    return run / NETWORK if run.is_dir() else run


def trained_network(run: Path) -> Checkpoint:
    """Load the network of a run folder, or of a model.safetensors.  Raises CheckpointError."""
    path = _model_file(run)
    before = path.with_name(path.name + BEFORE)
    if before.exists() and not path.exists():
        raise CheckpointError(
            f"{path}: no such file: the run that was to replace another was killed; {before} is "
            "the other's network"
        )
    trained = load(path)
    if trained.preparation is None:
        raise CheckpointError(
            f"{path}: saved without a preparation, so raw rows mean nothing to it"
        )
    return trained


def record_of(run: Path) -> dict[str, Any]:
    """The summary.json beside a network, or nothing where there is none."""
    try:
        record = json.loads(_model_file(run).with_name(SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
