"""Diagnostics: the health of every layer, read off (z, δ), and what the lectures say against ills.

Layers are counted from 1, as on the page: layer 1 has the parameters ``params[0]``, and its δ is
∂L/∂a of its own pre-activations.  Its verdict is the first of these that holds:

    not finite   an activation, an error or a weight of the layer is infinite or NaN
    dead         40 % of the units or more have zero slope on the whole batch (the share at which
                 Karpathy, CS231n notes, "Neural Networks Part 1", starts to worry)
    saturated    half of the units or more are flat: |h'| below 5 % of the activation's steepest, as
                 at |tanh| > 0.975, on three quarters of the batch or more (after Glorot and Bengio
                 2010, section 3, who watch the units at ±1); of an activation with a steep side,
                 such as leaky ReLU, on all of it.  Comes before dead where there is no steep side
    exploding    ‖δ‖ is more than 1000 times that of the last layer
    vanishing    ‖δ‖ is less than a thousandth of that of the last layer: five sigmoid layers, each
                 with a slope of at most ¼, are enough (Hochreiter 1998)
    healthy      nothing of this

Some hundred different rows are needed to tell a dead unit from one that is off for these few.
"""

from html import escape
from itertools import groupby
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.diagnostics.health import Health, jitted_health
from jaxbp.gradient import Batch, example_shares, per_example_pass
from jaxbp.model import MLP, Params
from jaxbp.text import Table, align, html, number, plain

Verdict = Literal["healthy", "vanishing", "exploding", "dead", "saturated", "not finite"]

DEAD, SATURATED = 0.4, 0.5  # shares of a layer's units
VANISHING, EXPLODING = 1e-3, 1e3  # ‖δ‖ relative to the last layer's
RESTLESS = 0.1  # an update relative to its weights; a healthy one is about 1e-3 (Karpathy, CS231n)
WRONG, UNFELT, MANY = 0.25, 1e-2, 0.1  # an example's loss; ‖error‖ relative to its √; their share

_UNITS_ARE_SICK = {"dead", "saturated"}

ADVICE: dict[str, str] = {
    "vanishing": "hidden units of the ReLU family (relu, leaky_relu, elu), whose slope is 1 where "
    "they are on, with He initialisation; fewer layers",
    "exploding": "initial weights by He or Glorot; optax.clip_by_global_norm before the optimiser; "
    "a smaller learning rate",
    "weights": "initial weights by He or Glorot, whose size keeps ‖δ‖ from layer to layer",
    "dead": "small positive biases to start from, init(..., bias=0.1); leaky_relu or elu, which "
    "never have zero slope; a smaller learning rate",
    "saturated": "standardised inputs and smaller initial weights, so that |a| stays near 1; "
    "hidden units of the ReLU family, which do not saturate",
    "not finite": "look for it in the data first; then a smaller learning rate, and standardised "
    "inputs",
    "restless": "a learning rate ten times smaller",
    "unfelt": "the loss that belongs to the output unit: sigmoid_logistic or "
    "softmax_cross_entropy, whose error is ŷ - y",
}


# The report


class LayerHealth(NamedTuple):
    """One layer's row of a report; the numbers as in ``Health``."""

    layer: int  # from 1
    verdict: Verdict
    delta: float
    delta_ratio: float
    gradient_to_weight: float
    update_to_weight: float
    weight: float
    slope: float
    dead: float
    saturated: float
    mean: float
    spread: float


class Finding(NamedTuple):
    """What is wrong, at the layer where it starts, and what the lectures say against it."""

    layer: int  # from 1
    what: str
    advice: str


class LayerReport(NamedTuple):
    """The health of a network; printed, a table and what was found."""

    layers: tuple[LayerHealth, ...]
    findings: tuple[Finding, ...]  # in the order in which to mend them

    @property
    def ok(self) -> bool:
        """Whether every layer is healthy, and nothing else was found."""
        return not self.findings and all(row.verdict == "healthy" for row in self.layers)

    def __bool__(self) -> bool:
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        record: dict[str, Any] = plain(
            {
                "layers": [row._asdict() for row in self.layers],
                "findings": [finding._asdict() for finding in self.findings],
            }
        )
        return record

    def table(self) -> Table:
        """A row a layer."""
        signs = ("‖δ‖", "ratio", "∇W/W", "ΔW/W", "dead", "saturated", "output")
        return Table(("layer", *signs, "verdict"), [_cells(row) for row in self.layers])

    def text(self, width: int = 100) -> str:
        """The table, in that many columns of text, and what was found."""
        return "\n".join([align(self.table(), width), *self.lines()])

    def __str__(self) -> str:
        return self.text()

    def lines(self) -> list[str]:
        """The findings in words, and after those of one kind what is recommended."""
        lines = []
        for advice, findings in groupby(self.findings, key=lambda finding: finding.advice):
            lines += [f"layer {finding.layer}: {finding.what}" for finding in findings]
            lines.append(f"  recommended: {advice}")
        return lines

    def _repr_html_(self) -> str:
        return html(self.table()) + "".join(f"<p>{escape(line)}</p>" for line in self.lines())


def layer_report(
    model: MLP, params: Params, batch: Batch, updates: Params | None = None
) -> LayerReport:
    """Measure every layer on a batch, and say which is sick, of what, and what helps.

    A batch of some hundred rows is enough.  updates are the changes ΔW that a step would make, as
    optax returns them.  Raises ValueError and TypeError where params or batch do not fit the model.

    >>> from jaxbp import activations, heads, init
    >>> model = MLP((2, 3, 1), activations.relu, heads.linear_squared_error)
    >>> params = init(jax.random.key(0), model, bias=-9.0)
    >>> report = layer_report(model, params, Batch(jnp.eye(2), jnp.ones((2, 1))))
    >>> [row.verdict for row in report.layers], report.findings[0].what
    (['dead', 'healthy'], '100% of its units have zero slope on the whole batch')
    """
    health = jitted_health(model, params, batch, updates)
    return judge(
        model, jax.tree.map(np.asarray, health), unfelt=unfelt_errors(model, params, batch)
    )


def judge(
    model: MLP, health: Health, *, unfelt: bool = False, restless: float = RESTLESS
) -> LayerReport:
    """The report on measured health, such as that of one epoch of a ``History``: (L,) a field.

    unfelt is whether the output's error is small while the loss is not, and restless how large an
    update may be: infinite for a method that finds its own step.  Raises ValueError for a health
    that is not of one time.
    """
    layers = len(model.sizes) - 1
    if np.shape(health.delta) != (layers,):
        raise ValueError(
            f"health: got fields of shape {np.shape(health.delta)}, expected ({layers},), such as "
            "jax.tree.map(lambda values: values[-1], history.health)"
        )
    columns = {field: np.asarray(values, float) for field, values in health._asdict().items()}
    rows = [
        LayerHealth(layer + 1, _verdict(columns, layer), *(c[layer] for c in columns.values()))
        for layer in range(layers)
    ]
    return LayerReport(tuple(rows), tuple(_findings(rows, unfelt, restless)))


# Verdicts and findings, on the host


def _verdict(columns: dict[str, np.ndarray], layer: int) -> Verdict:
    here = {field: values[layer] for field, values in columns.items()}
    relative = here["delta"] / (columns["delta"][-1] or 1.0)
    vital = [here["delta"], here["mean"], here["weight"]]
    if not np.isfinite([*vital, here["gradient_to_weight"] if here["weight"] else 0]).all():
        return "not finite"
    if here["dead"] >= DEAD and here["dead"] > here["saturated"]:
        return "dead"
    if here["saturated"] >= SATURATED:
        return "saturated"
    if relative > EXPLODING:
        return "exploding"
    return "vanishing" if relative < VANISHING and columns["delta"][-1] else "healthy"


def _findings(rows: list[LayerHealth], unfelt: bool, restless: float) -> list[Finding]:
    """Causes, not consequences: a layer is named where the trouble starts."""
    strange = _not_finite(rows)
    if strange:
        return [strange]
    findings = []
    starved = [False, *(row.verdict in _UNITS_ARE_SICK and row.spread == 0 for row in rows)]
    for row in [row for row in rows if not starved[row.layer - 1]]:  # by a layer found already
        if row.verdict == "dead":
            what = f"{row.dead:.0%} of its units have zero slope on the whole batch"
            findings.append(Finding(row.layer, what, ADVICE["dead"]))
        elif row.verdict == "saturated":
            what = f"{row.saturated:.0%} of its units are flat on most of the batch"
            findings.append(Finding(row.layer, what, ADVICE["saturated"]))
    findings += _along_the_depth(rows)
    for row in [row for row in rows if row.weight]:
        if row.update_to_weight > restless:
            what = f"a step changes its weights by {row.update_to_weight:.0%}"
            findings.append(Finding(row.layer, what, ADVICE["restless"]))
    if unfelt:
        what = "the output is wrong, and its error next to nothing"
        findings.append(Finding(rows[-1].layer, what, ADVICE["unfelt"]))
    return findings


def _not_finite(rows: list[LayerHealth]) -> Finding | None:
    """The first layer, in the order of computation, that is not finite."""
    for row in rows:
        if not np.isfinite(row.weight):
            return Finding(row.layer, "its weights are not finite", ADVICE["not finite"])
        if not np.isfinite(row.mean):
            what = "its outputs are not finite, though its weights are"
            return Finding(row.layer, what, ADVICE["not finite"])
    for row in reversed(rows):
        if not np.isfinite(row.delta):
            what = "its δ is not finite, though all activations are"
            return Finding(row.layer, what, ADVICE["not finite"])
    for row in rows:
        if row.weight and not np.isfinite(row.gradient_to_weight):
            what = "its gradient is not finite, though δ is: its inputs are not"
            return Finding(row.layer, what, ADVICE["not finite"])
    return None


def _along_the_depth(rows: list[LayerHealth]) -> list[Finding]:
    """Where ‖δ‖ vanishes or explodes on its way back: at one layer, or little by little."""
    last = rows[-1].delta
    beyond = [row for row in rows if last and not VANISHING <= row.delta / last <= EXPLODING]
    if not beyond:
        return []
    reached = beyond[-1]  # the layer nearest to the output where it is too small, or too large
    kind = "vanishing" if reached.delta < last else "exploding"
    way = rows[reached.layer - 1 : -1]
    with np.errstate(divide="ignore"):
        whole = np.abs(np.log(reached.delta / last))
        steps = np.abs(np.log([row.delta_ratio for row in way]))
        slopes = np.abs(np.log([row.slope for row in way]))
    at = int(np.argmax(steps))
    if way[at].verdict in _UNITS_ARE_SICK:  # which says it already
        return []
    if steps[at] < whole / 2:
        a_layer = (reached.delta / last) ** (1 / len(way))
        what = f"{kind}: from the output down to here ‖δ‖ is multiplied by {a_layer:.2g} a layer"
        return [Finding(reached.layer, what, ADVICE[kind])]
    by = f"multiply ‖δ‖ by {number(way[at].delta_ratio)}"
    if kind == "vanishing" and slopes[at] > steps[at] / 2:
        return [Finding(way[at].layer, f"{kind}: its slopes {by}", ADVICE[kind])]
    return [Finding(way[at].layer + 1, f"{kind}: its weights {by}", ADVICE["weights"])]


def unfelt_errors(model: MLP, params: Params, batch: Batch) -> bool:
    """Whether many examples are wrong and hardly felt: the loss saturates with the output unit."""
    if model.head.gauss_newton is None:  # convex in the logits: what is wrong has an error
        return False
    loss, _, deltas = per_example_pass(model, params, batch)
    small = jnp.sum(deltas[-1] ** 2, axis=-1) < UNFELT**2 * loss
    return bool(jnp.sum(example_shares(batch, loss) * ((loss > WRONG) & small)) > MANY)


def _cells(row: LayerHealth) -> tuple[str, ...]:
    return (
        str(row.layer),
        number(row.delta),
        *(
            "" if np.isnan(ratio) else number(ratio)
            for ratio in (row.delta_ratio, row.gradient_to_weight, row.update_to_weight)
        ),
        f"{row.dead:.0%}",
        f"{row.saturated:.0%}",
        f"{row.mean:.2g}±{row.spread:.2g}",
        row.verdict,
    )


# Distributions, and the lectures' experiment
