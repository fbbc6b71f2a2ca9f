"""The options of ``jaxbp train``, and what they come to for the data at hand."""

import itertools
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import optax
import tyro
from tyro.conf import arg

from jaxbp import activations, heads
from jaxbp.data.loading import Dataset, load
from jaxbp.data.sources import DataError, Task
from jaxbp.diagnostics.report import LARGE_UPDATE
from jaxbp.gradient import Batch, autodiff, backprop
from jaxbp.heads import smooth_labels
from jaxbp.model import MLP
from jaxbp.precision import Gradient
from jaxbp.training import batch_methods

OptimizerName = Literal[
    "sgd",
    "momentum",
    "nesterov",
    "adam",
    "adamw",
    "gradient_descent",
    "nonlinear_cg",
    "bfgs",
    "lbfgs",
    "truncated_newton",
]
OPTIMIZERS: dict[OptimizerName, Callable[[Any], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": partial(optax.sgd, momentum=0.9),
    "nesterov": partial(optax.sgd, momentum=0.9, nesterov=True),
    "adam": optax.adam,
    "adamw": optax.adamw,
    "gradient_descent": optax.sgd,
    "nonlinear_cg": lambda rate: batch_methods.nonlinear_cg(),
    "bfgs": lambda rate: batch_methods.bfgs(),
    "lbfgs": optax.lbfgs,
    "truncated_newton": lambda rate: batch_methods.truncated_newton(),
}
FULL_BATCH = {"gradient_descent", "nonlinear_cg", "bfgs", "lbfgs", "truncated_newton"}
_LARGEST_FOR_BFGS = 10_000  # parameters: their square, 400 MB, is what it keeps, and more than once
LEARNING_RATES: dict[OptimizerName, float | None] = {
    "sgd": 0.1,
    "momentum": 0.02,
    "nesterov": 0.02,
    "adam": 0.002,
    "adamw": 0.002,
    "gradient_descent": 0.3,
    "nonlinear_cg": None,  # these find their own at each step
    "bfgs": None,
    "lbfgs": None,
    "truncated_newton": None,
}
ScheduleName = Literal["constant", "cosine", "linear"]
SCHEDULES: dict[ScheduleName, Callable[[float, int], Any]] = {
    "constant": lambda rate, steps: rate,
    "cosine": optax.cosine_decay_schedule,
    "linear": lambda rate, steps: optax.linear_schedule(rate, 0.0, steps),
}
GradientName = Literal["backprop", "autodiff"]
GRADIENTS: dict[GradientName, Gradient] = {"backprop": backprop, "autodiff": autodiff}


class OptionError(ValueError):
    """An option that does not fit the others, or the data."""


# Options that more than one command has

ActivationName = Annotated[
    str, arg(constructor=tyro.extras.literal_type_from_choices(list(activations.BY_NAME)))
]
HeadName = Annotated[
    str, arg(constructor=tyro.extras.literal_type_from_choices(list(heads.BY_NAME)))
]

DataName = Annotated[
    tyro.conf.Positional[str],
    arg(
        metavar="[DATA]",
        help="digits, breast_cancer, wine, iris, diabetes, or the path of a .csv or .npz file",
    ),
]
Target = Annotated[
    str | None,
    arg(
        metavar="COLUMN",
        help="what to learn: a CSV's column by name or position, or the name of an .npz array",
        help_behavior_hint="(default: the last column, or y)",
    ),
]
TaskName = Annotated[
    Literal["auto", "classification", "regression"],
    arg(
        help="what kind of target it is",
        help_behavior_hint="(default: auto, the head's; else classification for text and for "
        "at most 20 different integers)",
    ),
]
Hidden = Annotated[
    tuple[int, ...],
    arg(
        metavar="[SIZE ...]",
        help="hidden layers; none at all is linear, logistic or softmax regression",
    ),
]
Activations = Annotated[
    tuple[ActivationName, ...],
    arg(
        metavar=f"{{{','.join(activations.BY_NAME)}}} ...",
        help="of all hidden layers, or one each",
    ),
]
HeadChoice = Annotated[
    str,
    arg(
        constructor=tyro.extras.literal_type_from_choices(["auto", *heads.BY_NAME]),
        help="output unit and loss",
        help_behavior_hint="(default: auto, which is softmax_cross_entropy; sigmoid_logistic "
        "for two classes; linear_squared_error for regression)",
    ),
]
OptimizerChoice = Annotated[
    OptimizerName,
    arg(
        metavar="NAME",
        help="makes a step of the gradient: sgd, momentum, nesterov, adam, adamw; and on the "
        "full batch gradient_descent, nonlinear_cg, bfgs, lbfgs, truncated_newton",
    ),
]
LearningRate = Annotated[
    float | Literal["auto"],
    arg(
        metavar="RATE",
        help="step size at the start",
        help_behavior_hint="(default: auto, which is 0.1 for sgd, 0.02 for momentum and "
        "nesterov, 0.002 for adam and adamw, 0.3 for gradient_descent; the others find their "
        "own)",
    ),
]
BatchSize = Annotated[
    int | Literal["full", "auto"],
    arg(
        metavar="ROWS|full",
        help="rows a step",
        help_behavior_hint="(default: auto, which is 32, and full for batch methods)",
    ),
]
L2 = Annotated[float, arg(help="penalty: adds ½ · l2 · Σ‖W‖² to the objective")]
Seed = Annotated[int, arg(help="of the split, the initial weights and the rows' order")]


@dataclass(frozen=True)
class Train:
    """Train a multilayer perceptron by backpropagation, and keep it in a run folder.

    DATA comes first: jaxbp train wine --hidden 32 16 --epochs 100
    """

    data: DataName = "digits"
    target: Target = None
    task: TaskName = "auto"
    header: Annotated[
        Literal["auto", "yes", "no"],
        arg(
            help="whether a CSV's first row names its columns",
            help_behavior_hint="(default: auto, where there is no number in it)",
        ),
    ] = "auto"
    stratify: Annotated[
        bool, arg(help="keep the classes' proportions in the training, validation and test rows")
    ] = True
    hidden: Hidden = (512, 256)
    activation: Activations = ("relu",)
    head: HeadChoice = "auto"
    optimizer: OptimizerChoice = "adam"
    learning_rate: LearningRate = "auto"
    schedule: Annotated[ScheduleName, arg(help="how the learning rate falls over the run")] = (
        "cosine"
    )
    batch_size: BatchSize = "auto"
    epochs: Annotated[int, arg(metavar="N", help="passes over the training rows")] = 40
    l2: L2 = 1e-4
    label_smoothing: Annotated[
        float,
        arg(
            metavar="SHARE",
            help="of each class label, spread evenly over the classes, in training only",
        ),
    ] = 0.1
    patience: Annotated[
        int | Literal["auto"],
        arg(
            metavar="EPOCHS",
            help="stop after so many without a better validation loss, and keep the best; 0: never",
            help_behavior_hint="(default: auto, which is 10 for regression, 0 for classification)",
        ),
    ] = "auto"
    seed: Seed = 0
    gradient: Annotated[GradientName, arg(help="by hand, or by jax.grad")] = "backprop"
    compute_dtype: Annotated[
        Literal["float32", "bfloat16"],
        arg(help="of matrix products; weights, sums and updates are float32"),
    ] = "float32"
    diagnostics: Annotated[
        bool, arg(help="record the health of every layer after each epoch, and tell of sickness")
    ] = False
    output: Annotated[
        Path | None,
        arg(
            metavar="FOLDER",
            help="the run folder, new or empty",
            help_behavior_hint="(default: the next free runs/DATA-NUMBER)",
        ),
    ] = None


class Plan(NamedTuple):
    """What the options come to for the data at hand."""

    dataset: Dataset
    model: MLP
    head: str
    parts: dict[str, Batch]  # train, validation and test, with targets as the head takes them
    to_fit: Batch  # the training part, its labels smoothed
    optimizer: optax.GradientTransformation
    learning_rate: float | None
    batch_size: int | None
    patience: int


def make_plan(options: Train) -> Plan:
    """Load the data and fit the network to them.  Raises OptionError and DataError."""
    check_options(options)
    dataset = load(
        options.data,
        target=options.target,
        task=_task(options),
        seed=options.seed,
        standardize_target=options.head != "exp_poisson",
        stratify=options.stratify,
        header={"auto": None, "yes": True, "no": False}[options.header],
    )
    labels, columns = dataset.preparation.labels, dataset.train.target.shape[-1]
    head_name = _default_head(labels) if options.head == "auto" else options.head
    outputs = columns if labels is None else len(labels)
    if labels and len(labels) == 2 and head_name.startswith("sigmoid"):
        outputs = 1
    if head_name == "exp_poisson" and dataset.train.target.min() < 0:
        raise DataError(f"{dataset.name}: exp_poisson is for counts, and the target has negatives")
    parts = {
        name: getattr(dataset, name)._replace(
            target=encode_target(getattr(dataset, name).target, head_name, outputs)
        )
        for name in ("train", "validation", "test")
    }
    to_fit = parts["train"]
    if labels and options.label_smoothing:
        classes = outputs if head_name.startswith("softmax") else None
        smoothed = smooth_labels(to_fit.target, options.label_smoothing, classes)
        to_fit = to_fit._replace(target=smoothed)
    units = tuple(activations.BY_NAME[name] for name in options.activation)
    model = MLP(
        sizes=(dataset.train.x.shape[1], *options.hidden, outputs),
        activation=units[0] if len(units) == 1 else units,
        head=heads.BY_NAME[head_name],
        l2=options.l2,
    )
    rows = len(dataset.train.x)
    batch_size = _batch_size(options)
    steps = options.epochs * math.ceil(rows / (batch_size or rows))
    rate, optimizer = _optimizer(options, model, steps)
    patience = options.patience
    if patience == "auto":  # on diabetes it doubles R²; smoothed labels do better without
        patience = 0 if labels else 10
    return Plan(dataset, model, head_name, parts, to_fit, optimizer, rate, batch_size, patience)


def check_options(options: Train) -> None:
    """Raise OptionError for a value out of range, or for two that exclude each other."""
    at_least = {"epochs": 1, "l2": 0, "patience": 0, "seed": 0}
    for name, least in at_least.items():
        value = getattr(options, name)
        if value != "auto" and not least <= value < math.inf:
            raise OptionError(f"--{name}: got {value}, expected at least {least}")
    rate = options.learning_rate
    if rate != "auto" and not 0 < rate < math.inf:
        raise OptionError(f"--learning-rate: got {rate}, expected more than 0")
    if not 0 <= options.label_smoothing < 1:
        raise OptionError(
            f"--label-smoothing: got {options.label_smoothing}, expected at least 0, and below 1"
        )
    if isinstance(options.batch_size, int) and options.batch_size < 1:
        raise OptionError(f"--batch-size: got {options.batch_size}, expected at least 1, or full")
    if any(size < 1 for size in options.hidden):
        raise OptionError(f"--hidden: got {' '.join(map(str, options.hidden))}, expected sizes ≥ 1")
    if len(options.activation) not in {1, len(options.hidden) or 1}:
        raise OptionError(
            f"--activation: got {len(options.activation)}, expected one, or one for each of the "
            f"{len(options.hidden)} hidden layers"
        )
    name = options.optimizer
    if rate != "auto" and LEARNING_RATES[name] is None:
        raise OptionError(f"--learning-rate: {name} finds its own")
    if name in FULL_BATCH and options.batch_size not in {"auto", "full"}:
        raise OptionError(f"--batch-size: {name} takes the full batch")
    if options.output and not (options.output.is_dir() and not any(options.output.iterdir())):
        check_output(options.output)


def check_output(path: Path | None) -> None:
    """Raise OptionError where something would be overwritten."""
    if path and path.exists():
        raise OptionError(f"--output: {path} exists, and nothing is overwritten")


def restless(options: Any) -> float:
    """How large an update is no cause for concern: any, of an optimiser that finds its own step."""
    return math.inf if LEARNING_RATES[options.optimizer] is None else LARGE_UPDATE


def _task(options: Train) -> Task | None:
    """What the target is by the options, None where they leave it to the data."""
    if options.head == "auto":
        return None if options.task == "auto" else options.task
    of_head: Task = "classification" if heads.BY_NAME[options.head].decide else "regression"
    if options.task not in {"auto", of_head}:
        raise OptionError(f"--head {options.head} is not for {options.task}")
    return of_head


def encode_target(target: Any, head_name: str, outputs: int) -> Any:
    """Integer classes as the head takes them; a regression's target is left as it is."""
    if target.ndim > 1 or head_name.startswith("softmax"):
        return target
    classes = np.arange(outputs) if outputs > 1 else np.ones(1)
    return np.asarray(target[:, None] == classes, np.float32)


def _default_head(labels: tuple[str, ...] | None) -> str:
    if labels is None:
        return "linear_squared_error"
    return "sigmoid_logistic" if len(labels) == 2 else "softmax_cross_entropy"


def _batch_size(options: Train) -> int | None:
    if options.optimizer in FULL_BATCH or options.batch_size == "full":
        return None
    return 32 if options.batch_size == "auto" else options.batch_size


def _optimizer(
    options: Train, model: MLP, steps: int
) -> tuple[float | None, optax.GradientTransformation]:
    """The learning rate that it starts from, if it has one, and the optimiser."""
    name, chosen = options.optimizer, options.learning_rate
    parameters = sum(o * (i + 1) for i, o in pairwise(model.sizes))
    if name == "bfgs" and parameters > _LARGEST_FOR_BFGS:
        raise OptionError(
            f"--optimizer bfgs keeps a matrix of {parameters:,} × {parameters:,} numbers here; it "
            f"is for at most {_LARGEST_FOR_BFGS:,} parameters, and lbfgs for more"
        )
    rate = LEARNING_RATES[name] if chosen == "auto" else chosen
    try:
        return rate, OPTIMIZERS[name](rate and SCHEDULES[options.schedule](rate, steps))
    except ModuleNotFoundError as error:
        raise OptionError(f"--optimizer {name}: {error}") from None


def make_folder(options: Train) -> Path:
    """Make the run folder: what --output names, or the next free number; never one in use."""
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        return options.output
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    name = Path(options.data).stem
    for number in itertools.count(1):
        with suppress(FileExistsError):
            folder = runs / f"{name}-{number}"
            folder.mkdir()
            return folder
    raise AssertionError
