"""A program for four devices, to be started by a test: contractions of rows that are sharded.

It prints, as JSON, how far each is from that of the same rows on one device, relative to its
largest entry; and whether ``backprop`` moves rows from one device to another.
"""

import json

import jax
import numpy as np
from combinations import CONTRACTIONS, network
from jax.sharding import NamedSharding, PartitionSpec

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
found, alone = sharded(put(params), put(batch, "rows")), values(params, batch)
print(
    json.dumps(
        {
            "distance": {name: distance(found[name], alone[name]) for name in found},
            "moves rows": "all-gather" in sharded.as_text(),
        }
    )
)
