"""Networks as Python source of a few lines, with their parameters in a file beside it.

``numpy_files`` needs NumPy alone, ``torch_files`` PyTorch and safetensors.  Names of columns and
labels, which may be any text, stand in the parameters' file and never in the source.
"""

import io
import json
from string import Template
from typing import Any

import numpy as np

import jaxbp
from jaxbp.checkpoint import Checkpoint, CheckpointError
from jaxbp.heads import BY_NAME
from jaxbp.interop.exported import Exported, preparation_of
from jaxbp.interop.pytorch import METADATA
from jaxbp.interop.stack import Unit, activation_of, affine, assembled, library
from jaxbp.model import Layer

_SIGMOID = "np.exp(-np.logaddexp(0, -a))"
#: activations and output units in NumPy, of a (N, O)
_IN_NUMPY = {
    "identity": "a",
    "sigmoid": _SIGMOID,
    "tanh": "np.tanh(a)",
    "relu": "np.maximum(a, 0)",
    "leaky_relu": "np.where(a > 0, a, {alpha} * a)",
    "elu": "np.where(a > 0, a, {k} * np.expm1(np.minimum(a, 0)))",
    "softplus": "np.logaddexp(a, 0)",
    "gelu": "a * (1 + erf(a / 2**0.5)) / 2",
    "silu": f"a * {_SIGMOID}",
}
_OUTPUT_IN_NUMPY = {
    "linear": "y = a",
    "sigmoid": f"y = {_SIGMOID}",
    "softmax": "y = np.exp(a - a.max(1, keepdims=True))\n    y /= y.sum(1, keepdims=True)",
    "exponential": "y = np.exp(a)",
}
_IN_TORCH = {
    "identity": "nn.Identity()",
    "sigmoid": "nn.Sigmoid()",
    "tanh": "nn.Tanh()",
    "relu": "nn.ReLU()",
    "leaky_relu": "nn.LeakyReLU({alpha})",
    "elu": "nn.ELU({k})",
    "softplus": "nn.Softplus()",
    "gelu": "nn.GELU()",
    "silu": "nn.SiLU()",
}
_OUTPUT_IN_TORCH = {
    "linear": "y = a",
    "sigmoid": "y = torch.sigmoid(a)",
    "softmax": "y = torch.softmax(a, 1)",
    "exponential": "y = torch.exp(a)",
}
_FILL_IN_NUMPY = '    z = np.where(np.isnan(z), NETWORK["fill"], z)  # what stands for a gap\n'
_FILL_IN_TORCH = """\
    fill = torch.tensor(TOLD["fill"], dtype=torch.float64)  # what stands for a gap
    z = torch.where(z.isnan(), fill, z)
"""

_NUMPY = Template('''\
"""$title (exported by jaxbp $version).

Its parameters are in the .npz beside this file, which has the same name; it needs NumPy alone.
"""

${imports}from pathlib import Path

import numpy as np

with np.load(Path(__file__).with_suffix(".npz")) as file:
    NETWORK = dict(file)
FEATURES = NETWORK["features"].tolist()  # the columns of x, in this order
$names$erf
ACTIVATIONS = {  # what a layer does with a = W z + b
$activations
}


def $function(x):
    """$promise"""
    z = np.asarray(x, np.float64)
    if z.ndim != 2 or z.shape[1] != len(FEATURES):
        raise ValueError(f"x: got shape {z.shape}, expected (N, {len(FEATURES)})")
${fill}    if not np.isfinite(z).all():
        raise ValueError("x: a number is missing, or infinite")
    z = ((z - NETWORK["mean"]) / NETWORK["scale"]).astype(np.float32)
    for number, activation in enumerate(NETWORK["activations"], 1):
        a = z @ NETWORK[f"weight{number}"].T + NETWORK[f"bias{number}"]
        z = ACTIVATIONS[activation](a)
$result$predict''')

_TORCH = Template('''\
"""$title (exported by jaxbp $version).

Its state_dict is in the .safetensors beside this file, which has the same name.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

network = nn.Sequential(  # of standardised rows; its outputs are the logits
$layers
)
with safe_open(Path(__file__).with_suffix(".safetensors"), "pt") as file:
    network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
    TOLD = json.loads(file.metadata()["$metadata"])
FEATURES = TOLD["features"]  # the columns of x, in this order
${names}MEAN, SCALE, TARGET_MEAN, TARGET_SCALE = (
    torch.tensor(TOLD[name], dtype=torch.float64)
    for name in ("mean", "scale", "target_mean", "target_scale")
)


@torch.no_grad()
def $function(x):
    """$promise"""
    z = torch.as_tensor(x, dtype=torch.float64)
    if z.ndim != 2 or z.shape[1] != len(FEATURES):
        raise ValueError(f"x: got shape {tuple(z.shape)}, expected (N, {len(FEATURES)})")
${fill}    if not z.isfinite().all():
        raise ValueError("x: a number is missing, or infinite")
    a = network(((z - MEAN) / SCALE).float())
$result$predict''')


def numpy_files(network: Exported) -> dict[str, bytes]:
    """The source, and the parameters, of a network for NumPy: by suffix, .py and .npz.

    ``predict(x)`` returns labels (N,), or quantities (N, K); ``predict_proba(x)`` probabilities.
    """
    units = [*network.activations, ("identity", {})]
    table = {_text(*unit): _IN_NUMPY[unit[0]].format(**unit[1]) for unit in units}
    has_erf = any("erf(" in formula for formula in table.values())
    erf = "erf = np.vectorize(math.erf, otypes=[np.float32])  # NumPy has none\n" if has_erf else ""
    source = _NUMPY.substitute(
        _ending(
            network,
            output=_OUTPUT_IN_NUMPY[network.output],
            both="np.hstack([-a, a])",
            exact='y.astype(np.float64) * NETWORK["target_scale"] + NETWORK["target_mean"]',
            several="(predict_proba(x) > 0.5).astype(int)",
            one="LABELS[predict_proba(x).argmax(1)]",
        ),
        imports="import math\n" if has_erf else "",
        names='LABELS = NETWORK["labels"]\n' if network.preparation.labels else "",
        erf=erf,
        fill="" if network.fill is None else _FILL_IN_NUMPY,
        activations="\n".join(f'    "{text}": lambda a: {table[text]},' for text in table),
    )
    told = network.told() | {"activations": [_text(*unit) for unit in units]}
    arrays: dict[str, Any] = {
        name: np.array(part) for name, part in told.items() if part is not None
    }
    for number, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True), 1):
        arrays |= {f"weight{number}": weight, f"bias{number}": bias}
    file = io.BytesIO()
    np.savez(file, **arrays)
    return {".py": source.encode(), ".npz": file.getvalue()}


def _ending(
    network: Exported, *, output: str, both: str, exact: str, several: str, one: str
) -> dict[str, str]:
    """Fill in how both sources begin and end, by the names in their templates.

    network: the one to write.
    output: what makes y, the output unit's value, of the logits a.
    both: of one sigmoid unit's a, those of two.
    exact: y in the target's units, in float64.
    several: the labels that rows have, by ``predict_proba(x)``.
    one: the label that each row has.
    """
    preparation, predict = network.preparation, ""
    result = f"    {output}\n    return {'y' if preparation.labels else exact}\n"
    if network.has_two_classes:  # σ(-a) = 1 - σ(a), however small
        result = f"    a = {both}\n{result}"
    if preparation.labels:
        promise = "(N, K), 1 for each that a row has" if preparation.several_labels else "(N,)"
        decided = several if preparation.several_labels else one
        predict = f'\n\ndef predict(x):\n    """Return labels {promise}."""\n    return {decided}\n'
    what = "the probabilities (N, K) of LABELS" if preparation.labels else "quantities (N, K)"
    return {
        "title": network.title,
        "version": jaxbp.__version__,
        "function": "predict_proba" if preparation.labels else "predict",
        "promise": f"Return {what} for raw rows x (N, D), columns as in FEATURES.",
        "result": result,
        "predict": predict,
    }


def _text(name: str, keywords: dict[str, float]) -> str:
    """An activation as one writes its call: relu, leaky_relu(alpha=0.2)."""
    listed = ", ".join(f"{key}={value!r}" for key, value in keywords.items())
    return f"{name}({listed})" if listed else name


def network_of_npz(arrays: dict[str, np.ndarray]) -> Checkpoint:
    """The network whose parameters ``numpy_files`` wrote.  Raises CheckpointError for others."""
    try:
        units = [_unit(str(text)) for text in arrays["activations"]]
        stack: list[Layer | Unit] = []
        for number, unit in enumerate(units, 1):
            stack += [affine(arrays[f"weight{number}"], arrays[f"bias{number}"]), unit]
        told = {name: array.tolist() for name, array in arrays.items()}
        model, params = assembled(stack[:-1], None, BY_NAME[told["head"]], "the file")
        return Checkpoint(model, params, preparation_of(told))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"not the parameters of jaxbp export --to numpy ({error!r})"
        ) from None


def _unit(text: str) -> Unit:
    name, _, listed = text.rstrip(")").partition("(")
    pairs = (pair.split("=") for pair in listed.split(", ") if pair)
    return Unit(text, activation_of(name, **{key: float(value) for key, value in pairs}))


def torch_files(network: Exported) -> dict[str, bytes]:
    """The state_dict and the source of a network for PyTorch: by suffix, .safetensors and .py.

    The state_dict is that of the ``nn.Sequential`` in the source; what it does not tell is JSON in
    the file's metadata.  ``predict(x)`` returns a list of labels, or quantities (N, K), and
    ``predict_proba(x)`` probabilities, as tensors.
    """
    layers: list[str] = []
    tensors: dict[str, np.ndarray] = {}
    for number, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        tensors |= {f"{len(layers)}.weight": weight, f"{len(layers)}.bias": bias}
        layers.append("nn.Linear({1}, {0})".format(*weight.shape))
        if number < len(network.activations):
            name, keywords = network.activations[number]
            layers.append(_IN_TORCH[name].format(**keywords))
    source = _TORCH.substitute(
        _ending(
            network,
            output=_OUTPUT_IN_TORCH[network.output],
            both="torch.hstack([-a, a])",
            exact="y.double() * TARGET_SCALE + TARGET_MEAN",
            several="(predict_proba(x) > 0.5).int()",
            one="[LABELS[k] for k in predict_proba(x).argmax(1).tolist()]",
        ),
        layers="\n".join(f"    {layer}," for layer in layers),
        metadata=METADATA,
        fill="" if network.fill is None else _FILL_IN_TORCH,
        names='LABELS = TOLD["labels"]\n' if network.preparation.labels else "",
    )
    metadata = {"format": "pt", METADATA: json.dumps(network.told())}
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    saved: bytes = library("safetensors.numpy", "'jaxbp[cli]'").save(tensors, metadata)
    return {".safetensors": saved, ".py": source.encode()}
