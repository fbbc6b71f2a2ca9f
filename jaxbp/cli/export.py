"""``jaxbp export`` and ``jaxbp import``: a network as files that need no jaxbp, and back."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from tyro.conf import arg

from jaxbp import activations, heads
from jaxbp.checkpoint import Checkpoint, CheckpointError, load, save
from jaxbp.cli.files import NETWORK, naming, new_file, new_folder
from jaxbp.cli.options import ActivationName, HeadName, TrainedRun, UsageError
from jaxbp.cli.predict import told_of_probabilities
from jaxbp.data.cells import quoted
from jaxbp.interop.exported import Exported, exported, plain_preparation, preparation_of
from jaxbp.interop.numpy_source import network_of_npz, numpy_files
from jaxbp.interop.onnx_file import input_names, to_onnx
from jaxbp.interop.pytorch import FILES, of_weights, read_weights
from jaxbp.interop.stablehlo_file import to_stablehlo
from jaxbp.interop.torch_source import torch_files

#: the suffixes of what is written as two files
_PAIRS = {"numpy": (".py", ".npz"), "torch": (".safetensors", ".py")}
_NO_PREPARATION = "no preparation of rows is known: they are taken as they are, columns x0, x1, ..."


@dataclass(frozen=True)
class Export:
    """Write a trained network as a program that needs no jaxbp.

    RUN comes first: jaxbp export runs/flowers-1 --to onnx --output flowers.onnx
    """

    run: TrainedRun
    to: Annotated[
        Literal["onnx", "stablehlo", "torch", "numpy"],
        arg(
            help="onnx: a graph with standardising and labels, and an input for each column where "
            "there is text; stablehlo: a program of jax.export; torch: a state_dict in "
            "safetensors, and source that loads it; numpy: source that needs NumPy alone, and an "
            ".npz, which reads text and dates as well"
        ),
    ]
    output: Annotated[
        Path,
        arg(
            metavar="FILE",
            help="the file to write, a new one; of torch and numpy it is two, of one name: "
            ".safetensors and .py, or .py and .npz",
        ),
    ]


@dataclass(frozen=True)
class Import:
    """Make a run folder of another library's weights, for predict, evaluate and export.

    FILE comes first: jaxbp import weights.safetensors --to runs/theirs --activation relu --head ...
    """

    file: Annotated[
        tyro.conf.Positional[Path],
        arg(
            metavar="FILE",
            help="PyTorch's state_dict in a .safetensors, .pt or .pth, or a file of jaxbp export "
            "--to torch or numpy",
        ),
    ]
    to: Annotated[Path, arg(metavar="RUN", help="the run folder to make, a new one")]
    activation: Annotated[
        tuple[ActivationName, ...],
        arg(
            metavar="NAME ...",
            help="of the hidden layers, one or one each, where the file does not tell",
            help_behavior_hint="(default: the file's)",
        ),
    ] = ()
    head: Annotated[
        HeadName | None,
        arg(
            metavar="NAME",
            help="the output unit and its loss, where the file does not tell",
            help_behavior_hint="(default: the file's)",
        ),
    ] = None


def run_export(options: Export, console: Console) -> int:
    """Carry out ``jaxbp export``; the exit status."""
    output, pair = options.output, _PAIRS.get(options.to, ())
    new_file("--output", output, pair, make_folder=True)
    for suffix in pair:
        new_file("--output", output.with_suffix(suffix), make_folder=True)
    trained = load(options.run)
    network, files = _told(lambda: _files(options.to, output, trained))
    _write(files)
    console.print(f"{network.title}, in {' and '.join(map(str, files))}", soft_wrap=True)
    if trained.preparation is None:
        console.print(_NO_PREPARATION, soft_wrap=True)
    for line in (*_hints(options.to, network), *told_of_probabilities(options.run, trained)):
        console.print(line, soft_wrap=True)
    return 0


def _files(to: str, output: Path, trained: Checkpoint) -> tuple[Exported, dict[Path, bytes]]:
    network = exported(trained)
    if to in _PAIRS:
        parts = (numpy_files if to == "numpy" else torch_files)(network)
        return network, {output.with_suffix(suffix): part for suffix, part in parts.items()}
    made = to_onnx(network).SerializeToString() if to == "onnx" else to_stablehlo(trained)
    return network, {output: made}


def _hints(to: str, network: Exported) -> list[str]:
    """Say what rows the file takes, what is not in it, and what is not exact there."""
    hints, columns = [], network.columns
    is_table = not network.takes_numbers
    if is_table and to in {"stablehlo", "torch"}:
        network = network.prepared
        hints.append(
            f"rows have to be prepared as jaxbp.data.transform does it, {len(network.columns)} "
            "inputs each: text and dates are read by --to numpy, and text by --to onnx"
        )
    elif is_table and to == "numpy":
        hints.append("rows are a DataFrame or a dict of columns, with text as it comes")
    elif is_table:
        texts = ", ".join(quoted(each.name) for each in columns if each.kind == "category")
        hints.append(
            f"each column is an input (N, 1): {texts} of strings, missing ones empty, and the "
            "others of float32, missing ones NaN"
        )
        for name, each in zip(input_names(network), columns, strict=True):
            if name != each.name:
                hints.append(f"column {quoted(each.name)} is the input {quoted(name)}")
    truths = [quoted(each.name) for each in network.columns if each.kind == "boolean"]
    if truths and not (is_table and to == "numpy"):
        hints.append(f"truth values are 1 and 0: {', '.join(truths)}")
    preparation = network.preparation
    if to == "stablehlo":
        hints.append(f"columns: {', '.join(map(quoted, preparation.features))}")
        if preparation.labels is not None:
            hints.append(f"probabilities of: {', '.join(map(quoted, preparation.labels))}")
    if to in {"stablehlo", "onnx"}:
        coarse = np.spacing(np.abs(preparation.mean).astype(np.float32)) > 1e-3 * preparation.scale
        for name in np.array(preparation.inputs)[coarse]:
            hints.append(
                f"column {quoted(str(name))} varies by little more than float32, in which the file "
                "takes rows, can tell: subtract its mean from the data before training"
            )
    return hints


def _write(files: dict[Path, bytes]) -> None:
    """Write new files; after an error none is left."""
    made: list[Path] = []
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with naming(path), path.open("xb") as file:
                made.append(path)
                file.write(content)
    except BaseException:
        for path in made:
            path.unlink()
        raise


def run_import(options: Import, console: Console) -> int:
    """Carry out ``jaxbp import``; the exit status."""
    if options.to.exists():
        raise UsageError(f"--to: {options.to} exists, and nothing is overwritten")
    new_folder("--to", options.to)
    file = _weights_beside(options.file) if options.file.suffix == ".py" else options.file
    if file.suffix not in {".npz", *FILES}:
        raise UsageError(f"FILE: got {file}, expected a name in .npz, {', '.join(FILES)}")
    read_file = _of_numpy if file.suffix == ".npz" else _of_torch
    found = _told(lambda: read_file(file, options))
    trained = found
    if found.preparation is None:
        trained = found._replace(preparation=plain_preparation(found.model))
    options.to.mkdir(parents=True)
    save(options.to / NETWORK, *trained)
    console.print(f"{exported(trained).title}, in {options.to}", soft_wrap=True)
    if found.preparation is None:
        console.print(_NO_PREPARATION, soft_wrap=True)
    return 0


def _weights_beside(program: Path) -> Path:
    """The file that a program of ``jaxbp export`` loads its weights from."""
    others = [program.with_suffix(suffix) for suffix in (".npz", ".safetensors")]
    found = [file for file in others if file.exists()]
    if len(found) != 1:
        raise UsageError(
            f"FILE: {program} is a program, and {' and '.join(map(str, others))} are "
            f"{'both there' if found else 'not there'}: expected the one with its weights"
        )
    return found[0]


def _of_numpy(path: Path, options: Import) -> Checkpoint:
    if options.activation or options.head:
        raise UsageError("--activation, --head: the file tells both")
    try:
        with np.load(path) as file:
            arrays = dict(file)
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile):
        raise CheckpointError(f"{path}: not a whole .npz file") from None
    try:
        return network_of_npz(arrays)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _of_torch(path: Path, options: Import) -> Checkpoint:
    weights, told = read_weights(path)
    if told is None and options.head is None:
        raise UsageError(f"--head: {path} does not tell it, expected a name")
    if told is None and not options.activation and len(weights) > 2:
        raise UsageError(f"--activation: {path} does not tell it, expected a name")
    units = tuple(activations.BY_NAME[name] for name in options.activation)
    unit = units[0] if len(units) == 1 else units or None
    head = None if options.head is None else heads.BY_NAME[options.head]
    model, params = of_weights(weights, told, unit, head)
    return Checkpoint(model, params, None if told is None else preparation_of(told))


def _told(work: Callable[[], Any]) -> Any:
    """Do the work; what is refused there, or not installed, is a UsageError."""
    try:
        return work()
    except (UsageError, CheckpointError):
        raise
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from None
