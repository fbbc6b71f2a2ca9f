"""Do the error bars of measured derivatives hold the true ones?

    python -m benchmarks.error_bars [--output results.json] [--short | --quick]
    python -m benchmarks.error_bars --table results.json

One in three of the functions of benchmarks/functions.py, at its ordinary point, in float64, by each
checker that gives an error bar.  The true derivative is that of ``jax.grad``.
"""

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import jax
import numpy as np

from benchmarks import functions, protocol
from benchmarks.asking import (
    DERIVATIVES,
    OURS,
    PASSED,
    Question,
    Vector,
    asked,
    installed,
    of_vector,
)
from jaxbp import gradcheck

EVERY = 3  # of how many functions one is differentiated with an error bar
ROUNDED = 1e-14  # relative error of a derivative that counts as true


def slopes_with_bars(function: functions.Function) -> tuple[Question, np.ndarray]:
    """A function at its ordinary point, and its true derivative by the first argument."""
    args = *function.points["ordinary"], functions.Wrong().argument()
    question = Question(functions.objective(function), args, None)
    return question, np.ravel(question.claimed(*question.args))


def jaxbp_slope(question: Question) -> tuple[np.ndarray, ...]:
    """The slope that a report shows, the one furthest off -> it, its bar, and the true one."""
    (leaf,) = gradcheck(question.f, *question.args).leaves
    return np.array([leaf.measured]), np.array([leaf.error]), np.array([leaf.claimed])


def bars(
    function: functions.Function, checkers: Mapping[str, Callable[[Question], str]]
) -> dict[str, dict[str, float]]:
    """For each checker with an error bar: how many derivatives, and how many bars do not hold."""
    with jax.enable_x64(True):
        question, true = slopes_with_bars(function)
        found: dict[str, tuple[np.ndarray, ...]] = {}
        if OURS in checkers:
            found[OURS] = jaxbp_slope(question)
        for checker in checkers.keys() & DERIVATIVES:
            derivative, answers = DERIVATIVES[checker], []

            @of_vector
            def keep(vector: Vector, derivative: Any = derivative, answers: Any = answers) -> str:
                answers.extend(derivative(vector))
                return PASSED

            asked(keep, question)
            if answers:
                found[checker] = (*answers, true)
    counts = {}
    for checker, (value, error, truth) in found.items():
        off = np.abs(value - truth) - ROUNDED * np.linalg.norm(truth)
        finite = np.isfinite(value) & np.isfinite(error)
        counts[checker] = {
            "derivatives": int(finite.sum()),
            "outside": int((off > error)[finite].sum()),
            "far outside": int((off > 10 * error)[finite].sum()),
            "width": float(np.max(error[finite], initial=0) / max(np.linalg.norm(truth), 1e-300)),
        }
    return counts


EXPLANATION = """\
How often the true derivative lies outside the error bar, and outside ten times it. A bar's width is
relative to the gradient's size, the widest of a function, in the median over these. Of `jaxbp` it
is the one slope that a report shows, along the direction that is furthest off; of the others every
entry of the gradient."""


def markdown(result: Mapping[str, Any]) -> str:
    """How often an error bar does not hold the true derivative."""
    lines = []
    for checker in (OURS, *DERIVATIVES):
        counts = [row[checker] for row in result["functions"].values() if checker in row]
        if counts:
            totals = [
                sum(c[key] for c in counts) for key in ("derivatives", "outside", "far outside")
            ]
            width = float(np.median([c["width"] for c in counts]))
            lines.append(protocol.line(f"`{checker}`", *map(str, totals), f"{width:.1e}"))
    heads = ("measured by", "derivatives", "outside the bar", "outside ten bars", "a bar's width")
    return protocol.table(heads, lines, EXPLANATION)


def measure(run: protocol.Run) -> dict[str, Any]:
    """Ask for derivatives with error bars, and print the table."""
    checkers = installed()
    result: dict[str, Any] = {"functions": {}}
    real = [
        f
        for f in functions.functions()
        if f.points["ordinary"][0].dtype == np.float64 and f.expression not in functions.MISTAKES
    ]
    measured = run.cells(
        real[:: EVERY * protocol.extent(run, 1, 4, 17)],
        lambda f: (f.expression, bars(f, checkers)),
        attrgetter("expression"),
    )
    for name, counts in measured:
        result["functions"][name] = counts
        run.keep(result)
    print("\n" + markdown(result))
    return result


if __name__ == "__main__":
    protocol.command(__doc__, measure, markdown)
