"""The benchmarks that depend on the device, run on the device that JAX finds.

    python -m benchmarks.accelerator [--short | --quick] [--minutes M] [--output FOLDER]

Each part is a process of its own, as an accelerator's memory belongs to one process at a time, and
writes FOLDER/NAME-DEVICE.json anew after each of its cells.  The parts share the minutes: one that
still runs at the end of its share is ended, with what it has written kept, and the next begins.
Without ``--output`` the folder is a new temporary one, so no committed result is overwritten unless
its folder is named: ``--output benchmarks/results``; ``python -m benchmarks.report`` then puts the
results on the page.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTS = {  # and how many times the others' time each has
    "one_kernel": 2,
    "training": 4,
    "limit": 2,
    "scaling": 1.5,
    "manual_vs_auto": 1,
}
MINUTES, SHORT_MINUTES = 7.5, 3.75  # all parts together; under 8 and 4 with what is around them
ITS_OWN = 0.85  # share of a part's time that it plans with; the rest is for its start and last cell


def command_of(name, flags, seconds):
    """The command of a benchmark that has so many seconds."""
    minutes = ITS_OWN * seconds / 60
    return [sys.executable, "-m", f"benchmarks.{name}", *flags, "--minutes", f"{minutes:.3f}"]


def ended(command, seconds):
    """Run a command for so many seconds at most -> how it ended, in words.

    What still runs then is killed, and the processes that it started with it; on Windows it alone.
    """
    # without preallocation a process that trains alone finds memory beside the one that started it
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return "cut off"
    finally:
        if process.poll() is None:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()
    return "ended" if status == 0 else f"failed (status {status})"


def run(shares, minutes, flags):
    """Run benchmarks one after the other -> how each ended, by name.

    shares: names, and how many times the others' time each has; what one leaves over goes to the
        later ones.
    minutes: for all of them together.
    flags: of each command.
    """
    deadline = time.monotonic() + 60 * minutes
    ends, names = {}, list(shares)
    for number, name in enumerate(names):
        start = time.monotonic()
        of_the_rest = sum(shares[each] for each in names[number:])
        seconds = max(0.0, deadline - start) * shares[name] / of_the_rest
        ends[name] = ended(command_of(name, flags, seconds), seconds)
        print(f"\n{name}: {ends[name]} after {time.monotonic() - start:.0f} s\n", flush=True)
    return ends


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--short", action="store_true", help="the cells that say most")
    extent.add_argument("--quick", action="store_true", help="the smallest cells")
    parser.add_argument(
        "--minutes", type=float, help=f"for all; {MINUTES}, with --short {SHORT_MINUTES}"
    )
    parser.add_argument(
        "--output", type=Path, help="a folder for the results; a new one if not given"
    )
    options = parser.parse_args()
    folder = options.output or Path(tempfile.mkdtemp(prefix="benchmarks-"))
    folder.mkdir(parents=True, exist_ok=True)
    flags = [f"--{name}" for name in ("short", "quick") if getattr(options, name)]
    minutes = SHORT_MINUTES if options.short else MINUTES
    if options.minutes is not None:
        minutes = options.minutes
    print(f"{minutes:g} minutes at most; results in {folder}\n", flush=True)
    start = time.monotonic()
    ends = run(PARTS, minutes, [*flags, "--output", str(folder.resolve())])
    for name, end in ends.items():
        print(f"{name}: {end}")
    print(f"all of it: {time.monotonic() - start:.0f} s; results in {folder}")
    sys.exit(any(end != "ended" for end in ends.values()))


if __name__ == "__main__":
    main()
