"""``jaxbp runs``: the runs of a folder beside each other, as a table, as JSON and as a page."""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import numpy as np
import tyro
from rich.console import Console
from tyro.conf import arg

from jaxbp.cli.files import (
    BEFORE,
    METRICS,
    NETWORK,
    OPTIONS,
    REPORT,
    RUN,
    SUMMARY,
    new_file,
    written,
)
from jaxbp.cli.options import UsageError
from jaxbp.cli.pages import Html, page, paragraph, picture, section, table
from jaxbp.cli.pictures import learning_curves
from jaxbp.cli.score_tables import SHOWN, decimals
from jaxbp.text import Table, align, counted, cut, significant


@dataclass(frozen=True)
class Runs:
    """List the runs of a folder, and compare their scores and times.

    FOLDER comes first: jaxbp runs old_runs --sort score
    """

    folder: Annotated[
        tyro.conf.Positional[Path],
        arg(metavar="[FOLDER]", help="the folder that the run folders are in"),
    ] = Path("runs")
    sort: Annotated[
        Literal["name", "data", "task", "network", "epochs", "score", "test", "time", "date"],
        arg(
            help="what the rows are sorted by: score is that of the validation rows, by which to "
            "choose, and test that of the test rows, both the best first; time the shortest first, "
            "date the latest"
        ),
    ] = "name"
    json: Annotated[bool, arg(help="print the runs as JSON and nothing else")] = False
    html: Annotated[
        Path | None,
        arg(
            metavar="FILE",
            help="write them as a page, with their learning curves over each other, a new .html",
            help_behavior_hint="(default: none)",
        ),
    ] = None


@dataclass(frozen=True)
class Run:
    """A run folder in short; what is not known of it is None."""

    name: str
    state: str  # finished, how else it ended, or why nothing is known
    data: str | None = None
    rows: int | None = None
    target: str | None = None
    weights: str | None = None  # the column of the rows' weights
    task: str | None = None
    network: str | None = None
    head: str | None = None
    seed: int | None = None
    epochs: int | None = None
    metric: str | None = None  # the score's, "accuracy" or "r2"
    validation: float | None = None
    test: float | None = None
    seconds: float | None = None  # of compiling and training
    finished: str | None = None  # date and time, in UTC


def run(options: Runs, console: Console) -> int:
    """Carry out the command; the exit status."""
    new_file("--html", options.html, (".html", ".htm"))
    folder = options.folder
    if not folder.is_dir():
        raise UsageError(f"FOLDER: {folder} is not a directory")
    folders = run_folders(folder)
    found = ordered(map(read, folders.values()), options.sort)
    if options.json:
        print(json.dumps([asdict(each) for each in found], indent=2, allow_nan=False))
    else:
        _show(found, options, console)
    if options.html is not None:
        with written(options.html) as file:
            file.write(_page(found, folders, options))
        console.print(f"written to {options.html}: open it in a browser", soft_wrap=True)
    return 0


def _show(found: Sequence[Run], options: Runs, console: Console) -> None:
    """Print a table that fits the terminal, or what there is instead; whole where none reads it."""
    if not found:
        console.print(f"{options.folder} holds no run: jaxbp train makes one", soft_wrap=True)
        return
    width = console.width if console.is_terminal else 10_000
    shown, left_out = fitting(found, options.sort, width)
    console.print(align(shown, width), soft_wrap=True)
    remarks = _remarks(found, options.sort)
    if left_out:
        remarks.append(f"too narrow for {', '.join(left_out)}: --json and --html have all")
    for line in remarks:
        console.print(f"\n{line}" if line == remarks[0] else line, soft_wrap=True)


def run_folders(folder: Path) -> dict[str, Path]:
    """The folders in a folder that hold a file of a run, by name; the folder itself, where it does.

    One that a symbolic link names, too, is there once.
    """
    names = {*RUN, *(f"{name}{BEFORE}" for name in RUN)}

    def is_run(each: Path) -> bool:
        try:
            return each.is_dir() and any(os.path.lexists(each / name) for name in names)
        except OSError:  # one that may not be entered
            return True

    if is_run(folder):
        return {_name_of(folder): folder}
    links_first = sorted(filter(is_run, folder.iterdir()), key=Path.is_symlink, reverse=True)
    once = {each.resolve(): each for each in links_first}
    return {each.name: each for each in once.values()}


def read(folder: Path) -> Run:
    """A run by its summary or, where it has none yet, by the options that it began with."""
    name = _name_of(folder)
    try:
        if os.path.lexists(folder / SUMMARY):
            return _ended(name, _dict_of(folder / SUMMARY), folder)
        if not os.path.lexists(folder / OPTIONS) and os.path.lexists(folder / NETWORK):
            return Run(name, "network alone")  # as jaxbp import makes it
        return _begun(name, _dict_of(folder / OPTIONS), len(_epochs_of(folder)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = ""
        if isinstance(error, OSError):
            why = f": {Path(error.filename or name).name}: {error.strerror}"
        return Run(name, f"unreadable{why}")


def _name_of(folder: Path) -> str:
    """A folder's name, also of the one that is called ``.``."""
    return folder.name or folder.resolve().name


def _dict_of(path: Path) -> dict[str, Any]:
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise TypeError(f"{path}: expected an object")
    return record


def _ended(name: str, summary: dict[str, Any], folder: Path) -> Run:
    """A run by its summary.  Raises KeyError and others where that is none."""
    metric = {"classification": "accuracy", "regression": "r2"}[summary["task"]]
    classes, units = summary["classes"], summary["activation"]
    of_several = "labels" if "test_outputs" in summary else "classes"
    sizes = "-".join(str(int(size)) for size in summary["network"])
    changed = datetime.fromtimestamp((folder / SUMMARY).stat().st_mtime, UTC)
    when = summary.get("finished") or changed.isoformat(timespec="seconds")  # earlier have none
    return Run(
        name,
        state=str(summary["ended"] or "finished").partition(":")[0],
        data=str(summary["data"]),
        rows=sum(summary["rows"].values()) if "rows" in summary else None,
        target=summary.get("target"),
        weights=summary.get("weights"),
        task="regression" if classes is None else f"{len(classes)} {of_several}",
        network=f"{sizes} {' '.join(units) if len(summary['network']) > 2 else 'linear'}",
        head=str(summary["head"]),
        seed=summary.get("seed"),
        epochs=int(summary["epochs"]),
        metric=metric,
        validation=_number(summary.get(f"validation_{metric}")),
        test=_number(summary.get(f"test_{metric}")),
        seconds=_number(summary["seconds"]),
        finished=datetime.fromisoformat(when).isoformat(timespec="seconds"),
    )


def _begun(name: str, options: dict[str, Any], epochs: int) -> Run:
    """A run without a summary: it goes on elsewhere, or was killed."""
    return Run(name, "unfinished", data=str(options["data"]), epochs=epochs)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _epochs_of(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl, none where it is not there; a last one may be cut off."""
    path = folder / METRICS
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def ordered(found: Iterable[Run], by: str) -> list[Run]:
    """Sort runs; those without what they are sorted by come last, and each metric is by itself."""

    def natural(text: str) -> list[tuple[int, str]]:  # iris-2 before iris-10
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in _parts(text)]

    keys: dict[str, Callable[[Run], Any]] = {
        "data": lambda run: run.data,
        "task": lambda run: run.task,
        "network": lambda run: run.network,
        "epochs": lambda run: run.epochs,
        "score": lambda run: None if run.validation is None else (run.metric, -run.validation),
        "test": lambda run: None if run.test is None else (run.metric, -run.test),
        "time": lambda run: run.seconds,
        "date": lambda run: run.finished and -datetime.fromisoformat(run.finished).timestamp(),
    }
    by_name = sorted(found, key=lambda run: natural(run.name))
    if by == "name":
        return by_name
    key = keys[by]
    known = [each for each in by_name if key(each) is not None]
    return sorted(known, key=key) + [each for each in by_name if key(each) is None]


def _parts(text: str) -> list[str]:
    return [part for part in re.split(r"(\d+)", text) if part]


def _cells(run: Run, longest: int) -> dict[str, str]:
    """The cells of a run by their columns' names; names of its own are cut."""

    def score(value: float | None) -> str:
        return "" if value is None else decimals(value)

    return {
        "run": cut(run.name, longest),
        "data": cut(run.data or "", longest),
        "task": cut(f"{run.task or ''}{f' of {run.target}' if run.target else ''}", longest),
        "network": cut(run.network or "", longest),
        "epochs": "" if run.epochs is None else str(run.epochs),
        "metric": SHOWN.get(run.metric or "", ""),
        "validation": score(run.validation),
        "test": score(run.test),
        "time": "" if run.seconds is None else f"{significant(run.seconds, 3)} s",
        "date": (run.finished or "")[: len("2026-01-31T12:00")].replace("T", " "),
        "state": "" if run.state == "finished" else run.state,
    }


_LEFT_OUT = ("date", "task", "epochs", "network", "time", "data")  # in turn, where there is no room


def fitting(found: Sequence[Run], by: str, width: int | None = None) -> tuple[Table, list[str]]:
    """The runs in a table of that many columns of text, and which of its columns have no room; all
    of them where not even the scores have.

    found: the runs.
    by: what they are sorted by, which is not left out.
    width: of the terminal; any unless given.
    """
    left_out = [] if any(each.state != "finished" for each in found) else ["state"]
    spare = [each for each in _LEFT_OUT if each != by]
    shown = _tabulated(found, 60, left_out)
    for count in range(len(spare) + 1):
        for longest in (60, 20) if count < len(spare) else (60, 20, 12):
            less = _tabulated(found, longest, [*left_out, *spare[:count]])
            if width is None or _width(less) <= width:
                return less, spare[:count]
    return shown, []  # row by row, a line for each cell


def _tabulated(found: Sequence[Run], longest: int, left_out: Sequence[str]) -> Table:
    rows = [_cells(each, longest) for each in found]
    columns = [name for name in rows[0] if name not in left_out]
    return Table(columns, [[row[name] for name in columns] for row in rows])


def _width(shown: Table) -> int:
    """The columns of text that a table takes, with two blanks between two of its own."""
    columns = zip(shown.columns, *shown.rows, strict=True)
    return sum(max(map(len, column)) + 2 for column in columns) - 2


def _metrics(found: Iterable[Run]) -> list[str]:
    return sorted({each.metric for each in found if each.metric is not None})


_OF_THE_ROWS = ("target", "rows", "weights")  # what the scores of runs are of, beside the data


def _remarks(found: Sequence[Run], by: str) -> list[str]:
    """Say in lines what the order of the runs does not tell."""
    metrics, remarks = _metrics(found), []
    if by in {"score", "test"} and len(metrics) > 1:
        names = " and ".join(SHOWN[metric] for metric in metrics)
        remarks.append(f"{names} are no scores of one kind: each is sorted by itself")
    scored = [each for each in found if each.metric is not None]
    for data in dict.fromkeys(each.data or "" for each in scored):
        of_data = [each for each in scored if each.data == data]
        differ = [name for name in _OF_THE_ROWS if len({getattr(x, name) for x in of_data}) > 1]
        if differ:
            remarks.append(
                f"{data}: the runs differ in {' and '.join(differ)}, which no score compares"
            )
    return remarks


# The page

_MOST_CURVES = 20  # in a picture


def _page(found: Sequence[Run], folders: dict[str, Path], options: Runs) -> str:
    """A table whose names lead to the runs' reports, and a picture of curves for each task.

    folders holds those of the runs by their names.
    """
    assert options.html is not None
    start = options.html.resolve().parent
    links = [_link(folders[each.name] / REPORT, start) for each in found]
    count = counted(len(found), "run")
    parts = (
        [table(fitting(found, options.sort)[0], "the runs", links)]
        if found
        else [paragraph("No run.")]
    )
    parts += [paragraph(line, "faint") for line in _remarks(found, options.sort)]
    comparable: dict[str, list[Run]] = {}
    for each in found:
        if each.data is not None and each.head is not None:
            comparable.setdefault(_losses_of(each), []).append(each)
    for title, runs in comparable.items():
        parts.append(section(title, *_curves(runs, folders)))
    return page(f"{options.folder}: {count}", parts)


def _losses_of(run: Run) -> str:
    """The data, rows and loss of a run in words: the losses of two compare where they are equal."""
    words = [run.data, run.target, run.rows and counted(run.rows, "row"), run.head]
    words.append(run.weights and f"weights {run.weights}")
    return ", ".join(each for each in words if each)


def _link(report: Path, start: Path) -> str | None:
    """The report's address on a page in the folder ``start``; None where there is no report."""
    return quote(os.path.relpath(report.resolve(), start)) if report.is_file() else None


def _curves(runs: Sequence[Run], folders: dict[str, Path]) -> list[Html]:
    """The validation loss and the metric of runs on the same rows with the same loss."""
    metric, curves = runs[0].metric or "", {}
    for each in runs:
        try:
            lines = _epochs_of(folders[each.name])
            values = [
                [math.nan if line[name] is None else float(line[name]) for line in lines]
                for name in ("validation_loss", f"validation_{metric}")
            ]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a damaged metrics.jsonl has no curve
        if lines:
            curves[each.name] = np.array(values)
    shown = dict(list(curves.items())[:_MOST_CURVES])
    if not shown:
        return [paragraph("No run here has a metrics.jsonl that can be read.", "faint")]
    says = f"loss and {SHOWN[metric]} on validation rows by epoch, a line a run"
    left = len(curves) - len(shown)
    more = [paragraph(f"The first {len(shown)} are drawn; {left} more are not.", "faint")]
    return [picture(learning_curves(shown, metric=SHOWN[metric]), says), *(more if left else [])]
