"""The benchmarks that depend on the device, run on the device that JAX finds.

    python -m benchmarks.accelerator [--short | --quick] [--output FOLDER]

``manual_vs_auto``, ``limit``, ``scaling`` and ``training``, each in a process of its own, as an
accelerator's memory belongs to one process at a time.  Each writes FOLDER/NAME-DEVICE.json, by
default among the committed results; ``python -m benchmarks.report`` then puts them on the page.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("manual_vs_auto", "limit", "scaling", "training")
RESULTS = Path(__file__).parent / "results"


def run(names, *flags):
    """Run each benchmark's command, and print how long it took."""
    for name in names:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *flags],
            cwd=Path(__file__).parent.parent,
            check=True,
        )
        print(f"\n{name}: {time.perf_counter() - start:.0f} s\n", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--short", action="store_true", help="the cells that say most")
    extent.add_argument("--quick", action="store_true", help="the smallest cells")
    parser.add_argument("--output", type=Path, default=RESULTS, help="a folder for the results")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    flags = [f"--{name}" for name in ("short", "quick") if getattr(options, name)]
    run(NAMES, *flags, "--output", str(options.output.resolve()))


if __name__ == "__main__":
    main()
