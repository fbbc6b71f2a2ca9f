"""The choice between XLA's scan over minibatches and one kernel for all of them."""

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax

from jaxbp.training.epoch import Program

KERNELS = ("auto", "xla", "fused", "interpret")


def check_kernel(kernel: str) -> None:
    """Raise ValueError for a kernel other than those that ``fit`` names."""
    if kernel not in KERNELS:
        raise ValueError(f"kernel: got {kernel!r}, expected one of {', '.join(KERNELS)}")


def with_kernel(
    kernel: str,
    program: Program,
    epoch: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    example: Program | None = None,
    networks: int = 1,
    **options: int,
) -> Program:
    """The program, with the kernel that takes its minibatches where one does.

    kernel: "auto", one kernel where it is known to be possible and faster; "xla", none; "fused" or
        "interpret", one in any case, by the GPU or by Pallas's interpreter.
    program: the training, without a kernel.
    epoch: the jitted function that trains: ``epoch(program, *arguments, **options)``.
    arguments: of which the shapes and devices matter here; the first are parameters.
    example: the program of one network, where that depends on a learning rate; else program.
    networks: number of them that train at once on a device; 1 unless given.
    options: of epoch.

    Nothing is run: the epoch is compiled ahead, and whatever that raises, of a step without a
    lowering or a network without room on the chip, is a reason for XLA.  Raises ValueError where
    one kernel is demanded and cannot be, saying why.
    """
    if kernel == "xla" or (kernel == "auto" and not runs_triton()):
        return program
    of_one = program if example is None else example
    shapes, tree = jax.tree.flatten(jax.tree.map(_shape, arguments))
    precision = program.precision or jax.config.jax_default_matmul_precision or "default"
    given = tuple(shapes), tree, tuple(options.items())
    return _chosen(kernel, program, of_one, networks, str(precision), epoch, *given)


@lru_cache(maxsize=64)  # for as long as the compiled programs are likely to be there
def _chosen(
    kernel: str,
    program: Program,
    example: Program,
    networks: int,
    precision: str,
    epoch: Any,
    shapes: tuple[Any, ...],
    tree: Any,
    options: tuple[tuple[str, int], ...],
) -> Program:
    from jaxbp.training import one_kernel  # noqa: PLC0415, what it imports may leave JAX one day

    reason = one_kernel.obstacle(example, shapes[0].dtype)
    if reason is None and kernel == "interpret":
        return program._replace(kernel=one_kernel.OneKernel(warps=1, interpret=True))
    if reason is None and not runs_triton():
        reason = "there is no NVIDIA GPU of compute capability 8.0 or above here"
    if reason is None and kernel == "auto" and not one_kernel.is_faster(example, precision):
        return program
    if reason is None:
        warps = one_kernel.warps_for(example, networks)
        fused = program._replace(kernel=one_kernel.OneKernel(warps))
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The Pallas Triton backend")
                epoch.lower(fused, *tree.unflatten(shapes), **dict(options)).compile()
            return fused
        except Exception as error:  # of Pallas, Triton or XLA: the step itself has been traced
            reason = f"it does not compile: {error}"
    if kernel != "auto":
        raise ValueError(f"kernel: got {kernel!r}, which cannot be: {reason}")
    return program


def _shape(leaf: Any) -> Any:
    """An argument without its numbers; one that is bound to a device stays so."""
    sharding = leaf.sharding if getattr(leaf, "committed", False) else None
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # type: ignore[no-untyped-call]


def runs_triton() -> bool:
    """Whether the device is an NVIDIA GPU that Triton supports."""
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))  # AMD's are gfx90a
    return capability.replace(".", "").isdigit() and float(capability) >= 8.0
