"""One kernel for all minibatches of an epoch, by Pallas on an NVIDIA GPU.

XLA launches a dozen kernels and more a step, and for a small network launching them takes longer
than their arithmetic.  Here the step of an epoch (forward, the head's loss, backward, gradients and
update, the same functions) is traced into the body of one kernel, which goes through all
minibatches while parameters and optimiser state stay in one multiprocessor.  Under ``jax.vmap``
each network has one for itself, and beyond their number several share one.  ``padding`` gives all
arrays the sizes that a kernel can have.  ``python -m benchmarks.one_kernel`` measures it.

JAX calls Pallas's Triton backend deprecated since 0.11.  What would replace it is this body under
Pallas's Mosaic GPU backend, or a Triton kernel called through jax-triton; the rest of the package
does without it, and then XLA trains every network.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas
from jax.experimental.pallas import triton

from jaxbp.gradient import Batch, backprop
from jaxbp.precision import matmul_precision
from jaxbp.training.epoch import Carry, Program, make_step, times_mean_weight
from jaxbp.training.padding import (
    carry_shapes,
    grown,
    ignores_padding,
    neutral_logit,
    padded_data,
    padded_program,
    padded_rows,
    power_of_two,
    without_padding,
)
from jaxbp.trees import evaluated, shaped


class OneKernel(NamedTuple):
    """The minibatches of an epoch in one kernel: a ``Program``'s ``kernel``."""

    warps: int  # of 32 threads each
    interpret: bool = False  # by Pallas's interpreter, on any device

    def __call__(
        self, program: Program, carry: Carry, batch: Batch, order: Array
    ) -> tuple[Carry, Array]:
        """Take the rows of batch in this order -> (carry, mean loss of the steps)."""
        wide = padded_program(program)
        dtype = carry[0][0].weight.dtype
        shapes, data = carry_shapes(wide, dtype), padded_data(wide, batch, dtype)
        start = jax.tree.map(lambda leaf, of: grown(leaf, *of.shape), carry, shapes)
        size = program.batch_size
        assert size is not None  # a full batch has no order
        whole = order.size - order.size % size
        minibatches = [  # all of one size, and the ragged last one
            part.reshape(-1, count)
            for part, count in ((order[:whole], size), (order[whole:], order.size - whole))
            if part.size
        ]
        steps = [_traced_step(wide, shapes, carry, data, rows.shape[1]) for rows in minibatches]
        orders = list(map(padded_rows, minibatches))

        def kernel(constants: Any, orders: Any, data: Any, start: Any, end: Any, mean: Any) -> None:
            def take(part: int, held: list[Array]) -> Any:
                count = minibatches[part].shape[1]
                fixed = [ref[...] for ref in constants[part]]

                def minibatch_step(number: Array, held: list[Array]) -> list[Array]:
                    *leaves, total = held
                    examples = _examples(data, orders[part][number, :], count)
                    *leaves, loss = evaluated(
                        steps[part], fixed, [*leaves, *jax.tree.leaves(examples)]
                    )
                    return [*leaves, total + count * loss]

                return jax.lax.fori_loop(0, len(minibatches[part]), minibatch_step, held)

            held = [*(ref[...] for ref in jax.tree.leaves(start)), jnp.zeros((), mean.dtype)]
            for part in range(len(minibatches)):
                held = take(part, held)
            for ref, leaf in zip(jax.tree.leaves(end), held, strict=False):
                ref[...] = leaf
            mean[...] = held[-1] / order.size

        end, mean = pallas.pallas_call(
            kernel,
            out_shape=(shapes, shaped((), dtype)),
            compiler_params=triton.CompilerParams(num_warps=self.warps, num_stages=1),
            interpret=self.interpret,
        )([step.consts for step in steps], orders, data, start)
        return jax.tree.map(lambda leaf, of: leaf[tuple(map(slice, of.shape))], end, carry), mean


def _examples(data: Batch, rows: Array, count: int) -> Batch:
    """The examples of a minibatch, the first count of these rows; the others weigh nothing."""
    target = data.target[rows, :] if data.target.ndim == 2 else data.target[rows]
    weight = None if data.weight is None else data.weight[rows]
    if count < rows.size:
        share = jnp.where(jnp.arange(rows.size) < count, rows.size / count, 0.0)
        share = share.astype(data.x.dtype)
        weight = share if weight is None else share * weight
    return Batch(data.x[rows, :], target, weight)


def _traced_step(program: Program, carry: Any, exact: Carry, data: Batch, count: int) -> Any:
    """The jaxpr of a step on count examples: the leaves of (carry, examples) -> (carry, loss).

    What the step closes over, such as a learning rate under ``jax.vmap``, are its constants.

    carry: the shapes of parameters and state with padding.
    exact: parameters and state without, of which the shapes matter here.
    data: all rows.
    """
    rows = shaped((power_of_two(count),), jnp.int32)
    examples = jax.eval_shape(partial(_examples, count=count), data, rows)
    weighted = examples.weight is not None
    gradient = times_mean_weight(program.gradient) if weighted else program.gradient
    step = make_step(program.model, program.optimizer, gradient)

    def padded_step(carry: Carry, examples: Batch) -> tuple[Carry, Array]:
        carry, loss = step(carry, examples)
        return jax.tree.map(lambda leaf, of: without_padding(leaf, *of.shape), carry, exact), loss

    with matmul_precision(program.precision):
        return jax.make_jaxpr(padded_step)(carry, examples)


# Whether it can be, and is faster


def obstacle(program: Program, dtype: Any) -> str | None:
    """The reason why a network cannot be trained in one kernel; None if there is none."""
    loss, gradient = program.model.head.loss, program.gradient
    mixed = getattr(gradient, "__wrapped__", None) is backprop
    its_own = "compute_dtype is set" if mixed else f"gradient is {gradient}, not jaxbp.backprop"
    obstacles = (
        (program.mesh is not None, "several devices train together"),
        (program.batch_size is None, "a full batch is a single step"),
        (program.diagnostics, "diagnostics take the last step of an epoch apart"),
        (gradient is not backprop, its_own),
        (neutral_logit(loss) is None, f"it is not known how to pad the logits of {loss}"),
        (dtype != jnp.float32, f"the parameters are {jnp.dtype(dtype)}, not float32"),
    )
    reason = next((reason for is_met, reason in obstacles if is_met), None)
    if reason is None and not ignores_padding(program):
        return (
            "the optimiser combines the entries of a layer, or uses its size, in a way that "
            "padding may change; expected one that works entry by entry, or with a global norm"
        )
    return reason


#: precisions by JAX's names that are TF32 on a GPU
ROUNDED = {"default", "bfloat16", "high", "tensorfloat32"}


def is_faster(program: Program, precision: str) -> bool:
    """Whether one kernel is known to be faster than XLA, as ``benchmarks.one_kernel`` measured it.

    precision: of the products, by JAX's name.

    A multiprocessor has 2¹⁶ registers for parameters and state, and shared memory for a few layers
    of a minibatch; where it has not enough, the kernel does not compile.  Exact products, which the
    tensor cores do not make, leave less to gain: there the smallest networks alone are faster.
    """
    wide, size = padded_program(program), program.batch_size
    assert size is not None
    numbers = 2**16 if precision in ROUNDED else 2**12
    return _held(wide) <= numbers and power_of_two(size) * max(wide.model.sizes) <= 2**14


def warps_for(program: Program, networks: int, device: Any) -> int:
    """The number of warps, 1 to 8.

    A network that has a multiprocessor for itself is spread over more warps than those that share
    one.  Where all numbers were measured, this one took up to 16 % longer than the best.
    """
    alone = networks <= getattr(device, "core_count", networks)
    fewest, numbers = (2, 2**11) if alone else (1, 2**12)  # numbers that a warp holds
    needed = max(fewest, _held(padded_program(program)) / numbers)
    return min(8, 1 << math.ceil(math.log2(needed)))


def _held(program: Program) -> int:
    """The number of all numbers in the parameters and the optimiser's state."""
    return sum(leaf.size for leaf in jax.tree.leaves(carry_shapes(program, jnp.float32)))
