"""Several devices: how a network lies over a mesh, and that it learns what one device learns."""

import json
import os
import socket
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from combinations import network

import jaxbp
from jaxbp import parallel


@pytest.mark.slow
def test_a_mesh_trains_as_one_device_does(python, monkeypatch):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    printed, _ = python(Path(__file__).with_name("on_a_mesh.py")).ended()
    found = json.loads(printed)
    assert max(found["distances"].values()) < 1e-12, found["distances"]
    assert set(found["compiled after the first epoch"].values()) == {0}
    # A sum of the gradients over "data"; over "model" one for each pair of layers forward, one
    # between the pairs backward, and one for whether all parameters are finite.
    assert found["collectives"] == {
        "(2, 1)": {"all-reduce": 1},
        "(8, 1)": {"all-reduce": 1},
        "(1, 4)": {"all-reduce": 4},
        "(2, 2)": {"all-reduce": 5},
    }
    assert found["layout"] == [
        "layer  array   shape  split   on each device",
        "    1  weight  7×10   inputs  7×5",
        "    1  bias    7      no      7",
        "    2  weight  16×7   units   8×7",
        "    2  bias    16     units   8",
        "    3  weight  3×16   inputs  3×8",
        "    3  bias    3      no      3",
    ]
    assert found["lies"][:4] == ["P('model', None)", "P('model',)", "P(None, 'model')", "P()"]
    assert set(found["on"]) == {4}


@pytest.mark.slow
def test_processes_train_as_one_does(python, monkeypatch, tmp_path):
    """And one of them alone goes on with what two have saved."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    program = Path(__file__).with_name("process.py")

    def trained_by(count):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        folder = tmp_path / f"{count}"
        started = [python(program, number, count, port, folder) for number in range(count)]
        return [process.ended()[0].splitlines()[-2:] for process in started]

    ((_, alone),) = trained_by(1)
    for refused, found in [*trained_by(2), *trained_by(4)]:
        for one, other in zip(json.loads(found), json.loads(alone), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)
        assert refused.startswith("batch: not the same in all processes of the mesh")
        assert "; batch: process " in refused
        assert refused.endswith("expected as many steps in every process")
    with jax.enable_x64(True):
        of_two, of_one = (jaxbp.load_run(tmp_path / count, optax.adam(1e-2)) for count in "21")
    assert of_two.epochs == of_one.epochs == 12
    for one, other in zip(*map(jax.tree.leaves, (of_two[:2], of_one[:2])), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


def test_a_mesh_that_is_none_is_named():
    model, params, batch = network()
    options = {"optimizer": optax.sgd(0.1), "epochs": 1, "batch_size": 4, "params": params}
    key = jax.random.key(0)
    with pytest.raises(TypeError, match=r"mesh: got int, expected one of jax\.make_mesh"):
        jaxbp.fit(model, batch, mesh=2, key=key, **options)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("rows",))
    message = r"mesh: got the axes \('rows',\), expected \"data\", \"model\" or both"
    with pytest.raises(ValueError, match=message):
        parallel.layout(model, mesh)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    with pytest.raises(ValueError, match="which cannot be: several devices train together"):
        jaxbp.fit(model, batch, mesh=mesh, kernel="interpret", key=key, **options)
