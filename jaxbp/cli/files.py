"""Files: what a command may write, checked before its work begins.

Nothing is overwritten but a run, and that only where ``--overwrite`` says so.
"""

import itertools
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from jaxbp.cli.options import UsageError
from jaxbp.training.checkpoints import no_checkpoints_in

PICTURES = (".png", ".svg", ".pdf")
NETWORK = "model.safetensors"
METRICS, OPTIONS, CHECKPOINTS = "metrics.jsonl", "options.json", "checkpoints"
CURVE, CONFUSION, IMPORTANCE = "learning_curve.png", "confusion_matrix.png", "importance.png"
SUMMARY, REPORT = "summary.json", "report.html"
OF_TEST_ROWS = (CONFUSION, IMPORTANCE)  # pictures: of classes, and of a table
RESULTS = (NETWORK, SUMMARY, CURVE, *OF_TEST_ROWS, REPORT)  # what a run comes to
RUN = (METRICS, OPTIONS, CHECKPOINTS, *RESULTS)  # its files, and the folder of its checkpoints
BEFORE = ".before"  # ends the names of the files of a run that is being replaced


def new_file(
    option: str, path: Path | None, suffixes: Collection[str] = (), *, make_folder: bool = False
) -> None:
    """Raise UsageError unless a path, if one is given, names a new file that can be written.

    option: the path's option, as in "--output".
    path: None if it was not given.
    suffixes: those allowed; all if none is named.
    make_folder: whether the command will make the file's folder; else it has to be there.
    """
    if path is None:
        return
    if suffixes and path.suffix not in suffixes:
        raise UsageError(f"{option}: got {path}, expected a name in {', '.join(suffixes)}")
    if os.path.lexists(path):
        raise UsageError(f"{option}: {path} exists, and nothing is overwritten")
    if not make_folder and not path.parent.is_dir():
        raise UsageError(f"{option}: {path.parent} is not a directory")
    check_can_write(option, path)


def new_folder(option: str, path: Path | None, *, overwrite: bool = False) -> None:
    """Raise UsageError unless a path, if one is given, names a folder that can be written.

    option: the path's option, as in "--output".
    path: None if it was not given.
    overwrite: whether the folder may hold a run; else it has to be new or empty.
    """
    if path is None:
        path = Path("runs")
    elif path.is_dir():
        names = {file.name.removesuffix(BEFORE) for file in path.iterdir()}
        others = sorted(names - {*(RUN if overwrite else ())})
        if overwrite:
            _check_is_run(option, path, names, others)
        if others:
            how = "; --overwrite replaces the run in it, and --resume goes on with it"
            of_a_run = how if {*others} <= {*RUN} else ""
            raise UsageError(f"{option}: {path} exists, and nothing is overwritten{of_a_run}")
    elif os.path.lexists(path):
        raise UsageError(f"{option}: {path} exists, and nothing is overwritten")
    check_can_write(option, path / f"{RUN[0]}.new")


def _check_is_run(option: str, folder: Path, names: Collection[str], others: list[str]) -> None:
    """Raise UsageError for a folder that holds anything but a run: it is not overwritten.

    option: the folder's option.
    folder: that may hold a run.
    names: of all that it holds, as they are called in a run.
    others: those of them that no run has.
    """
    for name in (CHECKPOINTS, f"{CHECKPOINTS}{BEFORE}"):
        if (folder / name).is_dir():
            others = others + [f"{name}/{each}" for each in no_checkpoints_in(folder / name)]
    if not others and names and OPTIONS not in names and not {NETWORK, SUMMARY} <= {*names}:
        others = sorted(names)  # called as a run's, and of none
    if others:
        raise UsageError(
            f"{option}: {folder} holds {others[0]}, which is not of a run, and is not overwritten"
        )


def check_can_write(option: str, path: Path) -> None:
    """Raise UsageError unless a new file, and the folders that it is to be in, can be made: they
    are, and are removed again."""
    missing = list(itertools.takewhile(lambda folder: not os.path.lexists(folder), path.parents))
    existing = path.parents[len(missing)]
    if not existing.is_dir():
        raise UsageError(f"{option}: {existing} is not a directory")
    made = []
    try:
        for folder in reversed(missing):
            folder.mkdir()
            made.append(folder)
        path.open("x").close()
        path.unlink()
    except OSError as error:
        raise UsageError(
            f"{option}: {error.filename} cannot be written ({error.strerror})"
        ) from None
    finally:
        for folder in reversed(made):
            folder.rmdir()


@contextmanager
def written(path: Path) -> Iterator[IO[str]]:
    """Open a new text file, in UTF-8, in a folder that is made; after an error it is not left.

    What UTF-8 cannot write, as the name of a file may hold it, is escaped as in JSON.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("x", newline="", encoding="utf-8", errors="backslashreplace")
    try:
        with naming(path), file:
            yield file
    except BaseException:
        path.unlink()
        raise


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Name the file in an OSError of the block: one that tells of a full disk names none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def make_run_folder(output: Path | None, data: str) -> Path:
    """Make the run folder: output or, unless it is given, the next free runs/DATA-NUMBER.

    The files of a run that output holds get a name of their own until there is a new network
    (``settle_run_before``): ``new_folder`` has asked whether it may be replaced.
    """
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        set_aside(output)
        return output
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    while True:
        folder = next_free(runs / Path(data).stem)
        with suppress(FileExistsError):  # where another run has just taken the name
            folder.mkdir()
            return folder


def set_aside(folder: Path, names: Collection[str] = RUN) -> None:
    """Give the files of a run a name of their own, if it has a network, and else remove them."""
    is_whole = (folder / NETWORK).exists()
    for file in (folder / name for name in names):
        if is_whole and file.exists():
            _remove(_before(file))
            file.replace(_before(file))
        _remove(file)


def settle_run_before(folder: Path, names: Collection[str] = RUN) -> None:
    """Remove the run that was to be replaced; where there is no new network, bring it back."""
    if (folder / NETWORK).exists():
        for name in RUN:
            _remove(_before(folder / name))
    elif _before(folder / NETWORK).exists():
        for file in (folder / name for name in names):
            _remove(file)
            with suppress(FileNotFoundError):
                _before(file).replace(file)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _before(file: Path) -> Path:
    return file.with_name(file.name + BEFORE)


def next_free(stem: str | Path, suffix: str = "") -> Path:
    """STEM-NUMBER with a suffix, for the first number from 1 on that no file or folder has."""
    names = (f"{stem}-{number}{suffix}" for number in itertools.count(1))
    return Path(next(name for name in names if not os.path.lexists(name)))
