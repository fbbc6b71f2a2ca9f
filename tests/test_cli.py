"""The command, as a user types it."""

import csv
import gc
import io
import json
import os
import queue
import re
import shlex
import signal
import sys
import time
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pytest

for module in ("tyro", "rich", "matplotlib", "safetensors", "sklearn", "platformdirs"):
    pytest.importorskip(module)

import rich.console
import tyro

import jaxbp
from benchmarks.problems import random_params
from jaxbp import activations, cli, diagnostics, heads, memory
from jaxbp.cli import (
    app,
    check,
    compilation_cache,
    compile_time,
    diagnose,
    files,
    gradient_check,
    interrupts,
    options,
    pictures,
    plan,
    report,
    run_folder,
    train,
    watch,
)
from jaxbp.cli.compile_time import CompileTime

QUICK = ["--epochs", "2", "--hidden", "8"]
slow = pytest.mark.slow


def each(names, *quick):
    """All names on offer, of which the slow tests take those that are not quick."""
    return [pytest.param(name, marks=() if name in quick else slow) for name in names]


@pytest.fixture(autouse=True, scope="module")
def shared_programs():
    """The same options make the same optimiser here, so that equal runs compile one epoch."""
    with pytest.MonkeyPatch.context() as patch:
        for name, optimizer in options.OPTIMIZERS.items():
            shared = replace(optimizer, make=cache(optimizer.make))
            patch.setitem(options.OPTIMIZERS, name, shared)
        for name, schedule in options.SCHEDULES.items():
            patch.setitem(options.SCHEDULES, name, cache(schedule))
        yield


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Runs are written where the test is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.fixture(autouse=True)
def fewer_pictures(request, monkeypatch):
    """The pictures of the test rows take half a second a run: test_tables.py has them drawn, and
    test_runs.py those of the report."""
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(run_folder, "pictures_of_test", lambda *_: {})
        monkeypatch.setattr(report, "picture", lambda *_: "")


def run(*arguments):
    return cli.main(list(map(str, arguments)))


def refused(capsys, *arguments):
    """The one line that a refused command prints."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("jaxbp: ")
    assert captured.err.count("\n") == 1
    return captured.err


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize(
    ("seed", "epochs", "accuracy"),
    [(0, 1, 0.8), *(pytest.param(n, None, 0.97, marks=slow) for n in range(5))],
)
def test_digits_by_default(seed, epochs, accuracy, elsewhere):
    """The main job: at least 0.97 on digits nobody trained on, whatever the seed."""
    assert run("train", "--seed", seed, *(("--epochs", epochs) if epochs else ())) == 0
    summary = summary_of(elsewhere / "runs" / "digits-1")
    assert summary["test_accuracy"] >= accuracy
    assert summary["gradient_check"]["jax_grad"] < 1e-5
    assert summary["gradient_check"]["finite_differences"] < 1e-6


@pytest.mark.slow
def test_a_run_folder_holds_the_run(elsewhere, capsys):
    assert run("train", "iris", *QUICK, "--output", "here/it") == 0
    folder = elsewhere / "here" / "it"
    assert sorted(file.name for file in folder.iterdir()) == [
        "checkpoints",
        "confusion_matrix.png",
        "learning_curve.png",
        "metrics.jsonl",
        "model.safetensors",
        "options.json",
        "report.html",
        "summary.json",
    ]
    summary = summary_of(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert summary["validation_loss"] == pytest.approx(lines[-1]["validation_loss"])
    assert summary["seconds"] > 0
    rate = 2 * summary["rows"]["train"] / summary["training_seconds"]
    assert summary["samples_per_second"] == pytest.approx(rate, rel=0.01)
    assert summary["compile_seconds"] >= 0  # another test may have compiled it
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "gradient check: relative error" in out
    for fact in ("4-8-3 relu", f"{summary['test_loss']:.4f}"):
        assert fact in out
    assert re.search(rf"(?m)^parameters +{5 * 8 + 9 * 3} *$", out)


@pytest.mark.slow
def test_a_run_never_overwrites_another(elsewhere, capsys):
    for _ in range(2):
        assert run("train", "iris", *PLAIN, "--epochs", 1, "--hidden") == 0
    assert sorted(path.name for path in (elsewhere / "runs").iterdir()) == ["iris-1", "iris-2"]
    run_before = (elsewhere / "runs" / "iris-1").rglob("*")
    before = {path: path.read_bytes() for path in run_before if path.is_file()}
    message = refused(capsys, "train", "iris", *QUICK, "--output", "runs/iris-1")
    assert "--output: runs/iris-1 exists, and nothing is overwritten" in message
    assert {path: path.read_bytes() for path in before} == before


PLAIN = ["--optimizer", "sgd", "--batch-size", "full"]  # what compiles fastest


def planned(*arguments):
    """The plan that a command line comes to."""
    return plan.decide(tyro.cli(train.Train, args=list(map(str, arguments))))


def fitted(*arguments):
    """The plan that a command line comes to, and the history of training by it."""
    decided = planned(*arguments)
    return decided, jaxbp.fit(
        decided.model,
        decided.to_fit,
        optimizer=decided.optimizer,
        epochs=30,
        batch_size=decided.batch_size,
        key=jax.random.key(0),
        params=random_params(decided.model, 0, np.float32),  # init compiles longer than it runs
        validation=decided.parts["validation"],
    )[1]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", options.OPTIMIZERS)
def test_every_optimizer_learns(optimizer):
    """Better than always saying the commonest class, which is right in 0.4 of the rows."""
    _, history = fitted("wine", "--hidden", 32, "--epochs", 30, "--optimizer", optimizer)
    assert history.metric[-1] > 0.7


@pytest.mark.parametrize("head", each(heads.BY_NAME, "exp_poisson"))
def test_every_head_learns(head):
    data = "diabetes" if head.startswith(("linear", "exp")) else "breast_cancer"
    decided, history = fitted(data, *PLAIN, "--learning-rate", 1e-3, "--hidden", 8, "--head", head)
    assert decided.model.sizes[-1] == (2 if head.startswith("softmax") else 1)
    assert history.validation_loss[-1] < history.validation_loss[0]


@pytest.mark.parametrize("activation", each(activations.BY_NAME, "softplus"))
def test_every_activation_learns(activation):
    decided, history = fitted("iris", *PLAIN, "--hidden", 8, "--activation", activation)
    assert decided.model.activation is activations.BY_NAME[activation]
    assert history.training_loss[-1] < history.training_loss[0]


def test_independent_sigmoids_for_several_classes():
    smoothed = ("--label-smoothing", 0.1)
    decided, history = fitted(
        "wine", *PLAIN, "--head", "sigmoid_logistic", "--hidden", 16, *smoothed
    )
    assert decided.shown_metric == "accuracy of outputs"
    assert decided.parts["test"].target.sum(axis=1).tolist() == [1] * len(decided.parts["test"].x)
    np.testing.assert_allclose(sorted(set(decided.to_fit.target.ravel().tolist())), [0.05, 0.95])
    assert history.metric[-1] > 0.7


@pytest.mark.slow
def test_several_activations_and_the_other_options(elsewhere, capsys):
    options = ["--activation", "tanh", "elu", "--hidden", 8, 4, "--schedule", "linear"]
    options += ["--epochs", 2, "--gradient", "autodiff", "--compute-dtype", "bfloat16"]
    options += ["--precision", "highest", "--dropout", 0.1]
    assert run("train", "iris", *PLAIN, *options) == 0
    out = capsys.readouterr().out
    assert "4-8-4-3 tanh elu" in out
    assert "2 by sgd and autodiff, in bfloat16" in out
    summary = summary_of(elsewhere / "runs" / "iris-1")
    assert (summary["batch_size"], summary["precision"]) == (None, "highest")


def test_the_names_on_offer_are_the_tables_names():
    assert get_args(options.OptimizerName) == tuple(options.OPTIMIZERS)
    assert get_args(options.ScheduleName) == tuple(options.SCHEDULES)
    assert get_args(options.GradientName) == tuple(options.GRADIENTS)
    assert get_args(options.ActivationName) == tuple(activations.BY_NAME)
    assert get_args(options.HeadName) == tuple(heads.BY_NAME)


def test_the_help_tells_the_tables_names_and_rates(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        run("train", "--help")
    help_ = re.search(
        r"(?s)--optimizer NAME(.*)--learning-rate(.*)--schedule", capsys.readouterr().out
    )
    names, rates = help_.groups()
    for name, optimizer in options.OPTIMIZERS.items():
        assert re.search(rf"\b{name}\b", names)
        rate = re.search(rf"([\d.]+) for (?:\w+ and )?{name}\b", rates)
        assert optimizer.rate == (rate and float(rate[1]))


@pytest.mark.slow
def test_diagnostics_are_kept_with_the_metrics(elsewhere, capsys):
    assert run("train", "iris", *QUICK, "--diagnostics") == 0
    lines = (elsewhere / "runs" / "iris-1" / "metrics.jsonl").read_text().splitlines()
    layers = json.loads(lines[-1])["layers"]
    assert {len(values) for values in layers.values()} == {2}
    assert layers["update_to_weight"][0] > 0
    assert "healthy" in capsys.readouterr().out


LECUN = ["--scheme", "lecun"]


@pytest.mark.slow
def test_diagnose_tells_before_and_after_and_draws(elsewhere, capsys):
    assert run("diagnose", "iris", *PLAIN, "--hidden", 8, "--bias", -30, "--epochs", 2, *LECUN) == 0
    printed = capsys.readouterr().out
    assert "before training" in printed
    assert "after 2 epochs" in printed
    assert "layer 1: 100% of its units have zero slope on the whole batch" in printed
    assert "recommended: small positive biases" in printed
    assert "dead are the units whose slope is 0 on all rows" in " ".join(printed.split())
    assert (elsewhere / "diagnosis-1.png").stat().st_size > 10_000
    assert run("diagnose", "diabetes", "--hidden", "--learning-rate", 1e30) == 1
    printed = capsys.readouterr().out
    assert "diverged in epoch 1" in printed
    assert (elsewhere / "diagnosis-2.png").exists()
    for name, message in [
        ("diagnosis-2.png", "exists, and nothing is overwritten"),
        ("diagnosis-3", "expected a name in .png, .svg, .pdf"),
        ("nowhere/diagnosis.png", "--output: nowhere is not a directory"),
    ]:
        assert message in refused(capsys, "diagnose", "--output", name)
    assert "--bias: got nan" in refused(capsys, "diagnose", "--bias", "nan")


@slow
def test_diagnose_draws_the_lectures_figure(elsewhere, capsys, monkeypatch):
    few = partial(diagnostics.gradient_flow, (1, 2), width=8, rows=8)
    monkeypatch.setattr(diagnose, "gradient_flow", few)
    assert run("diagnose", "--lecture", "--output", "flow.png") == 0
    printed = capsys.readouterr().out
    assert "slopes of ¼ alone" in printed
    assert printed.count("sigmoid") == 3
    assert (elsewhere / "flow.png").stat().st_size > 10_000


def test_early_stopping_keeps_the_best_and_no_hidden_layer_will_do(elsewhere, capsys):
    assert run("train", "diabetes", "--hidden", "--epochs", 200, "--patience", 3) == 0
    summary = summary_of(elsewhere / "runs" / "diabetes-1")
    assert summary["network"] == [10, 1]
    lines = (elsewhere / "runs" / "diabetes-1" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["validation_loss"] for line in lines]
    assert summary["kept_epoch"] == int(np.argmin(losses)) + 1 == summary["epochs"] - 3
    assert summary["validation_loss"] == pytest.approx(min(losses), rel=1e-5)
    assert "stopped early" in capsys.readouterr().out


def test_divergence_says_what_to_try_and_keeps_what_was_good(elsewhere, capsys):
    options = ["--optimizer", "sgd", "--learning-rate", "1e6"]
    assert run("train", "diabetes", "--hidden", *options) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "diverged in epoch 1: the loss is no longer finite; kept the parameters after" in out
    assert "Try a smaller --learning-rate" in out
    _, params, _ = jaxbp.load(elsewhere / "runs" / "diabetes-1" / "model.safetensors")
    assert all(np.isfinite(layer.weight).all() for layer in params)


def test_a_wrong_gradient_is_not_trained_with(elsewhere, capsys, monkeypatch):
    def planted(model, params, batch):
        loss, (first, *rest) = jaxbp.backprop(model, params, batch)
        return loss, (first._replace(weight=first.weight * 1.01), *rest)

    monkeypatch.setattr(gradient_check, "backprop", planted)
    assert run("train", "wine", "--hidden") == 1  # no other run has, or will have, its programs
    assert "the hand-written gradient is not the gradient" in capsys.readouterr().out
    assert not (elsewhere / "runs").exists()


def test_control_c_ends_the_epoch_and_saves(elsewhere, python, sigint):
    options = [*PLAIN, "--epochs", 5000, "--hidden", "--output", "run"]  # an end if it is not heard
    training = python("-m", "jaxbp", "train", "iris", *options)
    metrics = elsewhere / "run" / "metrics.jsonl"
    training.until(lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
    training.process.send_signal(sigint)
    out, _ = training.ended(130)
    assert "ending after this epoch" in out
    assert "interrupted: training ended with epoch" in out
    summary = summary_of(elsewhere / "run")
    assert summary["epochs"] == summary["kept_epoch"] == len(metrics.read_text().splitlines())
    assert jaxbp.load(elsewhere / "run" / "model.safetensors").preparation is not None


@pytest.fixture
def press_before(monkeypatch):
    """Press Ctrl-C each time that ``jaxbp train`` comes to one of a module's functions."""
    monkeypatch.setattr(interrupts.os, "_exit", lambda status: pytest.fail("ended at once"))
    monkeypatch.setattr(interrupts, "_GRACE", 1e6)

    def press(name, number=signal.SIGINT, module=train):
        function = getattr(module, name)

        def interrupted(*arguments, **options):
            signal.raise_signal(number)
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, interrupted)

    return press


@pytest.mark.slow
def test_control_c_ends_a_diagnosis_with_its_epoch(elsewhere, press_before, capsys, sigint):
    press_before("fit_plan", module=diagnose)
    assert run("diagnose", "iris", *PLAIN, "--hidden", 8, "--epochs", 50) == 130
    assert "interrupted: training ended with epoch 1" in capsys.readouterr().out
    assert (elsewhere / "diagnosis-1.png").exists()


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_control_c_before_training_leaves_nothing(number, elsewhere, press_before, capsys, sigint):
    usual = signal.getsignal(number)
    press_before("checked_gradient", number)
    assert run("train", "iris", *QUICK) == 128 + number
    assert "interrupted; nothing was saved" in capsys.readouterr().err
    assert not list(elsewhere.iterdir())
    assert signal.getsignal(number) is usual


@pytest.mark.slow
def test_who_ends_the_command_gets_what_was_trained(elsewhere, press_before, capsys, sigint):
    """SIGTERM and SIGHUP, by Slurm, Docker or a closed terminal, and more than once."""
    for name in ("train", "fit_plan"):
        press_before(name, interrupts.SIGNALS[-1])
        press_before(name, interrupts.SIGNALS[-1])
    assert run("train", "iris", *QUICK, "--epochs", 50) == 128 + interrupts.SIGNALS[-1]
    assert "interrupted: training ended with epoch 1" in capsys.readouterr().out
    assert summary_of(elsewhere / "runs" / "iris-1")["epochs"] == 1
    assert (elsewhere / "runs" / "iris-1" / "model.safetensors").exists()


def test_control_c_while_saving_leaves_the_network(
    elsewhere, press_before, monkeypatch, capsys, sigint
):
    """And what is left out is made of the last checkpoint later."""
    press_before("save", module=run_folder)
    early = "--epochs", "30", "--patience", "1", "--learning-rate", "3"
    assert run("train", "iris", "--hidden", "8", *early, "--output", "run") == 130
    begun = {files.METRICS, files.OPTIONS, files.CHECKPOINTS}
    assert names_in(elsewhere / "run") == {*begun, files.NETWORK}
    out = capsys.readouterr().out
    assert "ending as soon as the network is saved (Ctrl-C again: at once)" in out
    assert "not all beside it: jaxbp train --resume run writes the rest" in out
    said = re.search("stopped early: .* are kept", " ".join(out.split()))[0]
    monkeypatch.setattr(run_folder, "save", jaxbp.save)
    assert run("train", "--resume", "run") == 0
    assert json.loads((elsewhere / "run" / files.SUMMARY).read_text())["ended"] == said
    assert names_in(elsewhere / "run") == {*files.RUN} - {*files.OF_TEST_ROWS}


def test_control_c_is_heard_while_the_main_thread_compiles(monkeypatch, capsys, sigint):
    """And so does not come to its check, nor to the end of the epoch."""
    ended = queue.Queue()
    monkeypatch.setattr(interrupts.os, "_exit", ended.put)
    monkeypatch.setattr(interrupts, "_GRACE", 0.0)
    console = rich.console.Console()
    with interrupts.Interrupts(console):
        signal.raise_signal(sigint)
        assert ended.get(timeout=600) == interrupts.INTERRUPTED
    with interrupts.Interrupts(console) as asked:
        asked.begin()
        signal.raise_signal(sigint)
    assert ended.empty()
    assert asked.asked
    with interrupts.Interrupts(console) as asked:
        asked.begin()
        signal.raise_signal(sigint)
        signal.raise_signal(sigint)
    assert ended.get_nowait() == interrupts.INTERRUPTED
    with pytest.raises(KeyboardInterrupt), interrupts.ending_in_time(console):
        signal.raise_signal(sigint)

    def interrupted_collection(*_):
        gc.callbacks.remove(interrupted_collection)
        signal.raise_signal(sigint)  # whose exception is lost in a callback, as in JAX's

    def collect():
        gc.callbacks.append(interrupted_collection)
        gc.collect()
        for _ in range(1000):
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt), interrupts.ending_in_time(console):
        collect()
    out, err = capsys.readouterr()
    assert "ending after this epoch (Ctrl-C again: at once, without saving)" in out
    assert "jaxbp: interrupted; nothing was saved" in err


def test_where_control_c_is_ignored_training_goes_on(elsewhere, press_before, capsys, sigint):
    """Who starts a command under nohup or in a script's background means it to be left alone."""
    signal.signal(sigint, signal.SIG_IGN)
    for name in ("checked_gradient", "train", "write_run"):
        press_before(name)
    assert run("train", "iris", *QUICK) == 0
    assert summary_of(elsewhere / "runs" / "iris-1")["epochs"] == 2
    assert "interrupted" not in capsys.readouterr().out
    assert signal.getsignal(sigint) is signal.SIG_IGN


def test_names_are_not_taken_for_markup_nor_move_the_cursor(elsewhere, capsys):
    assert run("train", "iris", *QUICK, "--output", "[bold]x[/red]\x1b[31m") == 0
    assert "saved in [bold]x[/red]\\x1b[31m\n" in capsys.readouterr().out
    assert "no\\x1b[31m: no such file" in refused(capsys, "predict", "no\x1b[31m", "iris")


def test_what_no_run_wrote_is_not_overwritten(tmp_path):
    """A folder whose files are called as a run's are, and a run with a file of the user's own."""
    for files_in, held in [
        (["summary.json", "report.html"], "report.html"),
        (["options.json", "checkpoints/mine.txt"], "checkpoints/mine.txt"),
        (["checkpoints/7/array"], "checkpoints"),
    ]:
        folder = tmp_path / held.replace("/", "-")
        for name in files_in:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("mine")
        with pytest.raises(options.UsageError, match=f"holds {held}, which is not of a run"):
            files.new_folder("--output", folder, overwrite=True)
    (folder / "options.json").write_text("{}")
    files.new_folder("--output", folder, overwrite=True)


@pytest.mark.slow
def test_small_relu_networks_on_two_classes():
    """All ReLUs are dead at first, each logit is 0, and jax.grad must be right there; a difference
    would see half the slope of the second layer's, which stand on their kink."""
    decided = planned("breast_cancer", *PLAIN, "--hidden", 2, 2)
    first, *others = plan.initial(decided)
    params = (first._replace(bias=first.bias - 30), *others)
    errors = gradient_check.cross_check(decided.model, params, decided.to_fit)
    assert max(errors.values()) < 1e-5


def test_what_does_not_fit_into_memory_is_told_before_the_work(elsewhere, capsys, monkeypatch):
    """The optimiser's state counts; a gradient too large to be checked is trained with."""
    decided = planned("iris", "--hidden", 8)
    monkeypatch.setattr(memory, "_memory", lambda: 12.0 * decided.parameters)
    for command in ("train", "diagnose"):
        few = ["iris", "--hidden", 8, "--optimizer", "adam"]
        assert run(command, *few) == 1
        assert "jaxbp: out of memory: the weights alone need" in capsys.readouterr().err
    params = random_params(decided.model, 0, np.float32)
    assert gradient_check.checked_gradient(decided, params, rich.console.Console()) == {}
    assert "gradient check: left out, as its copies in float64" in capsys.readouterr().out


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith(f"jaxbp {jaxbp.__version__}, jax ")


def test_predictions_are_the_networks(elsewhere, capsys):
    assert run("train", "iris", *QUICK) == 0
    capsys.readouterr()
    assert run("predict", "runs/iris-1", "iris") == 0
    lines = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(lines) == 150
    model, params, preparation = jaxbp.load("runs/iris-1/model.safetensors")
    x = jaxbp.data.transform(preparation, jaxbp.data.read_features("iris", preparation.features))
    expected = np.asarray(jaxbp.predict(model, params, x))
    found = [
        [np.float32(line[f"probability_{label}"]) for label in preparation.labels] for line in lines
    ]
    np.testing.assert_array_equal(found, expected)  # their text reads back as they are
    assert [line["label"] for line in lines] == [preparation.labels[i] for i in expected.argmax(1)]


def test_own_table_with_text_labels_from_training_to_prediction(elsewhere, capsys):
    rng = np.random.default_rng(0)
    rows = [
        (f"{x:.4f}", f"{y:.4f}", "above" if y > x else "below") for x, y in rng.normal(size=(90, 2))
    ]
    text = "x,y,where\n" + "".join(",".join(row) + "\n" for row in rows)
    (elsewhere / "points.csv").write_text(text)
    assert run("train", "points.csv", "--target", "where", "--hidden", *PLAIN) == 0
    (elsewhere / "new.csv").write_text("y,note,x\n2,far above,0\n-2,far below,0\n")
    capsys.readouterr()
    assert run("predict", "runs/points-1/model.safetensors", "new.csv") == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header == "label,probability_above,probability_below"
    assert [line.split(",")[0] for line in lines] == ["above", "below"]


def test_regression_predicts_in_the_targets_units(elsewhere):
    x = np.linspace(0, 10, 100)
    (elsewhere / "line.csv").write_text("x,y\n" + "".join(f"{v},{1000 + 50 * v}\n" for v in x))
    assert run("train", "line.csv", "--hidden", *PLAIN, "--epochs", 200) == 0
    (elsewhere / "new.csv").write_text("x\n4\n")
    assert run("predict", "runs/line-1", "new.csv", "--output", "out.csv") == 0
    header, value = (elsewhere / "out.csv").read_text().splitlines()
    assert header == "prediction"
    assert float(value) == pytest.approx(1200, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digit"], "digit: no such data; did you mean digits?"),
        (["wine", "--epochs", 0], "--epochs: got 0, expected at least 1"),
        (["wine", "--seed", 2**32], "--seed: got 4294967296, expected less than 2^32"),
        (["wine", "--learning-rate", -1], "--learning-rate: got -1.0, expected more than 0"),
        (["wine", "--learning-rate", "nan"], "--learning-rate: got nan, expected more than 0"),
        (["wine", "--l2", "inf"], "--l2: got inf, expected at least 0"),
        (["wine", "--target", "x"], "target: got 'x', but wine has its own target"),
        (
            ["wine", "--label-smoothing", 1],
            "--label-smoothing: got 1.0, expected at least 0, and below 1",
        ),
        (["diabetes", "--label-smoothing", 0.1], "--label-smoothing is for classes, and the targ"),
        (["diabetes", "--class-weight", "balanced"], "--class-weight is for one class a row"),
        (["wine", "--dropout", 1], "--dropout: got 1.0, expected at least 0, and below 1"),
        (["wine", "--dropout", 0.1, "--hidden"], "--dropout leaves out hidden units, and there"),
        (["wine", "--dropout", 0.1, "--optimizer", "lbfgs"], "--dropout: lbfgs needs the same"),
        (["wine", "--header", "no"], "--header is for a .csv, and not for wine"),
        (["wine", "--batch-size", 0], "--batch-size: got 0, expected at least 1, or full"),
        (["wine", "--hidden", 0], "--hidden: got 0, expected sizes ≥ 1"),
        (["wine", "--activation", "tanh", "elu", "relu"], "--activation: got 3, expected one, or"),
        (
            ["wine", "--optimizer", "lbfgs", "--learning-rate", 1],
            "--learning-rate: lbfgs finds its own",
        ),
        (["wine", "--optimizer", "lbfgs", "--batch-size", 8], "lbfgs takes the full batch"),
        (["wine", "--optimizer", "bfgs", "--batch-size", 8], "bfgs takes the full batch"),
        (["--optimizer", "bfgs"], "a matrix of 167,178 × 167,178 numbers here; it is for at most"),
        (
            ["wine", "--head", "exp_poisson", "--task", "classification"],
            "--head exp_poisson is not",
        ),
        (
            ["diabetes", "--head", "softmax_cross_entropy", "--task", "regression"],
            "is not for regr",
        ),
    ],
)
def test_training_options_that_do_not_fit(arguments, message, capsys, elsewhere):
    assert message in refused(capsys, "train", *arguments)
    assert not list(elsewhere.iterdir())


def test_what_predict_cannot_read(elsewhere, capsys):
    assert "gone: no such file" in refused(capsys, "predict", "gone", "iris")
    (elsewhere / "bad").write_text("not a network")
    assert "bad: not a complete safetensors file" in refused(capsys, "predict", "bad", "iris")
    assert run("train", "iris", *QUICK) == 0
    capsys.readouterr()
    assert "13 columns, expected the 4" in refused(capsys, "predict", "runs/iris-1", "wine")
    (elsewhere / "out.csv").write_text("mine")
    message = refused(capsys, "predict", "runs/iris-1", "iris", "--output", "out.csv")
    assert "--output: out.csv exists, and nothing is overwritten" in message
    message = refused(capsys, "predict", "runs/iris-1", "iris", "--output", "out.csv/out.csv")
    assert "--output: out.csv is not a directory" in message
    assert "iri: no such data; did you mean iris?" in refused(
        capsys, "predict", "runs/iris-1", "iri"
    )
    assert (elsewhere / "out.csv").read_text() == "mine"
    assert run("predict", "runs/iris-1", "iris", "--output", "new/folder/out.csv") == 0
    assert (elsewhere / "new" / "folder" / "out.csv").read_text().count("\n") == 151


def network(
    labels,
    weight,
    *,
    mean=0.0,
    scale=1.0,
    path="model.safetensors",
    head=None,
    outputs=1,
    targets=None,
):
    """Save a network of one input without hidden layers, and without training."""
    head = head or (heads.linear_squared_error if labels is None else heads.sigmoid_logistic)
    model = jaxbp.MLP((1, outputs), activations.identity, head)
    bias = np.zeros(outputs, np.float32)
    params = (jaxbp.Layer(np.full((outputs, 1), weight, np.float32), bias),)
    preparation = jaxbp.data.Preparation(
        features=("x",),
        mean=np.zeros(1),
        scale=np.ones(1),
        labels=labels,
        target_mean=np.full(outputs, mean),
        target_scale=np.full(outputs, scale),
        targets=targets,
    )
    jaxbp.save(path, model, params, preparation)


def predicted(capsys, x):
    (Path("x.csv")).write_text("x\n" + "".join(f"{value}\n" for value in x))
    capsys.readouterr()
    assert run("predict", "model.safetensors", "x.csv") == 0
    return [line.split(",") for line in capsys.readouterr().out.splitlines()[1:]]


def test_numbers_keep_their_digits(elsewhere, capsys):
    network(None, 1.0, mean=1e6, scale=1e5)
    assert predicted(capsys, [0.001, 0.0015]) == [["1000100.0"], ["1000150.0"]]
    network(None, 1.0, mean=1.7e9, scale=100.0, path="dates.safetensors")
    os.replace("dates.safetensors", "model.safetensors")
    (tenth,) = predicted(capsys, [0.1])  # seconds since 1970: multiples of 128 in float32
    assert float(tenth[0]) == pytest.approx(1.7e9 + 10, abs=1e-3)
    os.remove("model.safetensors")
    network(("no", "yes"), 1.0)
    for x, label in ((20, "yes"), (-20, "no")):
        ((found, *shares),) = predicted(capsys, [x])
        assert found == label
        assert sorted(map(float, shares))[0] == pytest.approx(2.0611537e-09, rel=1e-6)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_predictions_are_utf_8_whatever_the_terminal(encoding, elsewhere, monkeypatch):
    network(("是", "否"), 1.0)
    (elsewhere / "x.csv").write_text("x\n2\n")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        assert run("predict", "model.safetensors", "x.csv") == 0
    printed = terminal.buffer.getvalue().decode()
    assert printed.startswith("label,probability_是,probability_否\n否,")
    monkeypatch.setattr(files, "open", pytest.fail, raising=False)
    assert run("predict", "model.safetensors", "x.csv", "--output", "out.csv") == 0
    assert (elsewhere / "out.csv").read_bytes().decode() == printed


def test_a_file_that_could_not_be_written_is_not_left_behind(elsewhere):
    with pytest.raises(TypeError), files.written(elsewhere / "new" / "out.csv") as file:
        file.writelines(["before", None])
    assert not list((elsewhere / "new").iterdir())
    with files.written(elsewhere / "new" / "out.csv") as file:
        file.write("one\n")
    with pytest.raises(FileExistsError), files.written(elsewhere / "new" / "out.csv"):
        pytest.fail("was opened")
    assert (elsewhere / "new" / "out.csv").read_text() == "one\n"
    name = os.fsdecode(b"caf\xe9.csv")  # on a disk that was written by another system
    with files.written(elsewhere / "summary.json") as file:
        file.write(json.dumps({"data": name}, ensure_ascii=False))
    assert json.loads((elsewhere / "summary.json").read_text(encoding="utf-8")) == {"data": name}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that even root cannot fill")
def test_what_cannot_be_written_is_refused_before_the_work(elsewhere, capsys, monkeypatch):
    (elsewhere / "file").write_text("mine")
    long = 300 * "a"
    for command, option, output, named in [
        (["train", "gone.csv"], "--output", "file", "file exists, and nothing is overwritten"),
        (["train", "gone.csv"], "--output", "file/run", "file is not a directory"),
        (["train", "gone.csv"], "--output", "/proc/new/run", "/proc/new cannot be written ("),
        (["train", "gone.csv"], "--output", f"new/{long}", f"{long} cannot be written (File na"),
        (["predict", "gone", "gone.csv"], "--output", "/proc/a/b.csv", "/proc/a cannot be writ"),
        (["predict", "gone", "gone.csv"], "--output", "/proc/b.csv", "/proc/b.csv cannot be writ"),
        (["diagnose", "gone.csv"], "--output", "/proc/a.png", "/proc/a.png cannot be written ("),
        (["check", "gone.py:f"], "--output", "/proc/a.json", "/proc/a.json cannot be written ("),
        (["check", "gone.py:f"], "--plot", "/proc/a.png", "/proc/a.png cannot be written ("),
        (["explain", "x"], "--html", "/proc/a.html", "/proc/a.html cannot be written ("),
        (["runs", "gone"], "--html", "/proc/a.html", "/proc/a.html cannot be written ("),
    ]:
        message = refused(capsys, *command, option, output)
        assert message.startswith(f"jaxbp: {option}: ")
        assert named in message
    assert [path.name for path in elsewhere.iterdir()] == ["file"]  # what was tried is removed
    monkeypatch.chdir("/proc")
    assert "--output: runs cannot be written (" in refused(capsys, "train", "gone.csv")
    assert "--output: diagnosis-1.png cannot be wr" in refused(capsys, "diagnose", "gone.csv")


def test_a_dead_runs_folder_can_be_overwritten_and_no_other(elsewhere, capsys):
    folder = elsewhere / "run"
    folder.mkdir()
    for name in ("options.json", "metrics.jsonl"):  # all that a killed run leaves
        (folder / name).write_text("{}\n")
    message = refused(capsys, "train", "iris", *QUICK, "--output", "run")
    assert "run exists, and nothing is overwritten; --overwrite replaces the run in it" in message
    (folder / "mine.txt").write_text("mine")
    message = refused(capsys, "train", "iris", *QUICK, "--output", "run", "--overwrite")
    assert "run holds mine.txt, which is not of a run, and is not overwritten" in message
    assert "--overwrite: name the folder" in refused(capsys, "train", "iris", "--overwrite")
    (folder / "mine.txt").unlink()
    assert run("train", "iris", *QUICK, "--output", "run", "--overwrite") == 0
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert names_in(folder) == {*files.RUN} - {*files.OF_TEST_ROWS}


def test_a_title_has_no_boxes_and_no_formulas(elsewhere, monkeypatch):
    monkeypatch.setattr(pictures, "_fonts", lambda: ("DejaVu Sans",))
    assert pictures._drawable("数据/a b é∂ᴕ.csv: 4-8") == "??/a b é∂?.csv: 4-8"
    monkeypatch.setattr(pictures, "_fonts", lambda: ("DejaVu Sans", "DejaVu Serif"))
    assert pictures._drawable("数据/a b é∂ᴕ.csv: 4-8") == "??/a b é∂ᴕ.csv: 4-8"
    assert pictures._drawable_names(["数据", "a$"], 8) == ["1: ??", r"2: a\$"]
    assert pictures._drawable_names(["a$", "b" * 9], 8) == [r"a\$", "bbbbb..."]
    history = jaxbp.History(np.ones(2), np.ones(2), np.ones(2))
    title = r"数据/ᴕ$\no formula$.csv"
    figure = pictures.learning_curve(history, metric="accuracy", title=title)
    pictures.write(figure, "curve.png")


@pytest.mark.slow
def test_what_was_decided_stands_in_the_facts_and_in_the_record(elsewhere, capsys, monkeypatch):
    """A table as pandas writes it, of few rows of one class, whose labels have leading zeros."""
    rng = np.random.default_rng(0)
    lines = [
        f"{i},{a:.3f},{b:.3f},{'007' if i % 5 else '7'}"
        for i, (a, b) in enumerate(rng.normal(size=(60, 2)))
    ]
    (elsewhere / "codes.csv").write_text(",0,1,2\n" + "\n".join(lines) + "\n")
    options = ["--label-smoothing", 0.1, "--no-stratify", "--output", "a run", *PLAIN]
    options += ["--class-weight", "balanced"]
    assert run("train", "codes.csv", "--hidden", "--epochs", 2, *options) == 0
    out = " ".join(capsys.readouterr().out.split())
    for fact in (
        "codes.csv, 60 rows below a header",
        "not stratified), 2 classes",
        "target '2'",
        "note row 1 ('', '0', '1', '2') was read as the names of the columns; header=False",
        "note the first column has no name and counts the rows: it is left out",
        "sigmoid_logistic, labels smoothed by 0.1, classes balanced",
        "balanced accuracy macro F1 log loss",
        "test, always '007'",
    ):
        assert fact in out
    summary = summary_of(elsewhere / "a run")
    assert (summary["task"], summary["target"], summary["header"]) == ("classification", "2", True)
    assert (summary["features"], summary["dropped"]) == (["0", "1"], [""])
    assert (summary["classes"], summary["stratify"]) == (["007", "7"], False)
    assert summary["versions"]["jaxbp"] == jaxbp.__version__
    found = summary["test_accuracy"], summary["baselines"]["test, always '007'"]["accuracy"]
    assert all(0 <= share <= 1 for share in found)
    assert summary["baselines"]["test, always '007'"]["balanced_accuracy"] == 0.5
    words = shlex.split(summary["command"])
    assert words[:3] == ["jaxbp", "train", "codes.csv"]
    again = tyro.cli(train.Train, args=words[2:])
    assert json.loads(json.dumps(asdict(again), default=str)) == summary["options"]

    assert run("predict", "a run", "codes.csv", "--output", "out.csv") == 0
    told = capsys.readouterr().err
    assert "labels smoothed by 0.1" in told
    assert "classes that are equally frequent" in told
    assert run("export", "a run", "--to", "numpy", "--output", "codes.py") == 0
    assert "classes that are equally frequent" in capsys.readouterr().out
    assert run("evaluate", "a run", "codes.csv", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    labels = [line.split(",")[0] for line in (elsewhere / "out.csv").read_text().splitlines()[1:]]
    right = [label == line.rsplit(",", 1)[1] for label, line in zip(labels, lines, strict=True)]
    assert record["accuracy"] == pytest.approx(np.mean(right))
    assert record["rows"] == 60
    assert run("evaluate", "a run", "codes.csv") == 0
    assert f"{record['balanced_accuracy']:.4f}" in capsys.readouterr().out
    assert "no column '9'" in refused(capsys, "evaluate", "a run", "codes.csv", "--target", "9")


def test_quantities_have_the_names_of_their_columns(elsewhere, capsys):
    network(None, 1.0, outputs=2, targets=("width", "height"))
    (elsewhere / "x.csv").write_text("x\n1\n2\n")
    assert run("predict", ".", "x.csv") == 0
    assert capsys.readouterr().out.startswith("prediction_width,prediction_height\n")


def test_probabilities_of_a_class_against_the_others_are_told_of(elsewhere, capsys):
    (elsewhere / "x.csv").write_text("x\n1\n2\n")
    for outputs, labels in ((3, "abc"), (1, "ab")):
        network(tuple(labels), 1.0, outputs=outputs, path=f"{outputs}.safetensors")
        model, params, preparation = jaxbp.load(f"{outputs}.safetensors")
        preparation = preparation._replace(target_mean=np.zeros(1), target_scale=np.ones(1))
        jaxbp.save(f"{outputs}.safetensors", model, params, preparation, overwrite=True)
        assert run("predict", f"{outputs}.safetensors", "x.csv") == 0
        told = "of a class against all others, and need not sum to 1" in capsys.readouterr().err
        assert told == (outputs == 3)


def test_scores_are_those_of_the_definitions(elsewhere, capsys):
    network(("no", "yes"), 1.0)
    x, target = [-3.0, -2, -1, 1, 2, 3], ["no", "no", "yes", "no", "yes", "no"]
    text = "x,y\n" + "".join(f"{a},{b}\n" for a, b in zip(x, target, strict=True))
    (elsewhere / "some.csv").write_text(text)
    assert run("evaluate", ".", "some.csv", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    yes = 1 / (1 + np.exp(-np.array(x)))
    right = np.where(np.array(target) == "yes", yes, 1 - yes)
    assert record["accuracy"] == pytest.approx(3 / 6)
    assert record["balanced_accuracy"] == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert record["macro_f1"] == pytest.approx((2 * 2 / (2 * 2 + 1 + 2) + 2 / (2 + 2 + 1)) / 2)
    assert record["log_loss"] == pytest.approx(-np.log(right).mean(), rel=1e-6)
    pairs = [
        a > b
        for a, yes in zip(x, target, strict=True)
        for b, no in zip(x, target, strict=True)
        if (yes, no) == ("yes", "no")
    ]
    assert record["auc"] == pytest.approx(np.mean(pairs))
    assert (record["classes"], record["confusion"]) == (["no", "yes"], [[2, 2], [1, 1]])
    model, (layer,), preparation = jaxbp.load("model.safetensors")
    layer = jaxbp.Layer(np.tile(layer.weight, (3, 1)), np.tile(layer.bias, 3))
    preparation = preparation._replace(labels=("a", "b", "c"))
    model = model._replace(sizes=(1, 3))
    jaxbp.save("model.safetensors", model, (layer,), preparation, overwrite=True)
    (elsewhere / "some.csv").write_text("x,y\n-1,a\n-1,b\n-1,c\n")
    assert run("evaluate", ".", "some.csv", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == pytest.approx(1 / 3)  # of rows; of outputs it is 2 / 3
    os.remove("model.safetensors")
    network(None, 1.0, mean=10.0, scale=2.0)
    (elsewhere / "some.csv").write_text("x,y\n0,10\n1,12\n2,20\n")
    assert run("evaluate", ".", "some.csv", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["mae"] == pytest.approx(2)
    assert record["rmse"] == pytest.approx(np.sqrt(12))
    assert record["r2"] == pytest.approx(1 - 36 / 56)
    assert run("evaluate", ".", "some.csv") == 0
    assert "3 rows, always their mean" in capsys.readouterr().out
    os.remove("model.safetensors")
    network(None, 1.0, mean=10.0, scale=2.0, outputs=2)
    np.savez("two.npz", x=[[0.0], [1], [2]], y=[[10, 10], [12, 9], [20, 14]])
    assert run("evaluate", ".", "two.npz", "--json") == 0
    found = json.loads(capsys.readouterr().out)["outputs"]
    assert [each["mae"] for each in found.values()] == pytest.approx([2, 1])
    assert [each["rmse"] for each in found.values()] == pytest.approx([np.sqrt(12), np.sqrt(3)])
    assert run("evaluate", ".", "two.npz") == 0
    assert "prediction_1" in capsys.readouterr().out
    for labels, text in ((None, "x,y\n0,10\n1,12\n"), (("no", "yes"), "x,y\n0,no\n1,yes\n")):
        os.remove("model.safetensors")
        network(labels, np.nan, mean=10.0)  # diverged
        (elsewhere / "some.csv").write_text(text)
        assert run("evaluate", ".", "some.csv", "--json") == 0
        record = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
        assert record["rmse" if labels is None else "log_loss"] is None


def test_several_labels_of_a_row_from_the_plan_to_the_scores(elsewhere, capsys):
    rows = [(-3, 0, 0), (-1, 0, 1), (1, 1, 0), (2, 1, 1), (3, 0, 1)]
    text = "x,a,b\n" + "".join(f"{x},{a},{b}\n" for x, a, b in rows * 8)
    (elsewhere / "labels.csv").write_text(text)
    decided = planned("labels.csv", "--target", "a,b", "--label-smoothing", 0.2)
    assert (decided.head, decided.model.sizes[-1]) == ("sigmoid_logistic", 2)
    assert not decided.stratified
    assert sorted({*decided.to_fit.target.ravel().tolist()}) == pytest.approx([0.1, 0.9])
    message = refused(
        capsys, "train", "labels.csv", "--target", "a,b", "--head", "softmax_cross_entropy"
    )
    assert "the target has 2 columns that are 0 or 1 on their own" in message
    network(("a", "b"), 1.0, outputs=2)
    assert run("evaluate", ".", "labels.csv", "--target", "a,b", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["classes"] == ["a", "b"]
    assert record["accuracy"] == pytest.approx((4 / 5 + 3 / 5) / 2)
    f1 = record["outputs"]["a"]["f1"], record["outputs"]["b"]["f1"]
    assert f1 == pytest.approx((2 * 2 / (2 * 2 + 1), 2 * 2 / (2 * 2 + 2)))
    assert record["macro_f1"] == pytest.approx(np.mean(f1))
    assert record["outputs"]["a"]["auc"] == pytest.approx(4 / 6)
    assert run("evaluate", ".", "labels.csv", "--target", "a,b") == 0
    assert "40 rows, always their commonest" in capsys.readouterr().out
    assert [line[0] for line in predicted(capsys, [-1, 1])] == ["", "a;b"]


def test_a_regression_stands_beside_the_mean_and_a_linear_model(elsewhere, capsys):
    assert run("train", "diabetes", "--hidden", *PLAIN, "--epochs", 2) == 0
    out = capsys.readouterr().out
    for shown in ("mean absolute error", "always the mean", "linear regression"):
        assert shown in out
    summary = summary_of(elsewhere / "runs" / "diabetes-1")
    linear = summary["baselines"]["test, linear regression"]
    mean = summary["baselines"]["test, always the mean"]
    assert linear["r2"] == pytest.approx(0.345, abs=0.001)  # scikit-learn's, of the same split
    assert mean["r2"] < 0.01
    assert linear["rmse"] < mean["rmse"] < 80
    assert 0 < summary["test_mae"] < summary["test_rmse"]


def test_without_a_terminal_there_are_lines(elsewhere, capsys, monkeypatch):
    monkeypatch.setattr(watch, "_BETWEEN_LINES", 0.0)
    assert run("train", "iris", *QUICK) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert re.fullmatch(r"epoch 1/2: loss [\d.]+, validation accuracy [\d.]+, after .* s", lines[0])
    assert lines[1].startswith("epoch 2/2: loss ")
    assert len(lines) == 2


def test_compiling_is_timed_apart_and_told_of_while_it_goes_on(monkeypatch):
    """A function that is traced within another is a part of its time, and not counted twice."""
    told, prefix = [], "/jax/core/compile/"
    steps = [
        (1.0, "jaxpr_trace_duration", 0.5),
        (1.6, "jaxpr_trace_duration", 0.5),
        (1.8, "jaxpr_trace_duration", 1.5),
        (2.4, "backend_compile_duration", 0.5),
    ]
    with CompileTime(told.append) as compiling:
        for now, event, seconds in steps:
            monkeypatch.setattr(compile_time, "perf_counter", lambda now=now: now)
            jax.monitoring.record_event_duration_secs(f"{prefix}{event}", seconds)
        jax.monitoring.record_event_duration_secs("/jax/checkpoint/write", 0.5)
    jax.monitoring.record_event_duration_secs(f"{prefix}backend_compile_duration", 0.5)
    assert (compiling.seconds, told) == (2.0, [True, True, True, False])


def test_scores_and_progress_are_readable_in_few_columns(elsewhere, capsys, monkeypatch):
    network(("no", "yes"), 1.0)
    (elsewhere / "some.csv").write_text("x,y\n-1,no\n1,no\n2,no\n3,yes\n")
    for width in (40, 60, 80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        assert run("evaluate", ".", "some.csv") == 0
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= width
        assert all(shown in out for shown in ("balanced accuracy", "log loss", "always 'no'"))
        assert len(re.findall(r"\d\.\d{4}", out)) == 11
        assert "…" not in out


@pytest.mark.slow
def test_the_training_loss_is_measured_as_the_validation_loss_is(elsewhere):
    assert run("train", "iris", *QUICK, "--label-smoothing", 0.2) == 0
    folder = elsewhere / "runs" / "iris-1"
    record = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    model, params, _ = jaxbp.load(folder / "model.safetensors")
    rows = diagnostics.health.sample(jaxbp.data.load("iris").train, 23)
    loss, accuracy = jaxbp.evaluate(model, params, rows)
    assert record["training_loss"] == pytest.approx(loss, rel=1e-5)
    assert record["training_accuracy"] == pytest.approx(accuracy)


def test_a_target_that_is_no_count_is_named_with_its_row_in_the_file(elsewhere, capsys):
    body = "".join(f"{i},{i % 5 if i != 30 else -1}\n" for i in range(60))
    (elsewhere / "counts.csv").write_text("x,n\n" + body)
    expected = "counts.csv, row 32: the target is -1, expected a count of at least 0"
    for seed in (0, 7):  # it is in another part of the split
        arguments = ["train", "counts.csv", "--head", "exp_poisson", "--seed", seed]
        assert expected in refused(capsys, *arguments)
    network(None, 1.0, head=heads.exp_poisson)
    assert expected in refused(capsys, "evaluate", ".", "counts.csv")
    network(None, 1.0, scale=1e-3, path="narrow.safetensors")
    (elsewhere / "counts.csv").write_text("x,n\n1,0\n\n2,1e37\n")
    said = refused(capsys, "evaluate", "narrow.safetensors", "counts.csv")
    assert "counts.csv, row 4: the target is 1e+37, expected a number near those train" in said


CACHE_SETTINGS = {
    "jax_compilation_cache_dir": None,
    "jax_compilation_cache_max_size": -1,
    "jax_persistent_cache_min_compile_time_secs": 1.0,
}


def cache_settings():
    return {name: getattr(jax.config, name) for name in CACHE_SETTINGS}


@pytest.fixture
def user_cache(elsewhere, monkeypatch):
    """The cache folder of a user who has set none of JAX's variables; JAX finds all as it was."""
    usual = cache_settings()
    for name, default in CACHE_SETTINGS.items():
        monkeypatch.delenv(name.upper(), raising=False)
        jax.config.update(name, default)
    monkeypatch.setattr(compilation_cache.platformdirs, "user_cache_path", lambda *_, **__: folder)
    folder = elsewhere / "cache"
    yield folder
    for name, value in usual.items():
        jax.config.update(name, value)


def test_compiled_programs_go_to_the_users_cache(user_cache, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        run("--help")
    assert str(user_cache) in capsys.readouterr().out.replace("\n", "")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "-1")
    compilation_cache.keep_compiled_programs()
    folder, limit, least = cache_settings().values()
    assert user_cache in Path(folder).parents
    assert Path(folder).is_dir()
    assert (limit, least) == (-1, 0.1)
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_MAX_SIZE")
    compilation_cache.keep_compiled_programs()
    assert cache_settings()["jax_compilation_cache_max_size"] == compilation_cache.LIMIT


def test_no_programs_are_kept_where_that_cannot_or_must_not_be(user_cache, capsys):
    user_cache.write_text("a file where a folder belongs")
    compilation_cache.keep_compiled_programs()
    assert cache_settings() == CACHE_SETTINGS
    user_cache.unlink()
    for name, value, usual in [
        ("jax_enable_compilation_cache", False, True),
        ("jax_compilation_cache_dir", "mine", None),
    ]:
        jax.config.update(name, value)
        before = cache_settings()
        compilation_cache.keep_compiled_programs()
        assert cache_settings() == before
        jax.config.update(name, usual)
    assert not user_cache.exists()


@slow
@pytest.mark.skipif(sys.platform != "linux", reason="the user's cache has this variable on Linux")
def test_a_second_run_finds_the_first_ones_programs_or_does_without(python, monkeypatch, elsewhere):
    for name in CACHE_SETTINGS:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(elsewhere))
    command = ("-m", "jaxbp", "explain", "x*y", "x=2", "y=3")
    first = python(*command).ended()
    (folder,) = (elsewhere / "jaxbp").iterdir()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*-cache")}
    assert kept
    assert python(*command).ended() == first
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*-cache")} == kept
    for path in kept:
        path.write_bytes(b"not a program")
    assert python(*command).ended() == first


def test_a_wrong_option_is_answered_with_the_right_ones(capsys):
    with pytest.raises(SystemExit) as exit:
        run("train", "--optimizer", "adm")
    assert exit.value.code == 2
    assert "adamw" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("train", "--epoch", "3")
    assert "--epochs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            ["train", "--hidden", 8, "T.csv"],
            [
                "DATA comes first, before the options: jaxbp train T.csv ...",
                "see jaxbp train --help",
            ],
        ),
        (["diagnose", "--hidden", 8, "wine"], ["DATA comes first, before the options: jaxbp diag"]),
        (
            ["predict", "--output", "a.csv", "--quiet", "runs", "x.csv"],
            ["RUN and DATA come first", "run jaxbp predict --help"],
        ),
        (["train", "T.csv", "--hidden", "64,32"], ["several have blanks between them"]),
        (["train", "T.csv", "--hidden", "3.5"], ["numbers of rows, epochs and units are whole"]),
        (["train", "T.csv", "--batch-size", "1e3"], ["are whole, as in 1000"]),
        (["train", "T.csv", "--hiden", 3], ["--hidden", "run jaxbp train --help"]),
        (["evalute", "x"], ["evalute: no such command; did you mean evaluate? (there are train"]),
    ],
)
def test_a_mistake_is_answered_with_the_right_commands_help(arguments, messages, capsys):
    with pytest.raises(SystemExit) as exit:
        run(*arguments)
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert all(message in said for message in messages)
    assert "64 64 64 64" not in said or arguments[0] == "diagnose"


def test_diagnose_reads_a_table_as_train_does(elsewhere):
    text = "".join(f"{i},{i % 7},{'c' if i == 9 else 'ab'[i % 2]}\n" for i in range(40))
    (elsewhere / "table.csv").write_text("2019,2020,2021\n" + text)
    options = ["table.csv", "--header", "yes", "--no-stratify", "--task", "classification"]
    decided = plan.decide(tyro.cli(diagnose.Diagnose, args=options))
    assert decided.dataset.preparation.labels == ("a", "b", "c")
    assert decided.dataset.preparation.features == ("2019", "2020")


def test_control_c_while_the_command_is_imported(monkeypatch, capsys):
    from jaxbp_command import main

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", interrupted)
    assert main() == 130
    assert capsys.readouterr().err == "jaxbp: interrupted; nothing was saved\n"


def test_control_c_while_jax_is_imported(python, tmp_path, sigint):
    """Its extension, in C, makes an ImportError of a KeyboardInterrupt."""
    (tmp_path / "jax.py").write_text(
        "import signal\n"
        "try:\n    signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt:\n    raise ImportError('initializing the extension') from None\n"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import jaxbp_command as c; c.main()"
    _, err = python("-c", code).ended(130)
    assert err == "jaxbp: interrupted; nothing was saved\n"


@pytest.mark.parametrize("command", [[], *([each.__name__.lower()] for each in app.COMMANDS)])
def test_help_fits_the_terminal(command, capsys, monkeypatch):
    for width in (40, 60, 80):
        monkeypatch.setenv("COLUMNS", str(width))
        with pytest.raises(SystemExit) as exit:
            run(*command, "--help")
        assert exit.value.code == 0
        out = capsys.readouterr().out
        assert "usage: jaxbp" in out
        assert max(map(len, out.splitlines())) <= width


def test_whoever_reads_the_output_may_leave(monkeypatch):
    """As in jaxbp --help | head; not 1, which says that a run failed or a gradient is wrong."""
    for arguments in (["--help"], ["--version"], ["explain", "x*y", "x=1", "y=2"]):
        reader, writer = os.pipe()
        os.close(reader)
        with monkeypatch.context() as patch, os.fdopen(writer, "w") as output:
            patch.setattr(sys, "stdout", output)
            assert run(*arguments) == 141


def test_a_standard_output_that_was_closed_is_none(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as by >&- in a shell
    assert run("--version") == 0
    sys.stdout.close()


def test_a_run_that_nobody_reads_any_more_is_saved(elsewhere, monkeypatch):
    """As in jaxbp train | head -3: the epoch is ended, and all is written."""
    reader, writer = os.pipe()
    fit_plan = train.fit_plan

    def leaving(*arguments, **options):
        os.close(reader)
        return fit_plan(*arguments, **options)

    with monkeypatch.context() as patch, os.fdopen(writer, "w") as output:
        patch.setattr(train, "fit_plan", leaving)
        patch.setattr(sys, "stdout", output)
        assert run("train", "iris", *QUICK, "--epochs", 50) == 141
    folder = elsewhere / "runs" / "iris-1"
    assert names_in(folder) == {*files.RUN} - {*files.OF_TEST_ROWS}
    assert "2" in names_in(folder / files.CHECKPOINTS)
    assert len((folder / files.METRICS).read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_run_that_diverges_at_once_replaces_no_network(tmp_path, capsys):
    begun = ["train", "diabetes", "--hidden", 4, "--epochs", 2, "--output", tmp_path / "run"]
    assert run(*begun) == 0
    files_before = {file.name: file.read_bytes() for file in (tmp_path / "run").glob("*.*")}
    capsys.readouterr()
    assert run(*begun, "--overwrite", "--optimizer", "sgd", "--learning-rate", 1e30) == 1
    out = capsys.readouterr().out
    assert "diverged in epoch 1" in out
    assert f"{tmp_path / 'run'} keeps the run that was there" in " ".join(out.split())
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").glob("*.*")} == files_before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is full")
def test_output_that_cannot_be_written(monkeypatch, capsys, tmp_path):
    (tmp_path / "own.py").write_text("f, f_args = lambda x: x**2, (3.0,)\n")
    own = f"{tmp_path / 'own.py'}:f"
    for arguments in (["check", own], ["--version"]):
        with monkeypatch.context() as patch, open("/dev/full", "w") as output:
            patch.setattr(sys, "stdout", output)
            assert run(*arguments) == 2  # of check 1 means that a gradient is wrong
        assert "No space left on device" in (error := capsys.readouterr().err)
    assert error == "jaxbp: standard output: No space left on device\n"


def test_a_run_is_replaced_when_there_is_another(tmp_path):
    def texts():
        return {file.name: file.read_text() for file in tmp_path.iterdir()}

    old = {name: f"old {name}" for name in files.RUN}
    for name, text in old.items():
        (tmp_path / name).write_text(text)
    for _ in range(2):  # the second time, the run before has failed at once
        files.new_folder("--output", tmp_path, overwrite=True)
        assert files.make_run_folder(tmp_path, "iris") == tmp_path
        (tmp_path / "metrics.jsonl").write_text("new")
        assert len(texts()) == len(files.RUN) + 1
    files.settle_run_before(tmp_path)
    assert texts() == old
    files.make_run_folder(tmp_path, "iris")
    (tmp_path / files.NETWORK).write_text("new")
    files.settle_run_before(tmp_path)
    assert texts() == {files.NETWORK: "new"}


def test_a_full_disk_is_a_failed_run_and_its_file_is_named():
    full = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space") as found, files.naming("run/summary.json"):
        raise full
    assert app._explain(found.value) == (1, "run/summary.json: No space left on device")
    assert app._explain(PermissionError(13, "Permission denied", "x"))[0] == 2


@pytest.mark.slow
def test_python_dash_m(python):
    out, _ = python("-m", "jaxbp", "--help").ended()
    assert "train" in out


def test_without_the_commands_extra_it_says_how_to_get_it(monkeypatch, capsys):
    from jaxbp_command import main

    monkeypatch.setitem(sys.modules, "tyro", None)
    for name in [name for name in sys.modules if name.startswith("jaxbp.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(jaxbp, "cli")
    assert main() == 2
    assert "pip install 'jaxbp[cli]'" in capsys.readouterr().err


# check


MODULE = """
import jax, jax.numpy as jnp

@jax.custom_vjp
def cube(x):
    return jnp.sum(x**3)

cube.defvjp(lambda x: (cube(x), x), lambda x, cotangent: (3 * x**2 * cotangent,))
cube_args = (jnp.arange(1.0, 4.0),)
cube_options = {"order": 1}  # which --order overrides

def double(x, y):
    return x @ y

double_args = lambda: (jnp.ones(3), jnp.arange(3.0))
double_grads = lambda x, y: 2 * x
double_options = {"argnums": 1}

def hidden(x):
    return 1e20 + jnp.sum(x)

hidden_args = jnp.ones(3)

def lonely(x):
    return x

@jax.custom_vjp
def parabola(x):
    return jnp.sum(x**2)

def doubled(x, cotangent):
    once = lambda state: (state[0] + 1, 2 * state[1])
    return (cotangent * jax.lax.while_loop(lambda state: state[0] < 1, once, (0, x))[1],)

parabola.defvjp(lambda x: (parabola(x), x), doubled)
parabola_args = 3.0
at_two = jnp.full(2, 2.0)

def square(x):
    return jnp.sum(x**2), 2 * x

square_args = at_two

def product(x, y):
    return x @ y, y, 2 * x

product_args = (at_two, at_two)
product_grad, product_grads = (lambda x, y: y), (lambda x, y: 2 * y)

class Power:
    def __init__(self, exponent=3):
        self.exponent = exponent

    def loss(self, x):
        return jnp.sum(x**self.exponent)

    def loss_grad(self, x):
        return self.exponent * x ** (self.exponent - 1)

    loss_args = at_two

    @staticmethod
    def total(x):
        return jnp.sum(x)

class Named:
    def __init__(self, exponent):
        self.of = Power(exponent)

    def loss(self, x):
        return self.of.loss(x)

named = Named(4)

def noisy(x):
    print("noise")
    return jnp.sum(x)

noisy_args = at_two
noisy_options = "argnums=0"

def plain(x):
    return float(x[0]) ** 2

plain_args = at_two

def exact(x):
    return 3 * x

exact_args = 2.0

def buggy(x):
    return jnp.sum(x) + undefined

buggy_args = at_two

def keyless(x):
    return jnp.sum(x)

def keyless_args():
    return {}["weight"]

def leaving(x):
    raise SystemExit(0)

leaving_args = at_two

def wild_grad(x):
    raise RuntimeError("two\\nlines")
"""


@pytest.fixture
def homework(elsewhere):
    (elsewhere / "homework.py").write_text(MODULE)


def test_check_of_a_users_function(homework, capsys):
    assert run("check", "homework.py:cube") == 0
    assert "pass: measured in float64" in capsys.readouterr().out
    assert run("check", "homework.py:double") == 1
    assert "off by a factor of 2" in capsys.readouterr().out
    assert run("check", "homework.py:hidden") == 2
    assert "inconclusive" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "source"),
    [
        (
            ["square", "--returns", "value,grads"],
            0,
            "square at square_args; its gradient by square itself",
        ),
        (["square", "--returns", "value"], 0, "its gradient by autodiff"),
        (["product", "--returns", "value,grads", "--argnums", 0, 1], 1, "by product itself"),
        (["double", "--args", "product_args", "--argnums", 0], 1, "double at product_args"),
        (["Power.loss"], 0, "loss at loss_args; its gradient by loss_grad"),
        (["Power.total", "--args", "at_two"], 0, "total at at_two; its gradient by autodiff"),
        (["named.loss", "--args", "at_two", "--grads", "double_grads"], 2, ""),
        (["named.of.loss"], 0, "its gradient by loss_grad"),
    ],
)
def test_check_says_which_arguments_and_which_claim_it_takes(
    arguments, status, source, homework, capsys
):
    function, *others = arguments
    assert run("check", f"homework.py:{function}", *others) == status
    assert source in capsys.readouterr().out


def test_check_of_several_gradients_tells_which_is_wrong(homework, capsys):
    options = ["--returns", "value,grads", "--argnums", 0, 1, "--json"]
    assert run("check", "homework.py:product", *options) == 1
    leaves = json.loads(capsys.readouterr().out)["leaves"]
    assert [(leaf["path"], leaf["verdict"]) for leaf in leaves] == [("x", "pass"), ("y", "fail")]


@pytest.mark.slow
def test_check_draws_and_writes_and_never_over(homework, elsewhere, capsys):
    files = ["--plot", "steps.png", "--output", "report.json"]
    assert run("check", "homework.py:cube", *files, "--order", 2) == 0
    out = capsys.readouterr().out
    assert "drawn in steps.png" in out
    assert "written to report.json" in out
    assert (elsewhere / "steps.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((elsewhere / "report.json").read_text())
    assert record["verdict"] == record["second_order"]["verdict"] == "pass"
    for option, name, message in [
        ("--plot", "steps.png", "steps.png exists, and nothing is overwritten"),
        ("--plot", "steps.txt", "got steps.txt, expected a name in .png, .svg, .pdf"),
        ("--plot", "nowhere/steps.png", "nowhere is not a directory"),
        ("--output", "report.json", "report.json exists, and nothing is overwritten"),
        ("--output", "nowhere/report.json", "nowhere is not a directory"),
    ]:
        said = refused(capsys, "check", "homework.py:buggy", option, name)  # before any work
        assert f"{option}: {message}" in said


def test_check_prints_json_and_nothing_else(homework, elsewhere, capsys):
    """Also where the user's code prints, and a number of the report is none."""
    options = ["--args", "exact_args", "--json", "--output", "report.json"]
    (elsewhere / "noisy.py").write_text(MODULE.replace('noisy_options = "argnums=0"', ""))
    assert run("check", "noisy.py:noisy", *options) == 0
    out, err = capsys.readouterr()
    record = json.loads(out, parse_constant=pytest.fail)
    assert record["function"] == "noisy.py:noisy"
    assert record["leaves"][0]["order"] is None  # f is linear: Taylor's remainder is all rounding
    assert (elsewhere / "report.json").read_text() == out
    assert "noise" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["homework.py"], "homework.py: expected MODULE:FUNCTION"),
        (["nowhere.py:f"], "nowhere.py: no such file"),
        (["homewrk.py:cube"], "homewrk.py: no such file; did you mean homework.py?"),
        (["no_such_module:f"], "no_such_module: cannot be imported"),
        (["homework.py:missing"], "homework.py has no function missing"),
        (["homework.py:cub"], "homework.py has no function cub; did you mean cube?"),
        (["homework.py:Power.los"], "homework.py: Power has no attribute los; did you mean loss?"),
        (["homework.py:at_two"], "got ArrayImpl, expected a function"),
        (["homework.py:Named.loss"], "Named cannot be made without arguments (Named.__init__()"),
        (["homework.py:lonely"], "expected lonely_args there, a tuple or a function"),
        (
            ["homework.py:lonely", "--args", "at_to"],
            "--args: there is no at_to; did you mean at_two",
        ),
        (["homework.py:cube", "--grads", "x"], "--grads: there is no x"),
        (["homework.py:product"], "product has product_grads and product_grad: say by --grads"),
        (["homework.py:square"], "homework.py:square: returns a number, and arrays like the argum"),
        (
            ["homework.py:product", "--returns", "value,grads"],
            "homework.py:product: returned 2 gradients, expected 1: name the arguments",
        ),
        (
            ["homework.py:cube", "--returns", "value,grads"],
            "--returns value,grads: got one result, expected a value and then its gradient",
        ),
        (
            ["homework.py:square", "--returns", "value,grads", "--grads", "cube"],
            "--grads: got cube, but by --returns value,grads square itself returns them",
        ),
        (["homework.py:plain"], "JAX cannot trace it, and so has no gradient: expected the one to"),
        (["homework.py:noisy"], "noisy_options is str, expected a dict"),
        (["--argnums", 1], "MODULE:FUNCTION: got none, expected the function to check"),
    ],
)
def test_check_refuses_what_it_cannot_do(arguments, message, homework, capsys):
    assert message in refused(capsys, "check", *arguments)


@pytest.mark.parametrize(
    ("arguments", "line", "frames", "error"),
    [
        (
            ["homework.py:buggy"],
            "homework.py:buggy raises NameError: name 'undefined' is not defined",
            ["buggy"],
            "NameError: name 'undefined' is not defined",
        ),
        (
            ["homework.py:keyless"],
            "homework.py:keyless_args raises KeyError: 'weight'",
            ["keyless_args"],
            "KeyError: 'weight'",
        ),
        (
            ["homework.py:cube", "--grads", "wild_grad"],
            "homework.py:cube raises RuntimeError: two",
            ["wild_grad"],
            "RuntimeError: two\nlines",
        ),
        (["homework.py:leaving"], "leaving raises SystemExit: 0", ["leaving"], "SystemExit: 0"),
        (
            ["ending.py:f"],
            "ending.py: cannot be imported (SystemExit: 3)",
            ["<module>", "end"],
            "SystemExit: 3",
        ),
        (
            ["careless.py:f"],
            "careless.py: cannot be imported (ModuleNotFoundError: No module named 'no_such')",
            ["<module>"],
            "ModuleNotFoundError: No module named 'no_such'",
        ),
        (
            ["unfinished.py:f"],
            "cannot be imported (SyntaxError: invalid syntax (unfinished.py, line 1))",
            [],
            "SyntaxError: invalid syntax",
        ),
    ],
)
def test_check_shows_where_the_users_own_code_raises(
    arguments, line, frames, error, homework, elsewhere, capsys
):
    (elsewhere / "ending.py").write_text("import sys\ndef end():\n    sys.exit(3)\nend()\n")
    (elsewhere / "careless.py").write_text("import no_such\n")
    (elsewhere / "unfinished.py").write_text("def f(:\n")
    assert run("check", *arguments) == 2
    out, err = capsys.readouterr()
    first, below = err.split("\n", 1)
    assert first.startswith("jaxbp: ")
    assert line in first
    assert re.findall(r"(?m)^  File .*, in (.*)$", below) == frames
    assert error in below
    assert not out


def test_check_without_a_second_order_keeps_the_first(homework, capsys):
    assert run("check", "homework.py:parabola", "--order", 2) == 2
    out = capsys.readouterr().out
    assert re.search(r"(?m)^x .* pass$", out)
    assert re.search(r"second order: .*while_loop", " ".join(out.splitlines()))


def test_control_c_ends_a_check(elsewhere, capsys, sigint, monkeypatch):
    monkeypatch.setattr(interrupts, "_GRACE", 1e6)
    code = "import signal\ndef f(x):\n    signal.raise_signal(signal.SIGINT)\nf_args = 1.0\n"
    (elsewhere / "endless.py").write_text(code)
    assert run("check", "endless.py:f") == 130
    assert "interrupted; nothing was saved" in capsys.readouterr().err


@pytest.mark.slow
def test_our_own_table_is_readable_in_few_columns():
    results = check.check_depth(check.Check(), 0, lambda: None)
    for width in (40, 80, 100):
        console = rich.console.Console(width=width)
        with console.capture() as printed:
            console.print(*check.own_tables(results, width), check.own_summary(results))
        out = printed.get()
        assert max(map(len, out.splitlines())) <= width
        assert "…" not in out
        assert {*" ".join(heads.BY_NAME).replace("_", " ").split()} <= {*out.split()}
        assert out.count("identity") == {40: 4, 80: 2, 100: 1}[width]


def test_check_of_long_names_is_readable_in_few_columns(elsewhere, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    name = "a_name_" + 6 * "as_long"
    code = f"def f(p):\n    return sum(p.values())\nf_args = {{'{name}': 1.0, 'b': 2.0}}\n"
    (elsewhere / "long.py").write_text(code + "f_grad = {name: 2.0 for name in f_args}\n")
    assert run("check", "long.py:f") == 1
    out = capsys.readouterr().out
    assert f"p['{name}']\n  shape       scalar\n" in out
    assert "diagnosis: every leaf: off by a factor\n  of 2\n" in out


@pytest.mark.slow
def test_check_of_our_own_backward(elsewhere, capsys, monkeypatch):
    """Every activation × head, with one hidden layer; the command also does more depths."""
    monkeypatch.setattr(check, "DEPTHS", (1,))
    assert run("check", "--output", "own.json") == 0
    out = capsys.readouterr().out
    assert "relative error at most" in out
    number = len(activations.BY_NAME) * len(heads.BY_NAME)
    assert f"{number} of {number} pass" in out
    combinations = json.loads((elsewhere / "own.json").read_text())["combinations"]
    assert {c["activation"] for c in combinations} == set(activations.BY_NAME)
    assert {c["head"] for c in combinations} == set(heads.BY_NAME)


@pytest.mark.slow
def test_check_of_our_own_backward_fails_with_a_planted_bug(elsewhere, capsys, monkeypatch):
    def wrong(model, params, batch):
        loss, grads = jaxbp.backprop(model, params, batch)
        return loss, jax.tree.map(lambda grad: 1.001 * grad, grads)

    monkeypatch.setattr(check, "DEPTHS", (0,))
    monkeypatch.setattr(check, "backprop", wrong)
    assert run("check") == 1
    assert f"0 of {len(heads.BY_NAME)} pass" in capsys.readouterr().out


# explain


def test_explain_prints_the_page_of_the_lecture(capsys):
    assert run("explain", "exp(x*z) + x*z/log(x) + sin(log(x))/(x*z)", "x=2", "z=3") == 0
    out = capsys.readouterr().out
    for line in (
        "a = x·z       = 6",
        "c = log(x)    = 0.693147",
        "y = b + d + f = 412.191",
        "gc = gd·(-a/c²) + ge·cos(c)       = -12.36",
        "ga = gb·b + gd·(1/c) + gf·(-e/a²) = 404.854",
        "gx = ga·z + gc·(1/x)              = 1208.38",
        "8 operations forward, 23 backward, 2.9 times as many; central differences: 2·2·8 = 32; "
        "in float64\n",
    ):
        assert line in out


def test_explain_writes_a_page_and_overwrites_none(elsewhere, capsys):
    command = ("explain", "-x**2 + v@v", "x=pi/2", "v=1,2", "--html", "page.html")
    assert run(*command) == 0
    assert "written to page.html: open it in a browser" in capsys.readouterr().out
    page = (elsewhere / "page.html").read_text(encoding="utf-8")
    assert "<title>-x**2 + v@v</title>" in page
    assert "--html: page.html exists, and nothing is overwritten" in refused(capsys, *command)
    assert (elsewhere / "page.html").read_text(encoding="utf-8") == page


def test_explain_reads_what_a_keyboard_writes(capsys):
    assert run("explain", "-h + 2·µ", "h=3", "µ=2") == 0
    assert "ga = gy" in capsys.readouterr().out


@pytest.mark.parametrize("head", ["linear_half_squared_error", "softmax_cross_entropy"])
def test_explain_a_network_speaks_as_the_lectures_do(head, capsys):
    assert run("explain", "--network", "2-3-2", "--activation", "sigmoid", "--head", head) == 0
    out = capsys.readouterr().out
    for line in (
        "a⁽¹⁾ = W⁽¹⁾·x + b⁽¹⁾",
        "a⁽²⁾ = W⁽²⁾·z⁽¹⁾ + b⁽²⁾",
        "gz⁽¹⁾ = W⁽²⁾ᵀ·δ⁽²⁾",
        "δ⁽¹⁾  = gz⁽¹⁾ ⊙ z⁽¹⁾ ⊙ (1 - z⁽¹⁾)",
        "gW⁽¹⁾ = δ⁽¹⁾·xᵀ",
        "δ⁽²⁾  = ŷ - y",
        "gb⁽²⁾ = δ⁽²⁾",
    ):
        assert line in out
    targets = [line for line in out.splitlines() if line.endswith(("   = [1 1]", "   = [1 0]"))]
    assert [line[0] for line in targets] == ["y"]  # a node once, by its name


def test_explain_a_network_at_a_point_of_ones_own(capsys):
    assert run("explain", "x=1,-2", "y=0.5", "--network", "2-1", "--format", "dot") == 0
    out = capsys.readouterr().out
    assert out.startswith("digraph {")
    assert 'label="x = [1 -2]' in out
    assert 'label="y = [0.5]' in out
    assert "x: got shape (3,), expected 2 numbers" in refused(
        capsys, "explain", "x=1,2,3", "--network", "2-1"
    )


def explained(*values, **options):
    """L, and the gradients by W1, b1, W2, ..., of a network as the command explains it."""
    from jaxbp.cli import explain

    with jax.enable_x64(True):
        _, graph = explain.network_graph(explain.Explain("", values, **options))
        gradients = jax.tree.map(np.asarray, jax.tree.leaves(graph.gradients))
        return float(graph[graph.output].value), gradients


def test_explain_reproduces_the_lectures_worked_networks(tmp_path):
    """Those whose weights are on paper, number by number: see ``test_lectures`` for each."""
    nets = ("x=3", "y=1", "W1=0.1", "b1=0")  # Backpropagation in Neural Nets
    loss, (weight, _) = explained(
        *nets, network="1-1", activation="identity", head="linear_squared_error"
    )
    np.testing.assert_allclose((loss, weight.item()), (0.49, -4.2))

    xor = ("W1=[[1,1],[1,1]]", "b1=0,-1", "w2=1,-2", "b2=0")  # chapter 17
    for x1, x2 in ((0, 0), (0, 1), (1, 0), (1, 1)):
        loss, _ = explained(
            *xor, f"x={x1},{x2}", f"y={x1 ^ x2}", network="2-2-1", activation="relu"
        )
        assert loss == 0

    inactive = ("x=1", "y=9", "W1=1", "b1=-5", "W2=1", "b2=1")  # DSC 190
    squared = {"activation": "relu", "head": "linear_squared_error"}
    _, gradients = explained(*inactive, network="1-1-1", **squared)
    assert [gradient.item() for gradient in gradients] == [0, 0, 0, -16]

    rng = np.random.default_rng(0)  # Muzaffar: two layers, tanh, ½ Σ (yₖ - tₖ)²
    params = tuple(
        jaxbp.Layer(rng.normal(size=(o, i)), rng.normal(size=o)) for o, i in ((4, 3), (2, 4))
    )
    model = jaxbp.MLP((3, 4, 2), activations.tanh, heads.linear_half_squared_error)
    with jax.enable_x64(True):
        jaxbp.save(tmp_path / "model.safetensors", model, params)
    (w1, b1), (w2, b2) = params
    x, t = np.array([1.0, -2.0, 0.5]), np.array([0.7, -0.1])
    z = np.tanh(w1 @ x + b1)
    delta2 = w2 @ z + b2 - t
    delta1 = (1 - z**2) * (w2.T @ delta2)
    loss, got = explained("x=1,-2,0.5", "y=0.7,-0.1", weights=tmp_path, activation="relu")
    expected = (np.outer(delta1, x), delta1, np.outer(delta2, z), delta2)
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)
    assert loss == pytest.approx(delta2 @ delta2 / 2)


def test_explain_a_saved_network_says_what_it_is(tmp_path, capsys):
    """Its sizes, activations and head are the file's; a matrix is shown whole."""
    rng = np.random.default_rng(0)
    params = tuple(
        jaxbp.Layer(rng.normal(size=(o, i)).round(1), np.ones(o)) for o, i in ((4, 3), (2, 4))
    )
    model = jaxbp.MLP((3, 4, 2), activations.sigmoid, heads.softmax_cross_entropy)
    with jax.enable_x64(True):
        jaxbp.save(tmp_path / "model.safetensors", model, params)
    page = tmp_path / "page.html"
    assert run("explain", "--weights", str(tmp_path), "--html", str(page), "x=1,2,3") == 0
    rows = "; ".join(" ".join(f"{entry:g}" for entry in row) for row in params[0].weight)
    assert f"= [{rows}]" in capsys.readouterr().out
    assert "<title>3-4-2 sigmoid, softmax_cross_entropy</title>" in page.read_text("utf-8")
    for y in ("y=1", "y=0,1"):  # a class, or its row
        assert run("explain", "--weights", str(tmp_path), y, "--format", "dot") == 0
        assert 'label="y = [0 1]' in capsys.readouterr().out
    wrong = ("explain", "--weights", str(tmp_path), "y=2")
    assert "y: got 2, expected a class from 0 to 1, or 2 numbers" in refused(capsys, *wrong)
    with_others = ("explain", "--weights", str(tmp_path), "--network", "3-2")
    assert f"--network: got 3-2, but {tmp_path} is 3-4-2" in refused(capsys, *with_others)


def test_explain_writes_latex(capsys):
    assert run("explain", "--network", "2-1", "--latex") == 0
    latex = capsys.readouterr().out
    assert latex.count(r"\begin{align*}") == latex.count(r"\end{align*}") == 2
    assert run("explain", "--network", "2-1", "--format", "latex") == 0
    assert capsys.readouterr().out == latex


def test_explain_counts_as_a_person_would(capsys):
    assert run("explain", "relu(x)", "x=0") == 0
    out = capsys.readouterr().out
    assert "gx = gy·[x > 0] = 0\n" in out
    assert "1 operation forward, 1 backward, 1.0 times as many" in out


def test_explain_shows_the_formula_of_a_remainder(capsys):
    assert run("explain", "x%y", "x=7.5", "y=2") == 0
    out = capsys.readouterr().out
    for line in (
        "a = x/y      = 3.75",
        "b = floor(a) = 3",
        "c = y·b      = 6",
        "L = x - c    = 1.5",
    ):
        assert line in out
    assert "and(" not in out
    assert "True" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "EXPRESSION: got none, expected one such as"),
        (("x*q", "x=1"), "q has no value: add q=2, say\n  x*q\n    ^"),
        (("x", "x=1", "t=2"), "t: got a value for it, but the expression has x"),
        (("x", "x=1", "x=2"), "x: got two values"),
        (("x", "x"), "x: expected NAME=VALUE, such as x=2"),
        (("x", "x=two"), "x: 'two' is not a number"),
        (
            ("x", "x=[1,[2]]"),
            "x: '[1,[2]]': expected a list of numbers or of rows, as [[1,2],[3,4]",
        ),
        (("x[2]", "x=1,2"), "x[2]: x has shape (2,), expected an index within it\n  x[2]\n  ^"),
        (("x", "x=1", "--latex", "--format", "dot"), "--latex: got --format dot as well, expected"),
        (
            ("--network", "2-1", "W1=1"),
            "W1: got shape (), expected 1 rows of 2 numbers, as in [[1,",
        ),
        (("--network", "2-3-1", "b1=1,2"), "b1: got shape (2,), expected 3 numbers, as in 1,2,3"),
        (
            ("--network", "2-1", "W2=1"),
            "W2: got a value for it, but a network has x and y, and this",
        ),
        (("--weights", "no.safetensors"), "no.safetensors: no such file"),
        (("2*3",), "the expression has no names: there is nothing to differentiate by"),
        (("x*2", "x=1,2"), "the expression has shape (2,), expected one number: sum(...)"),
        (
            ("x@y", "x=1,2", "y=1,2,3"),
            "x @ y cannot be computed: got shapes (2,) and (3,), expected",
        ),
        (("1 + log(x)", "x=-2"), "a = log(x) is nan for x = -2: log needs a positive number"),
        (("exq(x)", "x=1"), "exq is none of the functions; did you mean exp?\n  exq(x)\n  ^"),
        (("--network", "2"), "--network: got '2', expected sizes such as 2-3-1"),
        (("e*x", "e=5", "x=2"), "e is 2.71828 here: use another name"),
        (("x/0", "x=1"), "y = x/0 is inf for x = 1: the denominator must not be 0"),
        (("x", "x=1", "--seed", "-1"), "--seed: got -1, expected at least 0"),
        (("--network", "-2-3"), "--network: got '-2-3', expected sizes such as 2-3-1"),
        (("--network", "20000-20000-1"), "--network: got 400,020,000 weights, expected at most"),
        (("z=1", "--network", "2-1"), "z: got a value for it, but a network has x and y"),
        (("x", "x=1", "--html", "a.txt"), "--html: got a.txt, expected a name in .html"),
        (("x", "x=1", "--html", "no/a.html"), "--html: no is not a directory"),
    ],
)
def test_explain_refuses(arguments, message, capsys):
    assert run("explain", *arguments) == 2
    assert f"jaxbp: {message}" in capsys.readouterr().err
