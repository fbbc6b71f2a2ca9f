"""Health: the vital signs of every layer, read off (z, δ)."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbp.activations import Activation
from jaxbp.gradient import Batch, example_shares, per_example_pass, with_penalty
from jaxbp.model import MLP, Params, Residuals, units_of
from jaxbp.per_example import weighted_gradients
from jaxbp.trees import check_like

FLAT, MOSTLY = 0.05, 0.75  # a flat slope, relative to the steepest; the share of a batch


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
    loss, residuals, deltas = per_example_pass(model, params, batch)
    share = example_shares(batch, loss)[..., None]
    grads = weighted_gradients(share[..., 0], residuals, deltas)
    weight, delta = _norms(params), jnp.stack([_norm(delta, share) for delta in deltas])
    outputs = outputs_of(params, residuals)
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


def sample(batch: Batch, rows: int) -> Batch:
    """At most so many rows of a batch, spread evenly over it."""
    every = -(-len(batch.x) // rows)
    return cast(Batch, jax.tree.map(lambda array: array[::every], batch))


jitted_health: Callable[..., Health] = jax.jit(layer_health, static_argnums=0)


def outputs_of(params: Params, residuals: Residuals) -> list[Array]:
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
