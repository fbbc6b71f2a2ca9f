"""A program to be started by a test, several times side by side: one of some processes that train
networks together, each with one device.  It prints what is refused, and the parameters as JSON.

    python process.py NUMBER COUNT PORT FOLDER
"""

import json
import sys
from contextlib import ExitStack

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import jaxbp
from jaxbp import activations, heads
from jaxbp.processes import joined

number, count, port = map(int, sys.argv[1:4])
together = ExitStack()
if count > 1:
    together.enter_context(joined(f"127.0.0.1:{port}", number, count))
mesh = jax.make_mesh((len(jax.devices()),), ("data",))
rng = np.random.default_rng(0)
model = jaxbp.MLP((10, 16, 12, 3), activations.tanh, heads.softmax_cross_entropy, l2=1e-3)
rows = jaxbp.Batch(rng.normal(size=(103, 10)), rng.integers(0, 3, 103), rng.uniform(0.5, 2, 103))
folder = sys.argv[4]
options = {"validation": rows, "batch_size": 16, "mesh": mesh}
params, history = jaxbp.fit(
    model,
    rows,
    optimizer=optax.adam(1e-2),
    epochs=15,
    key=jax.random.key(0),
    checkpoint=folder,
    checkpoint_every=1,
    on_epoch=lambda epoch: (epoch.number, number) == (12, count - 1),  # the last one asks
    **options,
)
networks, of_many = jaxbp.fit_many(
    model,
    rows,
    keys=jax.random.split(jax.random.key(0), 3),
    learning_rate=[0.01, 0.1, 0.2],
    epochs=3,
    **options,
)
own = rows._replace(x=rows.x + number)  # as where each process reads other rows
refused = ""
try:
    jaxbp.fit(model, own, optimizer=optax.sgd(0.1), epochs=1, key=jax.random.key(0), **options)
except ValueError as error:
    refused = str(error)
parts = NamedSharding(mesh, PartitionSpec("data"))
own = jax.tree.map(lambda each: np.split(each[:100], count)[number], rows)
own = jax.tree.map(lambda each: jax.make_array_from_process_local_data(parts, each), own)
options |= {"validation": None, "optimizer": optax.adam(1e-2), "epochs": 2}
of_parts, _ = jaxbp.fit(model, own, key=jax.random.key(0), **options)


def parts_of(size, left_out=0):
    """This process's part of minibatches of so many rows, but for some that are left out."""
    order = np.arange(len(rows.x) - left_out)
    cuts = np.split(order, range(size, len(order), size))
    own = [np.array_split(cut, count)[number] for cut in cuts]
    weight = rows.weight / rows.weight.mean()
    return [(rows.x[those], rows.target[those], weight[those]) for those in own]


options |= {"batch_size": None, "key": jax.random.key(0)}
of_stream, streamed = jaxbp.fit(model, parts_of(16), **options | {"validation": parts_of(21)})
try:
    jaxbp.fit(model, parts_of(16, 16 * number), **options)
except ValueError as error:
    refused += f"; {error}"
leaves = jax.tree.leaves((params, history.training_loss, history.validation_loss, of_parts))
leaves += jax.tree.leaves((of_stream, streamed.training_loss, streamed.validation_loss))
leaves += jax.tree.leaves((networks, of_many.training_loss, of_many.validation_loss))
print(refused)
print(json.dumps([np.asarray(leaf).tolist() for leaf in leaves]))
together.close()
