"""Reports: the results of a check, as data that prints itself as a table and asserts nothing."""

from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np

from jaxbp.checking.comparing import Entry, describe
from jaxbp.checking.verdicts import Verdict, worst_verdict
from jaxbp.text import Table, align, html, number, plain, significant


@dataclass(frozen=True)
class Kink:
    """The slopes on either side, along a direction in which they differ."""

    lower: float
    upper: float
    subgradient: bool  # whether the claimed slope lies between them


@dataclass(frozen=True)
class Curve:
    """The difference quotient along one direction, and its rounding, by step size."""

    steps: np.ndarray  # relative to the leaf's size
    slopes: np.ndarray
    rounding: np.ndarray
    chosen: float  # the step of the measured slope


@dataclass(frozen=True)
class LeafReport:
    """One leaf.  Slopes are along a unit direction of that leaf, the one with the largest error."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    verdict: Verdict
    claimed: float
    measured: float
    error: float  # the error bar of measured
    relative_error: float  # |claimed - measured| over the size that slopes have in this leaf
    resolution: float  # the error bar on the same scale: smaller errors cannot be seen
    taylor: Verdict  # the second opinion, from the order of Taylor's remainders
    order: float  # of the second remainder: 2 if the gradient is right, nan if it is all rounding
    kink: Kink | None
    diagnosis: str  # the mistake, if something simple explains the failure; else empty
    worst: tuple[Entry, ...]  # the entries that are furthest off, if the leaf failed
    curve: Curve | None


@dataclass(frozen=True)
class GradientReport:
    """The result of ``gradcheck``; printed, a table."""

    leaves: tuple[LeafReport, ...]
    joint: LeafReport | None  # all leaves moving at once
    value: float  # f at the point, or ⟨cotangent, f⟩
    precision: str  # the arithmetic in which f was measured
    threshold: float
    diagnosis: str  # the mistake, if one explains all leaves that failed; else empty
    notes: tuple[str, ...]  # what was held, what raised an exception and which
    verdict: Verdict
    black_box: str = ""  # "a black box: NumPy", say, where JAX cannot trace f
    evaluations: int | None = None  # how often a black box was called
    value_mistake: str = ""  # f's two values, where its rule has another than f called plainly
    second_order: "GradientReport | None" = None  # of the claimed gradient's own gradient

    @property
    def ok(self) -> bool:
        """Whether everything passed: nothing failed, nothing stayed inconclusive."""
        return self.verdict == "pass"

    def __bool__(self) -> bool:
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        second = None if self.second_order is None else self.second_order.to_dict()
        result: dict[str, Any] = plain(asdict(self) | {"second_order": second, "ok": self.ok})
        return result

    def table(self) -> Table:
        """The leaves, one a row, and all at once."""
        columns = ("leaf", "shape", "claimed", "measured", "error", "resolution", "verdict")
        joint = [] if self.joint is None else [self.joint]
        return Table(columns, [_row(leaf) for leaf in (*self.leaves, *joint)])

    def findings(self) -> list[str]:
        """A wrong value, the diagnosis, kinks, Taylor's orders and notes, a line each."""
        lines = [f"value: {self.value_mistake}"] if self.value_mistake else []
        lines += [f"diagnosis: {self.diagnosis}"] if self.diagnosis else []
        for leaf in self.leaves:
            remarks = [] if self.diagnosis.endswith(leaf.diagnosis) else [leaf.diagnosis]
            if leaf.worst:
                remarks.append(f"furthest off at {describe(leaf.worst[0])}")
            if leaf.kink is not None:
                remarks.append(_describe_kink(leaf.kink))
            if remarks:
                lines.append(f"{leaf.path}: {'; '.join(remarks)}")
        calls = [] if self.evaluations is None else [f"{self.evaluations} evaluations of f"]
        return [*lines, *self._taylor(), *calls, *self.notes]

    def _taylor(self) -> list[str]:
        """The second opinion, where it has one."""
        orders = [leaf.order for leaf in self.leaves if np.isfinite(leaf.order)]
        if not orders:
            return []
        bad = [leaf.path for leaf in self.leaves if leaf.taylor == "fail"]
        order = f"{min(orders):.1f}" + (f" in {', '.join(bad)}" if bad else " or better")
        return [f"Taylor's second remainder shrinks by order {order}; 2 where a gradient is right"]

    def text(self, width: int = 100) -> str:
        """The verdict, the table in that many columns of text, and the findings."""
        lines = [self.headline(), align(self.table(), width), *self.findings()]
        if self.second_order is not None:
            lines += ["", f"second order: {self.second_order.text(width)}"]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{escape(line)}</p>" for line in self.findings())
        return f"<p>{escape(self.headline())}</p>{html(self.table())}{lines}"

    def headline(self) -> str:
        """The verdict and how it was reached, in a line."""
        black_box = f"{self.black_box}, " if self.black_box else ""
        return (
            f"{self.verdict}: measured in {self.precision}, {black_box}"
            f"wrong means off by more than {number(self.threshold)}"
        )


def _describe_kink(kink: Kink) -> str:
    sides = f"slopes from {significant(kink.lower, 6)} to {significant(kink.upper, 6)}"
    return f"kink at the point, {sides}; claimed: {'a' if kink.subgradient else 'no'} subgradient"


def _row(leaf: LeafReport) -> tuple[str, ...]:
    return (
        leaf.path,
        "×".join(map(str, leaf.shape)) or "scalar",
        significant(leaf.claimed, 4),
        f"{significant(leaf.measured, 4)} ± {number(leaf.error)}",
        number(leaf.relative_error),
        number(leaf.resolution),
        leaf.verdict,
    )


def overall(leaves: list[LeafReport], joint: LeafReport | None, value_mistake: str) -> Verdict:
    """The verdict on all leaves and f's value; moving jointly, leaves can only be found wrong."""
    verdicts = [leaf.verdict for leaf in leaves]
    if value_mistake:
        verdicts.append("fail")
    if joint is not None and joint.verdict == "fail":
        verdicts.append("fail")
    return worst_verdict(verdicts)
