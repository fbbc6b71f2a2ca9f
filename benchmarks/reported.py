"""What do gradient checkers say of bugs that were reported in public, and are their bars true?

    python -m benchmarks.reported [--output results.json] [--short | --quick] [--only scipy torch]
    python -m benchmarks.reported --table results.json

The checkers of benchmarks/checkers.py are asked about the bugs of benchmarks/reported_bugs.py, the
right gradient and the wrong one, in float64 and in float32.  Those that give an error bar are also
asked for derivatives of functions of benchmarks/functions.py: does the bar hold the true one?
"""

import json
from collections.abc import Callable, Mapping
from itertools import product
from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import functions, protocol
from benchmarks.checkers import (
    CAUGHT,
    DERIVATIVES,
    OURS,
    PASSED,
    SILENT,
    Question,
    Vector,
    add_arguments,
    asked,
    chosen,
    of_vector,
    told,
)
from benchmarks.reported_bugs import REPORTED
from jaxbp import gradcheck

Checkers = Mapping[str, Callable[[Question], str]]
CLAIMS, DTYPES = ("right", "wrong"), ("float64", "float32")
BAR_EVERY = 3  # of how many functions one is differentiated with an error bar
ROUNDED = 1e-14  # relative error of a derivative that counts as true


def reported() -> dict[tuple[str, str, str], Question]:
    """The gradients of the reported bugs, by name, right or wrong, and dtype."""
    questions = {}
    for (name, bug), claim, dtype in product(REPORTED.items(), CLAIMS, DTYPES):
        wide = dtype == "float64"
        with jax.enable_x64(wide):
            case = getattr(bug, claim)(dtype)
        questions[name, claim, dtype] = Question(jax.jit(case.f), case.args, case.grads, wide)
    return questions


def evaluations(check: Callable[[Question], str], question: Question) -> int:
    """How often a checker evaluates f, in batches or not, gradients of f by JAX included."""
    calls: list[int] = []

    def f(*args: Any) -> Any:
        entry = jnp.ravel(jax.tree.leaves(args)[0])[:1]  # so that a batch calls once a row
        jax.debug.callback(lambda _: calls.append(1), entry)
        return question.f(*args)

    asked(check, question._replace(f=f))
    jax.effects_barrier()
    return len(calls)


def slopes_with_bars(function: functions.Function) -> tuple[Question, np.ndarray]:
    """A function at its ordinary point, and its true derivative by the first argument."""
    args = *function.points["ordinary"], functions.Wrong().argument()
    question = Question(functions.objective(function), args, None)
    return question, np.ravel(question.claimed(*question.args))


def jaxbp_slope(question: Question) -> tuple[np.ndarray, ...]:
    """The slope that a report shows, the one furthest off -> it, its bar, and the true one."""
    (leaf,) = gradcheck(question.f, *question.args).leaves
    return np.array([leaf.measured]), np.array([leaf.error]), np.array([leaf.claimed])


def bars(function: functions.Function, checkers: Checkers) -> dict[str, dict[str, float]]:
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


REPORTED_EXPLANATION = """\
Each bug as it was reported, rebuilt ([reported_bugs.py](reported_bugs.py)): four answers about the
right gradient in float64 and float32, then the wrong one in float64 and float32; ✓ is right, ✗
wrong (a false alarm, or a bug that passes), ? cannot tell. In float32, f is computed in float32
whatever the checker asks for. Those outside of JAX are given f, called plainly, and the claimed
slope, so that they cannot see another value in a rule. Evaluations of f, its gradients by JAX
included, are those for the right gradient in float64; seconds are a check's, compilation included;
medians over the reports."""
BARS_EXPLANATION = """\
One in three of the functions of benchmarks/functions.py, at its ordinary point, in float64: how
often the true derivative (that of `jax.grad`) lies outside the error bar. A bar's width is relative
to the gradient's size, the widest of a function, in the median over these. Of `jaxbp` it is the one
slope that a report shows, along the direction that is furthest off; of the others every entry of
the gradient."""


def mark(answers: Mapping[str, str]) -> str:
    """Four answers about a reported bug as marks."""
    marks = []
    for question, answer in answers.items():
        right = PASSED if question.startswith("right") else CAUGHT
        marks.append("?" if told(answer) == SILENT else "✓" if answer == right else "✗")
    return "{}{} {}{}".format(*marks)


def reported_table(rows: dict[str, Any]) -> str:
    """The reported bugs: every checker's answers, and what they cost."""
    checkers = list(dict.fromkeys(checker for row in rows.values() for checker in row))
    marks = {name: [mark(row[c]["answers"]) for c in checkers] for name, row in rows.items()}
    lines = [
        protocol.line(f"{name} ({REPORTED[name].source})", *marks[name])
        for name in marks
        if name in REPORTED
    ]
    columns = list(zip(*marks.values(), strict=True))
    for words, sign in (("wrong answers", "✗"), ("cannot tell", "?")):
        counts = ["".join(column).count(sign) for column in columns]
        lines.append(protocol.line(f"{words}, of {4 * len(marks)}", *map(str, counts)))
    for words, key, form in (
        ("evaluations of f", "evaluations", ".0f"),
        ("seconds", "seconds", ".2f"),
    ):
        medians = [float(np.median([row[c][key] for row in rows.values()])) for c in checkers]
        lines.append(protocol.line(words, *(format(median, form) for median in medians)))
    heads = ("reported bug", *(f"`{checker}`" for checker in checkers))
    return protocol.table(heads, lines, REPORTED_EXPLANATION)


def bars_table(rows: dict[str, Any]) -> str:
    """How often an error bar does not hold the true derivative."""
    lines = []
    for checker in (OURS, *DERIVATIVES):
        counts = [row[checker] for row in rows.values() if checker in row]
        if counts:
            totals = [
                sum(c[key] for c in counts) for key in ("derivatives", "outside", "far outside")
            ]
            width = float(np.median([c["width"] for c in counts]))
            lines.append(protocol.line(f"`{checker}`", *map(str, totals), f"{width:.1e}"))
    heads = ("measured by", "derivatives", "outside the bar", "outside ten bars", "a bar's width")
    return protocol.table(heads, lines, BARS_EXPLANATION)


def answered(name: str, questions: Mapping[Any, Question], checkers: Checkers) -> dict[str, Any]:
    """Every checker's four answers about a reported bug, and what they cost."""
    row: dict[str, Any] = {}
    for checker, check in checkers.items():
        answers, seconds = {}, []
        for claim, dtype in product(CLAIMS, DTYPES):
            question = questions[name, claim, dtype]
            with jax.enable_x64(question.in_float64):
                answers[f"{claim}, {dtype}"], taken = asked(check, question)
            seconds.append(taken)
        with jax.enable_x64(True):
            calls = evaluations(check, questions[name, "right", "float64"])
        row[checker] = {
            "answers": answers,
            "evaluations": calls,
            "seconds": float(np.median(seconds)),
        }
    return row


def measure(run: protocol.Run) -> dict[str, Any]:
    """Ask the checkers, and print both tables."""
    only = getattr(run.options, "only", None)
    checkers, questions = chosen(only), reported()
    result: dict[str, Any] = {"reported": {}, "bars": {}}
    if only and run.output is not None:
        kept = json.loads(run.output.read_text())
        result = {part: kept[part] for part in result}
    every = protocol.extent(run, 1, 4, 17)

    def about(name: str) -> tuple[str, dict[str, Any]]:
        return name, answered(name, questions, checkers)

    for name, row in run.cells(list(REPORTED)[::every], about):
        result["reported"][name] = result["reported"].get(name, {}) | row
        print(f"{name:<40}", *(mark(each["answers"]) for each in row.values()), flush=True)
        run.keep(result)
    real = [
        f
        for f in functions.functions()
        if f.points["ordinary"][0].dtype == np.float64 and f.expression not in functions.MISTAKES
    ]
    measured = run.cells(
        real[:: BAR_EVERY * every],
        lambda f: (f.expression, bars(f, checkers)),
        attrgetter("expression"),
    )
    for name, counts in measured:
        result["bars"][name] = result["bars"].get(name, {}) | counts
        run.keep(result)
    print("\n" + markdown(result))
    return result


def markdown(result: dict[str, Any]) -> str:
    """The table of reported bugs and that of error bars."""
    return "\n\n".join([reported_table(result["reported"]), bars_table(result["bars"])])


if __name__ == "__main__":
    protocol.command(__doc__, measure, markdown, add_arguments)
