"""ONNX: a network as a graph of the standard's operators, with standardising and labels in it.

Inputs and outputs are called as sklearn-onnx calls them: rows ``X`` (N, D) in float32; ``label``
and ``probabilities`` of a classifier, ``variable`` of a regression.
"""

import json
from typing import Any

import numpy as np

import jaxbp
from jaxbp.interop.exported import Exported
from jaxbp.interop.stack import library

_OPSET, _IR = 20, 9  # of 2023: the first with Gelu, and the oldest format that has it
#: operators by activation, each of one input, or their keywords by ours
_OPERATORS: dict[str, tuple[str, dict[str, str]]] = {
    "identity": ("Identity", {}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "relu": ("Relu", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": "alpha"}),
    "elu": ("Elu", {"k": "alpha"}),
    "softplus": ("Softplus", {}),
    "gelu": ("Gelu", {}),  # the exact one, unless approximate="tanh"
}
_OUTPUT = {"linear": "Identity", "sigmoid": "Sigmoid", "softmax": "Softmax", "exponential": "Exp"}


class _Graph:
    """A graph that grows: nodes with one output each, and their constants."""

    def __init__(self, onnx: Any) -> None:
        self.onnx, self.nodes, self.constants = onnx, [], []  # type: ignore[var-annotated]

    def node(self, operator: str, *inputs: str, output: str, **attributes: Any) -> str:
        """Add an operator of named inputs; the name of its output."""
        self.nodes.append(
            self.onnx.helper.make_node(operator, inputs, [output], name=output, **attributes)
        )
        return output

    def constant(self, name: str, array: Any) -> str:
        """Add an array, or text; its name."""
        self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(array), name))
        return name


def to_onnx(network: Exported) -> Any:
    """Make an ``onnx.ModelProto`` of a network, checked by ``onnx.checker``.

    Rows X (N, D) are float32, and standardised in float64.  A classifier's outputs are label (N,),
    text, and probabilities (N, K); where a row may have several labels, label (N, K) is 1 for each
    that it has.  A regression's are variable (N, K) in the target's units.  Labels and columns are
    in the model's metadata.  Raises ImportError without onnx.
    """
    onnx = library("onnx")
    graph, float32, float64 = _Graph(onnx), onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
    preparation, z = network.preparation, "X"
    if network.is_scaled or network.fill is not None:
        z = graph.node("Cast", z, output="exact", to=float64)
        if network.fill is not None:
            gap = graph.node("IsNaN", z, output="gap")
            z = graph.node("Where", gap, graph.constant("fill", network.fill), z, output="filled")
        z = graph.node("Sub", z, graph.constant("mean", preparation.mean), output="centred")
        z = graph.node("Div", z, graph.constant("scale", preparation.scale), output="scaled")
        z = graph.node("Cast", z, output="standardised", to=float32)
    for number, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True), 1):
        w = graph.constant(f"weight{number}", weight)
        b = graph.constant(f"bias{number}", bias)
        z = graph.node("Gemm", z, w, b, output=f"a{number}", transB=1)
        if number <= len(network.activations):
            z = _activation(graph, z, *network.activations[number - 1], output=f"z{number}")
    outputs = _classes(graph, network, z) if preparation.labels else _values(graph, network, z)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "network",
            [onnx.helper.make_tensor_value_info("X", float32, ["N", len(preparation.features)])],
            [onnx.helper.make_tensor_value_info(*output) for output in outputs],
            graph.constants,
        ),
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
        ir_version=_IR,
        producer_name="jaxbp",
        producer_version=jaxbp.__version__,
    )
    told = network.told()
    onnx.helper.set_model_props(
        model,
        {
            name: json.dumps(told[name], ensure_ascii=False)
            for name in ("features", "labels", "targets")
            if told[name] is not None
        },
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _activation(graph: _Graph, a: str, name: str, given: dict[str, float], output: str) -> str:
    if name == "silu":
        return graph.node("Mul", a, graph.node("Sigmoid", a, output=f"{a}s"), output=output)
    operator, keywords = _OPERATORS[name]
    attributes = {keywords[key]: value for key, value in given.items()}
    return graph.node(operator, a, output=output, **attributes)


def _classes(graph: _Graph, network: Exported, logits: str) -> list[tuple[Any, ...]]:
    """Label and probabilities: (name, type, shape) of each."""
    kinds, preparation = graph.onnx.TensorProto, network.preparation
    if network.has_two_classes:  # σ(-a) = 1 - σ(a), however small
        logits = graph.node(
            "Concat", graph.node("Neg", logits, output="-a"), logits, output="±a", axis=1
        )
    p = graph.node(_OUTPUT[network.output], logits, output="probabilities")
    probabilities = (p, kinds.FLOAT, ["N", network.outputs])
    if preparation.several_labels:
        half = graph.constant("half", np.float32(0.5))
        found = graph.node("Greater", p, half, output="found")
        label = graph.node("Cast", found, output="label", to=kinds.INT64)
        return [(label, kinds.INT64, ["N", network.outputs]), probabilities]
    names = graph.constant("classes", np.array(preparation.labels, object))
    best = graph.node("ArgMax", p, output="best", axis=1, keepdims=0)
    label = graph.node("Gather", names, best, output="label")
    return [(label, kinds.STRING, ["N"]), probabilities]


def _values(graph: _Graph, network: Exported, logits: str) -> list[tuple[Any, ...]]:
    """Quantities in their own units: (name, type, shape)."""
    kinds, preparation = graph.onnx.TensorProto, network.preparation
    y = graph.node(_OUTPUT[network.output], logits, output="scaled_target")
    y = graph.node("Cast", y, output="exact_target", to=kinds.DOUBLE)
    scale = graph.constant("target_scale", preparation.target_scale)
    mean = graph.constant("target_mean", preparation.target_mean)
    y = graph.node("Mul", y, scale, output="times_scale")
    y = graph.node("Add", y, mean, output="plus_mean")
    y = graph.node("Cast", y, output="variable", to=kinds.FLOAT)
    return [(y, kinds.FLOAT, ["N", network.outputs])]
