"""Taylor's remainders: whether a gradient is right, by an order of convergence instead of a slope.

R₁(t) = |f(x + t d) - f(x)|                               = O(t)
R₂(t) = |f(x + t d) - f(x) - t ⟨∇f, d⟩|                   = O(t²), but O(t) for a wrong gradient
R₃(t) = |f(x + t d) - f(x) - t ⟨∇f, d⟩ - ½ t² ⟨d, H d⟩|   = O(t³), but O(t²) for a wrong Hessian
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxbp.checking.as_numpy import need_numpy_alone
from jaxbp.checking.comparing import norm
from jaxbp.checking.finite_differences import Leaves, rounding_bar
from jaxbp.checking.leaf_verdicts import ClaimCheck
from jaxbp.checking.measurement import Measurement, arithmetic_of, measure
from jaxbp.checking.problem import Claim, claim, gradient_leaves, numpy_constants, pose
from jaxbp.checking.rounded_products import products_of
from jaxbp.checking.verdicts import Order, Verdict, observed_order, taylor_verdict
from jaxbp.text import Table, align, number, plain

_SHOWN = 4  # steps, even where the remainder is nothing but rounding


@dataclass(frozen=True)
class TaylorReport:
    """The result of ``taylor_test``; printed, a table with a row for each step."""

    steps: np.ndarray  # (T,) of the direction as it was given
    remainders: np.ndarray  # (2 or 3, T): R₁, R₂ and, with a Hessian, R₃
    floor: np.ndarray  # (T,) how large a remainder can be by rounding alone
    orders: tuple[float, ...]  # as observed just above the floor; nan: nowhere above it
    verdict: Verdict
    precision: str  # the arithmetic in which f was measured
    notes: tuple[str, ...] = ()  # what the claim's products are taken for

    @property
    def ok(self) -> bool:
        """Whether the remainders shrink as those of a right gradient do."""
        return self.verdict == "pass"

    def __bool__(self) -> bool:
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        result: dict[str, Any] = plain(asdict(self) | {"ok": self.ok})
        return result

    def text(self, width: int = 100) -> str:
        """The verdict, the orders, and the table in that many columns of text."""
        names = [f"R{index + 1}" for index in range(len(self.orders))]
        columns = ("step", *names, "rounding")
        cells = np.vstack([self.steps, self.remainders, self.floor]).T
        above = self.remainders[-1] > self.floor
        above[:_SHOWN] = True
        rows = [[number(value) for value in row] for row in cells[above]]
        orders = ", ".join(
            f"{name} {'below rounding' if np.isnan(order) else f'of order {order:.2f}'}"
            for name, order in zip(names, self.orders, strict=True)
        )
        table = align(Table(columns, rows), width)
        return "\n".join([f"{self.verdict}: {orders}, in {self.precision}", table, *self.notes])

    def __str__(self) -> str:
        return self.text()


def taylor_test(
    f: Callable[..., Any],
    grads: Any,
    args: Sequence[Any],
    direction: Any = None,
    *,
    argnums: int | Sequence[int] = 0,
    cotangent: Any = None,
    order: int = 2,
    key: Array | None = None,
    precision: str | None = None,
) -> TaylorReport:
    """Taylor's remainders of f at args along a direction, and the orders at which they vanish.

    f: the function, of JAX arrays.
    grads: the claimed gradient: a tree like the argument, a function of the same arguments, or None
        for ``jax.grad(f)``.
    args: the tuple of f's arguments.
    direction: a tree like the argument (or the tuple of them); random unless given.
    argnums: the position, or positions, of the arguments to differentiate by; 0 unless given.
    cotangent: for an f whose result is not a scalar, a tree like the result; random unless given.
    order: 3 also takes ⟨d, H d⟩ from the gradient by ``jax.jvp``, and judges that; 2 unless given.
    key: a ``jax.random.key`` for direction and cotangent; always the same numbers unless given.
    precision: what the float32 products of claimed values were computed in, as for ``gradcheck``;
        their rounding belongs to the floor of R₂.

    The order is read off just above the floor of rounding.  A kink at the point leaves first order
    in any gradient's remainder: ``gradcheck`` tells the two apart.

    The test is the one of pyadjoint's ``taylor_test`` and of Farrell et al. (2013, section 4.1).
    Raises what ``gradcheck`` raises, and ValueError for a direction that is zero or not like the
    argument.

    >>> import jax.numpy as jnp
    >>> taylor_test(jnp.sin, jnp.cos, (1.0,)).verdict, taylor_test(jnp.sin, jnp.sin, (1.0,)).verdict
    ('pass', 'fail')
    """
    if order not in {2, 3}:
        raise ValueError(f"order: got {order!r}, expected 2 or 3")
    if not isinstance(args, tuple | list):
        raise TypeError(f"args: got {type(args).__name__}, expected the tuple of f's arguments")
    products = products_of(precision)  # before the precision of products is set
    with jax.default_matmul_precision("highest"):
        by_numpy = order == 2 and grads is not None and need_numpy_alone(f, grads, tuple(args))
        problem = pose(f, tuple(args), argnums, cotangent, key, traced=not by_numpy)
        if order == 3 and problem.black_box is not None:
            raise ValueError(f"order: got 3, expected 2 for {problem.black_box.name}")
        claimed = claim(problem, grads, random_cotangent=cotangent is None)
        if order == 3 and claimed.function is None:
            raise ValueError("grads: got values, expected a function, for order=3")
        given = None if direction is None else gradient_leaves(problem, direction, "direction: ")[0]
        arithmetic = arithmetic_of(problem, numpy_constants=numpy_constants(problem, claimed))
        measurement = measure(arithmetic, 1, direction=given)
        with arithmetic.enabled():
            slope, curvature = _derivatives(claimed, measurement, order)
            report = _report(measurement, slope, curvature, given)
            rounds = claimed.function is None and products.may_round(claimed.values, not report.ok)
            if not rounds:
                return report
            check = ClaimCheck(problem, claimed, measurement, None, None, products)
            rounding, notes = check.product_rounding
    off = float(np.max(np.abs(np.array(rounding))[:, -1]))  # of the line on which all leaves move
    report = _report(measurement, slope, curvature, given, off)
    return replace(report, notes=(str(products), *notes))


def _derivatives(
    claimed: Claim, measurement: Measurement, order: int
) -> tuple[float, float | None]:
    """⟨∇f, d⟩ and, if asked, ⟨d, H d⟩, along the line on which all leaves move."""
    if claimed.function is None:
        return float(measurement.slopes_of(claimed.values)[-1]), None
    function, problem = claimed.function, measurement.arithmetic.problem

    def gradient(leaves: Leaves) -> Leaves:
        return tuple(function(leaves, problem.held))

    if order == 2:
        return float(measurement.slopes_of(gradient(problem.leaves))[-1]), None
    directions = tuple(
        np.asarray(each[0], leaf.dtype)
        for each, leaf in zip(measurement.directions, problem.leaves, strict=True)
    )
    values, tangents = jax.jvp(gradient, (problem.leaves,), (directions,))
    return float(measurement.slopes_of(values)[-1]), float(measurement.slopes_of(tangents)[-1])


def _report(
    measurement: Measurement,
    slope: float,
    curvature: float | None,
    given: Leaves | None,
    off: float = 0.0,
) -> TaylorReport:
    """The report, where the claimed slope may be off by rounding alone, by 0 unless given."""
    samples = measurement.samples.take(slice(-1, None))
    t = samples.steps
    with np.errstate(all="ignore"):
        first = (samples.plus - samples.center[:, None])[0]
        remainders = [first, first - t * slope]
        if curvature is not None:
            remainders.append(first - t * slope - t**2 / 2 * curvature)
        remainders = [np.abs(remainder) for remainder in remainders]
    of_f = 4 * t * rounding_bar(samples)[0]
    floor = of_f + 2 * t * off
    floors = [of_f, *[floor] * (len(remainders) - 1)]  # R₁ is of f alone
    orders = tuple(
        float(observed_order(remainder[None], lowest[None])[0])
        for remainder, lowest in zip(remainders, floors, strict=True)
    )
    verdict = taylor_verdict(Order(np.array(orders[:1]), np.array(orders[1:2])))
    if curvature is not None and verdict == "pass" and orders[2] < 2.7:
        verdict = "fail" if orders[2] <= 2.3 else "inconclusive"
    length = norm(np.concatenate([d.ravel() for d in measurement.directions]))
    own = 1.0 if given is None else norm(np.concatenate([np.ravel(d) for d in given]))
    return TaylorReport(
        steps=t * length / own,
        remainders=np.array(remainders),
        floor=floor,
        orders=orders,
        verdict=verdict,
        precision=measurement.arithmetic.precision,
    )
