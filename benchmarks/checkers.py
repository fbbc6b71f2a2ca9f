"""Which gradient checker catches most planted bugs, with fewest false alarms, in what time?

    python -m benchmarks.checkers [--output results.json] [--short | --quick] [--only scipy torch]
    python -m benchmarks.checkers --table results.json

The mutants and the right gradients are those of benchmarks/gradient_bugs.py.  Every checker is used
as its documentation says, with its defaults, on the same function, point and claimed gradient.  A
checker that does not take an argument (an integer, a tree) or a result that is not a scalar cannot
tell.  ``benchmarks/reported.py`` asks the same checkers about reported bugs.
"""

import argparse
import importlib.util
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from benchmarks import protocol
from benchmarks.gradient_bugs import CORRECT, MUTANTS
from jaxbp import gradcheck

DRAWS = 3  # points for each right gradient
MOST_ENTRIES = 20_000  # for checkers that differentiate by every entry: above, they take hours
OURS = "jaxbp.gradcheck"
CAUGHT, PASSED, SILENT = "caught", "passed", "cannot tell"
OF_SIZE = 1e-5  # the share of a gradient's size from which an error counts, where a user decides


class Question(NamedTuple):
    """A function, its arguments, and the gradient claimed for it, with respect to args[0]."""

    f: Callable[..., Any]
    args: tuple[Any, ...]
    grads: Any  # a function, a value, or None: JAX's own
    in_float64: bool = True  # whether f is computed so for a library that asks in float64

    def claimed(self, *args: Any) -> Any:
        """The claim at a point."""
        if self.grads is None:
            return jax.grad(self.f)(*args)
        return self.grads(*args) if callable(self.grads) else self.grads

    def as_rule(self) -> Callable[..., Any]:
        """f with the claimed gradient as its custom_vjp, which most checkers ask for."""
        if self.grads is None:
            return self.f

        @jax.custom_vjp
        def f(first: Any) -> Any:
            return self.f(first, *self.args[1:])

        def backward(first: Any, cotangent: Any) -> Any:
            claimed = self.claimed(first, *self.args[1:])
            return (jax.tree.map(lambda g: g * cotangent.astype(g.dtype), claimed),)

        f.defvjp(lambda first: (f(first), first), backward)
        return f


def by_jaxbp(question: Question) -> str:
    report = gradcheck(question.f, *question.args, grads=question.grads)
    return {"fail": CAUGHT, "pass": PASSED, "inconclusive": SILENT}[report.verdict]


def by_check_grads(question: Question) -> str:
    """jax.test_util.check_grads(f, args, order=1, modes="rev")."""
    from jax.test_util import check_grads  # noqa: PLC0415

    return _asserted(lambda: check_grads(question.as_rule(), question.args[:1], 1, modes=["rev"]))


def by_chex(question: Question) -> str:
    """chex.assert_numerical_grads(f, f_args, order=1), of arrays: a tree's leaves one by one."""
    import chex  # noqa: PLC0415

    leaves, tree = jax.tree.flatten(question.args[0])
    rule = question.as_rule()

    def f(*leaves: Any) -> Any:
        return rule(jax.tree.unflatten(tree, leaves))

    return _asserted(lambda: chex.assert_numerical_grads(f, leaves, 1, modes=["rev"]))


class Vector(NamedTuple):
    """A question about one float64 vector, as libraries other than JAX ask for it."""

    f: Callable[[np.ndarray], float]
    gradient: Callable[[np.ndarray], np.ndarray]
    x0: np.ndarray

    @property
    def tolerance(self) -> float:
        """The error that counts, where a checker leaves that to its user."""
        return OF_SIZE * max(1.0, float(np.linalg.norm(self.gradient(self.x0))))


def in_float64(args: tuple[Any, ...]) -> Any:
    """Arguments in float64; in float32 where JAX is set to that."""

    def wide(leaf: Any) -> Any:
        is_float = jnp.issubdtype(jnp.result_type(leaf), np.floating)
        return jnp.asarray(leaf, float) if is_float else leaf

    return jax.tree.map(wide, args)


def of_vector(check: Callable[[Vector], str]) -> Callable[[Question], str]:
    """A checker of a vector's function, as one of questions; of large ones it cannot tell."""

    def asked(question: Question) -> str:
        with jax.enable_x64(question.in_float64):
            first, *rest = in_float64(question.args)
            flat, unravel = jax.flatten_util.ravel_pytree(first)
            if flat.size > MOST_ENTRIES:
                return SILENT

            def f(x: np.ndarray) -> float:
                return float(question.f(unravel(jnp.asarray(x, flat.dtype)), *rest))

            def gradient(x: np.ndarray) -> np.ndarray:
                claimed = question.claimed(unravel(jnp.asarray(x, flat.dtype)), *rest)
                return np.array(jax.flatten_util.ravel_pytree(claimed)[0], np.float64)

            return check(Vector(f, gradient, np.asarray(flat, np.float64)))

    asked.__doc__ = check.__doc__
    return asked


@of_vector
def by_scipy(vector: Vector) -> str:
    """scipy.optimize.check_grad(func, grad, x0), which returns a number."""
    from scipy.optimize import check_grad  # noqa: PLC0415

    error = check_grad(vector.f, vector.gradient, vector.x0)
    return PASSED if error <= vector.tolerance else CAUGHT


@of_vector
def by_torch(vector: Vector) -> str:
    """torch.autograd.gradcheck(func, inputs); func calls f and, backward, the claim."""
    import torch  # noqa: PLC0415

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return torch.tensor(vector.f(x.detach().numpy()), dtype=torch.float64)

        @staticmethod
        def backward(ctx: Any, cotangent: Any) -> Any:
            (x,) = ctx.saved_tensors
            return cotangent * torch.from_numpy(vector.gradient(x.numpy()))

    x0 = torch.tensor(vector.x0, requires_grad=True)
    passed = torch.autograd.gradcheck(Function.apply, (x0,), raise_exception=False)
    return PASSED if passed else CAUGHT


@of_vector
def by_autograd(vector: Vector) -> str:
    """autograd.test_util.check_grads(f, modes=["rev"], order=1)(x), of a primitive of its own."""
    from autograd.extend import defvjp, primitive  # noqa: PLC0415
    from autograd.test_util import check_grads  # noqa: PLC0415

    f = primitive(vector.f)
    defvjp(f, lambda value, x: lambda cotangent: cotangent * vector.gradient(x))
    return _asserted(lambda: check_grads(f, modes=["rev"], order=1)(vector.x0))


def scipy_derivative(vector: Vector) -> tuple[np.ndarray, np.ndarray]:
    """scipy.differentiate.jacobian(f, x) -> the derivative and its error."""
    from scipy.differentiate import jacobian  # noqa: PLC0415

    found = jacobian(lambda x: np.apply_along_axis(vector.f, 0, x)[None], vector.x0)
    return found.df[0], found.error[0]


def numdifftools_derivative(vector: Vector) -> tuple[np.ndarray, np.ndarray]:
    """numdifftools.Gradient(f, full_output=True)(x) -> the derivative and its error."""
    from numdifftools import Gradient  # noqa: PLC0415

    found = Gradient(vector.f, full_output=True)(vector.x0)
    return np.ravel(found.estimate), np.ravel(found.error_estimate)


def by_derivative(derivative: Callable[[Vector], tuple[np.ndarray, np.ndarray]]) -> Any:
    """A checker of a vector's function by its derivative and that one's error bar."""

    def check(vector: Vector) -> str:
        value, error = derivative(vector)
        difference = np.abs(vector.gradient(vector.x0) - value)
        if not np.isfinite(value).all():
            return SILENT
        return PASSED if np.all(difference <= error + vector.tolerance) else CAUGHT

    check.__doc__ = derivative.__doc__
    return of_vector(check)


def _asserted(check: Callable[[], None]) -> str:
    try:
        check()
    except AssertionError:
        return CAUGHT
    return PASSED


CHECKERS: dict[str, Callable[[Question], str]] = {
    OURS: by_jaxbp,
    "jax.test_util.check_grads": by_check_grads,
    "chex.assert_numerical_grads": by_chex,
    "scipy.optimize.check_grad": by_scipy,
    "torch.autograd.gradcheck": by_torch,
    "autograd.test_util.check_grads": by_autograd,
    "scipy.differentiate.jacobian": by_derivative(scipy_derivative),
    "numdifftools.Gradient": by_derivative(numdifftools_derivative),
}
DERIVATIVES = {
    "scipy.differentiate.jacobian": scipy_derivative,
    "numdifftools.Gradient": numdifftools_derivative,
}


def installed() -> dict[str, Callable[[Question], str]]:
    """The checkers whose library is installed."""
    return {
        name: check
        for name, check in CHECKERS.items()
        if importlib.util.find_spec(name.split(".")[0]) is not None
    }


def asked(check: Callable[[Question], str], question: Question) -> tuple[str, float]:
    """A checker's answer, and the seconds that a user waits for it, compilation included."""
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = check(question)
    except Exception as error:  # it does not take such an argument
        answer = f"{SILENT} ({type(error).__name__})"
    return answer, time.perf_counter() - start


def mutants() -> dict[str, Question]:
    """The planted bugs, by name."""
    questions = {}
    for name, mutant in MUTANTS.items():
        with jax.enable_x64(True):
            case = mutant.make()
        questions[name] = Question(case.f, case.args, case.grads)
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


def ask(
    checkers: dict[str, Callable[[Question], str]], every: int, run: protocol.Run
) -> dict[str, Any]:
    """Ask each checker each question, or, to be quick, only one in every few."""
    result: dict[str, Any] = {"mutants": {}, "right": {}, "seconds": {}}
    seconds: dict[str, list[float]] = {name: [] for name in checkers}

    def about_bug(item: tuple[str, Question]) -> tuple[str, dict[str, str]]:
        name, question = item
        answers = {}
        for checker, check in checkers.items():
            with jax.enable_x64("float32" not in name):
                answers[checker], taken = asked(check, question)
            seconds[checker].append(taken)
        return name, answers

    def about_right(item: tuple[str, list[Question]]) -> tuple[str, dict[str, dict[str, int]]]:
        name, questions = item
        return name, {
            checker: dict(Counter(asked(check, question)[0] for question in questions))
            for checker, check in checkers.items()
        }

    for name, answers in run.cells(list(mutants().items())[::every], about_bug, itemgetter(0)):
        result["mutants"][name] = answers
        print(f"{name:<50}", *(answers[checker][:6] for checker in checkers), sep="  ", flush=True)
    result["seconds"] = {checker: float(np.median(taken)) for checker, taken in seconds.items()}
    for name, counts in run.cells(list(right().items())[::every], about_right, itemgetter(0)):
        result["right"][name] = counts
        alarms = [str(counts[checker].get(CAUGHT, 0)) for checker in checkers]
        print(f"{name:<50}", *alarms, sep="       ", flush=True)
    return result


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A result in which those checkers that were measured anew are replaced."""
    both = {
        part: {name: row | new[part][name] for name, row in old[part].items()}
        for part in ("mutants", "right")
    }
    return both | {"seconds": old["seconds"] | new["seconds"]}


EXPLANATION = """\
A check's time is the median over the planted bugs, compilation included, and with `jaxbp` also the
search for a diagnosis: it measures each slope at many steps, which takes longer. Every checker is
used as its documentation says, with its defaults; those of other libraries in float64, as they ask
for, and the number of scipy.optimize held against 1e-5 of the gradient's size. scipy.differentiate
and numdifftools do not check a gradient, but measure one with an error: a claim counts as wrong
where it is off by more than that and 1e-5 of the gradient's size. "Cannot tell" is an honest answer
of `jaxbp`; of the others it means an argument that they do not take, or one of more than 20,000
entries, for which they would take hours."""


def row(checker: str, result: Mapping[str, Any]) -> str:
    """Counts of a checker's answers, and its time."""
    answers = Counter(told(row[checker]) for row in result["mutants"].values())
    verdicts: Counter[str] = Counter()
    for of_gradient in result["right"].values():
        for answer, count in of_gradient[checker].items():
            verdicts[told(answer)] += count
    return protocol.line(
        f"`{checker}`",
        f"{answers[CAUGHT]}",
        f"{verdicts[CAUGHT]}",
        f"{answers[SILENT]}, {verdicts[SILENT]}",
        f"{result['seconds'][checker]:.2f}",
    )


def told(answer: str) -> str:
    """An answer without the name of the exception behind it."""
    return SILENT if answer.startswith(SILENT) else answer


def markdown(result: dict[str, Any]) -> str:
    """The table and its text: planted bugs caught, false alarms, time a check."""
    checkers = list(result["seconds"])
    points = sum(sum(row[checkers[0]].values()) for row in result["right"].values())
    columns = (
        "checker",
        f"bugs caught, of {len(result['mutants'])}",
        f"false alarms, of {points}",
        "cannot tell (bugs, right)",
        "seconds a check",
    )
    rows = [row(checker, result) for checker in checkers]
    return protocol.table(columns, rows, EXPLANATION)


def chosen(only: list[str] | None) -> dict[str, Callable[[Question], str]]:
    """The installed checkers, or those of them whose names begin with one of these words."""
    return {n: check for n, check in installed().items() if n.startswith(tuple(only or [""]))}


def measure(run: protocol.Run) -> dict[str, Any]:
    """Ask the checkers that are asked for, and print the table."""
    checkers, options = chosen(run.options.only), run.options
    print(*checkers, sep="\n", end="\n\n")
    result = ask(checkers, protocol.extent(run, 1, 10, 60), run)
    if options.only and options.output and options.output.exists():
        result = merged(json.loads(options.output.read_text()), result)
    print("\n" + markdown(result))
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", help="measure these anew, keeping what --output holds")


if __name__ == "__main__":
    protocol.command(__doc__, measure, markdown, add_arguments)
