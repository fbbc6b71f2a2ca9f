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

from collections.abc import Callable, Sequence
from functools import cache
from html import escape
from itertools import groupby, product
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbp import activations as units
from jaxbp.activations import Activation
from jaxbp.curvature import check_like
from jaxbp.gradient import Batch, errors, shares, with_penalty
from jaxbp.heads import softmax_cross_entropy
from jaxbp.mlp import MLP, Params, Residuals, init, units_of
from jaxbp.per_example import weighted_gradients
from jaxbp.tables import Table, align, html, number, plain

Verdict = Literal["healthy", "vanishing", "exploding", "dead", "saturated", "not finite"]

DEAD, SATURATED = 0.4, 0.5  # shares of a layer's units
FLAT, MOSTLY = 0.05, 0.75  # a flat slope, relative to the steepest; the share of a batch
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


class Health(NamedTuple):
    """Every layer's vital signs, the first layer first: (L,), or (epochs, L) in a ``History``."""

    delta: Array  # ‖δ‖: √ Σₙ shareₙ ‖δₙ‖², the root mean square over examples
    delta_ratio: Array  # ‖δ‖ over that of the next layer; 1 for the last
    gradient_to_weight: Array  # ‖W̄‖ / ‖W‖ of the objective's gradient
    update_to_weight: Array  # ‖ΔW‖ / ‖W‖; NaN where no update is given
    weight: Array  # ‖W‖
    slope: Array  # root mean square of h'
    dead: Array  # share of units with zero slope on the whole batch
    saturated: Array  # share of units that are flat on most of it
    mean: Array  # of the layer's outputs h, over units and examples
    spread: Array  # their standard deviation


def layer_health(model: MLP, params: Params, batch: Batch, updates: Params | None = None) -> Health:
    """All of ``Health`` in one forward and one backward pass, for use under ``jit``.

    updates are the changes ΔW of a step, as optax returns them.  Raises ValueError and TypeError
    where params or batch do not fit the model.
    """
    if updates is not None:
        check_like("updates", updates, params)
    loss, residuals, deltas = errors(model, params, batch)
    share = shares(batch, loss)[..., None]
    grads = weighted_gradients(share[..., 0], residuals, deltas)
    weight, delta = _norms(params), jnp.stack([_norm(delta, share) for delta in deltas])
    outputs = _outputs(params, residuals)
    means = [_mean(h, share) for h in outputs]
    slopes = [residual.slope for residual in residuals]
    pairs = list(zip(units_of(model), slopes, strict=True))
    update = jnp.full_like(weight, jnp.nan)
    if updates is not None:
        update = jnp.nan_to_num(_norms(updates), nan=jnp.inf, posinf=jnp.inf)
    return Health(
        delta=delta,
        delta_ratio=delta / jnp.append(delta[1:], delta[-1]),
        gradient_to_weight=_norms(with_penalty(model, params, grads)) / weight,
        update_to_weight=update / weight,
        weight=weight,
        slope=jnp.stack([jnp.sqrt(_mean(slope**2, share)) for slope in slopes]),
        dead=jnp.stack([jnp.mean(_dead(slope, share)) for slope in slopes]),
        saturated=jnp.stack([jnp.mean(_saturated(*pair, share)) for pair in pairs]),
        mean=jnp.stack(means),
        spread=jnp.stack(
            [jnp.sqrt(_mean((h - m) ** 2, share)) for h, m in zip(outputs, means, strict=True)]
        ),
    )


_jitted_health: Callable[..., Health] = jax.jit(layer_health, static_argnums=0)


def _outputs(params: Params, residuals: Residuals) -> list[Array]:
    """h (B, O) of every layer: what the next one was given, and the logits."""
    logits = residuals[-1].input @ params[-1].weight.T + params[-1].bias
    return [*(residual.input for residual in residuals[1:]), logits]


def _norms(layers: Params) -> Array:
    """‖W‖ of every layer, (L,)."""
    return jnp.stack([_norm(layer.weight, 1) for layer in layers])


def _norm(values: Array, share: Array | int) -> Array:
    """√ Σ share · value², where the squares alone would over- or underflow as well."""
    largest = jnp.max(jnp.abs(values))
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return scale * jnp.sqrt(jnp.sum(share * (values / scale) ** 2))


def _mean(values: Array, share: Array) -> Array:
    """The mean over units and examples (..., O), each example as often as its weight says."""
    return jnp.sum(share * values) / values.shape[-1]


def _dead(slope: Array, share: Array) -> Array:
    """Which units (O,) have zero slope on every example that counts."""
    return _held(slope == 0, share, 1.0)


def _saturated(unit: Activation, slope: Array, share: Array) -> Array:
    """Which units (O,) are flat on most examples; of one that may be off, on all of them."""
    steepest, two_sided = _shape(unit)
    flat = jnp.abs(slope) < FLAT * steepest
    if two_sided:
        return _held(flat, share, MOSTLY)
    return _held(flat, share, 1.0) & ~_dead(slope, share)


def _held(condition: Array, share: Array, amount: float) -> Array:
    """Whether a condition (..., O) holds on that part of the examples that have a share."""
    axes, counted = range(condition.ndim - 1), share > 0
    return jnp.sum(condition & counted, axis=axes) >= amount * jnp.sum(counted)


@cache
def _shape(unit: Activation) -> tuple[float, bool]:
    """An activation's steepest slope, and whether it is flat on both sides, as sigmoid is."""
    with jax.ensure_compile_time_eval():
        _, near = unit(jnp.linspace(-3, 3, 601))  # where healthy units are
        _, far = unit(jnp.array([-30.0, 30.0]))
        steepest, flattest = float(np.max(np.abs(near))), float(np.max(np.abs(far)))
    return steepest, flattest < FLAT * steepest


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

    def __str__(self) -> str:
        return "\n".join([align(self.table()), *self.lines()])

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

    >>> from jaxbp import activations, heads
    >>> model = MLP((2, 3, 1), activations.relu, heads.linear_squared_error)
    >>> params = init(jax.random.key(0), model, bias=-9.0)
    >>> report = layer_report(model, params, Batch(jnp.eye(2), jnp.ones((2, 1))))
    >>> [row.verdict for row in report.layers], report.findings[0].what
    (['dead', 'healthy'], '100% of its units have zero slope on the whole batch')
    """
    health = _jitted_health(model, params, batch, updates)
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
    loss, _, deltas = errors(model, params, batch)
    small = jnp.sum(deltas[-1] ** 2, axis=-1) < UNFELT**2 * loss
    return bool(jnp.sum(shares(batch, loss) * ((loss > WRONG) & small)) > MANY)


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

QUANTILES = (5, 25, 50, 75, 95)  # per cent


class Distributions(NamedTuple):
    """Quantiles over a layer's units and a batch's examples, of every layer: (L, 5)."""

    output: Array  # of h
    delta: Array  # of |δ| where it is not 0, as it is below a ReLU that is off; NaN: it is nowhere


def distributions(model: MLP, params: Params, batch: Batch) -> Distributions:
    """How outputs h and errors |δ| are spread in every layer, at 5, 25, 50, 75 and 95 %."""
    _, residuals, deltas = errors(model, params, batch)
    levels = jnp.array(QUANTILES) / 100
    return Distributions(
        output=jnp.stack([jnp.quantile(h, levels) for h in _outputs(params, residuals)]),
        delta=jnp.stack(
            [jnp.nanquantile(jnp.where(d == 0, jnp.nan, jnp.abs(d)), levels) for d in deltas]
        ),
    )


class Flow(NamedTuple):
    """How errors fare on their way back through one network."""

    activation: str
    scheme: str
    depth: int  # hidden layers
    delta: np.ndarray  # (depth + 1,) ‖δ‖ by layer, the first layer first

    @property
    def relative(self) -> np.ndarray:
        """‖δ‖ over that of the last layer."""
        return np.asarray(self.delta / self.delta[-1])


LECTURE_ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": units.sigmoid,
    "tanh": units.tanh,
    "relu": units.relu,
    "leaky_relu": units.leaky_relu,
    "elu": units.elu,
}


def gradient_flow(
    depths: Sequence[int] = (5, 10, 20, 50),
    activations: dict[str, Activation] | None = None,
    schemes: Sequence[str] = ("glorot", "he", "lecun"),
    *,
    width: int = 64,
    rows: int = 128,
    key: Array | None = None,
) -> tuple[Flow, ...]:
    """The lectures' story as an experiment: ‖δ‖ by layer in untrained networks of every kind.

    δ⁽ˡ⁾ = h'(a⁽ˡ⁾) ⊙ W⁽ˡ⁺¹⁾ᵀ δ⁽ˡ⁺¹⁾ has a factor h' ≤ ¼ for every sigmoid layer, so that after k of
    them at most (¼)ᵏ of the error is left where the weights keep its length (‖W‖₂ ≤ 1), or keep it
    on average (glorot and lecun, between layers of one width).  Networks of depth hidden layers,
    each width wide, softmax over ten classes, inputs from the normal distribution and random
    classes; activations are those of the lectures unless named.

    >>> sigmoid, relu = gradient_flow((8,), {"sigmoid": units.sigmoid, "relu": units.relu}, ("he",))
    >>> bool(sigmoid.relative[0] < 1e-3 < 0.1 < relu.relative[0])
    True
    """
    activations = LECTURE_ACTIVATIONS if activations is None else activations
    key = jax.random.key(0) if key is None else key
    x_key, class_key, params_key = jax.random.split(key, 3)
    batch = Batch(
        x=jax.random.normal(x_key, (rows, width)),
        target=jax.random.randint(class_key, (rows,), 0, 10),
    )
    flows = []
    for scheme in schemes:
        deepest = _hidden(width, max(depths), units.identity)
        params = init(params_key, deepest, scheme=scheme)  # shallower ones take its first layers
        for (name, unit), depth in product(activations.items(), depths):
            model = _hidden(width, depth, unit)
            _, _, deltas = errors(model, (*params[:depth], params[-1]), batch)
            examples = [np.linalg.norm(np.asarray(delta, float), axis=-1) for delta in deltas]
            norms = [np.sqrt(np.mean(norm**2)) for norm in examples]
            flows.append(Flow(name, scheme, depth, np.array(norms)))
    return tuple(flows)


def _hidden(width: int, depth: int, unit: Activation) -> MLP:
    return MLP((width, *(width,) * depth, 10), unit, softmax_cross_entropy)
