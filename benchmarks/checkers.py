"""What do gradient checkers say of reported and of planted bugs, and of right gradients?

    python -m benchmarks.checkers [--output results.json] [--short | --quick] [--only scipy torch]
    python -m benchmarks.checkers --table results.json

The bugs are those of benchmarks/reported_bugs.py and of benchmarks/gradient_bugs.py: each with its
right gradient and its wrong one, in float64 and in float32.  Then right gradients that are hard to
check are asked about at several points.  benchmarks/asking.py has the checkers.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import protocol
from benchmarks.asking import (
    CAUGHT,
    CHECKERS,
    OURS,
    PASSED,
    SILENT,
    TOLD,
    Question,
    asked,
    chosen,
    in_dtype,
    told,
)
from benchmarks.gradient_bugs import CORRECT, MUTANTS
from benchmarks.reported_bugs import REPORTED

DRAWS = 3  # points for each right gradient
CLAIMS, DTYPES = ("right", "wrong"), ("float64", "float32")

Checkers = Mapping[str, Callable[[Question], str]]
Questions = dict[str, Question]  # by "right, float64" and so on


# What is asked


def reported(name: str) -> Questions:
    """A reported bug's questions."""
    questions = {}
    for claim, dtype in product(CLAIMS, DTYPES):
        wide = dtype == "float64"
        with jax.enable_x64(wide):
            case = getattr(REPORTED[name], claim)(dtype)
        questions[f"{claim}, {dtype}"] = Question(jax.jit(case.f), case.args, case.grads, wide)
    return questions


def planted(name: str) -> Questions:
    """A planted bug's questions; in float64 a bug of float32 alone is not wrong."""
    with jax.enable_x64(True):
        case = MUTANTS[name].make()
    questions = {}
    for claim, dtype in product(CLAIMS, DTYPES):
        wide = dtype == "float64"
        args, values = in_dtype(dtype, (case.args, None if callable(case.grads) else case.grads))
        if claim == "right":
            question = Question(case.plain or case.f, args, None, wide)
        elif wide and "float32" in name:
            continue
        else:
            question = Question(case.f, args, case.grads if values is None else values, wide)
        questions[f"{claim}, {dtype}"] = question
    return questions


def right() -> dict[str, list[Question]]:
    """The right gradients with respect to a first argument, by name, at several points each."""
    questions = {}
    for name, correct in CORRECT.items():
        if "argnums" in correct.options:
            continue
        points = [correct.draw(np.random.default_rng([draw, 11])) for draw in range(DRAWS)]
        grads = correct.options.get("grads")
        questions[name] = [Question(correct.f, args, grads) for args in points]
    return questions


# What is answered


def answered(questions: Questions, checkers: Checkers) -> dict[str, Any]:
    """Every checker's answers about a bug, and what they cost."""
    row: dict[str, Any] = {}
    for checker, check in checkers.items():
        answers, seconds = {}, []
        for name, question in questions.items():
            with jax.enable_x64(question.in_float64):
                answers[name], taken = asked(check, question)
            seconds.append(taken)
        row[checker] = {"answers": answers, "seconds": round(float(np.median(seconds)), 3)}
    return row


def counted(questions: Questions, checkers: Checkers) -> dict[str, Any]:
    """The answers, and how often f is evaluated for the right gradient in float64."""
    row = answered(questions, checkers)
    with jax.enable_x64(True):
        for checker, check in checkers.items():
            row[checker]["evaluations"] = evaluations(check, questions["right, float64"])
    return row


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


def measure(run: protocol.Run) -> dict[str, Any]:
    """Ask the checkers that are asked for, and print the table."""
    options = {"only": None, "resume": False} | vars(run.options)
    checkers, every = chosen(options["only"]), protocol.extent(run, 1, 10, 60)
    result: dict[str, Any] = {"bugs": {}, "right": {}}
    going_on = options["only"] or options["resume"]
    if going_on and run.output is not None and run.output.exists():
        kept = json.loads(run.output.read_text())
        result = {part: kept[part] for part in result}
    print(*checkers, sep="\n", end="\n\n")

    def left(part: str, names: Iterable[str]) -> list[str]:
        known = result[part] if options["resume"] else {}
        return [name for name in list(names)[::every] if name not in known]

    def told_of(part: str, name: str, row: dict[str, Any], words: list[str]) -> None:
        result[part][name] = result[part].get(name, {}) | row
        run.keep(result)
        print(f"{name:<50}", *words, sep="  ", flush=True)
        jax.clear_caches()  # of some thousand programs

    def about_bug(name: str) -> tuple[str, Any]:
        if name in REPORTED:
            return name, counted(reported(name), checkers)
        return name, answered(planted(name), checkers)

    for names in (REPORTED, MUTANTS):
        for name, row in run.cells(left("bugs", names), about_bug):
            told_of("bugs", name, row, [mark(each["answers"]) for each in row.values()])

    def about_right(name: str, points: dict[str, list[Question]]) -> tuple[str, Any]:
        return name, {
            checker: dict(Counter(asked(check, point)[0] for point in points[name]))
            for checker, check in checkers.items()
        }

    points = right()
    for name, row in run.cells(left("right", points), partial(about_right, points=points)):
        alarms = [str(counts.get(CAUGHT, 0)) for counts in row.values()]
        told_of("right", name, row, alarms)
    print("\n" + markdown(result))
    return result


# The tables

EXPLANATION = """\
Of each bug are asked: the right gradient in float64 and in float32, then the wrong one in float64
and in float32; ✓ is right, ✗ wrong (a false alarm, or a bug that passes), ? cannot tell, ! passes
with a line that the claim passes through bfloat16, – no bug in that dtype. The reported bugs are
rebuilt from public reports ([reported_bugs.py](reported_bugs.py)), the others are planted
([gradient_bugs.py](gradient_bugs.py)). In float32, f is computed in float32 whatever the checker
asks for. Checkers outside of JAX are given f, called plainly, and the claimed slope, so that they
cannot see another value in a rule. Only `jaxbp` is shown that a gradient is wrong under `vmap`
alone."""
SUMMARY = """\
A wrong answer is a false alarm, or a bug that passes. "Cannot tell" is an honest answer of `jaxbp`;
of the others it means an argument that they do not take, or one of more than 2,000 entries, for
which they would take minutes. The right gradients of the fourth column were collected to be hard
for our own checker: at kinks, at extreme scales, where f is flat, in low precision. Evaluations of
f, its gradients by JAX included, are the median over the right gradients of the reported bugs in
float64. A check's time is the median over all bugs, compilation included, and with `jaxbp` also the
search for a diagnosis. Every checker is used as its documentation says, with its defaults; those of
other libraries in float64, as they ask for, and the number of scipy.optimize held against 1e-5 of
the gradient's size. scipy.differentiate and numdifftools do not check a gradient, but measure one
with an error: a claim counts as wrong where it is off by more than that and 1e-5 of the gradient's
size."""


def mark(answers: Mapping[str, str]) -> str:
    """The answers about a bug as marks."""
    marks = []
    for claim, dtype in product(CLAIMS, DTYPES):
        answer = told(answers.get(f"{claim}, {dtype}", ""))
        right = dict.fromkeys((PASSED, TOLD), "✓") if claim == "right" else {CAUGHT: "✓", TOLD: "!"}
        marks.append({"": "–", SILENT: "?", **right}.get(answer, "✗"))
    return "{}{} {}{}".format(*marks)


def checkers_of(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The checkers that a result has, in their order."""
    known = {checker for row in rows.values() for checker in row}
    return [checker for checker in CHECKERS if checker in known]


def summary(result: Mapping[str, Any]) -> str:
    """A line for each checker: its mistakes, its silence, and its cost."""
    rows, hard = result["bugs"], result["right"]
    lines, questions, points = [], 0, 0
    for checker in checkers_of(rows):
        marks = "".join(mark(row[checker]["answers"]) for row in rows.values() if checker in row)
        counts: Counter[str] = Counter()
        for row in hard.values():
            for answer, count in row.get(checker, {}).items():
                counts[told(answer)] += count
        questions = max(questions, sum(sign in "✓✗?!" for sign in marks))
        points = max(points, counts.total())
        costs = [row[checker] for row in rows.values() if checker in row]
        calls = [cost["evaluations"] for cost in costs if "evaluations" in cost]
        lines.append(
            protocol.line(
                f"`{checker}`",
                f"{marks.count('✗')}",
                f"{marks.count('?')}",
                f"{counts[CAUGHT]}",
                f"{counts[SILENT]}",
                f"{np.median(calls):.0f}" if calls else "",
                f"{np.median([cost['seconds'] for cost in costs]):.2f}",
            )
        )
    columns = (
        "checker",
        f"wrong answers, of {questions}",
        "cannot tell",
        f"false alarms, of {points}",
        "cannot tell",
        "evaluations of f",
        "seconds a check",
    )
    return protocol.table(columns, lines, SUMMARY)


def every_bug(rows: Mapping[str, Any]) -> str:
    """A line for each bug, with every checker's answers."""
    checkers, lines = checkers_of(rows), []
    for name, row in rows.items():
        source = f" ({REPORTED[name].source})" if name in REPORTED else ""
        marks = [mark(row[checker]["answers"]) if checker in row else "" for checker in checkers]
        lines.append(protocol.line(f"{name}{source}", *marks))
    heads = ("bug", *(f"`{checker}`" for checker in checkers))
    return protocol.table(heads, lines, EXPLANATION)


def undecided(result: Mapping[str, Any]) -> list[str]:
    """Why our checker leaves a question open, a line each."""
    answers = [
        (f"{name}, {question}", answer)
        for name, row in result["bugs"].items()
        for question, answer in row.get(OURS, {"answers": {}})["answers"].items()
    ]
    answers += [(name, a) for name, row in result["right"].items() for a in row.get(OURS, {})]
    return [
        f"- {name}: {answer.removeprefix(f'{SILENT}: ').removeprefix('undecided: ')}."
        for name, answer in answers
        if told(answer) == SILENT
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """The summary, every bug, and why ours cannot tell where it cannot."""
    parts = [summary(result), every_bug(result["bugs"])]
    reasons = undecided(result)
    if reasons:
        parts.append("Where `jaxbp` cannot tell:\n\n" + "\n".join(reasons))
    return "\n\n".join(parts)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", help="measure these anew, keeping what --output holds")
    parser.add_argument("--resume", action="store_true", help="go on where --output ends")


if __name__ == "__main__":
    protocol.command(__doc__, measure, markdown, add_arguments)
