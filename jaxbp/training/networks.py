"""Networks in training side by side on one device: what ``fit_many`` compiles.

A CPU takes one network after another (``jax.lax.map``), because batched products gain nothing
there, except when they are tiny; an accelerator takes them together (``jax.vmap``), as it needs the
width.  ``python -m benchmarks.scaling`` measures these ways against one another.
"""

from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxbp.gradient import Batch
from jaxbp.initialisation import draw
from jaxbp.model import Params
from jaxbp.same_program import compiled_for_each
from jaxbp.training.constants import Constants, Optimizer
from jaxbp.training.epoch import (
    Program,
    drawn_rows,
    epoch_key,
    is_random,
    mapped,
    one_epoch,
    repeated,
)
from jaxbp.training.metrics import loss_and_metric
from jaxbp.training.run import Run

_SMALL = 2**17  # multiplications: 32-64-10 at batch 32 is below, 64-128-10 above


class Networks(NamedTuple):
    """Networks in training, n in front of every shape."""

    params: Params
    before: Params  # what the last finite epoch started from
    state: optax.OptState
    finite: Array  # (n,) until now
    learning_rate: Array
    l2: Array | None  # None: 0 for all
    key: Array | None  # None: nothing is drawn from it
    rows: Array | None  # (n, R) numbers of those that each trains on; None: all, or by the orders


class Start(NamedTuple):
    """All that the program is compiled for that draws the initial parameters."""

    sizes: tuple[int, ...]
    schemes: tuple[str, ...]  # of each layer
    dtype: Any
    optimizer: Optimizer
    key: Any  # the kind of keys
    keeps_keys: bool


def _started(
    start: Start,
    seeds: Array,
    rates: Array,
    penalties: Array | None,
    rows: Array | None,
    numbers: Any,
) -> Networks:
    """Networks with initial parameters, and with the initial states of their optimisers.

    start: what it is compiled for.
    seeds: (n, ...) the data of their keys.
    rates, penalties, rows: as ``Networks`` has them.
    numbers: of the optimiser.
    """
    keys = jax.random.wrap_key_data(seeds, impl=start.key)
    params = mapped(keys)(lambda key: draw(start.sizes, start.schemes, start.dtype, key, 0.0), keys)
    state = jax.vmap(
        lambda params, rate: start.optimizer(Constants(None, rate, numbers)).init(params)
    )(params, rates)
    finite = jnp.ones(rates.shape, bool)
    kept = keys if start.keeps_keys else None
    return Networks(params, params, state, finite, rates, penalties, kept, rows)


started = compiled_for_each(_started, runs_once=True)


def networks_of(
    run: Run, key: Any, rates: Array, penalties: Array | None, rows: Array | None
) -> Networks:
    """Networks that go on with a run.

    run: of ``fit_many``.
    key, rates, penalties, rows: as ``Networks`` has them.
    """
    finite = jnp.asarray(np.ones(rates.shape, bool) if run.diverged is None else ~run.diverged)
    return Networks(run.params, run.params, run.state, finite, rates, penalties, key, rows)


def epochs_of_each(
    program: Program,
    networks: Networks,
    numbers: Any,
    batch: Batch,
    validation: Batch | None,
    orders: Array | None,
    first: Array,
    count: Array,
    *,
    block: int,
) -> tuple[Networks, Any]:
    """Count epochs of every network, at most a block -> the networks, and records (block, n).

    program: of one network, without its constants.
    networks: to start from.
    numbers: of the optimiser.
    batch, validation: on the device; their weights may be (n, rows), those of each network.
    orders: (block, n, rows); None where they are drawn on the device, and for full batches.
    first: number of the first of these epochs, from 1.
    count: how many they are.
    block: how many they are at most.
    """
    each = jnp.zeros((block, *networks.finite.shape), jax.tree.leaves(networks.params)[0].dtype)

    def epoch(place: Array, networks: Networks) -> tuple[Networks, Any]:
        order = None if orders is None else orders[place]
        return _one_epoch_each(program, networks, numbers, batch, validation, order, first + place)

    return repeated(epoch, networks, (each, None if validation is None else (each, each)), count)


block_of_epochs = compiled_for_each(epochs_of_each, static_argnames="block")


def _one_epoch_each(
    program: Program,
    networks: Networks,
    numbers: Any,
    batch: Batch,
    validation: Batch | None,
    order: Array | None,
    number: Array,
) -> tuple[Networks, Any]:
    """An epoch of every network -> the networks, and their training loss, loss and metric.

    The arguments are those of ``epochs_of_each``, of this epoch; order is (n, rows).
    """
    own = own_weights(batch), own_weights(validation)

    def train(
        network: Networks,
        order: Array | None,
        weight: Array | None,
        validation_weight: Array | None,
    ) -> tuple[Networks, Any]:
        rows, held_out = weighted(batch, weight), weighted(validation, validation_weight)
        one = program.given(Constants(network.l2, network.learning_rate, numbers))
        key = None
        if network.key is not None and is_random(program.gradient):
            key = epoch_key(network.key, number)
        *after, loss, _ = one_epoch(one, network.params, network.state, rows, order, key)
        finite = network.finite & jnp.isfinite(loss)
        held = (network.params, network.state, network.before)
        after_it = (*after, network.params)
        params, state, before = jax.tree.map(partial(jnp.where, finite), after_it, held)
        validated = None
        if held_out is not None:
            validated = loss_and_metric(one.model, params, held_out, program.precision)
        record = jax.tree.map(lambda value: jnp.where(finite, value, jnp.nan), (loss, validated))
        network = network._replace(params=params, before=before, state=state, finite=finite)
        return network, record

    if order is None and program.batch_size is not None and networks.key is not None:
        count = len(batch.x) if networks.rows is None else networks.rows.shape[1]
        order = mapped(networks.key)(  # on the device
            lambda key: drawn_rows(key, number, count), networks.key
        )
        if networks.rows is not None:
            order = jnp.take_along_axis(networks.rows, order, axis=1)
    elif order is None:
        order = networks.rows
    if _together(program, batch):
        return jax.vmap(train)(networks, order, *own)
    after: tuple[Networks, Any] = jax.lax.map(lambda each: train(*each), (networks, order, *own))
    return after


def own_weights(batch: Any) -> Any:
    """Example weights that are those of each network, (n, rows); None where they are shared."""
    weight: Any = getattr(batch, "weight", None)
    return weight if np.ndim(weight) == 2 else None


def weighted(batch: Any, weight: Any) -> Any:
    """The batch with a network's own weights (rows,), where it has some."""
    return batch if weight is None else batch._replace(weight=weight)


def _together(program: Program, batch: Batch) -> bool:
    """Whether a group's networks are worth a batched product: on an accelerator, and on a CPU where
    a step is so small that starting its products takes longer than computing them."""
    rows = len(batch.x) if program.batch_size is None else program.batch_size
    weights = sum(i * o for i, o in pairwise(program.model.sizes))
    return jax.default_backend() != "cpu" or rows * weights < _SMALL
