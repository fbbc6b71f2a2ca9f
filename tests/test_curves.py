"""A history as a table and as a picture."""

import importlib

import numpy as np
import pytest

import jaxbp

LOSS = np.array([[100.0, 4.0, 2.0], [3.0, 2.0, np.nan]])
ONE = jaxbp.History(LOSS[0], LOSS[0] / 2, np.array([0.1, 0.5, 0.9]))
RUN = jaxbp.Run((), (), np.array([12, 12]), np.zeros((2, 2)), np.zeros(2, bool))
MANY = jaxbp.History(LOSS, None, None, run=RUN)


def test_a_history_becomes_a_table():
    pytest.importorskip("pandas")
    frame = ONE.to_frame()
    assert frame.columns.tolist() == ["epoch", "training_loss", "validation_loss", "metric"]
    assert frame["epoch"].tolist() == [1, 2, 3]
    assert frame["metric"].tolist() == [0.1, 0.5, 0.9]
    many = MANY.to_frame()
    assert many.columns.tolist() == ["network", "epoch", "training_loss"]
    assert many["epoch"].tolist() == [10, 11, 12] * 2  # those of a run that went on
    assert many.groupby("network")["training_loss"].min().tolist() == [2.0, 2.0]


def test_a_history_becomes_a_picture():
    figures = pytest.importorskip("matplotlib.figure")
    axes = figures.Figure().gca()
    assert ONE.plot(axes) is axes
    assert [line.get_label() for line in axes.get_lines()] == ["training", "validation"]
    right = axes.figure.axes[1]
    assert (axes.get_ylabel(), right.get_ylabel(), axes.get_yscale()) == ("loss", "metric", "log")
    assert right.get_lines()[0].get_ydata().tolist() == ONE.metric.tolist()
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown == ["training", "validation", "metric"]
    axes = MANY.plot(figures.Figure().gca())
    assert [line.get_xdata().tolist() for line in axes.get_lines()] == [[10, 11, 12]] * 2
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training"]


def test_without_their_libraries_it_is_said(monkeypatch):
    def without(module):
        raise ModuleNotFoundError(f"No module named {module!r}")

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(
        ModuleNotFoundError, match=r"history.to_frame\(\) needs pandas: pip install"
    ):
        ONE.to_frame()
    with pytest.raises(
        ModuleNotFoundError, match=r"history.plot\(\) needs matplotlib: pip install"
    ):
        ONE.plot()
