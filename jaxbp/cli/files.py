"""Files: what a command may write, checked before its work begins; nothing is ever overwritten."""

import itertools
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from jaxbp.cli.options import UsageError

PICTURES = (".png", ".svg", ".pdf")


def new_file(option: str, path: Path | None, suffixes: Collection[str] = ()) -> None:
    """Raise UsageError unless a path, if one is given, names a new file in a folder that exists.

    option is the path's option, as in "--output"; suffixes are those allowed, all if none is named.
    """
    if path is None:
        return
    if suffixes and path.suffix not in suffixes:
        raise UsageError(f"{option}: got {path}, expected a name in {', '.join(suffixes)}")
    if path.exists():
        raise UsageError(f"{option}: {path} exists, and nothing is overwritten")
    if not path.parent.is_dir():
        raise UsageError(f"{option}: {path.parent} is not a directory")


def new_folder(option: str, path: Path | None) -> None:
    """Raise UsageError unless a path, if one is given, names a new or an empty folder."""
    if path is not None and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"{option}: {path} exists, and nothing is overwritten")


def make_run_folder(output: Path | None, data: str) -> Path:
    """Make the run folder: output or, unless it is given, the next free runs/DATA-NUMBER."""
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        return output
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    while True:
        folder = next_free(runs / Path(data).stem)
        with suppress(FileExistsError):  # where another run has just taken the name
            folder.mkdir()
            return folder


def next_free(stem: str | Path, suffix: str = "") -> Path:
    """STEM-NUMBER with a suffix, for the first number from 1 on that no file or folder has."""
    names = (f"{stem}-{number}{suffix}" for number in itertools.count(1))
    return Path(next(name for name in names if not os.path.lexists(name)))
