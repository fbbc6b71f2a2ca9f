"""One kernel an epoch: by Pallas's interpreter it trains as XLA's scan does, and it can be lowered
for a GPU on any machine."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from combinations import ACTIVATIONS, HEADS, chosen, made, thinned

import jaxbp
from benchmarks.one_kernel import lowered
from benchmarks.problems import random_batch, random_params
from jaxbp import activations, heads
from jaxbp.training import kernel_choice
from jaxbp.training.epoch import Program, one_epoch
from jaxbp.training.one_kernel import OneKernel, is_faster, warps_for
from jaxbp.training.padding import ignores_padding, padded_loss, rational_gelu

slow = pytest.mark.slow
MODEL = jaxbp.MLP((3, 5, 2), activations.tanh, heads.softmax_cross_entropy)
OPTIMIZERS = {
    "sgd": partial(made, optax.sgd, 0.1),
    "momentum": partial(made, partial(optax.sgd, momentum=0.9), 0.1),
    "adam": partial(made, optax.adam, 0.01),
    "adamw": partial(made, partial(optax.adamw, weight_decay=0.1), 0.01),
    "clipped": partial(
        made, lambda rate: optax.chain(optax.clip_by_global_norm(0.5), optax.adam(rate)), 0.01
    ),
    "scheduled": partial(
        made, lambda rate: optax.sgd(optax.warmup_cosine_decay_schedule(0, rate, 2, 9)), 0.1
    ),
}


run_epoch = jax.jit(one_epoch, static_argnums=0)


def both(model, optimizer, batch, batch_size, epochs=2):
    """The largest relative difference, in parameters and losses, between kernel and scan."""
    rows, differences = len(batch.x), []
    program = Program(model, optimizer, jaxbp.backprop, batch_size, precision="highest")
    kernel = program._replace(kernel=OneKernel(warps=1, interpret=True))
    start = random_params(model, 0, np.float32)
    carries = [(start, optimizer.init(start)) for _ in range(2)]
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(rows).astype(np.int32)
        results = [
            run_epoch(each, *carry, batch, order, None)
            for each, carry in zip((program, kernel), carries, strict=True)
        ]
        carries = [result[:2] for result in results]
        (expected, _, loss, _), (params, _, of_kernel, _) = results
        differences += [jaxbp.compare(params, expected).relative_error, abs(of_kernel / loss - 1)]
    return max(differences)


CASES = {  # sizes, activation, head, optimiser, batch size, rows, weighted
    "one layer": ((3, 2), (), "softmax_cross_entropy", "sgd", 4, 10, False),
    "no padding": ((16, 32, 16), "relu", "linear_squared_error", "momentum", 16, 32, False),
    "no ragged step": ((5, 7, 3), "sigmoid", "sigmoid_logistic", "adam", 5, 15, True),
    "ragged and weighted": ((17, 20, 33, 3), "gelu", "exp_poisson", "adamw", 20, 47, True),
    "clipped": ((4, 9, 1), "softplus", "linear_huber", "clipped", 3, 10, True),
    "scheduled": ((4, 9, 3), ("elu",), "linear_absolute_error", "scheduled", 6, 10, False),
    "one row a step": ((2, 3, 2), "silu", "sigmoid_squared_error", "adam", 1, 5, False),
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in {"one layer", "clipped"} else slow) for case in CASES],
)
def test_it_trains_as_the_scan_does(case):
    sizes, units, head, optimizer, batch_size, rows, weighted = CASES[case]
    named = tuple(ACTIVATIONS[each] for each in units) if isinstance(units, tuple) else units
    unit = ACTIVATIONS[named] if isinstance(named, str) else named
    model = jaxbp.MLP(sizes, unit, HEADS[head], l2=0.01)
    integer = model.head.target == "classes"
    batch = random_batch(model, rows, 1, weighted=weighted, integer=integer, dtype=np.float32)
    assert both(model, OPTIMIZERS[optimizer](), batch, batch_size) < 1e-6


@slow
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
@pytest.mark.parametrize("head", HEADS)
def test_it_does_with_every_activation_head_and_optimizer(head, optimizer):
    """Odd sizes, ragged minibatches and weights; one program for all activations."""

    @jax.jit
    def epoch(which, params, batch, order):
        unit = chosen(which, list(ACTIVATIONS.values()))
        model = jaxbp.MLP((5, 9, 3), unit, HEADS[head], l2=0.01)
        state = OPTIMIZERS[optimizer]().init(params)
        results = []
        for kernel in (None, OneKernel(warps=1, interpret=True)):
            program = Program(
                model,
                OPTIMIZERS[optimizer](),
                jaxbp.backprop,
                7,
                precision="highest",
                kernel=kernel,
            )
            results.append(one_epoch(program, params, state, batch, order, None))
        return results

    model = jaxbp.MLP((5, 9, 3), activations.tanh, HEADS[head])
    order = np.random.default_rng(0).permutation(24).astype(np.int32)
    for integer in {False, model.head.target == "classes"}:
        batch = random_batch(model, 24, 2, integer=integer, dtype=np.float32)
        for which in range(len(ACTIVATIONS)):
            params = random_params(model, which, np.float32)
            expected, found = epoch(which, params, batch, order)
            assert jaxbp.compare(found[0], expected[0]).relative_error < 2e-6
            np.testing.assert_allclose(found[2], expected[2], rtol=1e-6)


@pytest.mark.parametrize("head", thinned(HEADS, every=3))
def test_a_padded_output_has_no_loss_and_no_error(head):
    loss = HEADS[head].loss
    batch = random_batch(MODEL, 6, 0, dtype=np.float32)
    logits = 5 * jax.random.normal(jax.random.key(0), (6, 16))
    target = jnp.pad(batch.target, ((0, 0), (0, 14)))
    expected, error = loss(logits[:, :2], batch.target)
    found, of_padding = padded_loss(loss, 2, logits, target)
    np.testing.assert_array_equal(of_padding[:, 2:], 0)
    np.testing.assert_allclose(of_padding[:, :2], error, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_rational_gelu_is_gelu(x64):
    """Abramowitz and Stegun's bound, 1.5e-7 for erf, is half of that for the distribution."""
    a = jnp.linspace(-12, 12, 4801)
    for found, expected in zip(rational_gelu(a), activations.gelu(a), strict=True):
        assert np.max(np.abs(found - expected) / np.maximum(1, np.abs(a))) < 7.6e-8


# Optimisers: what they make of padding


def centred(rate):
    return optax.chain(optax.centralize(), optax.sgd(rate))


def clipped_by_mean(rate):
    return optax.chain(optax.clip_by_block_rms(1.0), optax.sgd(rate))


def drifting(rate):
    """Adds a number to every parameter, the padding's too."""
    return optax.chain(
        optax.sgd(rate), optax.stateless(lambda u, _: jax.tree.map(lambda leaf: leaf + 0.1, u))
    )


def by_exponentials(rate):
    """Divides by a sum over a leaf to which every 0 adds 1."""
    return optax.stateless(lambda u, _: jax.tree.map(lambda g: -rate * g / jnp.sum(jnp.exp(g)), u))


def inverse(rate):
    """Divides by the parameters, which are 0 in the padding."""
    return optax.stateless(
        lambda u, params: jax.tree.map(lambda g, w: -rate * g / (w + jnp.sign(w)), u, params)
    )


def by_sizes(change):
    """Its numbers are of the layers' sizes."""

    def make(rate):
        changed = optax.stateless(lambda u, _: jax.tree.map(change, u))
        return optax.chain(changed, optax.sgd(rate))

    return make


def sums_of(quotient):
    """A global norm of what may be 0 / 0 in the padding."""

    def make(rate):
        divided = optax.stateless(lambda u, _: jax.tree.map(quotient, u))
        return optax.chain(divided, optax.clip_by_global_norm(1.0), optax.sgd(rate))

    return make


def asserting(rate):
    def update(updates, params):
        assert params[0].weight.shape == (5, 3)
        return updates

    return optax.chain(optax.stateless(update), optax.sgd(rate))


def of_the_batch(rate):
    """Uses the examples, which ``make_step`` hands on."""

    def update(updates, state, params=None, *, batch, **extra):
        return jax.tree.map(lambda g: g / (1 + jnp.mean(batch.x**2)), updates), state

    transformation = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )
    return optax.chain(transformation, optax.sgd(rate))


LEAVE = {
    **{name: getattr(optax, name) for name in ("adabelief", "adadelta", "adagrad", "adamax")},
    **{name: getattr(optax, name) for name in ("adam", "adamw", "amsgrad", "lion", "nadam")},
    **{name: getattr(optax, name) for name in ("radam", "rmsprop", "rprop", "sgd", "sign_sgd")},
    "yogi": optax.yogi,
    "clip": lambda rate: optax.chain(optax.clip(0.1), optax.sgd(rate)),
    "clip_by_global_norm": lambda rate: optax.chain(
        optax.clip_by_global_norm(0.1), optax.adam(rate)
    ),
    "normalised": lambda rate: optax.chain(optax.normalize_by_update_norm(), optax.sgd(rate)),
    "injected": lambda rate: optax.inject_hyperparams(optax.adam)(learning_rate=rate, eps=0.0),
    "norm after Adam": lambda rate: optax.chain(optax.adam(rate), optax.clip_by_global_norm(0.1)),
    **{"drifting": drifting, "inverse": inverse},
}
LARGEST = optax.add_decayed_weights(
    0.3,
    mask=lambda params: jax.tree.map(
        lambda leaf: leaf.size == max(each.size for each in jax.tree.leaves(params)), params
    ),
)
TOUCH = {
    "half of it by size": lambda rate: optax.stateless(
        lambda u, _: jax.tree.map(
            lambda g: -rate * g.astype(jnp.bfloat16 if g.size > 20 else jnp.float16).astype("f4"), u
        )
    ),
    **{name: getattr(optax, name) for name in ("adafactor", "novograd", "sm3")},
    **{"centred": centred, "clipped by mean": clipped_by_mean, "asserting": asserting},
    **{"by exponentials": by_exponentials, "of the batch": of_the_batch},
    "by array": by_sizes(lambda g: g * np.array([1 / g.shape[0]], np.float32)),
    "by power": by_sizes(lambda g: g ** (1 + 2 * (g.shape[0] // 16))),
    "by place": lambda rate: optax.chain(
        optax.stateless(lambda u, _: jax.tree.map(lambda g: g * jnp.arange(1, 1 + g.shape[-1]), u)),
        optax.sgd(rate),
    ),
    "0 / 0": sums_of(lambda g: g / (jnp.abs(g) + 1e-9 + 1 - 1)),
    "0 / 0 in float16": sums_of(
        lambda g: (g.astype("f2") / (jnp.abs(g) + 1e-8).astype("f2")).astype("f4")
    ),
    "0 times infinity": sums_of(lambda g: g * jax.lax.rsqrt(g * g)),
    "0 / 0 by a function": sums_of(lambda g: g / (jax.nn.sigmoid(g) - 0.5)),
}


def program_of(make, model=MODEL):
    return Program(model, make(0.1), jaxbp.backprop, 4)


@pytest.mark.parametrize("name", LEAVE)
def test_an_optimizer_that_leaves_padding_alone_is_known_to(name):
    assert ignores_padding(program_of(LEAVE[name]))


@pytest.mark.parametrize("name", TOUCH)
def test_an_optimizer_that_does_not_is_found_out(name):
    assert not ignores_padding(program_of(TOUCH[name]))


def test_an_optimizer_that_treats_the_largest_layer_apart_is_found_out():
    """Padding makes another layer the largest one, or several."""
    model = jaxbp.MLP((30, 16, 17, 17), activations.tanh, heads.softmax_cross_entropy)
    assert not ignores_padding(
        program_of(lambda rate: optax.chain(LARGEST, optax.sgd(rate)), model)
    )


def test_an_optimizer_that_knows_the_shapes_is_found_out():
    decay = jax.tree.map(
        lambda leaf: 0.1 * jnp.ones_like(leaf), random_params(MODEL, 0, np.float32)
    )
    own = optax.stateless(lambda u, _: jax.tree.map(lambda g, d: g * d, u, decay))
    assert not ignores_padding(program_of(lambda _: own))


@slow
@pytest.mark.parametrize("name", LEAVE)
def test_what_is_said_of_an_optimizer_is_so(name):
    batch = random_batch(MODEL, 10, 0, dtype=np.float32)
    assert both(MODEL, made(LEAVE[name], 0.01), batch, 4) < 2e-6


# The choice


def fit(**options):
    batch = random_batch(MODEL, 10, 0, dtype=np.float32, integer=True)
    defaults = {"optimizer": made(optax.sgd, 0.1), "epochs": 2, "batch_size": 4}
    return jaxbp.fit(MODEL, batch, key=jax.random.key(0), **defaults | options)


@slow
def test_fit_and_fit_many_train_by_it():
    """Of many networks each has its own learning rate and penalty: arguments of the kernel."""
    expected, by_scan = fit(kernel="xla", precision="highest")
    found, by_kernel = fit(kernel="interpret", precision="highest")
    assert jaxbp.compare(found, expected).relative_error < 1e-6
    np.testing.assert_allclose(by_kernel.training_loss, by_scan.training_loss, rtol=1e-6)
    many = partial(
        jaxbp.fit_many,
        MODEL,
        random_batch(MODEL, 10, 0, dtype=np.float32, integer=True),
        keys=jax.random.split(jax.random.key(0), 3),
        learning_rate=[0.1, 0.2, 1e30],
        l2=[0.0, 0.1, 0.1],
        epochs=2,
        batch_size=4,
        precision="highest",
    )
    (expected, by_scan), (found, by_kernel) = many(kernel="xla"), many(kernel="interpret")
    assert jaxbp.compare(found, expected).relative_error < 1e-6
    np.testing.assert_allclose(by_kernel.training_loss, by_scan.training_loss, rtol=1e-6)
    assert np.isnan(by_kernel.training_loss[2]).all()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"batch_size": None}, "a full batch is a single step"),
        ({"diagnostics": True}, "diagnostics take the last step"),
        ({"gradient": jaxbp.autodiff}, "gradient is .*autodiff.*, not jaxbp.backprop"),
        ({"compute_dtype": jnp.bfloat16}, "compute_dtype is set"),
        ({"optimizer": clipped_by_mean(0.1)}, "the optimiser combines the entries of a layer"),
        ({"params": random_params(MODEL, 0, jnp.bfloat16)}, "parameters are bfloat16"),
    ],
)
def test_one_kernel_that_is_demanded_and_cannot_be_says_why(options, reason):
    with pytest.raises(
        ValueError, match=rf'kernel: got "?.?interpret.*which cannot be: .*{reason}'
    ):
        fit(kernel="interpret", **options)


def test_a_loss_of_ones_own_is_not_padded():
    def loss(logits, target):
        each, error = heads.cross_entropy(logits, target)
        return 2 * each, 2 * error

    model = MODEL._replace(head=MODEL.head._replace(loss=loss))
    batch = random_batch(model, 10, 0, integer=True, dtype=np.float32)
    with pytest.raises(ValueError, match=r"not known how to pad the logits of .*loss"):
        jaxbp.fit(
            model,
            batch,
            optimizer=optax.sgd(0.1),
            epochs=1,
            batch_size=4,
            key=jax.random.key(0),
            kernel="interpret",
        )


@pytest.mark.parametrize("train", [fit, jaxbp.fit_many])
def test_a_kernel_of_another_name_is_refused(train):
    options = {"kernel": "cuda"}
    if train is jaxbp.fit_many:
        train, options = (
            partial(train, MODEL, random_batch(MODEL, 4, 0, dtype=np.float32)),
            options
            | {
                "keys": jax.random.split(jax.random.key(0), 2),
                "learning_rate": 0.1,
                "epochs": 1,
                "batch_size": 2,
            },
        )
    with pytest.raises(
        ValueError, match="kernel: got 'cuda', expected one of auto, xla, fused, in"
    ):
        train(**options)


@pytest.mark.skipif(kernel_choice.runs_triton(jax.devices()[0]), reason="there is a GPU")
def test_without_a_gpu_fused_says_so():
    with pytest.raises(ValueError, match=r"kernel: got 'fused', .*no NVIDIA GPU of compute"):
        fit(kernel="fused")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(kernel_choice, "runs_triton", lambda device: True)


class Compiler:
    """In place of a jitted epoch: it compiles, or raises an error."""

    def __init__(self, error=None):
        self.error = error

    def eval_shape(self, *_):
        """Its step is traced."""

    def lower(self, *_):
        return self

    def compile(self):
        if self.error is not None:
            raise self.error


def choose(program, error=None, kernel="auto"):
    arguments = (jnp.ones((2, 3), jnp.float32),)
    optimizer, compiler = program.optimizer, Compiler(error)
    return kernel_choice.with_kernel(
        kernel, program, optimizer, lambda _: compiler, arguments
    ).kernel


def wide(*sizes, batch_size=32, optimizer=optax.sgd, **options):
    model = jaxbp.MLP(sizes, activations.relu, heads.softmax_cross_entropy)
    return Program(model, made(optimizer, 0.1), jaxbp.backprop, batch_size, **options)


@pytest.mark.usefixtures("gpu")
def test_auto_takes_one_kernel_where_that_is_faster_and_compiles():
    assert isinstance(choose(wide(64, 128, 10)), OneKernel)
    assert choose(wide(64, 128, 10), kernel="xla") is None
    assert choose(wide(784, 512, 10)) is None
    assert choose(wide(64, 128, 10, diagnostics=True)) is None
    assert choose(wide(64, 128, 10, precision="highest")) is None
    with jax.default_matmul_precision("highest"):
        assert choose(wide(64, 128, 10)) is None
    no_room = jax.errors.JaxRuntimeError("Shared memory size limit exceeded")
    assert choose(wide(64, 128, 10), no_room) is None
    with pytest.raises(ValueError, match=r"kernel: got 'fused'.*does not compile: Shared memory"):
        choose(wide(64, 128, 10), no_room, kernel="fused")


@pytest.mark.usefixtures("gpu")
def test_without_pallas_xla_trains(monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxbp.training.one_kernel", None)
    monkeypatch.delattr("jaxbp.training.one_kernel", raising=False)
    model = MODEL._replace(sizes=(3, 6, 2))  # a choice that is not remembered
    program = Program(model, optax.sgd(0.1), jaxbp.backprop, 4)
    assert choose(program) is None
    with pytest.raises(ValueError, match=r"kernel: got 'fused'.*this JAX has no Pallas for Triton"):
        choose(program, kernel="fused")


def test_a_choice_is_made_anew_under_other_settings(gpu):
    program = wide(64, 128, 10, optimizer=lambda rate: optax.sgd(2 * rate))
    assert isinstance(choose(program), OneKernel)
    no_float64 = NotImplementedError("f64")
    with jax.enable_x64(True):
        assert choose(program, no_float64) is None
    assert isinstance(choose(program), OneKernel)


def test_an_activation_with_an_array_of_its_own_is_left_to_xla():
    slopes = jnp.linspace(0.1, 0.5, 5)

    def prelu(a):
        h = jnp.where(a > 0, a, slopes * a)
        return h, jnp.where(a > 0, 1, jnp.broadcast_to(slopes, a.shape))

    batch = random_batch(MODEL, 10, 0, dtype=np.float32, integer=True)
    train = partial(
        jaxbp.fit,
        MODEL._replace(activation=prelu),
        batch,
        optimizer=made(optax.sgd, 0.1),
        epochs=1,
        batch_size=4,
        key=jax.random.key(0),
    )
    train()
    with pytest.raises(ValueError, match=r"kernel: got 'interpret'.*cannot be traced with padding"):
        train(kernel="interpret")


def test_faster_is_what_was_measured_to_be():
    assert is_faster(wide(64, 128, 10), "default")
    assert is_faster(wide(128, 128, 128, 128, 10), "tensorfloat32")
    assert is_faster(wide(64, 128, 10, optimizer=optax.adam), "high")
    assert is_faster(wide(64, 128, 10), "bfloat16")  # of float32 arrays, TF32 on a GPU
    assert is_faster(wide(13, 32, 3), "highest")
    assert not is_faster(wide(64, 128, 10), "highest")
    assert not is_faster(wide(64, 128, 128, 10, optimizer=optax.adam), "default")  # Adam's state
    assert not is_faster(wide(64, 128, 10, batch_size=256), "default")


def test_warps_grow_with_the_network():
    device, sizes = jax.devices()[0], ((8, 8, 2), (64, 32, 10), (64, 128, 10))
    assert [warps_for(wide(*each), 1, device) for each in sizes] == [2, 2, 8]


# Lowering for a GPU


@pytest.mark.parametrize(
    ("activation", "head", "optimizer"),
    [("gelu", "softmax_cross_entropy", "clipped"), ("elu", "exp_poisson", "adamw")],
)
def test_it_lowers_for_a_gpu(activation, head, optimizer):
    model = jaxbp.MLP((17, 20, 3), ACTIVATIONS[activation], HEADS[head], l2=0.01)
    assert "triton" in lowered(model, OPTIMIZERS[optimizer]())


def test_what_has_no_lowering_is_found_without_a_gpu():
    model = MODEL._replace(activation=jaxbp.with_slope(jax.lax.erf))
    with pytest.raises(Exception, match="erf"):
        lowered(model, OPTIMIZERS["sgd"]())


@slow
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_lowers(activation):
    assert "triton" in lowered(MODEL._replace(activation=ACTIVATIONS[activation]), optax.sgd(0.1))


@slow
@pytest.mark.parametrize("head", HEADS)
def test_every_head_lowers(head):
    assert "triton" in lowered(MODEL._replace(head=HEADS[head]), optax.sgd(0.1))


@slow
@pytest.mark.parametrize("name", LEAVE)
def test_every_optimizer_that_leaves_padding_alone_lowers(name):
    assert "triton" in lowered(MODEL, LEAVE[name](0.1))
