"""Plan: all that is decided about a run before it starts, and the training by it.

``decide`` makes a plan of a command's options and the data at hand; ``initial`` draws the weights,
``fit_plan`` trains and ``health_after`` reports on the layers.  ``jaxbp train`` and ``jaxbp
diagnose`` share them.
"""

import math
import warnings
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from rich.console import Console

from jaxbp import activations, heads
from jaxbp.cli.options import (
    GRADIENTS,
    OPTIMIZERS,
    SCHEDULES,
    Design,
    UsageError,
    check_design,
    is_streamed,
)
from jaxbp.cli.score_tables import SHOWN
from jaxbp.cli.scores import with_outputs
from jaxbp.data.cells import Decimal
from jaxbp.data.errors import DataWarning
from jaxbp.data.loading import Dataset, Decisions, load
from jaxbp.data.preparation import Preparation
from jaxbp.data.sources import Task
from jaxbp.data.streaming import Epochs, Streamed, load_stream
from jaxbp.data.weights import class_weights
from jaxbp.diagnostics.health import sample
from jaxbp.diagnostics.report import LARGE_UPDATE, LayerReport, judge, unfelt_errors
from jaxbp.gradient import Batch
from jaxbp.memory import memory_shortage_named
from jaxbp.model import MLP, Params
from jaxbp.parallel import place_among
from jaxbp.targets import smooth_labels
from jaxbp.training.device import wait_for
from jaxbp.training.dropout import with_dropout
from jaxbp.training.epoch import initial_params, shapes_of
from jaxbp.training.fitting import fit
from jaxbp.training.metrics import metric_name
from jaxbp.training.records import History, NonFiniteLossError, OnEpoch
from jaxbp.training.saved import Saved

HEADER = {"auto": None, "yes": True, "no": False}  # whether there is one, by the option
DECIMAL: dict[str, Decimal | None] = {"auto": None, ".": ".", ",": ","}  # the sign, by the option
_MOST_COLUMNS = 20  # that are told of
SAMPLE = 512  # rows that a report is made on
_LARGEST_FOR_BFGS = 10_000  # parameters: their square, 400 MB, is what it keeps, and more than once


@dataclass(frozen=True)
class Plan:
    """A run as it will be: the options, and what they come to for the data at hand."""

    options: Design
    dataset: Dataset
    head: str  # its name
    model: MLP
    parameters: int  # how many weights and biases it has
    parts: dict[str, Batch]  # train, validation and test, with targets as the head takes them
    to_fit: Batch  # the training part, its labels smoothed
    stream: Epochs | None  # of all training rows, of which those parts are a sample, or None
    learning_rate: float | None  # at the start; None: the optimiser finds its own
    optimizer: optax.GradientTransformation
    batch_size: int | None  # None: all rows
    patience: int

    @property
    def decisions(self) -> Decisions:
        """How the data were read."""
        decisions = self.dataset.decisions
        assert decisions is not None
        return decisions

    @property
    def stratified(self) -> bool:
        """Whether every class keeps its proportion in the three parts."""
        preparation = self.dataset.preparation
        is_of_classes = preparation.labels is not None and not preparation.several_labels
        return self.options.stratify and is_of_classes and self.stream is None

    @property
    def rows(self) -> dict[str, int]:
        """How many rows each part has."""
        if self.stream is not None:
            return self.stream.source.rows
        return {part: len(batch.x) for part, batch in self.parts.items()}

    @property
    def epoch_rows(self) -> int:
        """How many rows an epoch has; of a stream, about."""
        return len(self.to_fit.x) if self.stream is None else self.stream.rows

    @property
    def steps(self) -> int:
        """How many steps an epoch has; of a stream, about."""
        return math.ceil(self.epoch_rows / (self.batch_size or self.epoch_rows))

    @property
    def network(self) -> str:
        """Sizes and activations, as in "64-128-10 relu"."""
        units = self.options.activation if self.options.hidden else ["linear"]
        return f"{'-'.join(map(str, self.model.sizes))} {' '.join(units)}"

    @property
    def precision(self) -> str | None:
        """The precision of float32 products, by JAX's name; None: the one that JAX is set to."""
        return None if self.options.precision == "auto" else self.options.precision

    @property
    def metric(self) -> str:
        """The metric's name: "accuracy" or "r2"."""
        return metric_name(self.model.head)

    @property
    def shown_metric(self) -> str:
        """The metric as an epoch shows it: of several independent outputs each one counts."""
        independent = self.model.head.target == "labels" and self.model.sizes[-1] > 1
        return f"{SHOWN[self.metric]} of outputs" if independent else SHOWN[self.metric]

    @property
    def title(self) -> str:
        """Data, network and optimiser, as a picture's heading."""
        return f"{self.options.data}: {self.network}, {self.options.optimizer}"


def decide(options: Design, mesh: Mesh | None = None) -> Plan:
    """Load the data, and fit network and optimiser to them.

    options: of the command.
    mesh: of the devices that train together; one device unless given.

    Raises UsageError and DataError.
    """
    check_design(options)
    task = _task(options)
    counts = options.head != "auto" and heads.BY_NAME[options.head].target == "counts"
    streamed = _streamed(options, task, mesh, counts=counts) if is_streamed(options) else None
    dataset = _in_memory(options, task, counts=counts) if streamed is None else streamed.dataset
    labels = dataset.preparation.labels
    if labels is None and options.label_smoothing > 0:
        raise UsageError("--label-smoothing is for classes, and the target is quantities")
    if options.class_weight != "none" and (labels is None or dataset.preparation.several_labels):
        raise UsageError("--class-weight is for one class a row, which the target has not")
    name = _head_name(options.head, dataset.preparation)
    head = heads.BY_NAME[name]
    parts = {
        part: with_outputs(head, labels, getattr(dataset, part))
        for part in ("train", "validation", "test")
    }
    if labels is not None and head.target == "classes":
        outputs = len(labels)
    else:
        outputs = parts["train"].target.shape[-1]
    classes = outputs if head.target == "classes" else None

    def smoothed(batch: Batch) -> Batch:
        if not options.label_smoothing:
            return batch
        return batch._replace(target=smooth_labels(batch.target, options.label_smoothing, classes))

    to_fit = smoothed(parts["train"])
    if options.class_weight != "none":
        weight = class_weights(dataset.train.target, example_weight=to_fit.weight)
        to_fit = to_fit._replace(weight=weight)

    units = tuple(activations.BY_NAME[unit] for unit in options.activation)
    model = MLP(
        sizes=(to_fit.x.shape[1], *options.hidden, outputs),
        activation=units[0] if len(units) == 1 else units,
        head=head,
        l2=options.l2,
    )
    batch_size: int | None = 32
    if options.batch_size == "full" or OPTIMIZERS[options.optimizer].full_batch:
        batch_size = None
    elif options.batch_size != "auto":
        batch_size = options.batch_size
    stream = None
    if streamed is not None:
        assert batch_size is not None

        def finish(batch: Batch) -> Batch:
            return smoothed(with_outputs(head, labels, batch))

        _check_shared(batch_size, mesh)
        stream = Epochs(streamed, batch_size, options.epoch_rows, finish, mesh)
    parameters = sum(o * (i + 1) for i, o in pairwise(model.sizes))
    patience = options.patience
    if patience == "auto":  # on diabetes it doubles R²; digits do better without
        patience = 10 if labels is None else 0
    rows = len(to_fit.x)
    steps = math.ceil(rows / (batch_size or rows)) if stream is None else len(stream)
    rate, optimizer = _optimizer(options, parameters, options.epochs * steps)
    return Plan(
        options=options,
        dataset=dataset,
        head=name,
        model=model,
        parameters=parameters,
        parts=parts,
        to_fit=to_fit,
        stream=stream,
        learning_rate=rate,
        optimizer=optimizer,
        batch_size=batch_size,
        patience=patience,
    )


def _in_memory(options: Design, task: Task | None, *, counts: bool) -> Dataset:
    """The data, with all their rows in memory; counts is whether the target is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # the facts tell
        return load(
            options.data,
            target=options.target,
            task=task,
            seed=options.seed,
            standardize_target=not counts,
            stratify=options.stratify,
            header=HEADER[options.header],
            counts=counts,
            drop=options.drop,
            categorical=options.categorical,
            missing=options.missing,
            weights=options.weights,
            encoding=options.encoding,
            decimal=DECIMAL[options.decimal],
        )


def _streamed(options: Design, task: Task | None, mesh: Mesh | None, *, counts: bool) -> Streamed:
    """The data, with their training rows on the disk, for a mesh; counts is whether the target is
    of counts."""
    return load_stream(
        options.data,
        target=options.target,
        task=task,
        seed=options.seed,
        standardize_target=not counts,
        drop=options.drop,
        mesh=mesh,
    )


def _check_shared(batch_size: int, mesh: Mesh | None) -> None:
    """Raise UsageError where a batch of a stream has fewer rows than there are processes."""
    _, processes = place_among(mesh)
    if batch_size < processes:
        raise UsageError(
            f"--batch-size: got {batch_size}, expected at least a row for each of {processes} "
            "processes"
        )


def tell_of_stream(plan: Plan, console: Console) -> None:
    """Print that the rows are streamed, where they are, and what an epoch is then."""
    if plan.stream is None:
        return
    kept, rows = len(plan.to_fit.x), plan.rows["train"]
    passes = plan.stream.passes
    much = "all of them" if passes == 1 else f"a pass over all takes {1 / passes:.4g} epochs"
    console.print(
        f"streamed: {rows:,} training rows are read from the disk, about {plan.epoch_rows:,} in an "
        f"epoch, {much}; scores of train are those of {kept:,} of them",
        soft_wrap=True,
    )


def tell_of_columns(plan: Plan, console: Console) -> None:
    """Print what became of each column that is not plainly numbers, before training."""
    columns = plan.decisions.columns
    for fact in columns[:_MOST_COLUMNS]:
        console.print(f"column {fact}", soft_wrap=True)
    if len(columns) > _MOST_COLUMNS:
        console.print(f"and {len(columns) - _MOST_COLUMNS} columns more: jaxbp describe shows them")


def _task(options: Design) -> Task | None:
    """The kind of target that the options ask for; None where they leave it to the data."""
    if options.head == "auto":
        return None if options.task == "auto" else options.task
    takes_values = heads.BY_NAME[options.head].target in {"values", "counts"}
    task: Task = "regression" if takes_values else "classification"
    if options.task not in {"auto", task}:
        raise UsageError(f"--head {options.head} is not for {options.task}")
    return task


def _head_name(asked: str, preparation: Preparation) -> str:
    """The name of the head that is asked for or, by "auto", that suits the target.

    Raises UsageError where it cannot mean the target.
    """
    labels = preparation.labels
    if asked == "auto":
        if labels is None:
            return "linear_squared_error"
        independent = len(labels) == 2 or preparation.several_labels
        return "sigmoid_logistic" if independent else "softmax_cross_entropy"
    if heads.BY_NAME[asked].target == "classes" and preparation.several_labels:
        raise UsageError(
            f"--head {asked} is for one class a row, and the target has {len(labels or ())} "
            "columns that are 0 or 1 on their own; sigmoid_logistic is for these"
        )
    return asked


def _optimizer(
    options: Design, parameters: int, steps: int
) -> tuple[float | None, optax.GradientTransformation]:
    """The learning rate that the optimiser starts from, if it has one, and the optimiser."""
    name, chosen = options.optimizer, OPTIMIZERS[options.optimizer]
    if name == "bfgs" and parameters > _LARGEST_FOR_BFGS:
        raise UsageError(
            f"--optimizer bfgs keeps a matrix of {parameters:,} × {parameters:,} numbers here; it "
            f"is for at most {_LARGEST_FOR_BFGS:,} parameters, and lbfgs for more"
        )
    rate = chosen.rate if options.learning_rate == "auto" else options.learning_rate
    try:
        if rate is None:
            return None, chosen.make()
        return rate, chosen.make(SCHEDULES[options.schedule](rate, steps))
    except ModuleNotFoundError as error:
        raise UsageError(f"--optimizer {name}: {error}") from None


@dataclass(frozen=True)
class Trained:
    """The end of a training, good or bad."""

    params: Params  # after the last epoch that was finite throughout
    history: History
    diverged: int | None  # the epoch in which something was no longer finite
    full_disk: OSError | None = None  # what ended it, if checkpoints could not be written


def initial(plan: Plan) -> Params:
    """Draw the weights and biases to start from.  Raises MemoryError where training has no room."""
    options = plan.options
    scheme = None if options.scheme == "auto" else options.scheme
    key = jax.random.key(options.seed)
    shapes = shapes_of(plan.model, np.float32)
    with memory_shortage_named(shapes, jax.eval_shape(plan.optimizer.init, shapes)):
        params = initial_params(key, plan.model, scheme=scheme, bias=options.bias)
        wait_for(params)
    return params


def fit_plan(
    plan: Plan,
    params: Params,
    on_epoch: OnEpoch,
    validation: Batch | None = None,
    *,
    checkpoints: tuple[Path, int | timedelta] | None = None,
    saved: Saved | None = None,
    mesh: Mesh | None = None,
) -> Trained:
    """Train by a plan.  It may diverge, or its checkpoints may meet a full disk.

    plan: all that was decided.
    params: to start from, unless something is saved.
    on_epoch, validation: as for ``fit``.
    checkpoints: a folder, and how often to write one there; none unless given.
    saved: what to go on with.
    mesh: of the devices that train together; one device unless given.
    """
    options, gradient = plan.options, GRADIENTS[plan.options.gradient]
    folder, every = checkpoints or (None, 1)
    try:
        params, history = fit(
            plan.model,
            plan.to_fit if plan.stream is None else plan.stream,
            optimizer=plan.optimizer,
            epochs=options.epochs,
            batch_size=plan.batch_size if plan.stream is None else ...,
            key=jax.random.key(options.seed),
            params=params if saved is None else None,
            resume=saved,
            checkpoint=folder,
            checkpoint_every=every,
            checkpoint_keep=2,
            validation=validation,
            gradient=with_dropout(options.dropout)(gradient) if options.dropout else gradient,
            compute_dtype=None if options.compute_dtype == "float32" else options.compute_dtype,
            precision=plan.precision,
            mesh=mesh,
            diagnostics=options.diagnostics,
            on_epoch=on_epoch,
        )
    except NonFiniteLossError as error:
        return Trained(error.params, error.history, error.epoch)
    except OSError as error:
        carried = vars(error)
        if "history" not in carried:  # before the first epoch has ended
            raise
        return Trained(carried["params"], carried["history"], None, error)
    return Trained(params, history, None)


def health_after(plan: Plan, params: Params, history: History, epoch: int) -> LayerReport:
    """Report on every layer after an epoch, from 1, with its params; the run had diagnostics."""
    health = jax.tree.map(lambda values: values[epoch - 1], history.health)
    rows = sample(plan.to_fit, SAMPLE)
    finds_its_step = plan.learning_rate is None  # which may then be of any size
    return judge(
        plan.model,
        health,
        unfelt=unfelt_errors(plan.model, params, rows),
        restless=math.inf if finds_its_step else LARGE_UPDATE,
    )
