"""What is saved comes back, and nothing else is taken for it."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("safetensors")

import safetensors.numpy

import jaxbp
from benchmarks.problems import random_params
from jaxbp import activations, heads
from jaxbp.checkpoint import CheckpointError
from jaxbp.data.preparation import Preparation

MODEL = jaxbp.MLP((3, 4, 2), activations.relu, heads.softmax_cross_entropy, l2=0.01)
PREPARATION = Preparation(
    features=("größe", "b", "c"),
    mean=np.array([0.1, 2, 3]),
    scale=np.array([1, 1 / 3, 2]),
    labels=("ja", "nein"),
    target_mean=np.zeros(1),
    target_scale=np.ones(1),
    image_shape=(1, 3),
)


predict = jax.jit(jaxbp.predict, static_argnums=0)


def some_params(model=MODEL, dtype=np.float32):
    return random_params(model, 0, dtype)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    params = some_params()
    jaxbp.save(path, MODEL, params, PREPARATION)
    return path, params


def test_what_is_saved_comes_back(saved):
    path, params = saved
    model, loaded, preparation = jaxbp.load(path)
    assert model == MODEL
    assert jaxbp.compare(loaded, params).relative_error == 0
    for field, value in PREPARATION._asdict().items():
        np.testing.assert_array_equal(getattr(preparation, field), value)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


MODELS = [
    MODEL._replace(activation=(activations.elu,), head=heads.linear_huber),
    MODEL._replace(activation=partial(activations.leaky_relu, alpha=0.2)),
    MODEL._replace(sizes=(3, 2)),
]


@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        *((model, jnp.float32) for model in MODELS),
        *((MODELS[2], dtype) for dtype in (jnp.bfloat16, jnp.float16)),
        *(
            pytest.param(model, dtype, marks=pytest.mark.slow)
            for model in MODELS[:2]
            for dtype in (jnp.bfloat16, jnp.float16)
        ),
    ],
)
def test_every_description(tmp_path, model, dtype):
    params = some_params(model, dtype)
    jaxbp.save(tmp_path / "model", model, params)
    loaded = jaxbp.load(tmp_path / "model")
    x = np.ones((2, 3), dtype)
    np.testing.assert_array_equal(
        np.float32(predict(loaded.model, loaded.params, x)),
        np.float32(predict(model, params, x)),
    )
    assert loaded.params[0].weight.dtype == dtype
    assert loaded.preparation is None


def test_float64_comes_back_or_is_said_to_be_rounded(tmp_path):
    with jax.enable_x64(True):
        params = some_params(dtype=np.float64)
        jaxbp.save(tmp_path / "model", MODEL, params)
        loaded = jaxbp.load(tmp_path / "model").params
        assert jaxbp.compare(loaded, params).relative_error == 0
        assert loaded[1].bias.dtype == np.float64
    with pytest.warns(UserWarning, match="model: saved in float64, loaded in float32, because"):
        loaded = jaxbp.load(tmp_path / "model").params
    assert loaded[1].bias.dtype == np.float32


def test_a_run_folder_is_its_network(saved):
    path, params = saved
    assert jaxbp.compare(jaxbp.load(path.parent).params, params).relative_error == 0
    (path.parent / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors: no such file"):
        jaxbp.load(path.parent / "empty")


def test_an_activation_of_your_own_needs_the_model(tmp_path):
    model = MODEL._replace(activation=jaxbp.with_slope(jnp.sin))
    params = some_params(model)
    jaxbp.save(tmp_path / "model", model, params)
    with pytest.raises(CheckpointError, match="of your own; pass the model"):
        jaxbp.load(tmp_path / "model")
    assert jaxbp.load(tmp_path / "model", model).model is model
    for other in ({"sizes": (3, 5, 2)}, {"l2": 0.5}, {"activation": activations.relu}):
        with pytest.raises(CheckpointError, match=r"holds \{'sizes': \[3, 4, 2\].*, not \{"):
            jaxbp.load(tmp_path / "model", model._replace(**other))


def test_nothing_is_overwritten_unasked(saved):
    path, params = saved
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="already exists"):
        jaxbp.save(path, MODEL, params)
    assert path.read_bytes() == before
    jaxbp.save(path, MODEL, params, overwrite=True)
    assert jaxbp.load(path).preparation is None


def test_every_flipped_byte_and_every_cut_is_noticed(saved):
    path, _ = saved
    whole = path.read_bytes()
    for position in range(0, len(whole), 13):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
            jaxbp.load(path)
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="not a complete safetensors file"):
            jaxbp.load(path)


def test_parameters_that_do_not_fit_are_not_saved(tmp_path):
    params = some_params()
    for wrong in (params[:1], (*params, params[0]), params[::-1]):
        with pytest.raises(ValueError, match="params: got weights and biases"):
            jaxbp.save(tmp_path / "model", MODEL, wrong)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        jaxbp.save(tmp_path / "nowhere" / "model", MODEL, params)
    assert not list(tmp_path.iterdir())


def test_any_memory_layout_is_saved(tmp_path):
    params = jax.tree.map(np.asfortranarray, some_params())
    jaxbp.save(tmp_path / "model", MODEL, params)
    assert jaxbp.compare(jaxbp.load(tmp_path / "model").params, params).relative_error == 0


def test_foreign_files(tmp_path):
    path = tmp_path / "foreign"
    with pytest.raises(FileNotFoundError, match="foreign: no such file"):
        jaxbp.load(path)
    safetensors.numpy.save_file({"w": np.ones(3)}, path)
    with pytest.raises(CheckpointError, match="not a network saved by jaxbp"):
        jaxbp.load(path)
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        jaxbp.load(path)


def test_an_edited_description_is_noticed(saved):
    path, _ = saved
    with safetensors.safe_open(path, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        described = file.metadata()
    described["model"] = json.dumps(json.loads(described["model"]) | {"head": "linear_huber"})
    safetensors.numpy.save_file(tensors, path, described)
    with pytest.raises(CheckpointError, match="has been changed since it was saved"):
        jaxbp.load(path)
