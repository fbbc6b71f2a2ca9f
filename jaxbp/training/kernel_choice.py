"""The choice between XLA's scan over minibatches and one kernel for all of them."""

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import optax

from jaxbp.precision import default_precision
from jaxbp.same_program import KEPT, settings, shapes_in
from jaxbp.training.epoch import Program

#: what ``fit`` may be told
KERNELS = ("auto", "xla", "fused", "interpret")


def with_kernel(
    kernel: str,
    program: Program,
    optimizer: optax.GradientTransformation,
    epoch: Callable[[Program], Any],
    arguments: tuple[Any, ...],
    *,
    networks: int | None = None,
    **options: int,
) -> Program:
    """The program, with the kernel that takes its minibatches where one does.

    kernel: "auto", one kernel where it is known to be possible and faster; "xla", none; "fused" or
        "interpret", one in any case, by the GPU or by Pallas's interpreter.
    program: the training, without a kernel.
    optimizer: optax's, with its numbers; one of them where networks have several.
    epoch: gives the jitted function that trains: ``epoch(program)(*arguments, **options)``.
    arguments: of which the shapes and devices matter here; the first are parameters.
    networks: number of them that train at once on a device; one network, unless given.
    options: of what epoch gives.

    Nothing is run: the epoch is traced and compiled ahead.  Raises ValueError where one kernel is
    demanded and cannot be, saying why.
    """
    device = _device(arguments)
    if kernel == "xla" or (kernel == "auto" and not runs_triton(device)):
        return program
    precision = program.precision or default_precision()
    plain = program._replace(optimizer=optimizer)
    shapes, tree = shapes_in(arguments)
    dtype = shapes[0].dtype
    fused, reason = _possible(kernel, plain, dtype, networks or 1, device, precision)
    if reason is None:
        chosen = program._replace(kernel=fused)
        given = shapes, tree, tuple(options.items())
        reason = _failure(chosen, settings(), epoch, *given)
    if reason is None:
        return chosen
    if kernel == "auto":
        return program
    raise ValueError(f"kernel: got {kernel!r}, which cannot be: {reason}")


_remembered = lru_cache(maxsize=KEPT)


@_remembered
def _possible(
    kernel: str,
    plain: Program,
    dtype: jax.typing.DTypeLike,
    networks: int,
    device: jax.Device,
    precision: str,
) -> tuple[Any, str | None]:
    """The kernel for a program with an optimiser of optax, and why there is none."""
    try:
        from jaxbp.training import one_kernel  # noqa: PLC0415, JAX may end Pallas's Triton backend
    except ImportError as error:
        return None, f"this JAX has no Pallas for Triton: {error}"
    reason = one_kernel.obstacle(plain, dtype)
    if reason is None and kernel == "fused" and not runs_triton(device):
        reason = "there is no NVIDIA GPU of compute capability 8.0 or above here"
    if reason is None and kernel == "auto" and not one_kernel.is_faster(plain, precision):
        reason = "XLA is likely to be faster"
    if reason is not None:
        return None, reason
    warps = one_kernel.warps_for(plain, networks, device)
    return one_kernel.OneKernel(warps, interpret=kernel == "interpret"), None


@_remembered
def _failure(
    program: Program,
    settings: Any,
    epoch: Callable[[Program], Any],
    shapes: tuple[Any, ...],
    tree: Any,
    options: tuple[tuple[str, int], ...],
) -> str | None:
    """Why a program with a kernel cannot be compiled; None if it can."""
    arguments = tree.unflatten(shapes)
    try:
        epoch(program).eval_shape(*arguments, **dict(options))
    except Exception as error:  # of the user's functions, in sizes that they were not made for
        return f"its step cannot be traced with padding: {error}"
    if program.kernel.interpret:
        return None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The Pallas Triton backend")
            epoch(program).lower(*arguments, **dict(options)).compile()
    except Exception as error:  # of Pallas, Triton or XLA: no lowering, or no room on the chip
        return f"it does not compile: {error}"
    return None


def _device(arguments: Any) -> jax.Device:
    """The device that the first argument is on; of NumPy's arrays, the default one."""
    devices = getattr(jax.tree.leaves(arguments)[0], "devices", None)
    found: jax.Device = next(iter(devices())) if devices is not None else jax.devices()[0]
    return found


def runs_triton(device: jax.Device) -> bool:
    """Whether a device is an NVIDIA GPU that Triton supports."""
    capability = str(getattr(device, "compute_capability", ""))  # AMD's are gfx90a
    return capability.replace(".", "").isdigit() and float(capability) >= 8.0
