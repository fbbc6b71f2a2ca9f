"""Options: what the commands ask the user, in one place where two of them ask the same.

``Design`` has every decision about a run, of which ``jaxbp train`` and ``jaxbp diagnose`` offer
theirs; the names on offer are those of the tables here and beside activations and heads.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import optax
import tyro
from tyro.conf import arg
from tyro.extras import literal_type_from_choices

from jaxbp import activations, heads
from jaxbp.data.delimited import is_tabular
from jaxbp.data.shards import KINDS
from jaxbp.gradient import Gradient, autodiff, backprop
from jaxbp.memory import host_memory
from jaxbp.training import batch_methods


class UsageError(ValueError):
    """A request that cannot be carried out as it stands."""


@dataclass(frozen=True)
class Optimizer:
    """An optimiser that a user can name."""

    make: Callable[..., optax.GradientTransformation]  # takes the learning rate, if it has one
    rate: float | None = None  # unless the user names another; None: it finds its own step
    full_batch: bool = False  # whether each step takes all rows


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(optax.sgd, rate=0.1),
    "momentum": Optimizer(partial(optax.sgd, momentum=0.9), rate=0.02),
    "nesterov": Optimizer(partial(optax.sgd, momentum=0.9, nesterov=True), rate=0.02),
    "adam": Optimizer(optax.adam, rate=0.002),
    "adamw": Optimizer(optax.adamw, rate=0.002),
    "gradient_descent": Optimizer(optax.sgd, rate=0.3, full_batch=True),
    "nonlinear_cg": Optimizer(batch_methods.nonlinear_cg, full_batch=True),
    "bfgs": Optimizer(batch_methods.bfgs, full_batch=True),
    "lbfgs": Optimizer(optax.lbfgs, full_batch=True),
    "truncated_newton": Optimizer(batch_methods.truncated_newton, full_batch=True),
}
SCHEDULES: dict[str, Callable[[float, int], Any]] = {
    "constant": lambda rate, steps: rate,
    "cosine": optax.cosine_decay_schedule,
    "linear": lambda rate, steps: optax.linear_schedule(rate, 0.0, steps),
}
GRADIENTS: dict[str, Gradient] = {"backprop": backprop, "autodiff": autodiff}

if TYPE_CHECKING:  # words for mypy; for tyro, the words of the tables
    ActivationName = str
    HeadName = str
    HeadChoice = str
    OptimizerName = str
    ScheduleName = str
    GradientName = str
else:
    ActivationName = literal_type_from_choices(list(activations.BY_NAME))
    HeadName = literal_type_from_choices(list(heads.BY_NAME))
    HeadChoice = literal_type_from_choices(["auto", *heads.BY_NAME])
    OptimizerName = literal_type_from_choices(list(OPTIMIZERS))
    ScheduleName = literal_type_from_choices(list(SCHEDULES))
    GradientName = literal_type_from_choices(list(GRADIENTS))

# Options of several commands, some with another default in each

TrainedRun = Annotated[
    tyro.conf.Positional[Path],
    arg(metavar="RUN", help="a run folder of jaxbp train, or a model.safetensors"),
]

Hidden = Annotated[
    tuple[int, ...],
    arg(
        metavar="[SIZE ...]",
        help="hidden layers; none at all is linear, logistic or softmax regression",
    ),
]
OptimizerOption = Annotated[
    OptimizerName,
    arg(
        metavar="NAME",
        help="makes a step of the gradient: sgd, momentum, nesterov, adam, adamw; and on the "
        "full batch gradient_descent, nonlinear_cg, bfgs, lbfgs, truncated_newton",
    ),
]
Epochs = Annotated[int, arg(metavar="N", help="passes over the training rows")]
L2 = Annotated[float, arg(help="penalty: adds ½ · l2 · Σ‖W‖² to the objective")]


Target = Annotated[
    str | None,
    arg(
        metavar="COLUMN",
        help="what to learn: a table's column by name or position, several with commas between, "
        "or the name of an .npz array",
        help_behavior_hint="(default: the last column, or y)",
    ),
]
TaskChoice = Annotated[
    Literal["auto", "classification", "regression"],
    arg(
        help="what kind of target it is",
        help_behavior_hint="(default: auto, the head's; else classification for text and for "
        "at most 20 different integers, and for several columns of 0 and 1)",
    ),
]
Header = Annotated[
    Literal["auto", "yes", "no"],
    arg(
        help="whether a CSV's first row names its columns",
        help_behavior_hint="(default: auto, where no number is in it, or its cells are unlike "
        "those below)",
    ),
]
Drop = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    arg(metavar="COLUMN", help="a column to leave out, by name or position"),
]
Categorical = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    arg(
        metavar="COLUMN",
        help="a column whose numbers are categories, as text is anyhow",
    ),
]
MissingCells = Annotated[
    Literal["impute", "error"],
    arg(
        help="what becomes of missing cells: impute takes the training rows' median for a number, "
        "a category of its own for text, and leaves out rows without a target"
    ),
]
Weights = Annotated[
    str | None,
    arg(
        metavar="COLUMN",
        help="the column of the rows' weights in the objective, at least 0",
        help_behavior_hint="(default: all rows are equal)",
    ),
]
Encoding = Annotated[
    str | None,
    arg(
        metavar="NAME",
        help="of a CSV's text, such as latin-1",
        help_behavior_hint="(default: UTF-8, or what a byte order mark says)",
    ),
]
DecimalSign = Annotated[
    Literal["auto", ".", ","],
    arg(
        help="the sign before a number's fraction; the other one groups thousands",
        help_behavior_hint="(default: auto, the one by which all numbers of a column can be read "
        "or, where both do, that of the other columns)",
    ),
]


def fixed(value: Any) -> Any:
    """A decision that a command has made, and does not offer as an option."""
    return field(default=value, init=False)


@dataclass(frozen=True)
class Design:
    """Every decision about a run: its data, network, initial weights, optimiser and training.

    A command offers some as options and has the others ``fixed``; the defaults are train's.
    """

    data: Annotated[
        tyro.conf.Positional[str],
        arg(
            metavar="[DATA]",
            help="digits, breast_cancer, wine, iris, diabetes, or the path of a table (.csv, also "
            ".gz or .zst, .parquet, .feather, .xlsx, .npy), of an .npz file, or of a folder of "
            ".npy, .npz or .parquet files",
        ),
    ] = "digits"
    target: Target = None
    task: TaskChoice = "auto"
    header: Header = "auto"
    drop: Drop = ()
    categorical: Categorical = ()
    missing: MissingCells = "impute"
    weights: Weights = None
    encoding: Encoding = None
    decimal: DecimalSign = "auto"
    stratify: Annotated[
        bool, arg(help="keep the classes' proportions in the training, validation and test rows")
    ] = True
    hidden: Hidden = (512, 256)
    activation: Annotated[
        tuple[ActivationName, ...],
        arg(
            metavar=f"{{{','.join(activations.BY_NAME)}}} ...",
            help="activation of all hidden layers, or one for each",
        ),
    ] = ("relu",)
    head: Annotated[
        HeadChoice,
        arg(
            help="output unit and loss",
            help_behavior_hint="(default: auto, which is softmax_cross_entropy; sigmoid_logistic "
            "for two classes and for several labels; linear_squared_error for regression)",
        ),
    ] = "auto"
    scheme: Annotated[
        Literal["auto", "he", "glorot", "lecun"],
        arg(
            help="scheme of the initial weights",
            help_behavior_hint="(default: auto, which is he for the ReLU family, glorot for tanh "
            "and sigmoid, lecun otherwise)",
        ),
    ] = "auto"
    bias: Annotated[float, arg(help="initial value of every bias; 0.1 keeps ReLUs alive")] = 0.0
    optimizer: OptimizerOption = "adam"
    learning_rate: Annotated[
        float | Literal["auto"],
        arg(
            metavar="RATE",
            help="step size at the start",
            help_behavior_hint="(default: auto, which is 0.1 for sgd, 0.02 for momentum and "
            "nesterov, 0.002 for adam and adamw, 0.3 for gradient_descent; the others find their "
            "own)",
        ),
    ] = "auto"
    schedule: Annotated[ScheduleName, arg(help="how the learning rate falls over the run")] = (
        "cosine"
    )
    batch_size: Annotated[
        int | Literal["full", "auto"],
        arg(
            metavar="ROWS|full",
            help="rows per step",
            help_behavior_hint="(default: auto, which is 32, and full for batch methods)",
        ),
    ] = "auto"
    epochs: Epochs = 40
    l2: L2 = 1e-4
    stream: Annotated[
        bool,
        arg(
            help="read the rows from the disk in each epoch, not into memory: of a .npy, .npz or "
            ".parquet file; a folder of such files is read so in any case, and a file that is "
            "larger than the memory"
        ),
    ] = False
    epoch_rows: Annotated[
        int,
        arg(
            metavar="ROWS",
            help="rows of an epoch where they are streamed: of more rows, an epoch takes up where "
            "the one before ended",
        ),
    ] = 2**20
    label_smoothing: Annotated[
        float,
        arg(
            metavar="SHARE",
            help="share of each label to spread evenly over the classes in training; it draws the "
            "predicted probabilities towards each other",
        ),
    ] = 0.0
    class_weight: Annotated[
        Literal["none", "balanced"],
        arg(
            help="balanced: every class has the same part of the training loss, however many rows "
            "it has; it draws the predicted probabilities towards the rare classes"
        ),
    ] = "none"
    dropout: Annotated[
        float,
        arg(metavar="SHARE", help="share of the hidden units that each training step leaves out"),
    ] = 0.0
    patience: Annotated[
        int | Literal["auto"],
        arg(
            metavar="EPOCHS",
            help="stop after this many epochs without a better validation loss, and keep the best; "
            "0: never",
            help_behavior_hint="(default: auto, which is 10 for regression, 0 for classification)",
        ),
    ] = "auto"
    seed: Annotated[
        int,
        arg(help="seed of the split, the initial weights and the order of rows; a GPU has another"),
    ] = 0
    gradient: Annotated[GradientName, arg(help="by hand, or by jax.grad")] = "backprop"
    compute_dtype: Annotated[
        Literal["float32", "bfloat16"],
        arg(help="type of the matrix products; weights, sums and updates are float32"),
    ] = "float32"
    precision: Annotated[
        Literal["auto", "default", "high", "highest"],
        arg(
            help="how exact the products of float32 numbers are, by JAX's names",
            help_behavior_hint="(default: auto, which is JAX's own for the device: less than "
            "float32 on recent GPUs and TPUs)",
        ),
    ] = "auto"
    diagnostics: Annotated[
        bool, arg(help="record the health of every layer after each epoch, and report problems")
    ] = False


Options = TypeVar("Options", bound=Design)


def check_design(options: Design) -> None:
    """Raise UsageError for a value out of range, or for two that exclude each other."""
    for name, default in (("header", "auto"), ("encoding", None)):
        if getattr(options, name) != default and not is_tabular(options.data):
            raise UsageError(f"--{name} is for a .csv, and not for {options.data}")
    at_least = {"epochs": 1, "epoch_rows": 1, "l2": 0, "patience": 0, "seed": 0}
    for name, least in at_least.items():
        value = getattr(options, name)
        if value != "auto" and not least <= value < math.inf:
            raise UsageError(f"--{name.replace('_', '-')}: got {value}, expected at least {least}")
    if options.seed >= 2**32:
        raise UsageError(f"--seed: got {options.seed}, expected less than 2^32")
    if not math.isfinite(options.bias):
        raise UsageError(f"--bias: got {options.bias}, expected a finite number")
    rate = options.learning_rate
    if rate != "auto" and not 0 < rate < math.inf:
        raise UsageError(f"--learning-rate: got {rate}, expected more than 0")
    for name in ("label_smoothing", "dropout"):
        if not 0 <= (share := getattr(options, name)) < 1:
            option = name.replace("_", "-")
            raise UsageError(f"--{option}: got {share}, expected at least 0, and below 1")
    if isinstance(options.batch_size, int) and options.batch_size < 1:
        raise UsageError(f"--batch-size: got {options.batch_size}, expected at least 1, or full")
    if any(size < 1 for size in options.hidden):
        raise UsageError(f"--hidden: got {' '.join(map(str, options.hidden))}, expected sizes ≥ 1")
    if len(options.activation) not in {1, len(options.hidden) or 1}:
        raise UsageError(
            f"--activation: got {len(options.activation)}, expected one, or one for each of the "
            f"{len(options.hidden)} hidden layers"
        )
    _check_optimizer(options)
    _check_stream(options)


def is_streamed(options: Design) -> bool:
    """Whether the rows are read from the disk in each epoch: where it is asked for, and those of a
    folder."""
    return options.stream or os.path.isdir(options.data)


def with_stream(options: Options) -> Options:
    """The options, with --stream where a file that can be streamed is larger than the memory."""
    path = Path(options.data)
    large = path.suffix.lower() in KINDS and path.is_file()
    large = large and path.stat().st_size > host_memory()
    return replace(options, stream=True) if large else options


def _check_stream(options: Design) -> None:
    """Raise UsageError for a decision that rows from a stream do not go with."""
    if not is_streamed(options):
        if options.epoch_rows != Design.epoch_rows:
            raise UsageError("--epoch-rows is for rows that are streamed (--stream)")
        return
    optimizer = OPTIMIZERS[options.optimizer]
    refused = {
        f"--optimizer {options.optimizer}": optimizer.full_batch and "it needs all rows at once",
        "--batch-size full": options.batch_size == "full" and "not all rows are in memory",
        "--diagnostics": options.diagnostics and "they need rows spread over all",
        "--categorical": options.categorical and "it takes numbers as they are",
        "--weights": options.weights is not None and "it gives all rows the same weight",
        "--class-weight": options.class_weight != "none" and "it gives all rows the same weight",
    }
    for option, why in refused.items():
        if why:
            raise UsageError(f"{option}: got it for a stream of rows (--stream), and {why}")


def _check_optimizer(options: Design) -> None:
    """Raise UsageError for a decision that does not suit the optimiser, or dropout."""
    optimizer, rate = OPTIMIZERS[options.optimizer], options.learning_rate
    if options.dropout and not options.hidden:
        raise UsageError("--dropout leaves out hidden units, and there are none")
    if rate != "auto" and optimizer.rate is None:
        raise UsageError(f"--learning-rate: {options.optimizer} finds its own")
    if optimizer.full_batch and options.dropout:
        raise UsageError(f"--dropout: {options.optimizer} needs the same objective at every step")
    if optimizer.full_batch and options.batch_size not in {"auto", "full"}:
        raise UsageError(f"--batch-size: {options.optimizer} takes the full batch")
