"""Asking gradient checkers: one question, a function and a claimed gradient, put to each library.

Every checker is used as its documentation says, with its defaults, on the same function, point and
claim.  A checker that does not take an argument (an integer, a tree) or a result that is not a
scalar cannot tell.
"""

import importlib.util
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from jaxbp import gradcheck

MOST_ENTRIES = 2_000  # for checkers that differentiate by every entry: above, they take minutes
OURS = "jaxbp.gradcheck"
CAUGHT, PASSED, SILENT, TOLD = "caught", "passed", "cannot tell", "passed, and told"
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
            return lambda first: self.f(first, *self.args[1:])

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
    narrow = [note for note in report.notes if "passes through" in note]
    if report.ok and narrow:  # what a claim in bfloat16 cannot know is said
        return f"{TOLD}: {narrow[0]}"
    reasons = (leaf.diagnosis for leaf in report.leaves if leaf.verdict == "inconclusive")
    undecided = f"{SILENT}: {'; '.join(dict.fromkeys(reasons))}"
    return {"fail": CAUGHT, "pass": PASSED, "inconclusive": undecided}[report.verdict]


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


def in_dtype(dtype: str, tree: Any) -> Any:
    """A tree whose floating point arrays have a dtype."""

    def cast(leaf: Any) -> Any:
        is_float = jnp.issubdtype(jnp.result_type(leaf), np.floating)
        return np.asarray(leaf).astype(dtype) if is_float else leaf

    return jax.tree.map(cast, tree)


def of_vector(check: Callable[[Vector], str]) -> Callable[[Question], str]:
    """A checker of a vector's function, as one of questions; of large ones it cannot tell."""

    def asked(question: Question) -> str:
        with jax.enable_x64(question.in_float64):
            first, *rest = in_dtype("float64", question.args)
            flat, unravel = jax.flatten_util.ravel_pytree(first)
            if flat.size > MOST_ENTRIES:
                return SILENT

            of_flat = jax.jit(lambda x: question.f(unravel(x), *rest))  # most ask very often

            def f(x: np.ndarray) -> float:
                return float(of_flat(jnp.asarray(x, flat.dtype)))

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


def chosen(only: list[str] | None) -> dict[str, Callable[[Question], str]]:
    """The installed checkers, or those of them whose names begin with one of these words."""
    return {n: check for n, check in installed().items() if n.startswith(tuple(only or [""]))}


def told(answer: str) -> str:
    """An answer without its reason."""
    return next((each for each in (SILENT, TOLD) if answer.startswith(each)), answer)
