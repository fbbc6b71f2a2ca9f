"""Faults that the tests must catch: ``python -m tests.bite`` plants those of faults.toml.

It plants one fault at a time in a copy of the package, runs the default tests of that module, and
prints a table of which test caught which fault, kept in tests/bite.md.  It takes some minutes, so
CI does not run it; a test checks that every fault can still be planted.  ``--only WORD`` plants
those with a word in their name.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COPIED = (
    "jaxbp",
    "jaxbp_command.py",
    "tests",
    "benchmarks",
    "docs",
    "README.md",
    "pyproject.toml",
    ".ci",
)


class Fault(NamedTuple):
    """One line of a module gone wrong."""

    module: str  # a file of the package, without .py
    tests: tuple[str, ...]  # files of tests/, without .py
    what: str  # is wrong
    right: str  # text that stands in the module once
    wrong: str  # text in its place

    @property
    def file(self) -> Path:
        """The file in which it is planted, below a checkout's root."""
        return Path("jaxbp", self.module).with_suffix(".py")

    def planted(self, text: str) -> str:
        """The module's text with the fault in it."""
        if text.count(self.right) != 1:
            raise ValueError(f"{self.file}: {text.count(self.right)} times {self.right!r}")
        return text.replace(self.right, self.wrong)


def faults() -> list[Fault]:
    """All of faults.toml."""
    table = tomllib.loads((ROOT / "tests" / "faults.toml").read_text(encoding="utf-8"))
    return [
        Fault(module, tuple(entry["tests"]), *fault)
        for module, entry in table.items()
        for fault in entry["faults"]
    ]


def first_failure(fault: Fault | None, tests: Iterable[str], right: Path) -> str | None:
    """The first default test to fail in a copy of a checkout with the fault planted in it.

    fault: None plants nothing.
    tests: files of tests/, without .py.
    right: the checkout without faults.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(right, folder, dirs_exist_ok=True)
        if fault is not None:
            file = Path(folder) / fault.file
            file.write_text(fault.planted(file.read_text(encoding="utf-8")), encoding="utf-8")
        options = ["-n", "0", "-x", "-p", "no:cacheprovider", "-p", "no:randomly"]
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *(f"tests/{name}.py" for name in tests)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    if ran.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - .*)?$", ran.stdout, re.MULTILINE)
    if failed is None:
        raise RuntimeError(f"{fault}: pytest broke\n{ran.stdout[-3000:]}{ran.stderr[-3000:]}")
    return failed[1]


def main() -> int:
    """Plant the faults; the exit status says whether all were caught."""
    parser = argparse.ArgumentParser(prog="python -m tests.bite", description=__doc__)
    parser.add_argument("--only", metavar="WORD", default="", help="plant those with this word")
    only = parser.parse_args().only
    chosen = [fault for fault in faults() if only in f"{fault.module} {fault.what}"]
    if not chosen:
        parser.error(f"--only: no fault has {only!r} in it")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        os.environ |= {
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/programs",  # most are those of the right code
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        right = Path(folder, "right")
        right.mkdir()
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, right / name)
        failing = first_failure(None, sorted({name for f in chosen for name in f.tests}), right)
        if failing is not None:
            parser.error(f"tests/{failing} fails without any fault")
        caught = pool.map(lambda fault: first_failure(fault, fault.tests, right), chosen)
        print("| module | fault | caught by |\n|---|---|---|")
        missed = 0
        for fault, test in zip(chosen, caught, strict=True):
            missed += test is None
            by = "**nothing**" if test is None else f"`{test}`"
            print(f"| {fault.module} | {fault.what} | {by} |", flush=True)
    print(f"\n{len(chosen) - missed} of {len(chosen)} caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
