"""Equinox: ``equinox.nn.MLP``, to and from a model."""

import inspect
from typing import Any

import jax

from jaxbp.activations import Activation
from jaxbp.heads import Head
from jaxbp.interop.jax_functions import TO_JAX, unit_of
from jaxbp.interop.stack import Unit, affine, assembled, described, layers_and_units, library
from jaxbp.model import MLP, Layer, Params, units_of


def to_equinox(model: MLP, params: Params) -> Any:
    """Make an ``equinox.nn.MLP`` whose outputs are the logits (K,) of one row (D,).

    Rows go by ``jax.vmap(network)(x)``, and ``model.head.predict`` of that is the output unit.  The
    penalty l2 does not travel.  Raises ValueError where the hidden layers differ in width or
    activation, which those of ``equinox.nn.MLP`` cannot, and for an activation of your own;
    ImportError without Equinox.
    """
    eqx = library("equinox")
    layers = layers_and_units(model, params, TO_JAX, "Equinox")
    first, *widths, last = model.sizes
    if len(set(widths)) > 1:
        raise ValueError(
            f"sizes: got hidden layers of {', '.join(map(str, widths))}, expected one width, as "
            "equinox.nn.MLP has"
        )
    units = units_of(model)[:-1]
    if len({str(described(unit, "Equinox")) for unit in units}) > 1:
        names = ", ".join(described(unit, "Equinox")[0] for unit in units)
        raise ValueError(
            f"activation: got {names}, expected one for all hidden layers, as equinox.nn.MLP has"
        )
    network = eqx.nn.MLP(
        first,
        last,
        widths[0] if widths else 1,
        len(widths),
        activation=layers[0][1] if widths else jax.nn.identity,
        dtype=params[0].weight.dtype,
        key=jax.random.key(0),
    )
    return eqx.tree_at(
        lambda net: [part for layer in net.layers for part in (layer.weight, layer.bias)],
        network,
        [part for layer in params for part in layer],
    )


def from_equinox(
    network: Any,
    *,
    head: Head | None = None,
    activation: Activation | None = None,
) -> tuple[MLP, Params]:
    """Read an ``equinox.nn.MLP`` -> (model, params).

    head: has to be given, unless ``final_activation`` is softmax or exp, which one head alone has.
    activation: where the network's is none of JAX's that ``jaxbp.activations`` has.

    Raises TypeError for another module, ValueError for what has no counterpart or is not given.
    """
    eqx = library("equinox")
    if type(network) is not eqx.nn.MLP:
        raise TypeError(f"network: got {type(network).__name__}, expected an equinox.nn.MLP")
    no_function = inspect.signature(eqx.nn.MLP.__init__).parameters["final_activation"].default
    stack: list[Layer | Unit] = []
    for place, layer in enumerate(network.layers):
        if layer.bias is None:
            raise ValueError(f"network, layer {place}: has no bias, expected one")
        stack.append(affine(layer.weight, layer.bias))
        is_last = place == len(network.layers) - 1
        function = network.final_activation if is_last else network.activation
        stack.append(unit_of(jax.nn.identity if function is no_function else function))
    return assembled(stack, activation, head, "Equinox")
