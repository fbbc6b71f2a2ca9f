"""Weights to and from other libraries: PyTorch, Flax, Equinox, Keras, scikit-learn.

``to_LIBRARY(model, params)`` makes that library's own network, whose outputs are the logits; and
``from_LIBRARY(network)`` gives (model, params), from which ``jaxbp.fit(..., params=params)`` goes
on.  Activations and heads have one table a library; what it does not have is refused by name, and
what a network does not tell, as its loss, has to be given.  A library is imported when it is asked
for.  Read ``stack`` first, and then the file of a library.
"""

from jaxbp.interop.equinox_mlp import from_equinox, to_equinox
from jaxbp.interop.flax_stacks import from_linen, from_nnx, to_linen, to_nnx
from jaxbp.interop.keras_dense import from_keras, to_keras
from jaxbp.interop.pytorch import from_torch, to_torch
from jaxbp.interop.scikit_learn import from_sklearn

__all__ = [
    "from_equinox",
    "from_keras",
    "from_linen",
    "from_nnx",
    "from_sklearn",
    "from_torch",
    "to_equinox",
    "to_keras",
    "to_linen",
    "to_nnx",
    "to_torch",
]
