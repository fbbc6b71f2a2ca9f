"""The progress bar of a training."""

import importlib
import io
import sys
import warnings
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from combinations import network

import jaxbp
from jaxbp.training import progress

MODEL, PARAMS, BATCH = network()


def fit(**options):
    options = {"epochs": 2, "batch_size": None, "progress": True} | options
    return jaxbp.fit(MODEL, BATCH, optimizer=optax.sgd(0.1), key=jax.random.key(0), **options)


def test_a_bar_is_shown_in_a_terminal_and_nothing_elsewhere(monkeypatch, capfd):
    console = pytest.importorskip("rich.console")
    fit()
    assert capfd.readouterr() == ("", "")
    written = io.StringIO()
    terminal = console.Console(file=written, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "_bar", lambda: progress.bar_of_epochs(terminal))
    fit()
    assert "compiling" in written.getvalue()
    assert "epoch 2/2" in written.getvalue()
    with progress.shown(True, 3, 9) as show:
        loss = np.array([0.5, np.nan, 2.5])
        show(4, loss, jaxbp.Evaluation(loss, loss))
    assert "loss 1.5, validation 1.5, metric 1.5" in written.getvalue()
    written.truncate(0)
    with progress.shown(False, 3, 9) as show:
        show(4, 0.5, None)
    assert not written.getvalue()


def test_a_notebook_shows_the_bar_without_widgets(monkeypatch):
    """A stand-in for IPython's display, which is given the bar once, and told at the end."""
    console, shown = pytest.importorskip("rich.console"), []

    class Handle:
        def __init__(self, bar, display_id):
            assert display_id is True
            self.update = lambda bar: shown.append(bar._repr_mimebundle_([], [])["text/html"])
            self.update(bar)

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=Handle))
    notebook = console.Console(force_jupyter=True, width=100)
    monkeypatch.setattr(progress, "_bar", lambda: progress.bar_of_epochs(notebook))
    fit()
    assert "compiling" in shown[0]
    assert "epoch 2/2" in shown[-1]
    assert "loss" in shown[-1]
    estimators = pytest.importorskip("jaxbp.estimators")
    for solver in ("adam", "lbfgs"):
        del shown[:]
        network = estimators.MLPRegressor(solver=solver, max_iter=2, verbose="bar")
        with warnings.catch_warnings(action="ignore"):  # that it has not converged
            network.fit(*np.random.default_rng(0).normal(size=(2, 9, 1)))
        assert "epoch 2/2" in shown[-1]


def test_without_rich_it_is_said_and_trained(monkeypatch):
    def without(module):
        raise ModuleNotFoundError(f"No module named {module!r}")

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.warns(UserWarning, match="progress: a bar needs rich: pip install rich") as warned:
        _, history = fit()
    assert len(history.training_loss) == 2
    assert warned[0].filename == __file__
    with pytest.raises(TypeError, match="progress: got 1"):
        fit(progress=1)
