"""All benchmarks, shortened: under ten minutes on two cores.

    python -m benchmarks [--quick]

Each file is also a command of its own, which measures in full: ``python -m benchmarks.limit``.
"""

import argparse
import sys

from benchmarks import accelerator
from benchmarks.report import MODULES

MINUTES = 9.5


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest cells, to see them run")
    options = parser.parse_args()
    shares = {name: accelerator.PARTS.get(name, 1) for name in MODULES}
    ends = accelerator.run(shares, MINUTES, ["--quick" if options.quick else "--short"])
    sys.exit(any(end != "ended" for end in ends.values()))


if __name__ == "__main__":
    main()
