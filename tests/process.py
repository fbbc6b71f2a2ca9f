"""A program to be started by a test, several times side by side: one of some processes that train a
network together, each with one device.  It prints the parameters, as JSON.

    python process.py NUMBER COUNT PORT
"""

import json
import sys

import jax
import numpy as np
import optax

import jaxbp
from jaxbp import activations, heads

number, count, port = map(int, sys.argv[1:])
if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, number)
rng = np.random.default_rng(0)
model = jaxbp.MLP((10, 16, 12, 3), activations.tanh, heads.softmax_cross_entropy, l2=1e-3)
rows = jaxbp.Batch(rng.normal(size=(103, 10)), rng.integers(0, 3, 103), rng.uniform(0.5, 2, 103))
params, history = jaxbp.fit(
    model,
    rows,
    optimizer=optax.adam(1e-2),
    epochs=15,
    batch_size=16,
    key=jax.random.key(0),
    validation=rows,
    mesh=jax.make_mesh((len(jax.devices()),), ("data",)),
)
leaves = [*jax.tree.leaves(params), history.training_loss, history.validation_loss]
print(json.dumps([np.asarray(leaf).tolist() for leaf in leaves]))
