"""backprop against jax.grad: of the very same forward, and of an idiomatic ``jax.nn`` network.

    python -m benchmarks.first_look [--output results.json]
    python -m benchmarks.first_look --table results.json

Time and temporary memory of one loss-and-gradient call, in float32, for several activations at
8 hidden layers of 256 with batch 2048 and at 784-512-512-10 with batch 128.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxbp
from benchmarks.protocol import command, compiled, entry, heading, interleaved, line, median
from jaxbp import activations, heads

SHAPES = {
    "8×256, batch 2048": ((256,) * 9 + (10,), 2048),
    "784-512-512-10, batch 128": ((784, 512, 512, 10), 128),
}
IDIOMATIC: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
}


def idiomatic(activation, params, batch):
    """What one writes without this package: jax.nn, log_softmax, value_and_grad."""

    def loss(params):
        *hidden, output = params
        z = batch.x
        for layer in hidden:
            z = activation(z @ layer.weight.T + layer.bias)
        log_prediction = jax.nn.log_softmax(z @ output.weight.T + output.bias)
        return -jnp.mean(jnp.sum(batch.target * log_prediction, axis=-1))

    return jax.value_and_grad(loss)(params)


def compare(name, sizes, rows):
    """One row of the table; the gradients are checked to agree before anything is timed."""
    model = jaxbp.MLP(sizes, getattr(activations, name), heads.softmax_cross_entropy)
    params = jaxbp.init(jax.random.key(0), model)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(rows, sizes[0])), jnp.float32)
    batch = jaxbp.Batch(x, jax.nn.one_hot(rng.integers(10, size=rows), 10))
    contenders = {
        "backprop": compiled(partial(jaxbp.backprop, model), params, batch),
        "autodiff": compiled(partial(jaxbp.autodiff, model), params, batch),
        "jax.nn": compiled(partial(idiomatic, IDIOMATIC[name]), params, batch),
    }
    _, reference = contenders["autodiff"].run()
    for contender in contenders.values():
        assert jaxbp.compare(contender.run()[1], reference).relative_error < 1e-4
    timings = interleaved(contenders)
    return {name: entry(contenders[name], timing) for name, timing in timings.items()}


def row(name, cell):
    """Ratios first, then what they are ratios of."""
    ours, same, nn = (cell[contender] for contender in ("backprop", "autodiff", "jax.nn"))
    times = [median(each) for each in (ours, same, nn)]
    spread = (ours["seconds"]["upper"] - ours["seconds"]["lower"]) / times[0]
    memory = [each["temporary_mib"] for each in (ours, same, nn)]
    return (
        f"{name:<11}{times[0] / times[1]:>6.2f}{times[0] / times[2]:>6.2f}"
        f"{memory[0] / memory[1]:>8.2f}{memory[0] / memory[2]:>6.2f}"
        f"{times[0] * 1e3:>10.2f} ms ±{spread / 2:>4.0%}{memory[0]:>8.1f} MiB"
    )


def markdown(result):
    """The README's table: backprop over the idiomatic network, time and memory, by shape."""
    shapes = list(result["cells"])
    columns = [column for shape in shapes for column in (f"{shape}: time", "memory")]
    lines = [heading("backprop over jax.nn", *columns)]
    for name in IDIOMATIC:
        ratios = []
        for shape in shapes:
            ours, nn = (
                result["cells"][shape][name][contender] for contender in ("backprop", "jax.nn")
            )
            ratios.append(median(ours) / median(nn))
            ratios.append(ours["temporary_mib"] / nn["temporary_mib"])
        lines.append(line(name, *(f"{ratio:.2f}" for ratio in ratios)))
    return "\n".join(lines)


def measure(_):
    """Every activation at every shape, printed as it is measured."""
    cells = {}
    for shape, (sizes, rows) in SHAPES.items():
        print(f"\n{shape}: backprop over autodiff (of the same forward) and over jax.nn")
        print(f"{'':<11}{'time':>12}{'memory':>14}{'backprop itself':>24}")
        print(f"{'':<11}{'same':>6}{'nn':>6}{'same':>8}{'nn':>6}")
        cells[shape] = {}
        for name in IDIOMATIC:
            cells[shape][name] = compare(name, sizes, rows)
            print(row(name, cells[shape][name]), flush=True)
    return {"cells": cells}


if __name__ == "__main__":
    command(__doc__, measure, markdown)
