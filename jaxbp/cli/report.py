"""The report of a run as a page: what it was, how it went, what it is worth, how to go on."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from jaxbp.checkpoint import Checkpoint
from jaxbp.cli.files import CURVE, IMPORTANCE
from jaxbp.cli.gradient_check import TRUSTED
from jaxbp.cli.pages import Html, code, facts, matrix, page, paragraph, picture, section, table
from jaxbp.cli.pictures import health_of_layers, residuals
from jaxbp.cli.plan import health_after
from jaxbp.cli.run_record import Summary, command_line, facts_of, versions
from jaxbp.cli.score_tables import further_tables, scores_table
from jaxbp.cli.scores import names_of_outputs, outputs
from jaxbp.data.errors import scikit_learn
from jaxbp.data.preparation import Preparation, in_units
from jaxbp.text import Table

_LARGEST_MATRIX = 50  # classes: a larger matrix is not read any more, its largest entries are
_MOST_CONFUSIONS = 10  # that are listed
_MOST_QUANTITIES = 6  # whose residuals are drawn


def report(folder: Path, summary: Summary, figures: Mapping[str, Figure]) -> str:
    """The page of a run.

    folder: of the run, as its commands name it.
    summary: of the run.
    figures: those that stand in the folder as well, by the names of their files.
    """
    plan, outcome, data = summary.plan, summary.outcome, summary.plan.dataset
    parts = [paragraph(outcome.ended, "warning")] if outcome.ended else []
    parts.append(facts([*facts_of(summary), ("seed", str(plan.options.seed)), *_kept(summary)]))
    if plan.decisions.columns:
        parts.append(section("Columns", *map(paragraph, plan.decisions.columns)))
    if CURVE in figures:
        says = f"loss and {plan.shown_metric} by epoch, on training and on validation rows"
        parts.append(section("Learning curve", picture(figures[CURVE], says)))
    scores = scores_table(
        list(summary.scores.values()), summary.baselines, data.preparation, data.train
    )
    test = summary.scores["test"]._replace(confusion=None)  # which has a matrix below
    tables = [table(each, "scores") for each in (scores, *further_tables(test, data.preparation))]
    parts.append(section("Scores", *tables))
    parts += _of_test_rows(summary)
    if IMPORTANCE in figures:
        says = "what the test rows' score loses where a column is permuted"
        parts.append(section("Importance of columns", picture(figures[IMPORTANCE], says)))
    parts.append(section("Gradient check", paragraph(_gradient_check(summary.gradient_check))))
    parts.append(section("Health of layers", *_health(summary)))
    parts += _how_to(folder, summary)
    return page(plan.title, parts)


def _kept(summary: Summary) -> Iterator[tuple[str, str]]:
    """Which epoch the parameters are from, where it is not the last."""
    kept, last = summary.outcome.kept_epoch, len(summary.outcome.history.training_loss)
    if kept != last:
        yield "kept", f"the parameters after epoch {kept}"


def _of_test_rows(summary: Summary) -> Iterator[Html]:
    """The confusion matrix of classes, or the residuals of quantities."""
    plan, test = summary.plan, summary.plan.dataset.test
    preparation = plan.dataset.preparation
    if preparation.several_labels:
        return  # each label's scores are in a table
    trained = Checkpoint(plan.model, summary.outcome.params, preparation)
    found = outputs(trained, np.asarray(test.x))
    if preparation.labels is not None:
        target, decided = np.asarray(test.target), found.argmax(1)
        counted_each = scikit_learn("metrics").confusion_matrix
        counts = counted_each(target, decided, labels=np.arange(len(preparation.labels)))
        yield section("Confusion on test rows", *_confusions(counts, preparation.labels))
    elif np.isfinite(found).all():
        names = names_of_outputs(preparation)
        target = in_units(preparation, test.target)[:, :_MOST_QUANTITIES]
        figure = residuals(names[:_MOST_QUANTITIES], target, found[:, :_MOST_QUANTITIES])
        parts = [picture(figure, "predictions and their residuals")]
        if len(names) > _MOST_QUANTITIES:
            said = f"The first {_MOST_QUANTITIES} of {len(names)} quantities are drawn."
            parts.append(paragraph(said, "faint"))
        yield section("Residuals on test rows", *parts)


def _confusions(counts: np.ndarray, labels: tuple[str, ...]) -> Iterator[Html]:
    """How often each class is taken for each, and which are taken for another most often."""
    if len(labels) <= _LARGEST_MATRIX:
        yield paragraph("A line has the rows of a class, a column those taken for one.", "faint")
        yield matrix(counts, labels, "how often each class is taken for each")
    else:
        yield paragraph(f"A matrix of {len(labels)} classes is too large to be read.", "faint")
    wrong = counts * (1 - np.eye(len(labels), dtype=int))
    most = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSIONS]
    places = [divmod(int(place), len(labels)) for place in most if wrong.flat[place]]
    if not places:
        yield paragraph("No test row is taken for another class.")
    elif len(labels) > 2:
        rows = [
            (labels[k], labels[j], str(wrong[k, j]), f"{wrong[k, j] / counts[k].sum():.0%}")
            for k, j in places
        ]
        columns = ("class", "taken for", "rows", "of the class")
        yield table(Table(columns, rows), "the classes that are taken for another most often")


def _gradient_check(errors: Mapping[str, float]) -> str:
    if not errors:
        return "Left out, as its copies in float64 do not fit into memory."
    return (
        f"Before training, the gradient by hand had a relative error of {errors['jax_grad']:.0e} "
        f"against jax.grad in float32, and of {errors['finite_differences']:.0e} against finite "
        f"differences in float64; a run with {TRUSTED:g} or more is not begun."
    )


def _health(summary: Summary) -> Iterator[Html]:
    """The measures of every layer by epoch, and what they mean after the kept one."""
    plan, outcome = summary.plan, summary.outcome
    health = outcome.history.health
    if health is None:
        yield paragraph("Not recorded: jaxbp train --diagnostics does, after each epoch.", "faint")
        return
    if not outcome.kept_epoch:
        yield paragraph("Not recorded: no epoch is kept.", "faint")
        return
    found = health_after(plan, outcome.params, outcome.history, outcome.kept_epoch)
    yield table(found.table(), "the health of every layer")
    yield from map(paragraph, found.lines() or ["Every layer is healthy."])
    measured = jax.tree.map(np.asarray, health)
    yield picture(health_of_layers(measured), "the health of every layer by epoch")


def predicting(preparation: Preparation, outputs: int) -> list[str]:
    """The lines of Python that come to the labels of a network of so many outputs, or to quantities
    in their units."""
    if preparation.labels is None:
        return ["prediction = jaxbp.data.in_units(preparation, jaxbp.predict(model, params, x))"]
    lines = ["probability = jaxbp.predict(model, params, x)"]
    if preparation.several_labels:
        return [*lines, "labels = probability > 0.5  # a column for each of preparation.labels"]
    chosen = "probability.argmax(1)"
    if outputs == 1:
        lines[0] += "  # of the second of preparation.labels"
        chosen = "(probability[:, 0] > 0.5).astype(int)"
    return [*lines, f"labels = [preparation.labels[k] for k in {chosen}]"]


def _how_to(folder: Path, summary: Summary) -> Iterator[Html]:
    """The commands that predict, go on and repeat, and the versions to repeat by."""
    options = summary.plan.options
    run, table_of_rows = shlex.quote(str(folder)), "new_rows.csv"
    columns = summary.plan.dataset.preparation.columns or ()
    has_dates = any(each.kind == "date" for each in columns)  # which ONNX does not read
    to, file = ("numpy", "network.py") if has_dates else ("onnx", "network.onnx")
    elsewhere: dict[str, Any] = {"output": None, "overwrite": False}
    commands = [
        f"jaxbp predict {run} {table_of_rows} > predictions.csv",
        f"jaxbp evaluate {run} {table_of_rows}",
        f"jaxbp export {run} --to {to} --output {file}",
    ]
    in_python = [
        "import jaxbp",
        "",
        f"model, params, preparation = jaxbp.load({str(folder)!r})",
        "x = jaxbp.data.transform(preparation, new_rows)  # a DataFrame, a dict or an array",
        *predicting(summary.plan.dataset.preparation, summary.plan.model.sizes[-1]),
    ]
    yield section("How to predict", code("\n".join(commands)), code("\n".join(in_python)))
    again = command_line(replace(options, **elsewhere))
    known = {**versions(), "device": jax.devices()[0].device_kind}
    yield section(
        "How to repeat",
        code(f"{again}\njaxbp train --resume {run} --epochs {2 * options.epochs}"),
        facts(known.items()),
    )
