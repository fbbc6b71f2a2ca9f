"""ONNX: a network as a graph of the standard's operators, with standardising and labels in it.

Inputs and outputs are called as sklearn-onnx calls them: rows ``X`` (N, D) in float32 or, where a
column is of text, an input (N, 1) for each column; ``label`` and ``probabilities`` of a classifier,
``variable`` of a regression.
"""

import itertools
import json
from typing import Any

import numpy as np

import jaxbp
from jaxbp.data.cells import MISSING, quoted
from jaxbp.data.columns import Column
from jaxbp.interop.exported import Exported
from jaxbp.interop.stack import library

_OPSET, _IR = 20, 9  # of 2023: the first with Gelu, and the oldest format that has it
_OF_TEXT = ("ai.onnx.ml", 3)  # the operators that read text, and their version
_OUTPUTS = {"label", "probabilities", "variable"}
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
    """A graph that grows: nodes with one output each, and their constants, whose names are none of
    the inputs'."""

    def __init__(self, onnx: Any, inputs: list[str]) -> None:
        self.onnx, self.inputs = onnx, {*inputs}
        self.nodes, self.constants = [], []  # type: ignore[var-annotated]

    def node(self, operator: str, *inputs: str, output: str, **attributes: Any) -> str:
        """Add an operator of named inputs; the name of its output."""
        output = _free(output, self.inputs)
        self.nodes.append(
            self.onnx.helper.make_node(operator, inputs, [output], name=output, **attributes)
        )
        return output

    def constant(self, name: str, array: Any) -> str:
        """Add an array, or text; its name."""
        name = _free(name, self.inputs)
        self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(array), name))
        return name


def _free(name: str, taken: set[str]) -> str:
    """A name that is not taken: the one given, with a line below it where it is."""
    while name in taken:
        name += "_"
    return name


def input_names(network: Exported) -> list[str]:
    """The inputs of the graph: ``X`` or, where a column is of text, one for each column, which has
    its name, with a line below it where an output or another input has that."""
    if network.takes_numbers:
        return ["X"]
    names: list[str] = []
    for each in network.columns:
        names.append(_free(each.name or "_", {*_OUTPUTS, *names}))
    return names


def to_onnx(network: Exported) -> Any:
    """Make an ``onnx.ModelProto`` of a network, checked by ``onnx.checker``.

    Rows X (N, D) are float32, NaN where a number is missing, and standardised in float64.  Where a
    column is of text, each column is an input (N, 1) of its own: ``input_names``; text is a tensor
    of strings, without blanks around them and as ``jaxbp.data`` reads cells, and anything else
    float32.  A classifier's outputs are label (N,), text, and probabilities (N, K); where a row may
    have several labels, label (N, K) is 1 for each that it has.  A regression's are variable (N, K)
    in the target's units.  Labels and columns are in the model's metadata.  Raises ImportError
    without onnx, and ValueError for a column of dates, which ONNX cannot read.
    """
    date = next((each for each in network.columns if each.kind == "date"), None)
    if date is not None:
        raise ValueError(
            f"column {quoted(date.name)} is a date, and ONNX reads none: export to numpy, which "
            "does, or train on a column of numbers instead, such as days since a day of yours"
        )
    onnx, names = library("onnx"), input_names(network)
    graph, float32 = _Graph(onnx, names), onnx.TensorProto.FLOAT
    preparation, z = network.preparation, names[0]
    if network.is_scaled or preparation.columns is not None:
        z = _unscaled(graph, network, names)
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
            [onnx.helper.make_tensor_value_info(*each) for each in _inputs(graph, network, names)],
            [onnx.helper.make_tensor_value_info(*output) for output in outputs],
            graph.constants,
        ),
        opset_imports=[
            onnx.helper.make_opsetid("", _OPSET),
            *([] if network.takes_numbers else [onnx.helper.make_opsetid(*_OF_TEXT)]),
        ],
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


def _inputs(graph: _Graph, network: Exported, names: list[str]) -> list[tuple[Any, ...]]:
    """The graph's inputs: (name, type, shape) of each."""
    kinds = graph.onnx.TensorProto
    if network.takes_numbers:
        return [("X", kinds.FLOAT, ["N", len(network.columns)])]
    return [
        (name, kinds.STRING if each.kind == "category" else kinds.FLOAT, ["N", 1])
        for name, each in zip(names, network.columns, strict=True)
    ]


def _unscaled(graph: _Graph, network: Exported, names: list[str]) -> str:
    """The network's inputs (N, I) in float64 before they are standardised."""
    float64, parts = graph.onnx.TensorProto.DOUBLE, []
    both = list(zip(names, network.columns, strict=False))
    if network.numbers:
        z = "X"
        if not network.takes_numbers:
            numbers = [name for name, each in both if each.kind != "category"]
            z = graph.node("Concat", *numbers, output="numbers", axis=1)
        z = graph.node("Cast", z, output="exact", to=float64)
        if network.fill is not None:
            gap = graph.node("IsNaN", z, output="gap")
            z = graph.node("Where", gap, graph.constant("fill", network.fill), z, output="filled")
            if network.order is not None:
                parts = [z, graph.node("Cast", gap, output="flags", to=float64)]
    if network.order is None:
        return z
    texts = [(name, each) for name, each in both if each.kind == "category"]
    for number, (name, column) in enumerate(texts, 1):
        parts.append(_one_hot(graph, name, column, number))
    z = graph.node("Concat", *parts, output="all", axis=1)
    return graph.node("Gather", z, graph.constant("order", network.order), output="inputs", axis=1)


def _one_hot(graph: _Graph, name: str, column: Column, number: int) -> str:
    """The inputs (N, K) of a column of text: 1 for the row's category, else 0."""
    position = {category: index for index, category in enumerate(column.categories) if category}
    if "" in column.categories:  # which is what stands for a missing cell, in either case
        for word in MISSING:
            letters = [{letter.lower(), letter.upper()} for letter in word]
            written = map("".join, itertools.product(*letters))
            position |= dict.fromkeys(written, column.categories.index(""))
    code = graph.node(
        "LabelEncoder",
        name,
        output=f"code{number}",
        domain=_OF_TEXT[0],
        keys_strings=list(position),
        values_int64s=list(position.values()),
        default_int64=-1,
    )
    every = graph.constant(f"categories{number}", np.arange(len(column.categories)))
    found = graph.node("Equal", code, every, output=f"found{number}")
    return graph.node("Cast", found, output=f"one_hot{number}", to=graph.onnx.TensorProto.DOUBLE)


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
