"""Streams: the same results as in memory, whatever gives the batches, and what is refused."""

import importlib
from contextlib import suppress
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from combinations import adam, cpu_compiler, sgd
from scipy import sparse

import jaxbp
from benchmarks.problems import random_batch
from jaxbp import Batch, activations, heads
from jaxbp.training import stacks, streamed
from jaxbp.training.epoch import shuffled_rows

slow = pytest.mark.slow
KEY = jax.random.key(3)
MODEL = jaxbp.MLP((3, 8, 2), activations.tanh, heads.linear_half_squared_error, l2=0.01)
DATA = random_batch(MODEL, 22, 0, dtype=np.float32)._replace(weight=None)
DATA = jax.tree.map(np.array, DATA)
fit = partial(jaxbp.fit, MODEL, optimizer=adam(0.01), key=KEY)


def cut(data, size, order=None):
    """Batches of so many rows, the last of those that are left."""
    order = np.arange(len(data.x)) if order is None else order
    rows = [order[start : start + size] for start in range(0, len(order), size)]
    return [jax.tree.map(lambda array, those=those: array[those], data) for those in rows]


class Shuffled:
    """The minibatches that fit takes of a batch in memory, on a CPU."""

    def __init__(self, data, size):
        self.data, self.size, self.told = data, size, []

    def set_epoch(self, number):
        self.told.append(number)

    def __iter__(self):
        seed = np.asarray(jax.random.key_data(KEY)).tolist()
        return iter(
            cut(self.data, self.size, shuffled_rows(seed, self.told[-1] + 1, len(self.data.x)))
        )


def assert_close(one, other, places=6):
    jax.tree.map(partial(np.testing.assert_array_almost_equal, decimal=places), one, other)


@cpu_compiler
def test_a_stream_gives_what_the_same_batches_give_in_memory(monkeypatch):
    """Weights, L2, dropout, a ragged last batch, validation, a callback; the orders are epochs'."""
    monkeypatch.setattr(stacks, "_MOST_STEPS", 2)  # several stacks share their memory
    weight = np.random.default_rng(0).uniform(0.5, 1.5, 22).astype(np.float32)
    data = DATA._replace(weight=weight / weight.mean())
    data = jax.tree.map(lambda array: np.concatenate([array] * 3), data)
    options = {"epochs": 3, "gradient": jaxbp.with_dropout(0.3)(jaxbp.backprop)}
    seen = []
    stream, stopping = Shuffled(data, 4), jaxbp.EarlyStopping(patience=3)
    of_stream, by_stream = fit(
        stream,
        validation=cut(data, 5),
        keep_best=True,
        on_epoch=[stopping, lambda epoch: seen.append(epoch.number)],
        **options,
    )
    of_memory, in_memory = fit(data, batch_size=4, validation=data, keep_best=True, **options)
    assert_close(of_stream, of_memory)
    assert_close(by_stream[:3], in_memory[:3])
    assert stream.told == [0, 1, 2]
    assert seen == [1, 2, 3]
    assert stopping.best.number == in_memory.validation_loss.argmin() + 1


COUNTED = []


def counted(model, params, batch):
    COUNTED.append(batch.x.shape)
    return jaxbp.backprop(model, params, batch)


class Tensor:
    """Of another library, which has DLPack alone."""

    def __init__(self, array):
        self.__dlpack__, self._array = array.__dlpack__, array

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


def kinds_of_batches(parts):
    """The same batches in every way that a stream may give them."""
    yield parts
    yield [tuple(each) for each in parts]
    yield [list(each[:2]) for each in parts]
    yield [jax.tree.map(jnp.asarray, each) for each in parts]
    yield [(Tensor(each.x), jnp.asarray(each.target)) for each in parts]
    yield [(each.x.astype(float).tolist(), np.asarray(each.target).astype(">f8")) for each in parts]


def test_batches_of_any_kind_and_of_changing_sizes():
    """Each is a step, and a shape has two programs at most; a buffer may be used again."""
    parts = [part for size in (5, 5, 3, 5, 5, 5, 4, 3) for part in cut(DATA, size)[:1]]
    step = jax.jit(jaxbp.make_step(MODEL, adam(0.01)))
    start, _ = fit(parts[:1], epochs=1, optimizer=sgd(0.0))
    expected = carry = start, adam(0.01).init(start)
    for part in 2 * parts:
        carry, _ = step(carry, part)
    expected, _ = carry
    for number, stream in enumerate(kinds_of_batches(parts)):
        found, history = fit(stream, epochs=2, gradient=counted, check=False)
        assert_close(found, expected)
        assert len(history.training_loss) == 2
        assert number or {COUNTED.count(shape) for shape in COUNTED} <= {1, 2}

    class Overwriting:
        def __iter__(self):
            room = Batch(np.empty((5, 3), np.float32), np.empty((5, 2), np.float32))
            for part in parts:
                x, target, _ = room
                x[: len(part.x)], target[: len(part.x)] = part.x, part.target
                yield x[: len(part.x)], target[: len(part.x)]

    assert_close(fit(Overwriting(), epochs=2)[0], expected)


def test_the_next_batches_are_read_while_the_device_is_at_work(monkeypatch):
    """A stack is waited for when the next one has been given to the device."""
    happened = []
    monkeypatch.setattr(stacks, "_MOST_STEPS", 2)
    monkeypatch.setattr(streamed, "wait_for", lambda losses: happened.append("wait"))

    class Told:
        def __iter__(self):
            for part in cut(DATA, 5)[:4] * 2:
                happened.append("read")
                yield part

    fit(Told(), epochs=1)
    happened = happened[1:]  # the first batch is looked at before all
    assert happened == ["read", *["read", "read", "wait"] * 3, "wait"]


def test_an_iterator_is_read_once_alone():
    once = fit(iter(cut(DATA, 5)), epochs=1)
    assert_close(once[0], fit(cut(DATA, 5), epochs=1)[0])
    generator = (part for part in cut(DATA, 5))
    expected = "batch: got generator, which gives its batches once, and it is read 2 times"
    with pytest.raises(ValueError, match=expected):
        fit(generator, epochs=2)
    assert len(list(generator)) == 5  # it has lost nothing

    class Once:
        parts = iter(cut(DATA, 5))

        def __iter__(self):
            return self.parts

    with pytest.raises(ValueError, match="batch: epoch 2: got no batch, expected something that"):
        fit(Once(), epochs=2)


def test_a_run_over_a_stream_goes_on_from_the_disk(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    options = {"validation": cut(DATA, 5), "keep_best": True}
    whole = fit(Shuffled(DATA, 5), epochs=4, **options)
    folder = tmp_path / "run"
    for epochs in (2, 4):
        stream = Shuffled(DATA, 5)
        parts = fit(stream, epochs=epochs, checkpoint=folder, resume=folder, **options)
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    assert stream.told == [2, 3]
    with pytest.raises(ValueError, match=r"of another run: data was a stream's, and is 22 rows"):
        fit(DATA, batch_size=5, epochs=5, resume=folder, validation=options["validation"])


def test_what_ends_a_training_leaves_what_there_is():
    """Divergence, Ctrl-C, and an error of the stream's own in the second epoch."""
    for ending, expected in [
        (KeyboardInterrupt, jaxbp.TrainingInterrupt),
        (ZeroDivisionError, ZeroDivisionError),
    ]:

        class Ending:
            epochs = 0

            def __iter__(self, ending=ending):
                yield from cut(DATA, 5)
                self.epochs += 1
                if self.epochs == 2:
                    raise ending

        with pytest.raises(expected) as raised:
            fit(Ending(), epochs=3)
        assert raised.value.epoch == 2
        assert_close(raised.value.params, fit(cut(DATA, 5), epochs=1)[0])
    huge = [*cut(DATA, 5)[:2], Batch(1e20 * DATA.x[:5], 1e20 * DATA.target[:5])]
    with pytest.raises(jaxbp.NonFiniteLossError) as raised:
        fit([*huge, *cut(DATA, 5)], epochs=3)
    assert raised.value.epoch == 1
    assert_close(raised.value.params, fit(huge[:1], epochs=1, optimizer=sgd(0.0))[0])


@pytest.mark.parametrize("head", [heads.linear_squared_error, heads.softmax_cross_entropy])
def test_a_stream_is_evaluated_as_all_its_rows(head):
    model = MODEL._replace(head=head)
    is_of_classes = head is heads.softmax_cross_entropy
    data = random_batch(model, 22, 1, integer=is_of_classes, dtype=np.float32)
    data = data._replace(weight=np.arange(22.0) * (np.arange(22) >= 5))  # the first batch has none
    params = jaxbp.init(KEY, model)
    found = jaxbp.evaluate(model, params, (part for part in cut(data, 5)))
    assert found == pytest.approx(jaxbp.evaluate(model, params, data), rel=1e-5)


def test_weights_of_a_stream_count_as_they_are():
    with pytest.warns(UserWarning, match="batch: epoch 1: the weights have the mean 30, and"):
        fit(cut(DATA._replace(weight=np.full(22, 30.0)), 5), epochs=1)
    with pytest.raises(ValueError, match="batch: epoch 1: all weights are 0"):
        fit(cut(DATA._replace(weight=np.zeros(22)), 5), epochs=1)


def scaled(model, params, batch):
    loss, grads = jaxbp.backprop(model, params, batch)
    return loss, jax.tree.map(lambda grad: 2 * grad, grads)


PARTS = cut(DATA, 5)
CLASSES = jaxbp.MLP((3, 2), activations.tanh, heads.softmax_cross_entropy)


@pytest.mark.parametrize(
    ("stream", "options", "message"),
    [
        (PARTS, {"batch_size": 4}, r"batch_size: got 4 beside a stream, expected none"),
        (PARTS, {"kernel": "fused"}, r"kernel: got 'fused' beside a stream, expected auto or xla"),
        (PARTS, {"diagnostics": True}, r"diagnostics: got True beside a stream"),
        (
            PARTS,
            {"optimizer": jaxbp.batch_methods.truncated_newton(2)},
            r"batch: got a stream, expected all rows in a jaxbp.Batch: the optimizer is a full",
        ),
        (PARTS, {"gradient": scaled}, r"gradient: scaled is not the derivative"),
        (DATA, {}, r"batch_size: got none, expected a positive int, or None for all"),
        (7, {}, r"batch: got int, expected jaxbp.Batch\(x, target\), or a stream of batches"),
        ({"x": 1}, {}, r"batch: got dict, expected jaxbp.Batch\(x, target\), or a stream"),
        (
            lambda: iter(PARTS),
            {},
            r"batch: got function, .* whose method __iter__ is that function",
        ),
        (DATA.x, {}, r"batch: got ndarray, expected jaxbp.Batch\(x, target\), or a stream"),
        (tuple(PARTS), {}, r"batch: got tuple, expected jaxbp.Batch\(x, target\), or a stream"),
        ([], {}, r"batch: epoch 1: got no batch, expected something that gives"),
        (
            [*PARTS, DATA.x],
            {},
            r"batch: epoch 1, step 6: got float32\[22,3\], expected jaxbp.Batch",
        ),
        ([(1, 2, 3, 4)], {}, r"batch: epoch 1, step 1: got 4 parts, expected jaxbp.Batch, \(x, ta"),
        ([("a", "b")], {}, r"batch: epoch 1, step 1: x: got .*, expected real numbers"),
        (
            [*PARTS, (sparse.csr_array(DATA.x[:5]), DATA.target[:5])],
            {},
            r"batch: epoch 1, step 6: x: got csr_array, expected an array of real numbers$",
        ),
        (
            [(DATA.x, [[1], [2, 3]])],
            {},
            r"batch: epoch 1, step 1: target: got list, expected an array of real numbers: ",
        ),
        (
            [*PARTS, PARTS[0]._replace(x=DATA.x[:5, :2])],
            {},
            r"batch: epoch 1, step 6: x: got .*2.*, expected",
        ),
        (
            [*PARTS, PARTS[0]._replace(x=np.full((5, 3), np.inf))],
            {},
            r"batch: epoch 1, step 6: x: \[0, 0\] is inf in float32, expected finite values",
        ),
        (PARTS, {"validation": iter(PARTS), "epochs": 2}, r"validation: got list_iterator, which"),
        (PARTS, {"validation": []}, r"validation: got no batch, expected something that gives"),
        (
            PARTS,
            {"validation": [*PARTS, PARTS[0]._replace(target=DATA.target)]},
            r"validation: batch 6: target: got shape \(22, 2\)",
        ),
    ],
)
def test_what_a_stream_cannot_be_is_refused(stream, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fit(stream, **{"epochs": 1} | options)


@pytest.mark.slow
def test_a_class_out_of_range_is_named_with_its_step():
    parts = [(DATA.x[:5], np.arange(5) % 2), (DATA.x[:5], np.arange(5))]
    message = "batch: epoch 1, step 2: target: class 2 in row 2, expected classes 0 to 1"
    with pytest.raises(ValueError, match=message):
        jaxbp.fit(CLASSES, parts, optimizer=sgd(0.1), epochs=1, key=KEY)
    with pytest.raises(ValueError, match=message.replace("epoch 1, step", "batch")):
        jaxbp.evaluate(CLASSES, jaxbp.init(KEY, CLASSES), parts)


@slow
def test_data_loaders_of_pytorch_and_grain_are_streams():
    """Tensors, classes in int64, and NumPy's arrays by a process of its own."""
    parts = [(DATA.x[start : start + 5], np.arange(5) % 2) for start in (0, 5, 10)]
    options = {"optimizer": sgd(0.1), "epochs": 2, "key": KEY}
    expected, _ = jaxbp.fit(CLASSES, parts, **options)
    rows = [(x, target) for part in parts for x, target in zip(*part, strict=True)]
    grain = pytest.importorskip("grain")
    source = grain.MapDataset.source(rows).batch(5)
    loader = grain.DataLoader(
        data_source=rows,
        sampler=grain.samplers.SequentialSampler(15),
        operations=[grain.transforms.Batch(5)],
    )
    streams = [source, source.to_iter_dataset(), loader]
    with suppress(ModuleNotFoundError):
        data = importlib.import_module("torch.utils.data")
        streams.append(data.DataLoader(rows, batch_size=5))
        torch = importlib.import_module("torch")
        short = [(torch.tensor(x).bfloat16(), target) for x, target in parts]  # NumPy has none
        rounded = [(np.asarray(jnp.asarray(x, jnp.bfloat16), "f4"), y) for x, y in parts]
        found, wanted = (jaxbp.fit(CLASSES, each, **options)[0] for each in (short, rounded))
        assert_close(found, wanted)
        with pytest.raises(TypeError, match=r"x: got Tensor, .*: Can't call numpy"):
            fit([(torch.tensor(DATA.x, requires_grad=True), DATA.target)], epochs=1)
    for stream in streams:
        assert_close(jaxbp.fit(CLASSES, stream, **options)[0], expected)
    with pytest.raises(ValueError, match="which gives its batches once"):
        jaxbp.fit(CLASSES, iter(streams[1]), **options)
