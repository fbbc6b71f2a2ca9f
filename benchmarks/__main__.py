"""All benchmarks, shortened: under ten minutes on two cores.

    python -m benchmarks [--quick]

Each file is also a command of its own, which measures in full: ``python -m benchmarks.limit``.
"""

import argparse
import time

from benchmarks.accelerator import run
from benchmarks.report import MODULES


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest cells, to see them run")
    options = parser.parse_args()
    start = time.perf_counter()
    run(MODULES, "--quick" if options.quick else "--short")
    print(f"all of it: {(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
