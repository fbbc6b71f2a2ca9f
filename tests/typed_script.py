"""A user's script, like the README's: that its types are right is for ``mypy`` to say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxbp
from jaxbp import activations, heads

digits = jaxbp.data.load("digits")
model = jaxbp.MLP((64, 128, 10), activations.relu, heads.softmax_cross_entropy)
params, history = jaxbp.fit(
    model, digits.train, optimizer=optax.adam(2e-3), epochs=3, batch_size=32, key=jax.random.key(0)
)
loss, accuracy = jaxbp.evaluate(model, params, digits.test)
print(f"{accuracy:.0%} of {len(digits.test.x)} digits nobody trained on")
print(digits.train.x.shape, digits.train.x[:10].dtype)

rng = np.random.default_rng(0)
x, y = rng.normal(size=(8, 3)), rng.integers(0, 2, 8)
batch = jaxbp.Batch(x, y, np.ones(8))
own = jaxbp.Batch(jnp.asarray(x), jnp.asarray(y))
small = jaxbp.MLP((3, 4, 2), (activations.tanh,), heads.softmax_cross_entropy, l2=0.1)
start = jaxbp.init(jax.random.key(0), small)
value, grads = jaxbp.backprop(small, start, batch)
print(float(value), grads[0].weight.shape, jaxbp.per_example_norms(small, start, own).max())
print(jaxbp.layer_report(small, start, batch).ok, jaxbp.predict(small, start, x))
labels = jaxbp.smooth_labels(y, 0.1, num_classes=2)


def stop(epoch: jaxbp.Epoch) -> bool:
    return epoch.training_loss < 0.1


_, log = jaxbp.fit(
    small,
    batch,
    optimizer=optax.sgd(0.1),
    epochs=2,
    batch_size=None,
    key=jax.random.key(1),
    validation=own,
    on_epoch=stop,
)
if log.validation_loss is not None:
    print(log.training_loss[-1], log.validation_loss[-1])
stacked, record = jaxbp.fit_many(
    small,
    own,
    keys=jax.random.split(jax.random.key(0), 2),
    learning_rate=[0.1, 0.2],
    l2=(0.0, 0.1),
    epochs=2,
    batch_size=None,
)
print(jaxbp.best_of(stacked, record).n)
jaxbp.save("network", small, start, digits.preparation)
restored = jaxbp.load("network")
print(restored.model.sizes, restored.params[0].bias)
