"""Checkpoints: a trained network in one safetensors file, from which it can predict on its own.

The weights are tensors; the model's description and the preparation of its data are JSON in the
file's metadata.  Nothing is pickled, so opening a file never runs code, and a digest over all of it
tells a damaged or carelessly edited file from a whole one.
"""

import hashlib
import importlib
import json
import os
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp import activations, heads
from jaxbp.activations import Activation
from jaxbp.data.columns import Column
from jaxbp.data.preparation import Preparation
from jaxbp.mlp import predict
from jaxbp.model import MLP, Layer, Params
from jaxbp.reprs import short
from jaxbp.trees import check_bools, shaped

_FORMAT = "jaxbp network 1"
_OWN = "(your own)"


class CheckpointError(ValueError):
    """The file is not a whole jaxbp network."""


class Checkpoint(NamedTuple):
    """The contents of a file: a network, and how to prepare rows for it."""

    model: MLP
    params: Params
    preparation: Preparation | None

    def __repr__(self) -> str:
        return short(self)


def save(
    path: str | Path,
    model: MLP,
    params: Params,
    preparation: Preparation | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write a network, and how its data were prepared, to a safetensors file.

    path: of the file; its folder must be there.
    model: the network; an activation or head of your own is not in the file, and ``load`` then
        needs the model again.
    params: of the model.
    preparation: of the data, as ``jaxbp.data.load`` gives it; none unless given.
    overwrite: whether to replace a file that is there; False unless given.

    Raises ValueError where params do not fit the model, FileNotFoundError for a missing folder,
    FileExistsError rather than replace a file, and OSError, with the file's name, where the disk is
    full.
    """
    check_bools(overwrite=overwrite)
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: already exists (overwrite=True replaces it)")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder")
    _check_fit(model, params)
    tensors = {
        f"{number}.{name}": np.ascontiguousarray(array)
        for number, layer in enumerate(params, start=1)
        for name, array in layer._asdict().items()
    }
    described = {
        "format": _FORMAT,
        "model": json.dumps(_describe(model)),
        "preparation": json.dumps(None if preparation is None else _listed(preparation)),
    }
    described["digest"] = _digest(tensors, described)
    partly = path.with_name(f".{path.name}.{os.getpid()}")
    try:  # a reader never sees half a file
        partly.write_bytes(_safetensors("numpy").save(tensors, described))
        partly.replace(path)
    except OSError as error:
        error.filename = str(path)  # of a full disk it names none
        raise
    finally:
        partly.unlink(missing_ok=True)


def load(path: str | Path, model: MLP | None = None) -> Checkpoint:
    """Read what ``save`` wrote -> (model, params, preparation).

    path is of the file, or of a run folder of ``jaxbp train``.  Give the model if the file was
    saved with an activation or head of your own.  Weights come back in the dtype they were saved
    in; JAX holds float64 only by ``jax_enable_x64``, and without it a UserWarning says that they
    are rounded to float32.  Raises FileNotFoundError, and CheckpointError for any file that is not
    a whole jaxbp network.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    tensors, described = _read(path)
    if described.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: a safetensors file, but not a network saved by jaxbp")
    if described.pop("digest", "") != _digest(tensors, described):
        raise CheckpointError(f"{path}: the file has been changed since it was saved")
    try:
        model = _model_from(path, json.loads(described["model"]), model)
        params = tuple(
            Layer(*(jnp.asarray(tensors[f"{number}.{name}"]) for name in Layer._fields))
            for number in range(1, len(model.sizes))
        )
        _check_fit(model, params)
        _warn_if_rounded(path, tensors["1.weight"], params[0].weight)
        listed = json.loads(described["preparation"])
        preparation = None if listed is None else _preparation_from(listed)
        return Checkpoint(model, params, preparation)
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: its description makes no sense ({error!r})") from None


def _read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: not a complete safetensors file ({error})") from None


def _check_fit(model: MLP, params: Params) -> None:
    """Raise ValueError where params do not fit the model."""
    x = np.zeros(model.sizes[0], np.float32)
    shapes = jax.tree.map(lambda leaf: shaped(leaf.shape, leaf.dtype), params)
    jax.eval_shape(partial(predict, model), shapes, x)


def _warn_if_rounded(path: Path, saved: np.ndarray, loaded: jax.Array) -> None:
    if saved.dtype != loaded.dtype:
        warnings.warn(
            f"{path}: saved in {saved.dtype}, loaded in {loaded.dtype}, because jax_enable_x64 is "
            "off; load within jax.enable_x64(True) for the weights as they were saved",
            stacklevel=3,
        )


def _digest(tensors: Mapping[str, np.ndarray], described: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _describe(model: MLP) -> dict[str, Any]:
    if isinstance(model.activation, tuple):
        described: Any = [_describe_activation(unit) for unit in model.activation]
    else:
        described = _describe_activation(model.activation)
    head = next((name for name, head in heads.BY_NAME.items() if head == model.head), None)
    return {
        "sizes": list(map(int, model.sizes)),
        "activation": described,
        "head": head or _OWN,
        "l2": float(model.l2),
    }


def _describe_activation(unit: Activation) -> str | dict[str, Any]:
    if isinstance(unit, partial) and not unit.args:
        name = _describe_activation(unit.func)
        if name == _OWN:
            return _OWN
        return {"name": name, "keywords": {k: float(value) for k, value in unit.keywords.items()}}
    name = getattr(unit, "__name__", "")
    return name if activations.BY_NAME.get(name) is unit else _OWN


def _model_from(path: str | Path, described: dict[str, Any], model: MLP | None) -> MLP:
    if model is not None:
        if _describe(model) != described:
            raise CheckpointError(f"{path}: holds {described}, not {_describe(model)}")
        return model
    units = described["activation"]
    if _OWN in json.dumps(described):
        raise CheckpointError(
            f"{path}: saved with an activation or head of your own; pass the model to load"
        )
    return MLP(
        sizes=tuple(described["sizes"]),
        activation=tuple(map(_activation_from, units))
        if isinstance(units, list)
        else _activation_from(units),
        head=heads.BY_NAME[described["head"]],
        l2=described["l2"],
    )


def _activation_from(described: str | dict[str, Any]) -> Activation:
    if isinstance(described, str):
        return activations.BY_NAME[described]
    return partial(activations.BY_NAME[described["name"]], **described["keywords"])


def _listed(preparation: Preparation) -> dict[str, Any]:
    columns = preparation.columns
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in preparation._asdict().items()
    } | {"columns": columns and [column._asdict() for column in columns]}


def _preparation_from(listed: dict[str, Any]) -> Preparation:
    return Preparation(
        features=tuple(listed["features"]),
        labels=None if listed["labels"] is None else tuple(listed["labels"]),
        mean=np.array(listed["mean"]),
        scale=np.array(listed["scale"]),
        target_mean=np.array(listed["target_mean"]),
        target_scale=np.array(listed["target_scale"]),
        targets=tuple(listed.get("targets") or ()) or None,  # earlier files have none
        columns=tuple(map(_column_from, listed.get("columns") or ())) or None,  # nor these
        image_shape=tuple(listed.get("image_shape") or ()) or None,
    )


def _column_from(listed: dict[str, Any]) -> Column:
    return Column(**{**listed, "categories": tuple(listed["categories"])})


def _safetensors(module: str = "") -> Any:
    try:
        return importlib.import_module(f"safetensors.{module}".rstrip("."))
    except ImportError as error:
        raise ImportError("save and load need safetensors: pip install 'jaxbp[cli]'") from error
