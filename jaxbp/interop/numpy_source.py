"""A network as source for NumPy alone, with its parameters in an .npz.

The source has at most 60 lines; dates beside a decimal comma, or beside more than two activations,
take a few more.  Names of columns and labels, which may be any text, stand in the .npz and never in
the source.
"""

import io
import json
from string import Template
from typing import Any

import numpy as np

from jaxbp.checkpoint import Checkpoint, CheckpointError
from jaxbp.data.cells import BOOLEANS, DATE, MISSING
from jaxbp.data.columns import Column
from jaxbp.heads import BY_NAME
from jaxbp.interop.exported import Exported, preparation_of
from jaxbp.interop.stack import Unit, activation_of, affine, assembled
from jaxbp.interop.torch_source import ending
from jaxbp.model import Layer

_LINE, _FEW = 100, 5  # characters of a line, and activations that have one each
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
    "linear": "a",
    "sigmoid": _SIGMOID,
    "softmax": "np.exp(a - np.logaddexp.reduce(a, 1, keepdims=True))",
    "exponential": "np.exp(a)",
}
_ROWS_IN_NUMPY = Template("""\
    if hasattr(x, "columns") or isinstance(x, dict):  # a table, whose columns have names
        x = np.stack([x[name] for name in FEATURES], 1)
    z = np.asarray(x, np.float64)
    if z.ndim != 2 or z.shape[1] != len(FEATURES):
        raise ValueError(f"x: got shape {z.shape}, expected (N, {len(FEATURES)})")
${fill}$flags    if not np.isfinite(z).all():
        raise ValueError("x: a number is missing, or infinite")
""")
_FILL_IN_NUMPY = """\
    gap = np.isnan(z)
    z = np.where(gap, NETWORK["fill"], z)  # what stands for a gap
"""
_FLAGS_IN_NUMPY = """\
    z = np.hstack([z, gap])[:, NETWORK["order"]]  # 1 beside a gap
"""
#: reads the cells of a table, as ``jaxbp.data.columns`` does
_TABLE_IN_NUMPY = Template("""\


def read(cell, c):
    ""\"Return a cell of a column as a number, NaN if it is missing; that of a category as text.""\"
    text = cell.strip() if isinstance(cell, str) else c["whole"].get(str(cell), str(cell))
    text = "" if text.lower() in TOLD["missing"] else text
$complete$sign${date}$truth    return text if c["kind"] == "category" else float(text or "nan")


def inputs(table):
    ""\"Return the inputs (N, I) of raw rows: a DataFrame, or a dict of columns.""\"
    parts = []
    for c in TOLD["columns"]:
        cells, cell = [], "no such column"
        try:
            for cell in table[c["name"]]:
                cells.append(read(cell, c))
        except (KeyError, ValueError, AttributeError):
            raise ValueError(f"column {c['name']!r}: got {cell!r}, not a {c['kind']}") from None
$known        if c["kind"] == "category":
            parts += [[cell == each for cell in cells] for each in c["categories"]]
        else:
            gap = np.isnan(cells)
            parts += [np.where(gap, c["fill"], cells) - c["origin"], gap][: 1 + c["indicator"]]
    return np.array(parts, np.float64).T
""")
_COMPLETE_IN_NUMPY = """\
    if not text and c["missing"] == "error":
        raise ValueError
"""
_KNOWN_IN_NUMPY = """\
        unknown = {cell for cell in cells if cell == cell} - {*(c["known"] or cells)}
        if unknown:
            warnings.warn(f"column {c['name']!r}: no training row has {sorted(unknown)[:5]}")
"""
_SIGN_IN_NUMPY = """\
    if c["decimal"] and isinstance(cell, str):  # thousands may be apart
        text = re.sub(c["apart"], "", text).translate(str.maketrans(*c["points"]))
"""
_DATE_IN_NUMPY = """\
    if c["kind"] == "date" and text:  # year first; days since 1970
        year, _, month, day, time = re.fullmatch(TOLD["date"], text).groups(default="")
        at = datetime.fromisoformat(f"{year}-{month:>02}-{day:>02}T{time.replace(' ', '') or '00'}")
        return (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp() / 86400
"""
_TRUTH_IN_NUMPY = """\
    text = TOLD["truth"].get(text.lower(), text) if c["kind"] == "boolean" else text
"""
#: where the thousands of a number are apart, by its decimal sign
_APART = {
    sign: rf"(?<=\d)(?<!\d{{4}})[{group} \u00a0\u202f'’](?=\d{{3}}(?!\d))"
    for sign, group in ((".", ","), (",", "."))
}
_POINTS = {".": ["", ""], ",": [",.", ".?"]}  # a point is no part of a number with a comma
_NUMPY = Template('''\
"""$title (jaxbp $version), with its .npz."""

${imports}from pathlib import Path

import numpy as np

NETWORK = dict(np.load(Path(__file__).with_suffix(".npz")))
$told
$names${erf}ACTIVATIONS = {  # what a layer does with a = W z + b
$activations
}
$reading

def $function($rows):
    """$promise"""
$inputs    a = (($z - NETWORK["mean"]) / NETWORK["scale"]).astype(np.float32)
    for number, activation in enumerate(NETWORK["activations"], 1):
        a = ACTIVATIONS[activation](a @ NETWORK[f"weight{number}"].T + NETWORK[f"bias{number}"])
$result$predict''')


def numpy_files(network: Exported) -> dict[str, bytes]:
    """The source, and the parameters, of a network for NumPy: by suffix, .py and .npz.

    ``predict(x)`` returns labels (N,), or quantities (N, K); ``predict_proba(x)`` probabilities.
    Rows x are an array (N, D) or, where a column is of text or of dates, a DataFrame or a dict.
    """
    units = [*network.activations, ("identity", {})]
    table = {_text(*unit): _IN_NUMPY[unit[0]].format(**unit[1]) for unit in units}
    has_erf = any("erf(" in formula for formula in table.values())
    erf = "erf = np.vectorize(math.erf, otypes=[np.float32])  # NumPy has none\n" if has_erf else ""
    rows = _rows_in_numpy(network)
    imports = "import math\n" if has_erf else ""
    source = _NUMPY.substitute(
        ending(
            network,
            output=_OUTPUT_IN_NUMPY[network.output],
            both="np.hstack([-a, a])",
            exact='y.astype(np.float64) * NETWORK["target_scale"] + NETWORK["target_mean"]',
            several=f"(predict_proba({rows['rows']}) > 0.5).astype(int)",
            one=f"LABELS[predict_proba({rows['rows']}).argmax(1)]",
            rows=rows["rows"],
        ),
        **rows | {"imports": _sorted(imports + rows["imports"])},
        names='LABELS = NETWORK["labels"]\n' if network.preparation.labels else "",
        erf=erf,
        activations=_packed([f'"{text}": lambda a: {table[text]},' for text in table]),
    )
    told = network.told() | {"activations": [_text(*unit) for unit in units]}
    told["columns"] = json.dumps(told["columns"] and _told_of_cells(told["columns"]))
    arrays: dict[str, Any] = {
        name: np.array(part) for name, part in told.items() if part is not None
    }
    for number, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True), 1):
        arrays |= {f"weight{number}": weight, f"bias{number}": bias}
    file = io.BytesIO()
    np.savez(file, **arrays)
    return {".py": source.encode(), ".npz": file.getvalue()}


def _rows_in_numpy(network: Exported) -> dict[str, str]:
    """Fill in how rows become inputs, by the names in the template."""
    if network.takes_numbers:
        fill = "" if network.fill is None else _FILL_IN_NUMPY
        flags = "" if network.order is None else _FLAGS_IN_NUMPY
        told = 'FEATURES = NETWORK["features"].tolist()  # the columns of x, in this order'
        inputs = _ROWS_IN_NUMPY.substitute(fill=fill, flags=flags)
        return {"rows": "x", "imports": "", "told": told, "reading": "", "inputs": inputs, "z": "z"}
    kinds = {each.kind for each in network.columns}
    has_date, has_sign = "date" in kinds, any(each.decimal for each in network.columns)
    warns = any(_known(each._asdict()) for each in network.columns)
    complete = any(each.missing == "error" for each in network.columns)
    return {
        "rows": "table",
        "imports": "import json\n"
        + ("import re\n" if has_date or has_sign else "")
        + ("import warnings\n" if warns else "")
        + ("from datetime import datetime, timezone\n" if has_date else ""),
        "told": 'TOLD = json.loads(str(NETWORK["columns"]))  # how the cells of a table are read',
        "reading": _TABLE_IN_NUMPY.substitute(
            complete=_COMPLETE_IN_NUMPY if complete else "",
            known=_KNOWN_IN_NUMPY if warns else "",
            sign=_SIGN_IN_NUMPY if has_sign else "",
            date=_DATE_IN_NUMPY if has_date else "",
            truth=_TRUTH_IN_NUMPY if "boolean" in kinds else "",
        ),
        "inputs": "",
        "z": "inputs(table)",
    }


def _sorted(imports: str) -> str:
    """Lines of imports, those of modules before those from modules."""
    return "".join(sorted(imports.splitlines(True), key=lambda line: (line[:4] == "from", line)))


def _told_of_cells(columns: list[dict[str, Any]]) -> dict[str, Any]:
    """The columns, and how their cells are written, as the source reads it."""
    written = [
        {
            "apart": _APART.get(each["decimal"]),
            "points": _POINTS.get(each["decimal"]),
            "known": _known(each),
            "whole": {f"{name}.0": name for name in each["categories"]},  # a number's category
        }
        for each in columns
    ]
    return {
        "columns": [each | how for each, how in zip(columns, written, strict=True)],
        "missing": sorted(MISSING),
        "truth": {word: str(value) for pair in BOOLEANS for value, word in enumerate(pair)},
        "date": DATE.pattern,
    }


def _known(column: dict[str, Any]) -> Any:
    """The values that training rows have, where they are few."""
    if column["constant"]:
        return [column["fill"]]
    return (0, 1) if column["kind"] == "boolean" else column["categories"]


def _packed(entries: list[str]) -> str:
    """Entries of a dict, a line each; of many, as many in a line as it takes."""
    if len(entries) <= _FEW:
        return "\n".join(f"    {entry}" for entry in entries)
    lines = [""]
    for entry in entries:
        if len(lines[-1]) + len(entry) > _LINE:
            lines.append("")
        lines[-1] += f" {entry}" if lines[-1] else f"    {entry}"
    return "\n".join(lines)


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
        cells = json.loads(told["columns"])
        told["columns"] = cells and [
            {name: each[name] for name in Column._fields if name in each}
            for each in cells["columns"]
        ]
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
