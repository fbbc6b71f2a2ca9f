"""A program for eight devices, to be started by a test: training over meshes, in float64.

It prints, as JSON, how far parameters after 105 steps are from those of one device, what is
compiled after the first epoch, how arrays lie, and which collectives the program of an epoch has.
"""

import json
import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import jaxbp
from jaxbp import activations, heads, parallel
from jaxbp.training.epoch import Program, one_epoch

RNG = np.random.default_rng(0)
MODEL = jaxbp.MLP((10, 16, 12, 8, 3), activations.tanh, heads.softmax_cross_entropy, l2=1e-3)
ODD = MODEL._replace(sizes=(10, 7, 16, 3))  # a width that two devices cannot share
ROWS = jaxbp.Batch(RNG.normal(size=(103, 10)), RNG.integers(0, 3, 103), RNG.uniform(0.5, 2, 103))
ADAM = optax.adam(1e-2)


def mesh_of(data, model):
    return jax.make_mesh((data, model), ("data", "model"), devices=jax.devices()[: data * model])


def trained(mesh, model=MODEL, batch=ROWS, epochs=15, **options):
    options = {"key": jax.random.key(0), "batch_size": 16} | options
    return jaxbp.fit(model, batch, mesh=mesh, optimizer=ADAM, epochs=epochs, **options)


def distance(one, other):
    pairs = zip(*map(jax.tree.leaves, (one, other)), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs)


def own(model, params, batch):
    return jaxbp.autodiff(model, params, batch)


alone, history = trained(None)
odd, _ = trained(None, ODD)
distances, compiled = {}, []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
)
after_first = {}
for sizes in [(1, 1), (2, 1), (4, 1), (8, 1), (2, 2)]:
    counts = []
    mesh = mesh_of(*sizes)
    params, _ = trained(mesh, on_epoch=lambda epoch: counts.append(len(compiled)))  # noqa: B023
    distances[f"{sizes}"] = distance(params, alone)
    after_first[f"{sizes}"] = counts[-1] - counts[0]

mesh = mesh_of(2, 2)
recorded = {"validation": ROWS, "diagnostics": True}
_, expected = trained(None, **recorded)
_, found = trained(mesh, **recorded)
distances["history"] = distance(expected._replace(run=None), found._replace(run=None))
distances["odd widths"] = distance(trained(mesh, ODD)[0], odd)
distances["a gradient of one's own"] = distance(trained(mesh, gradient=own)[0], alone)
dropping = {"gradient": jaxbp.with_dropout(0.3)(jaxbp.backprop)}
distances["dropout"] = distance(trained(mesh, **dropping)[0], trained(None, **dropping)[0])
run = trained(mesh, epochs=5)[1].run
distances["resumed"] = distance(trained(mesh, resume=run, key=None)[0], alone)
distances["resumed alone"] = distance(trained(None, resume=jax.device_get(run), key=None)[0], alone)
even = jax.tree.map(lambda leaf: leaf[:96], ROWS)
put = partial(jax.device_put, device=NamedSharding(mesh, PartitionSpec("data")))
distances["sharded rows"] = distance(
    trained(mesh, batch=jax.tree.map(put, even))[0], trained(None, batch=even)[0]
)


class Stream:
    """Minibatches in one order, the last of which cannot be split evenly."""

    def __iter__(self):
        scaled = ROWS._replace(weight=ROWS.weight / ROWS.weight.mean())
        for start in range(0, 103, 16):
            yield jax.tree.map(lambda leaf: leaf[start : start + 16], scaled)  # noqa: B023


streamed = {"batch": Stream(), "batch_size": None, "validation": Stream()}
of_stream, expected = trained(None, **streamed)
for sizes in [(4, 1), (2, 2), (1, 2)]:
    params, found = trained(mesh_of(*sizes), **streamed)
    distances[f"streamed, {sizes}"] = distance(params, of_stream)
    distances[f"streamed, {sizes}, history"] = distance(found[:3], expected[:3])
sharded = [jax.tree.map(put, jax.tree.map(lambda leaf: leaf[:16], even))]
distances["streamed, sharded"] = distance(
    trained(mesh, batch=sharded, batch_size=None)[0],
    trained(None, batch=jax.device_get(sharded), batch_size=None)[0],
)


def many(mesh):
    """Five networks, dealt to a mesh."""
    params, history = jaxbp.fit_many(
        ODD,
        ROWS,
        keys=jax.random.split(jax.random.key(0), 5),
        learning_rate=[0.01, 0.02, 0.05, 0.1, 0.2],
        epochs=3,
        batch_size=16,
        validation=ROWS,
        mesh=mesh,
    )
    return params, history._replace(run=None)


of_many = many(mesh_of(1, 1))
for sizes in [(2, 1), (2, 2), (8, 1)]:
    distances[f"many, {sizes}"] = distance(many(mesh_of(*sizes)), of_many)


def collectives(*sizes):
    """Those of an epoch of six steps, each of which is one line of the loop's body."""
    mesh, model = parallel.checked_mesh(mesh_of(*sizes)), MODEL._replace(l2=0.0)
    program = Program(model, optax.sgd(1e-2), jaxbp.backprop, 16, mesh=mesh)
    params = jaxbp.init(jax.random.key(0), model, dtype=jnp.float64)
    rest = even._replace(weight=None), np.arange(96, dtype=np.int32)
    params, (batch, order) = parallel.spread(model, mesh, params, rest)
    epoch = jax.jit(partial(one_epoch, program))
    text = epoch.lower(params, (optax.EmptyState(),) * 2, batch, order, None).compile().as_text()
    names = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    return Counter(re.findall(rf" ({names})(?:-start)?\(", text))


print(
    json.dumps(
        {
            "distances": distances,
            "compiled after the first epoch": after_first,
            "collectives": {
                f"{sizes}": collectives(*sizes) for sizes in [(2, 1), (8, 1), (1, 4), (2, 2)]
            },
            "layout": parallel.describe(ODD, mesh).splitlines(),
            "lies": [str(leaf.sharding.spec) for leaf in jax.tree.leaves(params)],
            "on": [len(leaf.devices()) for leaf in jax.tree.leaves(run.state)],
        }
    )
)
