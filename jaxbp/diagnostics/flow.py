"""Gradient flow: how outputs and errors change from layer to layer."""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbp import activations as units
from jaxbp.activations import Activation
from jaxbp.diagnostics.health import outputs_of
from jaxbp.gradient import Batch, per_example_pass
from jaxbp.heads import softmax_cross_entropy
from jaxbp.initialisation import init
from jaxbp.memory import memory_shortage_named, outputs_kept
from jaxbp.model import MLP, Params
from jaxbp.products import whole

QUANTILES = (5, 25, 50, 75, 95)  # per cent


class Distributions(NamedTuple):
    """Quantiles over the units of a layer and the examples of a batch, (L, 5)."""

    output: Array  # of h
    delta: Array  # of |δ| where it is not 0, as it is below a ReLU that is off; NaN if it is all 0


def distributions(model: MLP, params: Params, batch: Batch) -> Distributions:
    """Quantiles of outputs h and errors |δ| in every layer, at 5, 25, 50, 75 and 95 %."""
    _, residuals, deltas = per_example_pass(model, params, batch)
    outputs = map(whole, outputs_of(params, residuals))
    levels = jnp.array(QUANTILES) / 100
    with jax.debug_nans(False):  # a NaN stands for what is left out
        nonzero = [jnp.where(delta == 0, jnp.nan, jnp.abs(delta)) for delta in map(whole, deltas)]
        return Distributions(
            output=jnp.stack([jnp.quantile(h, levels) for h in outputs]),
            delta=jnp.stack([jnp.nanquantile(size, levels) for size in nonzero]),
        )


class Flow(NamedTuple):
    """‖δ‖ in every layer of one network, as it is propagated backward."""

    activation: str
    scheme: str
    depth: int  # hidden layers
    delta: np.ndarray  # (depth + 1,) ‖δ‖ by layer, the first layer first

    @property
    def relative(self) -> np.ndarray:
        """‖δ‖ relative to that of the last layer."""
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
    """Measure ‖δ‖ by layer in untrained networks, one for each scheme, activation and depth.

    δ⁽ˡ⁾ = h'(a⁽ˡ⁾) ⊙ W⁽ˡ⁺¹⁾ᵀ δ⁽ˡ⁺¹⁾ has a factor h' ≤ ¼ for every sigmoid layer, so that after k of
    them at most (¼)ᵏ of the error is left where the weights keep its length (‖W‖₂ ≤ 1), or keep it
    on average (glorot and lecun, between layers of one width).  The networks end in a softmax over
    ten classes; inputs are drawn from the normal distribution, and classes uniformly.

    depths: numbers of hidden layers.
    activations: hidden units by name; ``LECTURE_ACTIVATIONS`` unless given.
    schemes: those of ``init``.
    width: inputs of the network, and units of each hidden layer; 64 unless given.
    rows: examples in the batch; 128 unless given.
    key: draws the batch and the weights; ``jax.random.key(0)`` unless given.

    Raises TypeError where depths or schemes are not several, and MemoryError for networks that are
    too large.

    >>> from jaxbp.activations import relu, sigmoid
    >>> flows = gradient_flow((8,), {"sigmoid": sigmoid, "relu": relu}, ("he",))
    >>> bool(flows[0].relative[0] < 1e-3 < 0.1 < flows[1].relative[0])
    True
    """
    for name, values in (("depths", depths), ("schemes", schemes)):
        if isinstance(values, str) or not np.iterable(values):
            raise TypeError(f"{name}: got {values!r}, expected several, as in ({values!r},)")
    activations = LECTURE_ACTIVATIONS if activations is None else activations
    key = jax.random.key(0) if key is None else key
    x_key, class_key, params_key = jax.random.split(key, 3)

    def network(depth: int, unit: Activation) -> MLP:
        return MLP((width, *[width] * depth, 10), unit, softmax_cross_entropy)

    flows, deepest = [], network(max(depths), units.identity)
    shapes = jax.eval_shape(lambda key: init(key, deepest), params_key)
    with memory_shortage_named(shapes, kept=outputs_kept(deepest, rows, jnp.float32), copies=1):
        batch = Batch(
            x=jax.random.normal(x_key, (rows, width)),
            target=jax.random.randint(class_key, (rows,), 0, 10),
        )
        for scheme in schemes:
            params = init(params_key, deepest, scheme=scheme)  # of all: shallower ones take some
            for (name, unit), depth in product(activations.items(), depths):
                model = network(depth, unit)
                _, _, deltas = per_example_pass(model, (*params[:depth], params[-1]), batch)
                examples = [np.linalg.norm(np.asarray(delta, float), axis=-1) for delta in deltas]
                norms = [np.sqrt(np.mean(norm**2)) for norm in examples]
                flows.append(Flow(name, scheme, depth, np.array(norms)))
    return tuple(flows)
