"""Keras: a ``keras.Sequential`` of ``Dense`` layers, to and from a model."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxbp import activations
from jaxbp.activations import Activation
from jaxbp.heads import Head
from jaxbp.interop.stack import Unit, activation_of, affine, assembled, layers_and_units, library
from jaxbp.model import MLP, Layer, Params


def _to_keras(keras: Any) -> dict[str, Callable[..., Any]]:
    """A function for ``Dense``, or a layer to follow it where Keras has keywords there alone."""
    known = keras.activations
    return {
        "identity": lambda: known.linear,
        "sigmoid": lambda: known.sigmoid,
        "tanh": lambda: known.tanh,
        "relu": lambda: known.relu,
        "leaky_relu": lambda alpha: keras.layers.LeakyReLU(negative_slope=alpha),
        "elu": lambda k: keras.layers.ELU(alpha=k),
        "softplus": lambda: known.softplus,
        "gelu": lambda: known.gelu,  # the exact one, unless approximate=True
        "silu": lambda: known.silu,
    }


def _from_keras(keras: Any) -> dict[Any, Unit]:
    known = keras.activations
    return {
        known.linear: Unit("linear", activations.identity, "linear"),
        known.sigmoid: Unit("sigmoid", activations.sigmoid, "sigmoid"),
        known.tanh: Unit("tanh", activations.tanh),
        known.relu: Unit("relu", activations.relu),
        known.leaky_relu: Unit("leaky_relu", activation_of("leaky_relu", alpha=0.2)),  # its default
        known.elu: Unit("elu", activations.elu),
        known.softplus: Unit("softplus", activations.softplus),
        known.gelu: Unit("gelu", activations.gelu),
        known.silu: Unit("silu", activations.silu),
        known.softmax: Unit("softmax", output="softmax"),
        known.exponential: Unit("exponential", output="exponential"),
    }


def to_keras(model: MLP, params: Params) -> Any:
    """Make a ``keras.Sequential`` of ``Dense`` layers whose outputs are the logits (B, K).

    The output unit is the head's: softmax is ``keras.activations.softmax(network(x))``, and so on;
    in ``compile`` the loss is one ``from_logits=True``.  Leaky ReLU and ELU are layers of their
    own.  The penalty l2 does not travel.  Raises ValueError for an activation of your own,
    ImportError without Keras.
    """
    keras = library("keras")
    network = keras.Sequential([keras.Input((model.sizes[0],))])
    for layer, unit in layers_and_units(model, params, _to_keras(keras), "Keras"):
        is_layer = isinstance(unit, keras.layers.Layer)
        function = None if is_layer else unit
        dense = keras.layers.Dense(
            len(layer.bias), activation=function, dtype=str(layer.weight.dtype)
        )
        network.add(dense)
        dense.set_weights([np.asarray(layer.weight).T, np.asarray(layer.bias)])
        if is_layer:
            network.add(unit)
    return network


def from_keras(
    network: Any,
    *,
    head: Head | None = None,
    activation: Activation | tuple[Activation, ...] | None = None,
) -> tuple[MLP, Params]:
    """Read a ``keras.Sequential`` of ``Dense``, ``Activation``, ``ReLU``, ... -> (model, params).

    head: has to be given, unless the network ends in softmax or exponential, which one head has.
    activation: of hidden layers whose function is none of Keras's that ``jaxbp.activations`` has.

    Raises TypeError for another model, ValueError for what has no counterpart or is not given.
    """
    keras = library("keras")
    if type(network) is not keras.Sequential:
        raise TypeError(f"network: got {type(network).__name__}, expected a keras.Sequential")
    table, stack = _from_keras(keras), list[Layer | Unit]()
    for step in network.layers:
        if type(step) is keras.layers.Dense:
            stack.append(_dense(step))
        if type(step) in {keras.layers.Dense, keras.layers.Activation}:
            function = step.activation
            name = getattr(function, "__name__", str(function))
            if not (type(step) is keras.layers.Dense and function is keras.activations.linear):
                stack.append(table.get(function, Unit(name)))
        else:
            stack.append(_layer(keras, step))
    return assembled(stack, activation, head, "Keras")


def _dense(dense: Any) -> Layer:
    if not dense.built:
        raise ValueError(f"network: {dense.name} has no weights yet; call the network, or build it")
    if not dense.use_bias:
        raise ValueError(f"network: {dense.name} has no bias, expected one")
    if dense.compute_dtype != dense.variable_dtype:
        raise ValueError(
            f"network: {dense.name} computes in {dense.compute_dtype}, expected "
            f"{dense.variable_dtype}, as its weights (jaxbp.mixed_precision trains so)"
        )
    if len(weights := dense.get_weights()) != 2:
        raise ValueError(
            f"network: {dense.name} has {len(weights)} arrays of weights, expected a kernel and a "
            "bias alone (no LoRA, not quantised)"
        )
    kernel, bias = weights
    return affine(kernel.T, bias)


def _layer(keras: Any, step: Any) -> Unit:
    """A layer that is an activation alone; ValueError for one that is none."""
    layers, config = keras.layers, step.get_config()
    if type(step) is layers.ReLU:
        plain = not (config["max_value"] or config["negative_slope"] or config["threshold"])
        return Unit(f"ReLU {config}", activations.relu if plain else None)
    if type(step) is layers.LeakyReLU:
        return Unit("LeakyReLU", activation_of("leaky_relu", alpha=config["negative_slope"]))
    if type(step) is layers.ELU:
        return Unit("ELU", activation_of("elu", k=config["alpha"]))
    if type(step) is layers.Softmax:
        return Unit("Softmax", output="softmax" if config["axis"] == -1 else None)
    raise ValueError(
        f"network: {type(step).__name__} ({step.name}) has no counterpart in a jaxbp.MLP"
    )
