"""A network in plain parts: all that a file needs to predict from raw rows, without this package.

rows of a table → inputs x (N, I): numbers with their gaps filled, categories, flags
→ (x - mean) / scale, in float64 → float32 → layers → output unit
→ probabilities and labels, or ŷ · target_scale + target_mean
"""

from typing import Any, NamedTuple

import numpy as np

from jaxbp.checkpoint import Checkpoint
from jaxbp.data.columns import Column
from jaxbp.data.preparation import Preparation
from jaxbp.interop.stack import OUTPUT_UNITS, described
from jaxbp.model import MLP, units_of
from jaxbp.reprs import short
from jaxbp.text import counted

#: of ``Preparation``: what the files of exports hold, beside its columns
_HELD = (
    "features",
    "mean",
    "scale",
    "labels",
    "target_mean",
    "target_scale",
    "targets",
    "image_shape",
)
_NUMBERS = {"number", "boolean"}  # kinds of columns
_ARRAYS = ("mean", "scale", "target_mean", "target_scale")


class Exported(NamedTuple):
    """The parts of a network and of its preparation."""

    weights: tuple[np.ndarray, ...]  # (O, I) of each layer, float32
    biases: tuple[np.ndarray, ...]  # (O,)
    activations: tuple[tuple[str, dict[str, float]], ...]  # name and keywords, of hidden layers
    head: str  # its name
    output: str  # one of OUTPUT_UNITS
    preparation: Preparation

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of rows (D,)."""
        preparation = self.preparation
        plain = tuple(Column(name, missing="error") for name in preparation.features)
        return preparation.columns or plain

    @property
    def takes_numbers(self) -> bool:
        """Whether rows are an array of numbers: no column is of text or of dates."""
        return all(each.kind in _NUMBERS for each in self.columns)

    @property
    def numbers(self) -> tuple[Column, ...]:
        """The columns of numbers and of truth values, 0 or 1."""
        return tuple(each for each in self.columns if each.kind in _NUMBERS)

    @property
    def fill(self) -> np.ndarray | None:
        """The value for a missing number in each of ``numbers``, NaN where there is none; None
        where the data had no columns."""
        if self.preparation.columns is None:
            return None
        return np.array(
            [each.fill if each.missing == "impute" else np.nan for each in self.numbers]
        )

    @property
    def order(self) -> np.ndarray | None:
        """The places of the inputs (I,) among the numbers, then their flags, 1 where one is
        missing, then the categories of each column of text; None where inputs are the numbers."""
        if all(each.inputs == (each.name,) and each.kind in _NUMBERS for each in self.columns):
            return None
        count, order = len(self.numbers), []
        number, category = 0, 2 * len(self.numbers)
        for each in self.columns:
            if each.kind in _NUMBERS:
                order += [number, count + number] if each.indicator else [number]
                number += 1
            else:
                order += range(category, category + len(each.inputs))
                category += len(each.inputs)
        return np.array(order)

    @property
    def prepared(self) -> "Exported":
        """The network of rows that are prepared already, as ``jaxbp.data.transform`` does it."""
        inputs = self.preparation.inputs
        mean, scale = np.zeros(len(inputs)), np.ones(len(inputs))
        return self._replace(
            preparation=self.preparation._replace(
                features=inputs, mean=mean, scale=scale, columns=None
            )
        )

    @property
    def is_scaled(self) -> bool:
        """Whether rows are standardised, rather than taken as they are."""
        return bool(self.preparation.mean.any() or (self.preparation.scale != 1).any())

    @property
    def outputs(self) -> int:
        """How many probabilities a row has, or quantities: one sigmoid unit is two classes."""
        count = len(self.biases[-1])
        return 2 if self.has_two_classes else count

    @property
    def has_two_classes(self) -> bool:
        """Whether one sigmoid unit has the probability of the second of two classes."""
        return self.preparation.labels is not None and len(self.biases[-1]) == 1

    @property
    def title(self) -> str:
        """The network in a few words."""
        hidden, labels = len(self.activations), self.preparation.labels
        outputs = "quantity" if self.outputs == 1 else "quantities"
        if labels is not None:
            outputs = "labels" if self.preparation.several_labels else "classes"
        layers = counted(hidden, "hidden layer") if hidden else "no hidden layer"
        columns = counted(len(self.preparation.features), "column")
        return f"A network of {columns}, {layers} and {self.outputs} {outputs}"

    def told(self) -> dict[str, Any]:
        """All that weights and biases do not tell, as JSON takes it."""
        preparation, columns = self.preparation._asdict(), self.preparation.columns
        return {
            "activations": self.activations,
            "head": self.head,
            **{
                name: part.tolist() if isinstance(part, np.ndarray) else part
                for name, part in preparation.items()
                if name in _HELD
            },
            "columns": None if columns is None else [each._asdict() for each in columns],
            "fill": None if self.fill is None else self.fill.tolist(),
            "order": None if self.order is None else self.order.tolist(),
        }


def exported(trained: Checkpoint) -> Exported:
    """The plain parts of a network, in float32.

    A network without a preparation takes rows as they are: see ``plain_preparation``.  Raises
    ValueError for an activation or an output unit of your own, and for a part of the preparation
    that the files of the exports cannot hold.
    """
    model, params, preparation = trained
    if preparation is None:
        preparation = plain_preparation(model)
    for name, part in preparation._asdict().items():
        if name not in {*_HELD, "columns"} and part is not None:
            raise ValueError(f"preparation: {name} ({short(part)}) cannot be exported")
    output = next((name for name, fn in OUTPUT_UNITS.items() if fn == model.head.predict), None)
    if output is None:
        raise ValueError(f"head: the output unit of {model.head} cannot be exported")
    units = units_of(model)[:-1]
    return Exported(
        tuple(np.asarray(layer.weight, np.float32) for layer in params),
        tuple(np.asarray(layer.bias, np.float32) for layer in params),
        tuple(described(unit, "the files of exports") for unit in units),
        str(model.head),
        output,
        preparation,
    )


def plain_preparation(model: MLP) -> Preparation:
    """The preparation of a network that has none: columns x0, x1, ..., taken as they are, and
    outputs by their numbers: classes or labels 0, 1, ..., or quantities."""
    count, target = model.sizes[-1], model.head.target
    labels = None
    if target in {"classes", "labels"}:
        labels = tuple(map(str, range(max(2, count))))
    values = 1 if target == "classes" else count  # as many as labels: each is a label of its own
    return Preparation(
        features=tuple(f"x{column}" for column in range(model.sizes[0])),
        mean=np.zeros(model.sizes[0]),
        scale=np.ones(model.sizes[0]),
        labels=labels,
        target_mean=np.zeros(values),
        target_scale=np.ones(values),
    )


def preparation_of(told: dict[str, Any]) -> Preparation:
    """The preparation of what ``Exported.told`` told.  Raises KeyError where it is not all."""
    parts: dict[str, Any] = {name: np.array(told[name]) for name in _ARRAYS}
    for name in _HELD:
        if name not in _ARRAYS:
            parts[name] = None if told.get(name) is None else tuple(told[name])
    if told.get("columns") is not None:
        parts["columns"] = tuple(
            Column(**{**each, "categories": tuple(each["categories"])}) for each in told["columns"]
        )
    return Preparation(**parts)
