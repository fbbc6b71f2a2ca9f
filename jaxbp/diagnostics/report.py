"""Report: the measures of ``Health`` turned, on the host, into verdicts, findings and advice."""

from dataclasses import asdict, dataclass
from html import escape
from itertools import groupby
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.diagnostics.health import Health, compiled_health
from jaxbp.gradient import Batch, example_shares, per_example_pass
from jaxbp.model import MLP, Params, units_of
from jaxbp.text import Table, align, html, number, plain
from jaxbp.trees import check_bools

LayerVerdict = Literal["healthy", "vanishing", "exploding", "dead", "saturated", "not finite"]


@dataclass(frozen=True)
class LayerHealth:
    """One layer's verdict, and the measures of ``Health`` that it rests on.

    Layers are counted from 1, as on the page: layer 1 has the parameters ``params[0]``, and its δ
    is ∂L/∂a of its own pre-activations.  The verdict is the first of these that holds:

        not finite   an activation, an error or a weight of the layer is infinite or NaN
        dead         40 % of the units or more have zero slope on the whole batch (the fraction at
                     which Karpathy, CS231n notes, "Neural Networks Part 1", starts to worry)
        saturated    half of the units or more are flat: |h'| below 5 % of the activation's
                     steepest, as at |tanh| > 0.975, on three quarters of the batch or more (after
                     Glorot and Bengio 2010, section 3, who watch the units at ±1); for an
                     activation with a steep side, such as leaky ReLU, on all of it.  Precedes dead
                     where there is no steep side
        exploding    ‖δ‖ is more than 1000 times that of the last layer
        vanishing    ‖δ‖ is less than a thousandth of that of the last layer: five sigmoid layers,
                     each with a slope of at most ¼, are enough (Hochreiter 1998)
        healthy      none of these

    It takes a few hundred rows to tell a dead unit from one that happens to be off.
    """

    layer: int  # from 1
    verdict: LayerVerdict
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


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, the layer where it starts, and what the lectures recommend."""

    layer: int  # from 1
    what: str
    advice: str


@dataclass(frozen=True)
class LayerReport:
    """The health of a network: printed, it is a table of the layers and the findings in words."""

    layers: tuple[LayerHealth, ...]
    findings: tuple[Finding, ...]  # in the order in which to mend them

    @property
    def ok(self) -> bool:
        """Whether every layer is healthy, and nothing else was found."""
        return not self.findings and all(row.verdict == "healthy" for row in self.layers)

    def __bool__(self) -> bool:
        return self.ok

    def text(self, width: int = 100) -> str:
        """The table and the findings.

        width: columns of text that the table is to fit; 100 unless given.
        """
        return "\n".join([align(self.table(), width), *self.lines()])

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return html(self.table()) + "".join(f"<p>{escape(line)}</p>" for line in self.lines())

    def to_dict(self) -> dict[str, Any]:
        """All layers and findings as values for JSON."""
        record: dict[str, Any] = plain(asdict(self))
        return record

    def table(self) -> Table:
        """One row for each layer."""
        signs = ("‖δ‖", "ratio", "∇W/W", "ΔW/W", "dead", "saturated", "output")
        return Table(("layer", *signs, "verdict"), [_table_row(row) for row in self.layers])

    def lines(self) -> list[str]:
        """The findings in words; the advice follows the last of those that share it."""
        lines = []
        for advice, findings in groupby(self.findings, key=lambda finding: finding.advice):
            lines += [f"layer {finding.layer}: {finding.what}" for finding in findings]
            lines.append(f"  recommended: {advice}")
        return lines


def _table_row(row: LayerHealth) -> tuple[str, ...]:
    ratios = (row.delta_ratio, row.gradient_to_weight, row.update_to_weight)
    return (
        str(row.layer),
        number(row.delta),
        *("" if np.isnan(ratio) else number(ratio) for ratio in ratios),
        f"{row.dead:.0%}",
        f"{row.saturated:.0%}",
        f"{row.mean:.2g}±{row.spread:.2g}",
        row.verdict,
    )


def layer_report(
    model: MLP, params: Params, batch: Batch, updates: Params | None = None
) -> LayerReport:
    """Measure every layer on a batch, and report what is wrong, where, and what is recommended.

    A batch of a few hundred rows is enough.  updates are the changes ΔW that a step would make, as
    optax returns them.  Raises ValueError and TypeError where params, batch or updates do not fit
    the model.

    >>> from jaxbp import activations, heads, init
    >>> model = MLP((2, 3, 1), activations.relu, heads.linear_squared_error)
    >>> params = init(jax.random.key(0), model, bias=-9.0)
    >>> report = layer_report(model, params, Batch(jnp.eye(2), jnp.ones((2, 1))))
    >>> [row.verdict for row in report.layers]
    ['dead', 'healthy']
    >>> report.findings[0].what
    '100% of its units have zero slope on the whole batch'
    """
    units_of(model)  # raises, where it is no model
    with jax.debug_nans(False):  # a report says which layer has them
        health = jax.tree.map(np.asarray, compiled_health(model, params, batch, updates))
    return judge(model, health, unfelt=unfelt_errors(model, params, batch))


LARGE_UPDATE = 0.1  # relative to the weights; a healthy one is about 1e-3 (Karpathy, CS231n)


def judge(
    model: MLP, health: Health, *, unfelt: bool = False, restless: float = LARGE_UPDATE
) -> LayerReport:
    """Report on measured health at one time, such as the last epoch of a ``History``.

    model: the network's description.
    health: each field (L,).
    unfelt: whether the output's error is small while the loss is not, as ``unfelt_errors`` finds.
    restless: the ‖ΔW‖ / ‖W‖ beyond which an update is reported, 0.1 unless given; infinite for a
        method that finds its own step.

    Raises ValueError for a health with fields of another shape.
    """
    check_bools(unfelt=unfelt)
    layers = len(model.sizes) - 1
    if np.shape(health.delta) != (layers,):
        raise ValueError(
            f"health: got fields of shape {np.shape(health.delta)}, expected ({layers},), such as "
            "jax.tree.map(lambda values: values[-1], history.health)"
        )
    columns = {field: np.asarray(values, float) for field, values in health._asdict().items()}
    last_delta = float(columns["delta"][-1])
    rows = []
    for layer in range(layers):
        measures = {field: float(values[layer]) for field, values in columns.items()}
        rows.append(LayerHealth(layer + 1, _layer_verdict(measures, last_delta), **measures))
    return LayerReport(tuple(rows), tuple(_findings(rows, unfelt, restless)))


WRONG_LOSS = 0.25  # the loss of an example beyond which its prediction is wrong
VANISHED_ERROR = 1e-2  # ‖error‖ relative to √loss: below this, training hardly changes the example
MANY_EXAMPLES = 0.1  # the share of wrong examples with a vanished error that is a finding


def unfelt_errors(model: MLP, params: Params, batch: Batch) -> bool:
    """Whether many examples are wrong but have next to no error: the loss saturates with the unit.

    Such a loss is not convex in the logits, as squared error is not behind a sigmoid.
    """
    if model.head.gauss_newton is None:  # convex in the logits: a wrong example has an error
        return False
    loss, _, deltas = per_example_pass(model, params, batch)
    vanished = jnp.sum(deltas[-1] ** 2, axis=-1) < VANISHED_ERROR**2 * loss
    share = jnp.sum(example_shares(batch, loss) * ((loss > WRONG_LOSS) & vanished))
    return bool(share > MANY_EXAMPLES)


# Verdicts, each layer by itself

DEAD, SATURATED = 0.4, 0.5  # fractions of a layer's units
VANISHING, EXPLODING = 1e-3, 1e3  # ‖δ‖ relative to the last layer's


def _layer_verdict(measures: dict[str, float], last_delta: float) -> LayerVerdict:
    """The first verdict of the table in ``LayerHealth`` that holds; measures are its fields."""
    vital = ["delta", "mean", "weight"]
    if measures["weight"]:  # a layer of zero weights has an infinite ratio and is in order
        vital.append("gradient_to_weight")
    if not np.isfinite([measures[field] for field in vital]).all():
        return "not finite"
    if measures["dead"] >= DEAD and measures["dead"] > measures["saturated"]:
        return "dead"
    if measures["saturated"] >= SATURATED:
        return "saturated"
    relative = measures["delta"] / (last_delta or 1.0)
    if relative > EXPLODING:
        return "exploding"
    return "vanishing" if relative < VANISHING and last_delta else "healthy"


# Findings, from the layers together

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
    "large update": "a learning rate ten times smaller",
    "vanished error": "the loss that belongs to the output unit: sigmoid_logistic or "
    "softmax_cross_entropy, whose error is ŷ - y",
}

_UNIT_VERDICTS = {"dead", "saturated"}  # on the units of a layer, not on ‖δ‖


def _findings(rows: list[LayerHealth], unfelt: bool, restless: float) -> list[Finding]:
    """Causes, not consequences: a layer is named where the trouble starts."""
    not_finite = _first_not_finite(rows)
    if not_finite is not None:
        return [not_finite]
    findings = []
    constant_input = False  # from the layer before, which is named already
    for row in rows:
        if row.verdict == "dead" and not constant_input:
            what = f"{row.dead:.0%} of its units have zero slope on the whole batch"
            findings.append(Finding(row.layer, what, ADVICE["dead"]))
        if row.verdict == "saturated" and not constant_input:
            what = f"{row.saturated:.0%} of its units are flat on most of the batch"
            findings.append(Finding(row.layer, what, ADVICE["saturated"]))
        constant_input = row.verdict in _UNIT_VERDICTS and row.spread == 0
    findings += _vanishing_or_exploding(rows)
    for row in rows:
        if row.weight and row.update_to_weight > restless:
            what = f"a step changes its weights by {row.update_to_weight:.0%}"
            findings.append(Finding(row.layer, what, ADVICE["large update"]))
    if unfelt:
        what = "the output is wrong, and its error next to nothing"
        findings.append(Finding(rows[-1].layer, what, ADVICE["vanished error"]))
    return findings


def _first_not_finite(rows: list[LayerHealth]) -> Finding | None:
    """The first layer, in the order of computation, with a measure that is not finite."""
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


def _vanishing_or_exploding(rows: list[LayerHealth]) -> list[Finding]:
    """Where ‖δ‖ vanishes or explodes on its way back: at one layer, or little by little."""
    last = rows[-1].delta
    beyond = [row for row in rows if last and not VANISHING <= row.delta / last <= EXPLODING]
    if not beyond:
        return []
    reached = beyond[-1]  # the layer nearest to the output where ‖δ‖ is too small, or too large
    kind = "vanishing" if reached.delta < last else "exploding"
    path = rows[reached.layer - 1 : -1]  # from that layer to the one before the output
    with np.errstate(divide="ignore"):
        whole = np.abs(np.log(reached.delta / last))
        ratios = np.abs(np.log([row.delta_ratio for row in path]))
        slopes = np.abs(np.log([row.slope for row in path]))
    largest = int(np.argmax(ratios))
    row = path[largest]
    if row.verdict in _UNIT_VERDICTS:  # it is named already
        return []
    if ratios[largest] < whole / 2:
        per_layer = (reached.delta / last) ** (1 / len(path))
        what = f"{kind}: from the output down to here ‖δ‖ is multiplied by {per_layer:.2g} a layer"
        return [Finding(reached.layer, what, ADVICE[kind])]
    by = f"multiply ‖δ‖ by {number(row.delta_ratio)}"
    if kind == "vanishing" and slopes[largest] > ratios[largest] / 2:
        return [Finding(row.layer, f"{kind}: its slopes {by}", ADVICE[kind])]
    return [Finding(row.layer + 1, f"{kind}: its weights {by}", ADVICE["weights"])]
