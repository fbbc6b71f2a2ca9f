"""The choice between XLA's scan over minibatches and one kernel for all of them."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
from jax.typing import DTypeLike

from jaxbp.training.epoch import Program

KERNELS = ("auto", "xla", "fused", "interpret")


def check_kernel(kernel: str) -> None:
    """Raise ValueError for a kernel other than those that ``fit`` names."""
    if kernel not in KERNELS:
        raise ValueError(f"kernel: got {kernel!r}, expected one of {', '.join(KERNELS)}")


def with_kernel(
    kernel: str,
    program: Program,
    dtype: DTypeLike,
    compile_ahead: Callable[[Program], Any],
    *,
    example: Program | None = None,
    networks: int = 1,
) -> Program:
    """The program, with the kernel that takes its minibatches where one does.

    kernel: "auto", one kernel where it is known to be possible and faster; "xla", none; "fused" or
        "interpret", one in any case, by the GPU or by Pallas's interpreter.
    program: to be compiled.
    dtype: of the parameters.
    compile_ahead: compiles it for the shapes at hand.  What it raises, a kernel without a lowering
        or without the room on the chip, is a reason for XLA.
    example: the program of a single network, where the optimiser depends on the learning rate.
    networks: number of them that train at once on a device; 1 unless given.

    Raises ValueError where one kernel is demanded and cannot be, saying why.
    """
    demanded = kernel in {"fused", "interpret"}
    if kernel == "xla" or not (demanded or runs_triton()):
        return program
    from jaxbp.training import one_kernel  # noqa: PLC0415, what it imports may leave JAX one day

    of_one = program if example is None else example
    reason = one_kernel.obstacle(of_one, dtype)
    if reason is None and kernel == "interpret":
        return program._replace(kernel=one_kernel.OneKernel(warps=1, interpret=True))
    if reason is None and not runs_triton():
        reason = "there is no NVIDIA GPU of compute capability 8.0 or above here"
    if reason is None and not demanded and not one_kernel.is_faster(of_one):
        return program
    if reason is None:
        warps = one_kernel.warps_for(of_one, networks)
        fused = program._replace(kernel=one_kernel.OneKernel(warps))
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The Pallas Triton backend")
                compile_ahead(fused)
            return fused
        except Exception as error:  # of Pallas, Triton or XLA: the step itself has been traced
            reason = f"it does not compile: {error}"
    if demanded:
        raise ValueError(f"kernel: got {kernel!r}, which cannot be: {reason}")
    return program


def runs_triton() -> bool:
    """Whether the device is an NVIDIA GPU that Triton supports."""
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))  # AMD's are gfx90a
    return capability.replace(".", "").isdigit() and float(capability) >= 8.0
