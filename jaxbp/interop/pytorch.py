"""PyTorch: an ``nn.Sequential`` or its ``state_dict``, to and from a model.

Weights are read without pickle: by ``torch.load(..., weights_only=True)``, or from safetensors, for
which PyTorch itself is not needed.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxbp import activations, heads
from jaxbp.activations import Activation
from jaxbp.heads import Head
from jaxbp.interop.stack import Unit, activation_of, assembled, layers_and_units, library
from jaxbp.model import MLP, Layer, Params
from jaxbp.text import one_line

#: in the metadata of a safetensors file of ``jaxbp export``: what a state_dict does not tell
METADATA = "jaxbp"
#: the suffixes of files with a state_dict
FILES = (".safetensors", ".pt", ".pth")


def _to_torch(nn: Any) -> dict[str, Callable[..., Any]]:
    return {
        "identity": nn.Identity,
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
        "relu": nn.ReLU,
        "leaky_relu": lambda alpha: nn.LeakyReLU(negative_slope=alpha),
        "elu": lambda k: nn.ELU(alpha=k),
        "softplus": nn.Softplus,
        "gelu": nn.GELU,  # the exact one, unless approximate="tanh"
        "silu": nn.SiLU,
    }


def _from_torch(nn: Any) -> dict[Any, Callable[[Any], Unit]]:
    """Tell by the type of a module what it is here.  PyTorch's softplus is linear from its
    threshold on, by default 20, where float32 does not tell."""
    return {
        nn.Identity: lambda unit: Unit(str(unit), activations.identity, "linear"),
        nn.Sigmoid: lambda unit: Unit(str(unit), activations.sigmoid, "sigmoid"),
        nn.Tanh: lambda unit: Unit(str(unit), activations.tanh),
        nn.ReLU: lambda unit: Unit(str(unit), activations.relu),
        nn.LeakyReLU: lambda unit: Unit(
            str(unit), activation_of("leaky_relu", alpha=unit.negative_slope)
        ),
        nn.ELU: lambda unit: Unit(str(unit), activation_of("elu", k=unit.alpha)),
        nn.Softplus: lambda unit: Unit(
            str(unit), activations.softplus if unit.beta == 1 and unit.threshold >= 20 else None
        ),
        nn.GELU: lambda unit: Unit(
            str(unit), activations.gelu if unit.approximate == "none" else None
        ),
        nn.SiLU: lambda unit: Unit(str(unit), activations.silu),
        nn.Softmax: lambda unit: Unit(str(unit), output="softmax" if unit.dim in {-1, 1} else None),
    }


def to_torch(model: MLP, params: Params) -> Any:
    """Make a ``torch.nn.Sequential`` whose outputs are the logits (B, K).

    The output unit is the head's: ``torch.softmax(network(x), -1)``, ``torch.sigmoid(network(x))``,
    ``torch.exp(network(x))``, or the logits themselves; losses of PyTorch take logits.  The penalty
    l2 does not travel.  Raises ValueError for an activation of your own, ImportError without
    PyTorch.
    """
    torch = library("torch")
    nn = torch.nn
    steps = []
    for layer, unit in layers_and_units(model, params, _to_torch(nn), "PyTorch"):
        weight, bias = (_tensor(torch, part) for part in layer)
        outputs, inputs = weight.shape
        linear = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=weight.dtype)
        linear.load_state_dict({"weight": weight, "bias": bias})
        steps += [linear] if unit is None else [linear, unit]
    return nn.Sequential(*steps)


def _tensor(torch: Any, array: Any) -> Any:
    """A copy as a tensor; NumPy itself has no bfloat16, so half precision goes by float32."""
    wide = np.array(array, np.float64 if array.dtype == np.float64 else np.float32)
    return torch.from_numpy(wide).to(getattr(torch, str(array.dtype)))


def from_torch(
    source: Any,
    *,
    activation: Activation | tuple[Activation, ...] | None = None,
    head: Head | None = None,
) -> tuple[MLP, Params]:
    """Read weights and biases of PyTorch -> (model, params).

    source: an ``nn.Sequential`` of ``nn.Linear`` and activations, a ``state_dict``, or the path of
        one in a .safetensors, .pt or .pth file.  The layers of a state_dict are taken in its order,
        those of a .safetensors file by the numbers in their names.
    activation: of the hidden layers, one or one each; has to be given for a state_dict, which does
        not tell, and may be for modules that are not of ``jaxbp.activations``.
    head: has to be given, unless the stack ends in ``nn.Softmax``, which one head alone has.

    A safetensors file of ``jaxbp export`` tells both.  Raises TypeError for another source,
    ValueError for what has no counterpart or is not given, FileNotFoundError for a missing file.
    """
    if isinstance(source, str | Path):
        return of_weights(*read_weights(Path(source)), activation, head)
    if isinstance(source, Mapping):
        return of_weights(source, None, activation, head)
    nn = library("torch").nn
    if type(source) is not nn.Sequential:  # one derived from it may do anything
        raise TypeError(
            f"source: got {type(source).__name__}, expected a torch.nn.Sequential, a state_dict, "
            "or the path of one"
        )
    return assembled(list(_steps(nn, source)), activation, head, "PyTorch")


def of_weights(
    weights: Mapping[str, Any],
    told: Mapping[str, Any] | None,
    activation: Activation | tuple[Activation, ...] | None,
    head: Head | None,
) -> tuple[MLP, Params]:
    """Assemble a model of a state_dict, as ``from_torch`` does, and of what its file tells."""
    layers = _layers(weights)
    units: Iterable[Any] = [None] * (len(layers) - 1)
    if told is not None:
        units = map(_told, told["activations"])
        head = heads.BY_NAME[told["head"]] if head is None else head
    stack: list[Layer | Unit] = [*layers[:1]]
    for layer, unit in zip(layers[1:], units, strict=True):
        stack += [Unit("", unit), layer]
    return assembled(stack, activation, head, "PyTorch")


def _told(described: Any) -> Activation:
    name, keywords = described
    return activation_of(name, **keywords)


def _steps(nn: Any, stack: Any) -> Iterator[Layer | Unit]:
    """The steps of a Sequential, and of those within it."""
    table = _from_torch(nn)
    for place, module in enumerate(stack):
        if module._forward_hooks:
            raise ValueError(f"source, step {place}: {module} has a forward hook, expected none")
        if type(module) is nn.Sequential:
            yield from _steps(nn, module)
        elif type(module) is nn.Linear:
            if module.bias is None:
                raise ValueError(f"source, step {place}: {module} has no bias, expected one")
            yield Layer(_array(module.weight), _array(module.bias))
        elif type(module) in table:
            yield table[type(module)](module)
        else:
            raise ValueError(f"source, step {place}: {module} has no counterpart in a jaxbp.MLP")


def _array(tensor: Any) -> Any:
    """A tensor, or an array, as an array; bfloat16 by float32."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        tensor = tensor.float() if tensor.dtype.itemsize == 2 else tensor
    return np.asarray(tensor)


def _layers(weights: Mapping[str, Any]) -> list[Layer]:
    """The layers of a state_dict, in its order.  Raises ValueError for a tensor of no layer."""
    layers: dict[str, dict[str, Any]] = {}
    for name, tensor in weights.items():
        found = re.fullmatch(r"(?:(.*)\.)?(weight|bias)", name)
        if found is None or not hasattr(tensor, "shape"):
            raise ValueError(
                f"source: {name!r} is no weight or bias, expected the state_dict of a stack of "
                "torch.nn.Linear"
            )
        array, axes = _array(tensor), 2 if found[2] == "weight" else 1
        if array.ndim != axes:
            expected = "a matrix (O, I)" if axes == 2 else "a vector (O,)"
            raise ValueError(f"source: {name!r} has shape {array.shape}, expected {expected}")
        layers.setdefault(found[1] or "", {})[found[2]] = array
    for name, parts in layers.items():
        if len(parts) != 2:
            raise ValueError(
                f"source: layer {name!r} has {', '.join(parts)} alone, expected a weight and a bias"
            )
    return [Layer(**parts) for parts in layers.values()]


def read_weights(path: Path) -> tuple[Mapping[str, Any], dict[str, Any] | None]:
    """The state_dict of a file, and what a file of ``jaxbp export`` tells beside it."""
    if path.suffix not in FILES:
        raise ValueError(f"{path}: expected a name in {', '.join(FILES)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    torch = library("torch")
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds: a damaged zip, a pickle that would run code
        raise ValueError(
            f"{path}: no weights alone, as torch.save(network.state_dict(), path) writes them "
            f"({one_line(error)})"
        ) from None
    if not isinstance(held, Mapping):
        raise ValueError(f"{path}: holds a {type(held).__name__}, expected a state_dict")
    return held, None


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any], dict[str, Any] | None]:
    safetensors = library("safetensors")
    library("safetensors.numpy")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            described = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error})") from None
    if described.get("format", "").startswith("jaxbp"):
        raise ValueError(f"{path}: a network of jaxbp.save; jaxbp.load reads it")
    kinds = {re.sub(r"\d+", "#", name) for name in tensors}
    if len({re.sub(r"(weight|bias)$", "", kind) for kind in kinds}) > 1:
        raise ValueError(
            f"{path}: {', '.join(sorted(tensors)[:6])} do not tell the order of the layers; give "
            "a state_dict in their order"
        )
    by_number = sorted(tensors, key=lambda name: [int(each) for each in re.findall(r"\d+", name)])
    told = json.loads(described[METADATA]) if METADATA in described else None
    return {name: tensors[name] for name in by_number}, told
