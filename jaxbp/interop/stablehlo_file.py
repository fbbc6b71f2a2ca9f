"""StableHLO: a network as a compiler's program, by ``jax.export``, for any number of rows.

from jax import export
program = export.deserialize(bytearray(open("network.stablehlo", "rb").read()))
program.call(x)          # x (N, D) in float32
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, export

from jaxbp.checkpoint import Checkpoint
from jaxbp.interop.exported import exported
from jaxbp.mlp import forward
from jaxbp.trees import shaped

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def to_stablehlo(trained: Checkpoint) -> bytes:
    """Serialise the program x (N, D) -> probabilities (N, K), or quantities in their units (N, K).

    A missing number is NaN.  Where a column is of text or of dates, x (N, I) is prepared already,
    as ``jaxbp.data.transform`` does it.

    x and the result are float32, N is symbolic; rows are standardised in float64, in processes
    without ``jax_enable_x64`` as well.  The program runs on CPUs, GPUs and TPUs.  It holds no text:
    the order of columns and classes is the network's.  Raises ValueError as ``exported`` does.
    """
    network = exported(trained)
    network = network if network.takes_numbers else network.prepared
    model, params = trained.model, trained.params
    preparation = network.preparation

    def predicted(x: Array) -> Array:
        rows = x.astype(jnp.float64)
        if network.fill is not None:
            gap = jnp.isnan(rows)
            rows = jnp.where(gap, network.fill, rows)
        if network.order is not None:
            rows = jnp.hstack([rows, gap.astype(rows.dtype)])[:, network.order]
        rows = (rows - preparation.mean) / preparation.scale
        logits, _ = forward(model, params, rows.astype(jnp.float32))
        if network.has_two_classes:  # σ(-a) = 1 - σ(a), however small
            logits = jnp.concatenate([-logits, logits], 1)
        prediction = model.head.predict(logits)
        if preparation.labels is None:
            prediction = prediction.astype(jnp.float64) * preparation.target_scale
            prediction += preparation.target_mean
        return prediction.astype(jnp.float32)

    with jax.enable_x64(True):
        shape: Any = (*export.symbolic_shape("N"), len(preparation.features))
        program = export.export(jax.jit(predicted), platforms=_PLATFORMS)(
            shaped(shape, jnp.float32)
        )
    return bytes(program.serialize())
