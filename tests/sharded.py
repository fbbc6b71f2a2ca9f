"""A program for four devices, to be started by a test: contractions of rows that are sharded.

It prints, as JSON, how far each is from that of the same rows on one device, relative to its
largest entry; whether rows move from one device to another; the collectives of each; and what
``fit`` and ``fit_many`` say of them.
"""

import json
import re
import warnings
from collections import Counter
from functools import partial

import jax
import numpy as np
import optax
from combinations import CONTRACTIONS, network
from jax.sharding import NamedSharding, PartitionSpec

import jaxbp
from jaxbp.training.checks import checked_batch

mesh = jax.make_mesh((4,), ("rows",))  # with Explicit axes, as is JAX's default
model, *arguments = network()


@jax.jit
def values(params, batch):
    names = ("backprop", "clipped", "Hessian", "Kronecker factors")
    return {name: CONTRACTIONS[name](model, params, batch) for name in names}


def put(tree, *axes):
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*axes)))


def distance(sharded, alone):
    pairs = zip(*map(jax.tree.leaves, (sharded, alone)), strict=True)
    return max(float(np.max(np.abs(a - np.asarray(b))) / np.max(np.abs(b))) for a, b in pairs)


params, batch = arguments
sharded = values.lower(put(params), put(batch, "rows")).compile()
given = put(params), put(batch, "rows")
found, alone = sharded(*given), values(params, batch)
outside_jit = CONTRACTIONS["Hessian"](model, *given)
narrow = model._replace(sizes=(8, 4, 4))  # a unit of each layer on each device
units = jaxbp.init(jax.random.key(0), narrow)
few = jaxbp.Batch(np.ones((3, 8), "f"), np.arange(3))
of_units = jaxbp.per_example_gradients(narrow, put(units, "rows"), put(few))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    trained, _ = jaxbp.fit(
        model,
        put(batch, "rows"),
        optimizer=optax.sgd(1.0),
        epochs=1,
        batch_size=None,
        key=jax.random.key(0),
        params=put(params),
    )
with warnings.catch_warnings(record=True) as caught_by_many, jax.set_mesh(mesh):
    warnings.simplefilter("always")
    jaxbp.fit_many(
        model,
        put(batch, "rows"),
        keys=jax.random.split(jax.random.key(0), 2),
        learning_rate=1.0,
        epochs=1,
        batch_size=None,
    )


def collectives(name):
    """Those of a contraction's program, by kind."""
    program = jax.jit(partial(CONTRACTIONS[name], model)).lower(*given).compile()
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    return Counter(re.findall(rf" ({kinds})(?:-start)?\(", program.as_text()))


_, grads = alone["backprop"]
descended = jax.tree.map(lambda leaf, grad: leaf - grad, params, grads)
elsewhere = jax.device_put(batch, jax.devices()[2])
print(
    json.dumps(
        {
            "distance": {name: distance(found[name], alone[name]) for name in found}
            | {
                "fit": distance(trained, descended),
                "Hessian outside jit": distance(outside_jit, alone["Hessian"]),
                "sharded units": distance(
                    of_units, jaxbp.per_example_gradients(narrow, units, few)
                ),
            },
            "moves rows": "all-gather" in sharded.as_text(),
            "collectives": {
                name: collectives(name)
                for name in ("backprop", "per example", "norms", "clipped", "moments", "health")
            },
            "warnings": [str(warning.message) for warning in (*caught, *caught_by_many)],
            "stays": checked_batch(model, params, elsewhere, "batch").x.devices()
            == elsewhere.x.devices(),
            "evaluation": [
                jaxbp.evaluate(model, params, put(batch, "rows")).loss,
                float(alone["backprop"][0]),
            ],
        }
    )
)
