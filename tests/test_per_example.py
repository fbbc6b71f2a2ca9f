"""Per example: what is contracted from (z, δ) is what vmap of jax.grad of one example gives."""

from functools import partial, wraps

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from combinations import ACTIVATIONS, HEADS, ONE_OF_EACH, any_model, cpu_compiler, numbers, sgd
from jax.flatten_util import ravel_pytree

import jaxbp
from benchmarks.problems import random_batch, random_params
from jaxbp import per_example
from jaxbp.model import with_penalty

pytestmark = pytest.mark.usefixtures("strict")
slow = pytest.mark.slow
SIZES = (3, 5, 4, 2)
ROWS = 6

compiled = partial(jax.jit, static_argnums=0)  # outside jit each operation is compiled by itself
norms_of = compiled(per_example.per_example_norms)
CHOICES = ("per_layer", "reduction")
clipped_gradient = compiled(per_example.clipped_gradient, static_argnames=CHOICES)
noise_scale = compiled(per_example.gradient_noise_scale, static_argnames="probes")
noisy_gradient = compiled(per_example.noisy_clipped_gradient, static_argnames=CHOICES)


def problem(activation="tanh", head="softmax_cross_entropy", l2=0.3, sizes=SIZES, **options):
    model = jaxbp.MLP(sizes, ACTIVATIONS[activation], HEADS[head], l2)
    return model, random_params(model, 1), random_batch(model, ROWS, 2, **options)


@compiled
def by_autodiff(model, params, batch):
    """jax.grad of the objective of each example as a batch of its own."""

    def one(x, target):
        return jax.grad(jaxbp.objective, argnums=1)(model, params, jaxbp.Batch(x, target))

    return jax.vmap(one)(batch.x[:, None], batch.target[:, None])


def rows_of(tree):
    """Every example's gradient as a row, float64 on the host."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def layers_of(tree):
    """The same for every layer by itself."""
    return [rows_of(layer) for layer in tree]


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def share_of(batch):
    weight = np.ones(ROWS) if batch.weight is None else np.asarray(batch.weight)
    return weight / weight.sum()


def all_of_it(activation, head, params, batch):
    """Everything of this module, and the reference."""
    model = any_model(SIZES, activation, head, l2=0.3)
    return (
        per_example.per_example_gradients(model, params, batch),
        per_example.per_example_norms(model, params, batch),
        per_example.per_example_norms(model, params, batch, per_layer=True),
        per_example.gradient_moments(model, params, batch),
        per_example.signal_to_noise(model, params, batch),
        by_autodiff(model, params, batch),
        jaxbp.backprop(model, params, batch)[1],
    )


of_any = jax.jit(all_of_it)  # one program for all combinations
of_any_head = jax.jit(partial(all_of_it, ACTIVATIONS["tanh"]))


@pytest.mark.parametrize(
    ("activation", "head"),
    [("tanh", head) for head in HEADS]
    + [pytest.param(*each, marks=slow) for each in ONE_OF_EACH if each[0] != "tanh"],
)
def test_all_are_those_of_autodiff(activation, head, x64):
    """Every head and activation, with example weights, soft labels and a penalty."""
    _, params, batch = problem(activation, head)
    unit, loss = numbers(activation, head)
    of = of_any_head if activation == "tanh" else partial(of_any, unit)
    grads, norms, layer_norms, moments, ratio, reference, gradient = of(loss, params, batch)
    assert jaxbp.compare(grads, reference).relative_error < 1e-14
    expected, share = rows_of(reference), share_of(batch)
    np.testing.assert_allclose(norms, np.linalg.norm(expected, axis=1), rtol=1e-13)
    by_layer = np.stack([np.linalg.norm(rows, axis=1) for rows in layers_of(reference)], axis=1)
    np.testing.assert_allclose(layer_norms, by_layer, rtol=1e-13)
    mean, second = share @ expected, share @ expected**2
    variance = share @ (expected - mean) ** 2
    for ours, theirs in zip(moments, (mean, second, variance), strict=True):
        np.testing.assert_allclose(flat(ours), theirs, rtol=1e-10, atol=1e-15)
    noisy = variance > 1e-9
    known = abs(mean[noisy]) / np.sqrt(variance[noisy])
    np.testing.assert_allclose(flat(ratio)[noisy], known, rtol=1e-6)
    assert jaxbp.compare(moments.mean, gradient).relative_error < 1e-14


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize(
    "head", ["softmax_cross_entropy", pytest.param("linear_squared_error", marks=slow)]
)
def test_clipping_is_clipping_every_gradient(head, per_layer, x64):
    """Without ever forming one; the penalty is added unclipped."""
    model, params, batch = problem("relu", head)
    data = by_autodiff(model._replace(l2=0.0), params, batch)
    bound = np.median(np.linalg.norm(rows_of(data), axis=1)) / (2 if per_layer else 1)
    groups = layers_of(data) if per_layer else [rows_of(data)]
    norms = [np.linalg.norm(rows, axis=1, keepdims=True) for rows in groups]
    assert any((norm > bound).any() and (norm < bound).any() for norm in norms)
    clipped = [rows / np.maximum(norm / bound, 1) for rows, norm in zip(groups, norms, strict=True)]
    expected = np.concatenate([share_of(batch) @ rows for rows in clipped])
    nothing = jax.tree.map(np.zeros_like, params)
    expected = expected + flat(with_penalty(model, jax.tree.map(np.asarray, params), nothing))
    (loss, grads), (_, summed), known = of_both_reductions(model, params, batch, bound, per_layer)
    np.testing.assert_allclose(flat(grads), expected, rtol=1e-12)
    np.testing.assert_allclose(loss, known, rtol=1e-14)
    np.testing.assert_allclose(flat(summed), ROWS * expected, rtol=1e-12)


@partial(jax.jit, static_argnums=(0, 4))
def of_both_reductions(model, params, batch, bound, per_layer):
    clip = partial(per_example.clipped_gradient, model, params, batch, bound, per_layer)
    return clip(), clip(reduction="sum"), jaxbp.objective(model, params, batch)


def test_every_layer_can_have_its_bound(x64):
    model, params, batch = problem("relu", l2=0.0)
    bounds = (0.01, 1e9, 0.02)
    _, grads = clipped_gradient(model, params, batch, bounds, per_layer=True)
    for bound, layer, data in zip(bounds, grads, by_autodiff(model, params, batch), strict=True):
        norms = np.linalg.norm(rows_of(data), axis=1, keepdims=True)
        expected = share_of(batch) @ (rows_of(data) / np.maximum(norms / bound, 1))
        np.testing.assert_allclose(flat(layer), expected, rtol=1e-12)


@compiled
def clipped_and_moments(model, params, batch):
    return (
        per_example.clipped_gradient(model, params, batch, 0.5),
        per_example.gradient_moments(model, params, batch),
    )


@pytest.mark.slow
def test_a_row_of_weight_two_is_two_rows(x64):
    model, params, (x, target, _) = problem(sizes=(3, 4, 2))
    twice = jaxbp.Batch(np.vstack([x, x[:1]]), np.vstack([target, target[:1]]))
    weighted = jaxbp.Batch(x, target, np.array([2.0, 1, 1, 1, 1, 1]))
    for claimed, reference in zip(
        *(clipped_and_moments(model, params, batch) for batch in (weighted, twice)), strict=True
    ):
        assert jaxbp.compare(claimed, reference).relative_error < 1e-13


def test_rows_of_weight_zero_do_not_count(x64):
    model, params, (x, target, _) = problem(sizes=(3, 4, 2))
    padded = jaxbp.Batch(x, target, np.array([1.0, 1, 1, 1, 0, 0]))
    (claimed, _), (reference, _) = (
        clipped_and_moments(model, params, batch)
        for batch in (padded, jaxbp.Batch(x[:4], target[:4]))
    )
    assert jaxbp.compare(claimed, reference).relative_error < 1e-13


def test_integer_classes_and_single_examples(x64):
    model, params, batch = problem(weighted=False, integer=True, sizes=(3, 5, 2))
    one = jaxbp.Batch(batch.x[0], batch.target[0])

    @jax.jit
    def norms_of_both(params):
        return [per_example.per_example_norms(model, params, b) for b in (batch, one)]

    norms, of_one = norms_of_both(params)
    expected = np.linalg.norm(rows_of(by_autodiff(model, params, batch)), axis=1)
    np.testing.assert_allclose(norms, expected, rtol=1e-13)
    np.testing.assert_allclose(of_one, norms[0])


OF_EACH = [
    per_example.per_example_norms,
    partial(per_example.clipped_gradient, max_norm=1.0),
    per_example.gradient_moments,
    per_example.gradient_noise_scale,
]


def noisy_of(model, params, batch):
    """A random gradient, drawn once."""
    options = {"max_norm": 2.0, "noise_multiplier": 3.0, "key": jax.random.key(1)}
    return per_example.noisy_clipped_gradient(model, params, batch, **options)


@pytest.mark.parametrize(
    "of", [*OF_EACH, noisy_of, per_example.per_example_gradients, per_example.signal_to_noise]
)
def test_examples_are_rows(of, x64):
    """Of 2 sequences of 3 rows it would not be clear whether 2 or 6 examples are to be clipped."""
    model, params, batch = problem(weighted=False, integer=True)
    folded = jaxbp.Batch(batch.x.reshape(2, 3, -1), batch.target.reshape(2, 3))
    with pytest.raises(ValueError, match=r"x: got shape \(2, 3, 3\), expected \(B, D\), an"):
        jax.eval_shape(partial(of, model), params, folded)


@pytest.mark.slow
def test_a_batch_of_nobody(x64):
    """Poisson sampling may draw it: a private step then is noise of the usual size, no mean."""
    model = jaxbp.MLP((40, 50), (), HEADS["softmax_cross_entropy"], l2=0.3)
    params = random_params(model, 0)
    nobody = jaxbp.Batch(np.zeros((0, 40)), np.zeros(0, int))
    assert per_example.per_example_norms(model, params, nobody).shape == (0,)
    _, summed = clipped_gradient(model, params, nobody, 2.0, reduction="sum")
    assert not flat(summed).any()
    noisy = partial(noisy_gradient, noise_multiplier=3.0, key=jax.random.key(1), reduction="sum")
    _, noise = noisy(model, params, nobody, 2.0)
    assert np.std(flat(noise)) == pytest.approx(3.0 * 2.0, rel=0.05)
    one = jaxbp.Batch(np.zeros((1, 40)), np.zeros(1, int))
    (_, of_one), (_, quiet) = (
        noisy(model, params, one, 2.0, noise_multiplier=m) for m in (3.0, 0.0)
    )
    np.testing.assert_allclose(flat(noise), flat(of_one) - flat(quiet), atol=1e-12)
    for of in (*OF_EACH[1:], noisy_of, jaxbp.backprop, jaxbp.autodiff, jaxbp.objective):
        with pytest.raises(ValueError, match=r"x: got shape \(0, 40\), expected at least"):
            of(model, params, nobody)


@pytest.mark.parametrize("of", OF_EACH)
def test_no_gradient_of_an_example_is_ever_formed(of, x64):
    """And clipping takes one backward pass: as many matrix products as backprop."""
    model = jaxbp.MLP((30, 40, 50, 10), ACTIVATIONS["relu"], HEADS["softmax_cross_entropy"])
    params, batch = (
        random_params(model, 0, np.float32),
        random_batch(model, 20, 0, dtype=np.float32),
    )
    jaxpr = jax.make_jaxpr(of, static_argnums=0)(model, params, batch).jaxpr
    largest = max(np.prod(v.aval.shape) for eqn in jaxpr.eqns for v in eqn.outvars)
    assert largest <= 40 * 50
    if isinstance(of, partial):
        ours, theirs = (
            str(jax.make_jaxpr(f, static_argnums=0)(model, params, batch)).count("dot_general")
            for f in (of, jaxbp.backprop)
        )
        assert ours == theirs


@slow
def test_bounds_and_noise_may_be_traced_and_rows_fitted_exactly(x64):
    """So that a bound can follow the norms; and no derivative is NaN where a gradient is 0."""
    model, params, batch = problem(head="linear_squared_error", sizes=(3, 2))
    of = partial(per_example.noisy_clipped_gradient, model, params, batch, key=jax.random.key(0))
    noisy = lambda bound, size: of(bound, noise_multiplier=size)[1]  # noqa: E731
    traced, known = jax.jit(noisy)(0.3, 0.7), jax.jit(partial(noisy, 0.3, 0.7))()
    assert jaxbp.compare(traced, known).relative_error < 1e-14
    model, params, batch = problem(head="linear_squared_error", l2=0.0)
    fitted = batch._replace(target=compiled(jaxbp.predict)(model, params, batch.x))
    total = lambda p: per_example.per_example_norms(model, p, fitted).sum()  # noqa: E731
    assert all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(params))
    )


def test_l2_may_be_traced(x64):
    model, params, batch = problem(sizes=(3, 4, 2))
    norms = lambda l2: per_example.per_example_norms(model._replace(l2=l2), params, batch)  # noqa: E731
    traced = jax.jit(jax.vmap(norms))(jnp.array([0.0, 0.3]))
    np.testing.assert_allclose(traced[1], norms_of(model, params, batch), rtol=1e-13)


def test_half_precision_does_not_overflow_in_squares():
    model = jaxbp.MLP((64, 10), (), HEADS["softmax_cross_entropy"])
    params = random_params(model, 0, np.float16)
    rng = np.random.default_rng(0)
    x = jnp.asarray(40 * rng.normal(size=(32, 64)), jnp.float16)
    batch = jaxbp.Batch(x, jnp.asarray(rng.integers(10, size=32), jnp.int32))
    _, grads = clipped_gradient(model, params, batch, 1.0)
    assert grads[0].weight.dtype == jnp.float16
    assert 0 < np.linalg.norm(flat(grads).astype(float)) < 1.01


def test_noise_is_normal_of_the_size_said(x64):
    """On a batch without gradient, that is noise alone: noise_multiplier · C · share."""
    model = jaxbp.MLP((40, 50), (), HEADS["linear_squared_error"])
    params = jax.tree.map(np.zeros_like, random_params(model, 0))
    batch = jaxbp.Batch(np.ones((4, 40)), np.zeros((4, 50)), np.ones(4))
    noisy = partial(noisy_gradient, noise_multiplier=3.0, key=jax.random.key(1))
    _, grads = noisy(model, params, batch, 2.0)
    assert np.std(flat(grads)) == pytest.approx(3.0 * 2.0 / 4, rel=0.05)
    assert abs(np.mean(flat(grads))) < 0.15
    _, per_layer = noisy(model, params, batch, (2.0,), per_layer=True)
    np.testing.assert_allclose(flat(per_layer), flat(grads))
    _, summed = noisy(model, params, batch, 2.0, reduction="sum")
    np.testing.assert_allclose(flat(summed), 4 * flat(grads))
    _, uneven = noisy(model, params, batch._replace(weight=jnp.array([3.0, 1, 0, 0])), 2.0)
    np.testing.assert_allclose(flat(uneven), 3 * flat(grads))  # one example has ¾ of the say


def test_layers_clipped_apart_are_more_sensitive_together(x64):
    model, params, batch = problem(l2=0.0, sizes=(3, 4, 2))
    noisy = partial(noisy_gradient, key=jax.random.key(1))
    added = []
    for bounds in (1.0, (1.0, 1.0), (2.0, 0.0001)):
        quiet, loud = (
            noisy(model, params, batch, bounds, per_layer=True, noise_multiplier=size)[1]
            for size in (0.0, 1.0)
        )
        added.append(flat(loud) - flat(quiet))
    assert len(set(added[0])) == added[0].size  # no two parameters share their noise
    np.testing.assert_allclose(added[0], added[1])
    np.testing.assert_allclose(added[2] / added[0], 2 / np.sqrt(2), rtol=1e-6)


@cpu_compiler  # two programs, equal to the last bit
def test_no_noise_is_clipping_alone(x64):
    model, params, batch = problem(l2=0.0, sizes=(3, 4, 2))
    _, exact = clipped_gradient(model, params, batch, 1.0, per_layer=True)
    how = {"per_layer": True, "noise_multiplier": 0.0, "key": jax.random.key(1)}
    _, quiet = noisy_gradient(model, params, batch, 1.0, **how)
    np.testing.assert_array_equal(flat(quiet), flat(exact))


CLASSIFIER = jaxbp.MLP((5, 3), (), HEADS["softmax_cross_entropy"])


def trained(gradient, epochs=3, seed=0, check=True):
    """The parameters after so many epochs of two minibatches, from zero."""
    rng = np.random.default_rng(0)
    batch = jaxbp.Batch(rng.normal(size=(64, 5)), rng.integers(3, size=64))
    start = (jaxbp.Layer(np.zeros((3, 5), "f4"), np.zeros(3, "f4")),)
    with jax.numpy_dtype_promotion("standard"):
        params, _ = jaxbp.fit(
            CLASSIFIER,
            batch,
            optimizer=sgd(0.1),
            epochs=epochs,
            batch_size=32,
            key=jax.random.key(seed),
            params=start,
            gradient=gradient,
            check=check,
        )
    return flat(params)


@pytest.mark.slow
def test_fit_draws_new_noise_at_every_step():
    """Noise alone: were a step's drawn again, n steps would go n times as far, not √n times."""
    noise = partial(per_example.noisy_clipped_gradient, max_norm=1e-6, noise_multiplier=1e6)
    once, again, other = (trained(noise, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)
    ways = [np.linalg.norm(trained(noise, epochs)) for epochs in (1, 9)]
    assert 1.5 < ways[1] / ways[0] < 5


@pytest.mark.slow
def test_a_random_gradient_is_known_by_its_key_or_by_being_declared():
    """Whichever way it is written, one draws as the plain one does."""
    noisy = partial(per_example.noisy_clipped_gradient, max_norm=1.0, noise_multiplier=1.0)

    def keywords_alone(model, params, batch, **keywords):
        return noisy(model, params, batch, **keywords)

    @wraps(noisy)
    def decorated(*args, **keywords):
        return noisy(*args, **keywords)

    @wraps(noisy)
    def key_inside(model, params, batch):
        return noisy(model, params, batch, key=jax.random.key(7))

    declared = jaxbp.random_gradient(keywords_alone)
    assert declared == jaxbp.random_gradient(keywords_alone)  # so that fit compiles it once
    in_float32 = jaxbp.mixed_precision(declared, jnp.float32)
    expected = trained(noisy, epochs=1)
    for gradient in (declared, decorated, in_float32):
        np.testing.assert_array_equal(trained(gradient, epochs=1), expected)
    assert not np.array_equal(trained(key_inside, epochs=1, check=False), expected)


def test_a_key_that_is_set_would_draw_the_same_at_every_step():
    noisy = partial(per_example.noisy_clipped_gradient, max_norm=1.0, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="gradient: its key is set, and every step would draw"):
        trained(partial(noisy, key=jax.random.key(0)))


@pytest.mark.parametrize("value", [True, "1", None, 1j])
def test_a_norm_is_a_number(value, x64):
    model, params, batch = problem(l2=0.0, sizes=(3, 4, 2))
    with pytest.raises(TypeError, match="max_norm: got "):
        jaxbp.clipped_gradient(model, params, batch, value)
    noisy = partial(jaxbp.noisy_clipped_gradient, max_norm=1.0, key=jax.random.key(0))
    with pytest.raises(TypeError, match="noise_multiplier: got "):
        noisy(model, params, batch, noise_multiplier=value)


def test_norms_take_a_penalty_that_is_traced(x64):
    model, params, batch = problem(l2=0.3, sizes=(3, 4, 2))
    norms = jax.jit(lambda l2: per_example.per_example_norms(model._replace(l2=l2), params, batch))
    expected = per_example.per_example_norms(model, params, batch)
    np.testing.assert_allclose(norms(0.3), expected, rtol=1e-12)


def test_both_noise_scales(x64):
    """McCandlish et al. (2018): against the covariance and the Hessian written out."""
    model = jaxbp.MLP((2, 3, 2), ACTIVATIONS["gelu"], HEADS["softmax_cross_entropy"], l2=0.3)
    params, batch = random_params(model, 1), random_batch(model, ROWS, 2)
    gradients = rows_of(by_autodiff(model, params, batch))
    share, (start, unravel) = share_of(batch), ravel_pytree(params)
    mean = share @ gradients
    spread = gradients - mean
    covariance = (spread.T * share) @ spread / (1 - share @ share)
    signal = mean @ mean - np.trace(covariance) * (share @ share)
    hessian = jax.jit(jax.hessian(lambda p: jaxbp.objective(model, unravel(p), batch)))(start)
    scale = noise_scale(model, params, batch, key=jax.random.key(0), probes=3000)
    np.testing.assert_allclose(scale.noise, np.trace(covariance), rtol=1e-12)
    np.testing.assert_allclose(scale.signal, signal, rtol=1e-12)
    np.testing.assert_allclose(scale.simple, np.trace(covariance) / signal, rtol=1e-12)
    trace = np.trace(hessian @ covariance)
    curved = trace / (mean @ hessian @ mean - trace * (share @ share))  # unbiased, as signal is
    np.testing.assert_allclose(scale.curved, curved, rtol=0.1)


def test_noise_scale_estimates_do_not_depend_on_the_batch_size(x64):
    """Unbiased: averaged over batches, |G|² and tr Σ of 4 rows are those of 64."""
    model, params, _ = problem(l2=0.0)
    batch = random_batch(model, 4096, 5, weighted=False)
    means = []
    for rows in (4, 64):
        folded = jax.tree.map(lambda leaf, n=rows: leaf.reshape(-1, n, *leaf.shape[1:]), batch)
        of_each = jax.vmap(lambda b: noise_scale(model, params, b))(folded)
        means.append((np.mean(of_each.signal), np.mean(of_each.noise)))
    np.testing.assert_allclose(means[0], means[1], rtol=0.03)


def test_noise_that_hides_the_signal_asks_for_more_than_any_batch():
    model = jaxbp.MLP((1, 1), (), HEADS["linear_half_squared_error"])
    params = (jaxbp.Layer(np.zeros((1, 1), "f4"), np.zeros(1, "f4")),)
    batch = jaxbp.Batch(np.ones((2, 1), "f4"), np.array([[1.0], [-1.0]], "f4"))
    scale = noise_scale(model, params, batch)
    assert scale.curved is None
    assert scale.signal < 0
    assert scale.simple == np.inf
    with pytest.raises(ValueError, match=r"x: got shape \(1, 1\), expected at least two"):
        noise_scale(model, params, jax.tree.map(lambda leaf: leaf[:1], batch))
    alone = batch._replace(weight=np.array([1.0, 0.0], "f4"))
    with pytest.raises(ValueError, match="weight: got one example with all of it, expected at le"):
        per_example.gradient_noise_scale(model, params, alone)
    assert np.isnan(noise_scale(model, params, alone).noise)  # traced, it cannot be refused


def test_what_does_not_fit_is_named(x64):
    model, params, batch = problem()
    shape_of = lambda of, *args, **how: jax.eval_shape(  # noqa: E731
        lambda p: of(model, p, *args, **how), params
    )
    clip = partial(shape_of, per_example.clipped_gradient, batch)
    for bound, message in [
        (0.0, "max_norm: got 0.0, expected more than 0"),
        (np.nan, "max_norm: got nan, expected more than 0"),
        ((1.0, 2.0), r"(?m)max_norm: got shape \(2,\), expected one number$"),
    ]:
        with pytest.raises(ValueError, match=message):
            clip(bound)
    with pytest.raises(ValueError, match="expected one number, or one for each of 3 layers"):
        clip((1.0, 2.0), per_layer=True)
    clip(np.inf)
    with pytest.raises(ValueError, match="reduction: got 'max', expected 'mean' or 'sum'"):
        clip(1.0, reduction="max")
    noisy = partial(shape_of, per_example.noisy_clipped_gradient, batch, key=jax.random.key(0))
    with pytest.raises(TypeError, match="key: got 0, expected one jax"):
        shape_of(per_example.noisy_clipped_gradient, batch, 1.0, noise_multiplier=1.0, key=0)
    with pytest.raises(ValueError, match="max_norm: got inf, expected finite numbers"):
        noisy(np.inf, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="noise_multiplier: got -1, expected at least 0"):
        noisy(1.0, noise_multiplier=-1)
    with pytest.raises(ValueError, match=r"x: got shape \(6, 2\)"):
        shape_of(per_example.per_example_norms, batch._replace(x=np.ones((ROWS, 2))))
