"""Health: measures of every layer, read off (z, δ) on the device."""

from functools import cache
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbp.activations import Activation
from jaxbp.gradient import Batch, example_shares, per_example_pass
from jaxbp.model import MLP, Params, Residuals, units_of, with_penalty
from jaxbp.per_example import weighted_gradients
from jaxbp.products import affine
from jaxbp.same_program import compiled_for_each, known
from jaxbp.trees import check_like


class Health(NamedTuple):
    """Measures of every layer, the first layer first: (L,), or (epochs, L) in a ``History``.

    Means, spreads and norms over a batch count each example n by its share of the objective,
    shareₙ = weightₙ / Σ weight.
    """

    delta: Array  # ‖δ‖: √ Σₙ shareₙ ‖δₙ‖², the root mean square over examples
    delta_ratio: Array  # ‖δ‖ relative to that of the next layer; 1 for the last
    gradient_to_weight: Array  # ‖W̄‖ / ‖W‖ of the objective's gradient
    update_to_weight: Array  # ‖ΔW‖ / ‖W‖; NaN where no update is given
    weight: Array  # ‖W‖
    slope: Array  # root mean square of h'
    dead: Array  # fraction of units with zero slope on the whole batch
    saturated: Array  # fraction of units that are flat on most of it
    mean: Array  # of the layer's outputs h, over units and examples
    spread: Array  # their standard deviation


def layer_health(model: MLP, params: Params, batch: Batch, updates: Params | None = None) -> Health:
    """Measure all of ``Health`` in one forward and one backward pass, for use under ``jit``.

    updates are the changes ΔW of a step, as optax returns them.  Raises ValueError and TypeError
    where params, batch or updates do not fit the model.
    """
    if updates is not None:
        check_like("updates", updates, params)
    loss, residuals, deltas = per_example_pass(model, params, batch)
    shares = example_shares(batch, loss)  # (B,)
    grads = with_penalty(model, params, weighted_gradients(shares, residuals, deltas))
    share = shares[..., None]  # (B, 1), beside (B, O)
    weight, gradient = _weight_norms(params), _weight_norms(grads)
    if updates is None:
        update = jnp.full_like(weight, jnp.nan)
    else:
        update = jnp.nan_to_num(_weight_norms(updates), nan=jnp.inf, posinf=jnp.inf)
    delta = jnp.stack([_norm(delta, share) for delta in deltas])
    slopes = [residual.slope for residual in residuals]
    saturated = [
        _saturated(unit, slope, share) for unit, slope in zip(units_of(model), slopes, strict=True)
    ]
    outputs = outputs_of(params, residuals)
    means = [_mean(h, share) for h in outputs]
    variances = [_mean((h - mean) ** 2, share) for h, mean in zip(outputs, means, strict=True)]
    return Health(
        delta=delta,
        delta_ratio=delta / jnp.append(delta[1:], delta[-1]),
        gradient_to_weight=gradient / weight,
        update_to_weight=update / weight,
        weight=weight,
        slope=jnp.stack([jnp.sqrt(_mean(slope**2, share)) for slope in slopes]),
        dead=jnp.stack([jnp.mean(_dead(slope, share)) for slope in slopes]),
        saturated=jnp.stack([jnp.mean(units) for units in saturated]),
        mean=jnp.stack(means),
        spread=jnp.stack([jnp.sqrt(variance) for variance in variances]),
    )


_compiled = compiled_for_each(layer_health)


def compiled_health(
    model: MLP, params: Params, batch: Batch, updates: Params | None = None
) -> Health:
    """``layer_health``, compiled for what the model's pieces do now."""
    measured: Health = _compiled(known(model, layer_health, params, batch, updates))(
        params, batch, updates
    )
    return measured


def sample(batch: Batch, rows: int) -> Batch:
    """Take evenly spaced rows of a batch, at most ``rows`` of them."""
    every = -(-len(batch.x) // rows)
    return cast(Batch, jax.tree.map(lambda array: array[::every], batch))


def outputs_of(params: Params, residuals: Residuals) -> list[Array]:
    """Outputs h (B, O) of every layer: the inputs of the layer after it, and last the logits."""
    logits = affine(params[-1], residuals[-1].input)
    return [*(residual.input for residual in residuals[1:]), logits]


def _weight_norms(layers: Params) -> Array:
    """‖W‖ of every layer, (L,)."""
    return jnp.stack([_norm(layer.weight, 1) for layer in layers])


def _norm(values: Array, share: Array | int) -> Array:
    """√ Σ share · value², scaled so that squares do not overflow or underflow before their root."""
    largest = jnp.max(jnp.abs(values))
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return scale * jnp.sqrt(jnp.sum(share * (values / scale) ** 2))


def _mean(values: Array, share: Array) -> Array:
    """Mean of values (..., O) over units, and over examples by their share."""
    return jnp.sum(share * values) / values.shape[-1]


def _dead(slope: Array, share: Array) -> Array:
    """Whether each unit (O,) has zero slope on every example that has a share."""
    return _holds_on(1.0, slope == 0, share)


FLAT_SLOPE = 0.05  # |h'| of a flat unit is below this fraction of the activation's steepest slope
MOST_EXAMPLES = 0.75  # the fraction of a batch that a saturated unit is flat on


def _saturated(unit: Activation, slope: Array, share: Array) -> Array:
    """Whether each unit (O,) is flat on most examples; on all, if the activation has a steep side.

    A unit with zero slope on all examples is dead, not saturated, if it has a steep side.
    """
    steepest, flat_on_both_sides = _extreme_slopes(unit)
    flat = jnp.abs(slope) < FLAT_SLOPE * steepest
    if flat_on_both_sides:
        return _holds_on(MOST_EXAMPLES, flat, share)
    return _holds_on(1.0, flat, share) & ~_dead(slope, share)


def _holds_on(fraction: float, condition: Array, share: Array) -> Array:
    """Whether condition (..., O) holds for each unit on this fraction of examples with a share."""
    axes, counted = range(condition.ndim - 1), share > 0
    held = jnp.sum(condition & counted, axes, jnp.float32)
    return held >= fraction * jnp.sum(counted, dtype=jnp.float32)


@cache
def _extreme_slopes(unit: Activation) -> tuple[float, bool]:
    """An activation's steepest slope, and whether it is flat on both sides, as sigmoid is."""
    with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"):  # of constants
        _, near = unit(jnp.linspace(-3, 3, 601))  # where healthy units are
        _, far = unit(jnp.array([-30.0, 30.0]))
        steepest, steepest_far = float(np.max(np.abs(near))), float(np.max(np.abs(far)))
    return steepest, steepest_far < FLAT_SLOPE * steepest
