"""What autodiff can, each contraction of (z, δ) can: on several devices, by JAX's strict settings.

JAX raises while it traces, so most of this compiles nothing.
"""

import json
import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from combinations import CONTRACTIONS, HEADS, network, thinned
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

import jaxbp
from benchmarks.problems import random_batch, random_params
from jaxbp import activations
from jaxbp.training.checks import checked_batch
from jaxbp.training.metrics import loss_and_metric

of_all = pytest.mark.parametrize("name", thinned(CONTRACTIONS, every=3))
MESH = AbstractMesh((4,), ("rows",), axis_types=(AxisType.Explicit,))  # as jax.make_mesh has them


def sharded(tree, *axes, mesh=MESH):
    """The shapes of a tree, its leaves' axes sharded over the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


@of_all
def test_sharded_rows_are_taken(name):
    """And their gradient is held by every device, as ``autodiff``'s is."""
    model, params, batch = network()
    result = jax.eval_shape(
        partial(CONTRACTIONS[name], model), sharded(params), sharded(batch, "rows")
    )
    if name == "health":
        spread = partial(jaxbp.diagnostics.distributions, model)
        jax.eval_shape(spread, sharded(params), sharded(batch, "rows"))
    if name not in {"per example", "norms"}:
        shardings = [leaf.sharding for leaf in jax.tree.leaves(result)]
        assert all(each is None or each.is_fully_replicated for each in shardings)


def test_sharded_units_are_taken():
    """Of every other layer the outputs are sharded, of the next one the inputs; where the rows are
    whole, of every layer the outputs."""
    model = network()[0]._replace(sizes=(6, 8, 4))
    mesh = AbstractMesh((2, 2), ("rows", "units"), axis_types=(AxisType.Explicit,) * 2)
    first, second = random_params(model, 0, np.float32)
    put = partial(sharded, mesh=mesh)
    layer = jaxbp.Layer(put(first.weight, "units"), put(first.bias, "units"))
    batch = random_batch(model, 8, 1, integer=True, dtype=np.float32)
    for above, rows in [
        (jaxbp.Layer(put(second.weight, None, "units"), put(second.bias)), put(batch, "rows")),
        (jaxbp.Layer(put(second.weight, "units"), put(second.bias, "units")), put(batch)),
    ]:
        for name in ("Hessian", "Kronecker factors", "noise scale"):
            jax.eval_shape(partial(CONTRACTIONS[name], model), (layer, above), rows)
        _, grads = jax.eval_shape(partial(jaxbp.backprop, model), (layer, above), rows)
        _, by_jax = jax.eval_shape(partial(jaxbp.autodiff, model), (layer, above), rows)
        of_both = zip(*map(jax.tree.leaves, (grads, by_jax)), strict=True)
        assert all(one.sharding.spec == other.sharding.spec for one, other in of_both)


@pytest.mark.slow
def test_sums_of_sharded_rows_are_those_of_all_rows(python, monkeypatch):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    printed, _ = python(Path(__file__).with_name("sharded.py")).ended()
    found = json.loads(printed)
    assert max(found["distance"].values()) < 1e-6
    assert not found["moves rows"]
    # What is of single rows stays where they are; one sum for the loss and the weights, and one for
    # all gradients; the health sums what it counts, too.
    assert found["collectives"] == {
        "backprop": {"all-reduce": 2},
        "per example": {},
        "norms": {},
        "clipped": {"all-reduce": 2},
        "moments": {"all-reduce": 2},
        "health": {"all-reduce": 4},
    }
    assert found["warnings"] == [
        f"{name}: on 4 devices, but a network trains on one; it is brought to cpu:0"
        for name in ("batch", "params", "batch")
    ]
    assert found["stays"]
    np.testing.assert_allclose(*found["evaluation"], rtol=1e-6)


@of_all
def test_a_traced_l2(name):
    model, params, batch = network()

    def penalised(l2):
        return CONTRACTIONS[name](model._replace(l2=l2), params, batch)

    jax.eval_shape(jax.vmap(penalised), jnp.array([0.0, 0.1]))


@of_all
def test_strict_settings(name):
    model, params, batch = network()
    trace = partial(jax.eval_shape, partial(CONTRACTIONS[name], model), params, batch)
    with jax.numpy_rank_promotion("raise"):
        trace()
    with jax.numpy_dtype_promotion("standard" if name == "a step" else "strict"):  # adam's own
        trace()


@pytest.mark.parametrize("name", thinned(HEADS, every=3))
def test_every_head_and_activation_by_strict_settings(name):
    model, params, _ = network()
    batch = random_batch(model, 8, 0, dtype=np.float32)
    for unit in activations.BY_NAME.values():
        of_unit = model._replace(head=HEADS[name], activation=unit)
        with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
            jax.eval_shape(partial(jaxbp.backprop, of_unit), params, batch)
            jax.eval_shape(partial(loss_and_metric, of_unit, precision=None), params, batch)


def test_arrays_on_the_device_stay_there():
    model, params, batch = network()
    with jax.transfer_guard("disallow"):
        checked = checked_batch(model, params, batch, "batch")
        assert jaxbp.layer_report(model, params, batch).ok
    assert all(ours is given for ours, given in zip(checked, batch, strict=True))


@pytest.mark.slow
def test_debug_nans_does_not_stop_a_report_of_nan():
    model, params, batch = network()
    with jax.debug_nans(True):
        assert jaxbp.layer_report(model, params, batch).ok
        broken = jaxbp.layer_report(model, params, batch._replace(x=np.full_like(batch.x, np.nan)))
        jaxbp.diagnostics.distributions(model, params, batch)
    assert broken.findings[0].what.startswith("its outputs are not finite")
