"""A network as source for PyTorch, of a few lines, with its parameters in a file beside it.

Names of columns and labels, which may be any text, stand in that file and never in the source.
"""

import json
from string import Template

import numpy as np

import jaxbp
from jaxbp.interop.exported import Exported
from jaxbp.interop.pytorch import METADATA
from jaxbp.interop.stack import library

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
    "linear": "a",
    "sigmoid": "torch.sigmoid(a)",
    "softmax": "torch.softmax(a, 1)",
    "exponential": "torch.exp(a)",
}
_FILL_IN_TORCH = """\
    fill, gap = torch.tensor(TOLD["fill"], dtype=torch.float64), z.isnan()
    z = torch.where(gap, fill, z)  # what stands for a gap
"""
_FLAGS_IN_TORCH = """\
    z = torch.hstack([z, gap])[:, TOLD["order"]]  # 1 beside a gap
"""
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
${fill}${flags}    if not z.isfinite().all():
        raise ValueError("x: a number is missing, or infinite")
    a = network(((z - MEAN) / SCALE).float())
$result$predict''')


def ending(
    network: Exported,
    *,
    output: str,
    both: str,
    exact: str,
    several: str,
    one: str,
    rows: str = "x",
) -> dict[str, str]:
    """Fill in how both sources begin and end, by the names in their templates.

    network: the one to write.
    output: the output unit's value of the logits a.
    both: of one sigmoid unit's a, those of two.
    exact: such a value y in the target's units, in float64.
    several: the labels that rows have, by ``predict_proba(x)``.
    one: the label that each row has.
    rows: what they are called, "x" or "table".
    """
    preparation, predict = network.preparation, ""
    result = (
        f"    return {output}\n"
        if preparation.labels
        else f"    y = {output}\n    return {exact}\n"
    )
    if network.has_two_classes:  # σ(-a) = 1 - σ(a), however small
        result = f"    a = {both}\n{result}"
    if preparation.labels:
        promise = "(N, K), 1 for each that a row has" if preparation.several_labels else "(N,)"
        decided = several if preparation.several_labels else one
        promised = f'"""Return labels {promise}."""'
        predict = f"\n\ndef predict({rows}):\n    {promised}\n    return {decided}\n"
    what = "the probabilities (N, K) of LABELS" if preparation.labels else "quantities (N, K)"
    order = "rows x (N, D), columns as in FEATURES" if rows == "x" else "rows, as inputs takes them"
    return {
        "title": network.title,
        "version": jaxbp.__version__,
        "function": "predict_proba" if preparation.labels else "predict",
        "promise": f"Return {what} for raw {order}.",
        "result": result,
        "predict": predict,
    }


def torch_files(network: Exported) -> dict[str, bytes]:
    """The state_dict and the source of a network for PyTorch: by suffix, .safetensors and .py.

    The state_dict is that of the ``nn.Sequential`` in the source; what it does not tell is JSON in
    the file's metadata.  ``predict(x)`` returns a list of labels, or quantities (N, K), and
    ``predict_proba(x)`` probabilities, as tensors.  Where a column is of text or of dates, x (N, I)
    is prepared already, as ``jaxbp.data.transform`` does it.
    """
    network = network if network.takes_numbers else network.prepared
    layers: list[str] = []
    tensors: dict[str, np.ndarray] = {}
    for number, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        tensors |= {f"{len(layers)}.weight": weight, f"{len(layers)}.bias": bias}
        layers.append("nn.Linear({1}, {0})".format(*weight.shape))
        if number < len(network.activations):
            name, keywords = network.activations[number]
            layers.append(_IN_TORCH[name].format(**keywords))
    source = _TORCH.substitute(
        ending(
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
        flags="" if network.order is None else _FLAGS_IN_TORCH,
        names='LABELS = TOLD["labels"]\n' if network.preparation.labels else "",
    )
    metadata = {"format": "pt", METADATA: json.dumps(network.told())}
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    saved: bytes = library("safetensors.numpy", "'jaxbp[cli]'").save(tensors, metadata)
    return {".safetensors": saved, ".py": source.encode()}
