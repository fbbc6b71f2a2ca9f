"""Programs that are compiled once: what is written inline, and trained with other numbers."""

import gc
import weakref
from contextlib import contextmanager
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from combinations import thinned

import jaxbp
from jaxbp import Batch, activations, heads
from jaxbp.same_program import KEPT, compiled_for_each, known
from jaxbp.training.constants import Constants, Given, without_numbers

X = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
BATCH = Batch(X, X[:, :2] ** 2)
MODEL = jaxbp.MLP((3, 4, 2), activations.tanh, heads.linear_half_squared_error)


@contextmanager
def compilations():
    """Count the programs that XLA compiles in the block."""
    counted = []

    def listen(event, *_, **__):
        if "backend_compile" in event:
            counted.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counted
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def train(model=MODEL, **options):
    defaults = {"optimizer": optax.sgd(0.1), "epochs": 2, "batch_size": 4}
    return jaxbp.fit(model, BATCH, key=jax.random.key(0), **defaults | options)


def by_steps(optimizer, model=MODEL):
    """What ``train`` should give: the steps one by one, with nothing shared between calls."""
    params = jaxbp.init(jax.random.key(0), model)
    state, step = optimizer.init(params), jax.jit(jaxbp.make_step(model, optimizer))
    seed = np.asarray(jax.random.key_data(jax.random.key(0))).tolist()
    for epoch in (1, 2):
        order = np.random.default_rng([*seed, epoch]).permutation(10)
        for rows in np.split(order, (4, 8)):
            (params, state), _ = step((params, state), jax.tree.map(lambda a: a[rows], BATCH))  # noqa: B023
    return params


def distance(trained, expected):
    return jaxbp.compare(trained, expected).relative_error


def chained(rate):
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, 2, 20)
    return optax.chain(optax.clip_by_global_norm(rate), optax.adamw(schedule, weight_decay=rate))


@pytest.mark.parametrize("make", [optax.sgd, pytest.param(chained, marks=pytest.mark.slow)])
def test_another_rate_is_no_other_program(make):
    train(optimizer=make(0.1))
    with compilations() as counted:
        trained = [train(optimizer=make(rate))[0] for rate in (0.1, 0.2, 0.03)]
    assert not counted
    for params, rate in zip(trained, (0.1, 0.2, 0.03), strict=True):
        assert distance(params, by_steps(make(rate))) < 1e-5


def test_another_l2_is_no_other_program_for_fit_and_evaluate():
    models = [MODEL._replace(l2=l2) for l2 in (0.1, 0.5)]
    trained, losses = [], []
    for model in models:
        with compilations() as counted:
            trained.append(train(model, validation=BATCH)[0])
            losses.append(jaxbp.evaluate(model, trained[-1], BATCH).loss)
    assert not counted
    for model, params, loss in zip(models, trained, losses, strict=True):
        assert distance(params, by_steps(optax.sgd(0.1), model)) < 1e-5
        np.testing.assert_allclose(loss, jaxbp.objective(model, params, BATCH), rtol=1e-6)


@pytest.mark.slow
def test_other_rates_keys_and_l2_of_many_are_no_other_program():
    def many(seed, rates, l2, b1):
        return jaxbp.fit_many(
            MODEL,
            BATCH,
            keys=jax.random.split(jax.random.key(seed), 2),
            learning_rate=rates,
            l2=l2,
            optimizer=lambda rate: optax.adam(rate, b1=b1),
            epochs=2,
            batch_size=4,
        )[0]

    many(0, [0.1, 0.2], 0.1, 0.9)
    with compilations() as counted:
        together = many(1, [0.3, 0.05], [0.0, 0.3], 0.8)
    assert not counted
    for n, (key, rate, l2) in enumerate(
        zip(jax.random.split(jax.random.key(1), 2), (0.3, 0.05), (0.0, 0.3), strict=True)
    ):
        alone, _ = jaxbp.fit(
            MODEL._replace(l2=l2),
            BATCH,
            key=key,
            optimizer=optax.adam(rate, b1=0.8),
            epochs=2,
            batch_size=4,
        )
        assert distance(jax.tree.map(lambda leaf: leaf[n], together), alone) < 1e-5  # noqa: B023


def scaled(factor):
    """tanh times a factor, written anew at every call."""

    def activation(a):
        h = jnp.tanh(a)
        return factor * h, factor * (1 - h * h)

    return activation


def test_pieces_written_inline_are_compiled_once_if_they_do_the_same():
    def own(factor):
        model = MODEL._replace(
            activation=scaled(factor),
            head=jaxbp.with_error(lambda logits, target: jnp.sum((logits - target) ** 2, -1)),
        )
        return train(
            model,
            gradient=lambda *given: jaxbp.backprop(*given),  # noqa: PLW0108, of another identity
            validation=BATCH,
        )

    first = own(1.0)
    with compilations() as counted:
        again, other = own(1.0), own(2.0)
        assert counted
        jax.tree.map(np.testing.assert_array_equal, first, again)
        counted.clear()
        own(2.0)
    assert not counted
    assert distance(other[0], first[0]) > 1e-3
    twice = MODEL._replace(activation=scaled(2.0), head=heads.linear_squared_error)
    assert distance(other[0], by_steps(optax.sgd(0.1), twice)) < 1e-5


OTHERS = {  # pairs that are not one, though they look alike
    "a number": (lambda x: x * 0.5, lambda x: x * 0.25),
    "the last digit": (lambda x: x + 0.1, lambda x: x + np.nextafter(np.float32(0.1), 1)),
    "the sign of 0": (lambda x: x + 1 / (x * 0.0), lambda x: x + 1 / (x * -0.0)),
    "operands": (lambda x: x - 2 * x, lambda x: 2 * x - x),
    "an array": (lambda x: x * np.arange(3.0), lambda x: x * np.array([0.0, 1, 3])),
    "an array within": (
        jax.jit(lambda x: x + np.arange(3.0)),
        jax.jit(lambda x: x + np.array([0.0, 1, 3])),
    ),
    "a branch": (
        lambda x: jax.lax.cond(x[0] > 0, lambda: x, lambda: x * 2.0),
        lambda x: jax.lax.cond(x[0] > 0, lambda: x, lambda: x * 3.0),
    ),
    "an operation": (jnp.cumsum, lambda x: jnp.cumsum(x[::-1])),
    "the result's tree": (lambda x: (x, x), lambda x: [x, x]),
    "a call to Python": (
        lambda x: jax.pure_callback(lambda y: y, x, x),
        lambda x: jax.pure_callback(lambda y: 2 * y, x, x),
    ),
    "by shape": (lambda x: x, lambda x: x if len(x) > 3 else 2 * x),
}


def call(program, *arguments):
    return program(*arguments)


@pytest.mark.parametrize("name", OTHERS)
def test_programs_that_differ_are_told_apart(name):
    at = (call, jax.ShapeDtypeStruct((3,), jnp.float32))
    first, second = (known(program, *at) for program in OTHERS[name])
    assert first == known(OTHERS[name][0], *at)
    assert first != second


def test_what_jax_is_set_to_counts():
    """Both make float32 numbers now; with 64 bits one of them would not."""
    at = (call, jax.ShapeDtypeStruct((3,), jnp.float32))
    pair = (lambda x: x + jnp.ones(3)), (lambda x: x + jnp.ones(3, jnp.float32))
    before = known(pair[1], *at)
    assert known(pair[0], *at) == before
    with jax.enable_x64(True):
        assert known(pair[0], *at) != known(pair[1], *at) != before


OPTIMIZERS = {
    **{name: getattr(optax, name) for name in ("sgd", "adamw", "rmsprop")},
    "momentum": partial(optax.sgd, momentum=0.9, nesterov=True),
    "decay": lambda rate: optax.sgd(optax.exponential_decay(rate, 2, 0.5)),
    "injected": optax.inject_hyperparams(optax.adam),
    "masked": lambda rate: optax.masked(optax.adam(rate), (True, False)),
    "array": lambda rate: optax.sgd(jnp.float32(rate)),
    "powers": lambda rate: optax.stateless(
        lambda u, p: jax.tree.map(lambda g, w: -rate * g * jnp.abs(w) ** 0.5, u, p)
    ),
    "of the loss": lambda rate: optax.contrib.reduce_on_plateau(factor=0.5, patience=1),
    **{
        name: pytest.param(getattr(optax, name), marks=pytest.mark.slow)
        for name in (
            "adam",
            "lion",
            "lamb",
            "adafactor",
            "nadam",
            "radam",
            "yogi",
            "amsgrad",
            "sm3",
        )
    },
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_optimizer_without_its_numbers_given_back_is_the_optimizer(make):
    """Four steps by the program of one rate, with the numbers of another."""
    params = (jnp.array([1.0, -2.0, 0.5]), jnp.array([[3.0]]))
    without_numbers(Given(make(0.1)), params)
    shared, numbers, _ = without_numbers(Given(make(0.03)), params)
    assert shared.lifted
    assert shared == without_numbers(Given(make(0.5)), params)[0]
    both = [make(0.03), shared(Constants(numbers=numbers))]
    found = []
    for optimizer in map(optax.with_extra_args_support, both):
        at, state = params, optimizer.init(params)
        for step in range(4):
            grads = jax.tree.map(lambda leaf: jnp.cos(leaf + step), at)  # noqa: B023
            updates, state = optimizer.update(grads, state, at, value=jnp.float32(step))
            at = optax.apply_updates(at, updates)
        found.append((at, state))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), *found)


def by_objective():
    """Steps in proportion to the objective."""

    def update(grads, state, params, *, value_fn, **_):
        return jax.tree.map(lambda grad: -0.1 * value_fn(params) * grad, grads), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def test_an_optimizer_that_asks_for_the_objective_keeps_its_numbers():
    for make in (optax.lbfgs, by_objective):
        shared, numbers, _ = without_numbers(Given(make()), (jnp.ones(3),))
        assert (shared.lifted, numbers) == (False, ((), ()))
    params, _ = train(optimizer=optax.lbfgs(), batch_size=None, epochs=4)
    assert jaxbp.objective(MODEL, params, BATCH) < 0.5 * jaxbp.objective(
        MODEL, jaxbp.init(jax.random.key(0), MODEL), BATCH
    )


def test_an_exponent_stays_a_number():
    """XLA makes a square root of a power of 1/2, which it cannot of an argument."""
    _, (_, numbers), _ = without_numbers(Given(OPTIMIZERS["powers"](0.1)), (jnp.ones(3),))
    assert [float(number) for number in numbers] == [pytest.approx(-0.1)]


class Scaled:
    """An activation whose factor may be changed."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, a):
        return scaled(self.factor)(a)


@pytest.mark.parametrize(
    "asked",
    [
        {"validation": BATCH},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"on_epoch": lambda epoch: None}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_what_changed_since_is_trained_as_it_is(asked):
    """The same object, and one that was equal to it; jit alone would go on with what it traced."""
    first = Scaled(1.0)
    train(MODEL._replace(activation=first))
    first.factor, second = 3.0, Scaled(1.0)
    for unit, factor in ((first, 3.0), (second, 1.0)):
        params, _ = train(MODEL._replace(activation=unit), **asked)
        expected = by_steps(optax.sgd(0.1), MODEL._replace(activation=scaled(factor)))
        assert distance(params, expected) < 1e-5


class Momentum:
    """SGD with a momentum that may be changed, or be Nesterov's from now on."""

    def __init__(self):
        self.rate, self.nesterov = 0.1, False

    def inner(self):
        return optax.sgd(self.rate, momentum=0.9, nesterov=self.nesterov)

    def init(self, params):
        return self.inner().init(params)

    def update(self, grads, state, params=None):
        return self.inner().update(grads, state, params)


@pytest.mark.slow
@pytest.mark.parametrize("asked", thinned([{}, {"validation": BATCH}], every=2))
def test_an_optimizer_that_changed_since_is_what_it_is_now(asked):
    first = Momentum()
    train(optimizer=optax.GradientTransformation(first.init, first.update))
    first.nesterov, first.rate, second = True, 0.2, Momentum()
    for own in (first, second):
        optimizer = optax.GradientTransformation(own.init, own.update)
        params, _ = train(optimizer=optimizer, **asked)
        assert distance(params, by_steps(own.inner())) < 1e-5


def test_old_programs_are_released():
    compiled = compiled_for_each(lambda piece, x: piece(x))

    def piece(n):
        return lambda x: x + n

    first = piece(-1)
    compiled(first)
    released = weakref.ref(first)
    del first
    for n in range(KEPT):
        compiled(piece(n))
    gc.collect()
    assert released() is None
