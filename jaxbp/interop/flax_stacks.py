"""Flax: ``nnx.Sequential`` and ``linen.Sequential`` of dense layers, to and from a model."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxbp.activations import Activation
from jaxbp.heads import Head
from jaxbp.interop.jax_functions import TO_JAX, unit_of
from jaxbp.interop.stack import Unit, affine, assembled, layers_and_units, library, named
from jaxbp.model import MLP, Layer, Params
from jaxbp.reprs import short


def to_nnx(model: MLP, params: Params) -> Any:
    """Make a ``flax.nnx.Sequential`` whose outputs are the logits (B, K).

    The output unit is the head's: ``model.head.predict(network(x))``.  The penalty l2 does not
    travel.  Raises ValueError for an activation of your own, ImportError without Flax.
    """
    nnx = library("flax.nnx")
    steps = []
    for layer, unit in layers_and_units(model, params, TO_JAX, "Flax"):
        outputs, inputs = layer.weight.shape
        linear = nnx.Linear(
            inputs,
            outputs,
            param_dtype=layer.weight.dtype,
            kernel_init=_constantly(layer.weight.T),
            bias_init=_constantly(layer.bias),
            rngs=nnx.Rngs(0),
        )
        steps += [linear] if unit is None else [linear, unit]
    return nnx.Sequential(*steps)


def _constantly(value: Any) -> Any:
    return lambda key, shape, dtype: value


def from_nnx(
    network: Any,
    *,
    head: Head | None = None,
    activation: Activation | tuple[Activation, ...] | None = None,
) -> tuple[MLP, Params]:
    """Read a ``flax.nnx.Sequential`` of ``nnx.Linear`` and activations -> (model, params).

    head: has to be given, unless the network ends in softmax or exp, which one head alone has.
    activation: of hidden layers whose function is none of JAX's that ``jaxbp.activations`` has.

    Raises TypeError for another module, ValueError for what has no counterpart or is not given.
    """
    nnx = library("flax.nnx")
    if type(network) is not nnx.Sequential:
        raise TypeError(f"network: got {type(network).__name__}, expected a flax.nnx.Sequential")
    stack: list[Layer | Unit] = []
    for place, step in enumerate(network.layers):
        if type(step) is nnx.Linear:
            if step.bias is None:
                raise ValueError(f"network, step {place}: Linear has no bias, expected one")
            _check_dtype("network", place, step)
            stack.append(affine(step.kernel[...].T, step.bias[...]))
        else:
            stack.append(_step(step, place, nnx.Module))
    return assembled(stack, activation, head, "Flax")


def _check_dtype(name: str, place: int, dense: Any) -> None:
    """Raise ValueError for a layer that computes in another dtype than its weights have, or by
    another product than Flax's own."""
    if dense.dtype is not None and np.dtype(dense.dtype) != np.dtype(dense.param_dtype):
        raise ValueError(
            f"{name}, step {place}: computes in {np.dtype(dense.dtype)}, expected "
            f"{np.dtype(dense.param_dtype)}, as its weights (jaxbp.mixed_precision trains so)"
        )
    for part in ("dot_general", "dot_general_cls", "promote_dtype", "preferred_element_type"):
        own = getattr(dense, part, None)
        if own is not None and not getattr(own, "__module__", "").startswith(("jax.", "flax.")):
            raise ValueError(f"{name}, step {place}: has a {part} of its own, {short(own)}")


def _step(step: Any, place: int, module: type) -> Unit:
    """A function between layers; ValueError for a module that is none."""
    if isinstance(step, module) or not callable(step):
        raise ValueError(
            f"network, step {place}: {type(step).__name__} has no counterpart in a jaxbp.MLP"
        )
    return unit_of(step)


def to_linen(model: MLP, params: Params) -> tuple[Any, dict[str, Any]]:
    """Make a ``flax.linen.Sequential`` and its variables -> (module, variables).

    ``module.apply(variables, x)`` are the logits (B, K), and ``model.head.predict`` of them is the
    output unit.  The penalty l2 does not travel.  Raises ValueError for an activation of your own,
    ImportError without Flax.
    """
    linen = library("flax.linen")
    steps: list[Any] = []
    variables = {}
    for layer, unit in layers_and_units(model, params, TO_JAX, "Flax"):
        variables[f"layers_{len(steps)}"] = {"kernel": layer.weight.T, "bias": layer.bias}
        dense = linen.Dense(len(layer.bias), param_dtype=layer.weight.dtype)
        steps += [dense] if unit is None else [dense, unit]
    return linen.Sequential(steps), {"params": variables}


def from_linen(
    module: Any,
    variables: Mapping[str, Any],
    *,
    head: Head | None = None,
    activation: Activation | tuple[Activation, ...] | None = None,
) -> tuple[MLP, Params]:
    """Read a ``flax.linen.Sequential`` of ``linen.Dense`` and activations -> (model, params).

    module: the stack.
    variables: as ``module.init`` returns them, {"params": {"layers_0": {"kernel": ..., ...}}}.
    head: has to be given, unless the network ends in softmax or exp, which one head alone has.
    activation: of hidden layers whose function is none of JAX's that ``jaxbp.activations`` has.

    Raises TypeError for another module, ValueError for what has no counterpart or is not given.
    """
    linen = library("flax.linen")
    if type(module) is not linen.Sequential:
        raise TypeError(f"module: got {type(module).__name__}, expected a flax.linen.Sequential")
    held = variables.get("params", variables)
    stack: list[Layer | Unit] = []
    for place, step in enumerate(module.layers):
        if type(step) is linen.Dense:
            _check_dtype("module", place, step)
            name = f"layers_{place}"
            if set(held.get(name, ())) != {"kernel", "bias"}:
                raise ValueError(
                    f"variables: got {named(sorted(held.get(name, ())))} for {name}, expected "
                    "kernel and bias"
                )
            stack.append(affine(held[name]["kernel"].T, held[name]["bias"]))
        else:
            stack.append(_step(step, place, linen.Module))
    return assembled(stack, activation, head, "Flax")
