"""The choice between XLA's scan over minibatches and one kernel for all of them."""

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from jaxbp.precision import default_precision
from jaxbp.training.epoch import Program

#: what ``fit`` may be told
KERNELS = ("auto", "xla", "fused", "interpret")


def with_kernel(
    kernel: str,
    program: Program,
    epoch: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    networks: int | None = None,
    **options: int,
) -> Program:
    """The program, with the kernel that takes its minibatches where one does.

    kernel: "auto", one kernel where it is known to be possible and faster; "xla", none; "fused" or
        "interpret", one in any case, by the GPU or by Pallas's interpreter.
    program: the training, without a kernel.
    epoch: the jitted function that trains: ``epoch(program, *arguments, **options)``.
    arguments: of which the shapes and devices matter here; the first are parameters.
    networks: number of them that train at once on a device, by a program whose optimiser is made
        of a learning rate; one network, unless given.
    options: of epoch.

    Nothing is run: the epoch is traced and compiled ahead.  Raises ValueError where one kernel is
    demanded and cannot be, saying why.
    """
    device = _device(arguments)
    if kernel == "xla" or (kernel == "auto" and not runs_triton(device)):
        return program
    shapes, tree = jax.tree.flatten(jax.tree.map(_shape, arguments))
    precision = program.precision or default_precision()
    x64 = bool(jnp.result_type(float) == jnp.float64)  # another one is traced and compiled anew
    given = tuple(shapes), tree, tuple(options.items())
    return _chosen(kernel, program, networks, device, precision, x64, epoch, *given)


@lru_cache(maxsize=64)  # for as long as the compiled programs are likely to be there
def _chosen(
    kernel: str,
    program: Program,
    networks: int | None,
    device: jax.Device,
    precision: str,
    x64: bool,
    epoch: Any,
    shapes: tuple[Any, ...],
    tree: Any,
    options: tuple[tuple[str, int], ...],
) -> Program:
    try:
        from jaxbp.training import one_kernel  # noqa: PLC0415, JAX may end Pallas's Triton backend
    except ImportError as error:
        return _xla(kernel, program, f"this JAX has no Pallas for Triton: {error}")
    of_one = program if networks is None else program._replace(optimizer=program.optimizer(0.1))
    reason = one_kernel.obstacle(of_one, shapes[0].dtype)
    if reason is None and kernel == "fused" and not runs_triton(device):
        reason = "there is no NVIDIA GPU of compute capability 8.0 or above here"
    if reason is None and kernel == "auto" and not one_kernel.is_faster(of_one, precision):
        reason = "XLA is likely to be faster"
    if reason is not None:
        return _xla(kernel, program, reason)
    interpret = kernel == "interpret"
    warps = one_kernel.warps_for(of_one, networks or 1, device)
    fused = program._replace(kernel=one_kernel.OneKernel(warps, interpret))
    arguments = tree.unflatten(shapes)
    try:
        epoch.eval_shape(fused, *arguments, **dict(options))
    except Exception as error:  # of the user's functions, in sizes that they were not made for
        return _xla(kernel, program, f"its step cannot be traced with padding: {error}")
    if interpret:
        return fused
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The Pallas Triton backend")
            epoch.lower(fused, *arguments, **dict(options)).compile()
    except Exception as error:  # of Pallas, Triton or XLA: no lowering, or no room on the chip
        return _xla(kernel, program, f"it does not compile: {error}")
    return fused


def _xla(kernel: str, program: Program, reason: str) -> Program:
    """The program as it is, which XLA compiles, unless one kernel is demanded."""
    if kernel == "auto":
        return program
    raise ValueError(f"kernel: got {kernel!r}, which cannot be: {reason}")


def _shape(leaf: Any) -> Any:
    """An argument without its numbers; one that is bound to a device stays so."""
    sharding = leaf.sharding if getattr(leaf, "committed", False) else None
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # type: ignore[no-untyped-call]


def _device(arguments: Any) -> jax.Device:
    """The device that the first argument is on; of NumPy's arrays, the default one."""
    devices = getattr(jax.tree.leaves(arguments)[0], "devices", None)
    found: jax.Device = next(iter(devices())) if devices is not None else jax.devices()[0]
    return found


def runs_triton(device: jax.Device) -> bool:
    """Whether a device is an NVIDIA GPU that Triton supports."""
    capability = str(getattr(device, "compute_capability", ""))  # AMD's are gfx90a
    return capability.replace(".", "").isdigit() and float(capability) >= 8.0
