"""Per example: what is contracted from (z, δ) is what vmap of jax.grad of one example gives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from tables import ACTIVATIONS, HEADS, ONE_OF_EACH, chosen, random_batch, random_params

import jaxbp
from jaxbp import per_example
from jaxbp.gradient import with_penalty

pytestmark = pytest.mark.usefixtures("strict")
ROWS = 6

compiled = partial(jax.jit, static_argnums=0)  # outside jit each operation is compiled by itself
objective = compiled(jaxbp.objective)
norms_of = compiled(per_example.per_example_norms)
CHOICES = ("per_layer", "reduction")
clipped_gradient = compiled(per_example.clipped_gradient, static_argnames=CHOICES)
noisy_gradient = compiled(per_example.noisy_clipped_gradient, static_argnames=CHOICES)


def problem(activation="tanh", head="softmax_cross_entropy", l2=0.3, **options):
    model = jaxbp.MLP((3, 5, 4, 2), ACTIVATIONS[activation], HEADS[head], l2)
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


@jax.jit
def all_of_it(activation, head, params, batch):
    """Everything of this module, and the reference: one program for all combinations."""
    unit = chosen(activation, list(ACTIVATIONS.values()))
    loss = chosen(head, [each.loss for each in HEADS.values()])
    model = jaxbp.MLP((3, 5, 4, 2), unit, jaxbp.Head(lambda logits: logits, loss), l2=0.3)
    return (
        per_example.per_example_gradients(model, params, batch),
        per_example.per_example_norms(model, params, batch),
        per_example.per_example_norms(model, params, batch, per_layer=True),
        per_example.gradient_moments(model, params, batch),
        per_example.signal_to_noise(model, params, batch),
        by_autodiff(model, params, batch),
        jaxbp.backprop(model, params, batch)[1],
    )


@pytest.mark.parametrize(("activation", "head"), ONE_OF_EACH)
def test_all_are_those_of_autodiff(activation, head, x64):
    """Every head and activation, with example weights, soft labels and a penalty."""
    _, params, batch = problem(activation, head)
    grads, norms, layer_norms, moments, ratio, reference, gradient = all_of_it(
        list(ACTIVATIONS).index(activation), list(HEADS).index(head), params, batch
    )
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
@pytest.mark.parametrize("head", ["softmax_cross_entropy", "linear_squared_error"])
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
    expected = expected + flat(with_penalty(model, params, jax.tree.map(jnp.zeros_like, params)))
    loss, grads = clipped_gradient(model, params, batch, bound, per_layer=per_layer)
    np.testing.assert_allclose(flat(grads), expected, rtol=1e-12)
    np.testing.assert_allclose(loss, objective(model, params, batch), rtol=1e-14)
    _, summed = clipped_gradient(model, params, batch, bound, per_layer=per_layer, reduction="sum")
    np.testing.assert_allclose(flat(summed), ROWS * expected, rtol=1e-12)


def test_every_layer_can_have_its_bound(x64):
    model, params, batch = problem(l2=0.0)
    bounds = (0.01, 1e9, 0.02)
    _, grads = clipped_gradient(model, params, batch, bounds, per_layer=True)
    for bound, layer, data in zip(bounds, grads, by_autodiff(model, params, batch), strict=True):
        norms = np.linalg.norm(rows_of(data), axis=1, keepdims=True)
        expected = share_of(batch) @ (rows_of(data) / np.maximum(norms / bound, 1))
        np.testing.assert_allclose(flat(layer), expected, rtol=1e-12)


def test_a_row_of_weight_two_is_two_rows(x64):
    model, params, (x, target, _) = problem()
    twice = jaxbp.Batch(jnp.vstack([x, x[:1]]), jnp.vstack([target, target[:1]]))
    weighted = jaxbp.Batch(x, target, jnp.ones(ROWS).at[0].set(2))
    for of in (
        partial(clipped_gradient, max_norm=0.5),
        compiled(per_example.gradient_moments),
    ):
        claimed, reference = of(model, params, weighted), of(model, params, twice)
        assert jaxbp.compare(claimed, reference).relative_error < 1e-13


def test_rows_of_weight_zero_do_not_count(x64):
    model, params, (x, target, _) = problem()
    padded = jaxbp.Batch(x, target, jnp.arange(ROWS) < 4)
    of = partial(clipped_gradient, max_norm=0.5)
    claimed, reference = (
        of(model, params, padded),
        of(model, params, jaxbp.Batch(x[:4], target[:4])),
    )
    assert jaxbp.compare(claimed, reference).relative_error < 1e-13


def test_integer_classes_single_examples_and_more_axes(x64):
    model, params, batch = problem(weighted=False, integer=True)
    norms = norms_of(model, params, batch)
    np.testing.assert_allclose(
        norms, np.linalg.norm(rows_of(by_autodiff(model, params, batch)), axis=1), rtol=1e-13
    )
    one = jaxbp.Batch(batch.x[0], batch.target[0])
    np.testing.assert_allclose(norms_of(model, params, one), norms[0])
    folded = jaxbp.Batch(batch.x.reshape(2, 3, -1), batch.target.reshape(2, 3))
    grads = compiled(per_example.per_example_gradients)(model, params, folded)
    assert grads[0].weight.shape == (2, 3, 5, 3)
    np.testing.assert_allclose(norms_of(model, params, folded), norms.reshape(2, 3))
    clipped = [clipped_gradient(model, params, b, 0.1)[1] for b in (batch, folded)]
    assert jaxbp.compare(*clipped).relative_error < 1e-13


@pytest.mark.parametrize(
    "of",
    [
        per_example.per_example_norms,
        partial(per_example.clipped_gradient, max_norm=1.0),
        per_example.gradient_moments,
        per_example.gradient_noise_scale,
    ],
)
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


def test_bounds_and_noise_may_be_traced_and_rows_fitted_exactly(x64):
    """So that a bound can follow the norms; and no derivative is NaN where a gradient is 0."""
    model, params, batch = problem("tanh", "linear_squared_error")
    clip = lambda bound: per_example.clipped_gradient(model, params, batch, bound)[1]  # noqa: E731
    assert jaxbp.compare(jax.jit(clip)(0.3), jax.jit(partial(clip, 0.3))()).relative_error < 1e-14
    noisy = partial(per_example.noisy_clipped_gradient, model, params, batch, 0.3)
    noise = lambda size: noisy(noise_multiplier=size, key=jax.random.key(0))[1]  # noqa: E731
    assert jaxbp.compare(jax.jit(noise)(0.7), jax.jit(partial(noise, 0.7))()).relative_error < 1e-14
    fitted = batch._replace(target=jaxbp.predict(model, params, batch.x))
    model = model._replace(l2=0.0)
    total = lambda p: per_example.per_example_norms(model, p, fitted).sum()  # noqa: E731
    assert all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(params))
    )


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
    params = jax.tree.map(jnp.zeros_like, random_params(model, 0))
    batch = jaxbp.Batch(jnp.ones((4, 40)), jnp.zeros((4, 50)))
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
    model, params, batch = problem(l2=0.0)
    noisy = partial(noisy_gradient, key=jax.random.key(1))
    added = []
    for bounds in (1.0, (1.0, 1.0, 1.0), (2.0, 0.0001, 0.0001)):
        quiet, loud = (
            noisy(model, params, batch, bounds, per_layer=True, noise_multiplier=size)[1]
            for size in (0.0, 1.0)
        )
        added.append(flat(loud) - flat(quiet))
    np.testing.assert_allclose(added[0], added[1])
    np.testing.assert_allclose(added[2] / added[0], 2 / np.sqrt(3), rtol=1e-6)
    _, exact = clipped_gradient(model, params, batch, 1.0, per_layer=True)
    _, quiet = noisy(model, params, batch, 1.0, per_layer=True, noise_multiplier=0.0)
    np.testing.assert_array_equal(flat(quiet), flat(exact))


SGD = optax.sgd(0.1)


def trained(gradient, epochs=3, seed=0, **options):
    wine = jaxbp.data.load("wine")
    model = jaxbp.MLP((13, 3), (), HEADS["softmax_cross_entropy"])
    with jax.numpy_dtype_promotion("standard"):
        return jaxbp.fit(
            model,
            wine.train,
            optimizer=SGD,
            epochs=epochs,
            batch_size=32,
            key=jax.random.key(seed),
            gradient=gradient,
            **options,
        )


def test_fit_draws_new_noise_at_every_step():
    pytest.importorskip("sklearn")
    noisy = partial(per_example.noisy_clipped_gradient, max_norm=1.0, noise_multiplier=1.0)
    once, again, other = (trained(noisy, seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(flat(once), flat(again))
    assert not np.array_equal(flat(once), flat(other))
    # Noise alone: were a step's drawn again, n steps would go n times as far, not √n times.
    nothing = partial(noisy, max_norm=1e-6, noise_multiplier=1e6)
    start = jaxbp.init(jax.random.key(0), jaxbp.MLP((13, 3), (), HEADS["softmax_cross_entropy"]))
    ways = []
    for epochs in (1, 9):
        ended, _ = trained(nothing, epochs, params=start)
        ways.append(np.linalg.norm(flat(ended) - flat(start)))
    assert 1.5 < ways[1] / ways[0] < 5


def test_a_key_that_is_set_would_draw_the_same_at_every_step():
    pytest.importorskip("sklearn")
    noisy = partial(per_example.noisy_clipped_gradient, max_norm=1.0, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="gradient: its key is set, and every step would draw"):
        trained(partial(noisy, key=jax.random.key(0)))


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
    scale_of = partial(per_example.gradient_noise_scale, key=jax.random.key(0), probes=3000)
    scale = jax.jit(scale_of, static_argnums=0)(model, params, batch)
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
    scale = jax.jit(per_example.gradient_noise_scale, static_argnums=0)
    means = []
    for rows in (4, 64):
        folded = jax.tree.map(lambda leaf, n=rows: leaf.reshape(-1, n, *leaf.shape[1:]), batch)
        of_each = jax.vmap(lambda b: scale(model, params, b))(folded)
        means.append((float(of_each.signal.mean()), float(of_each.noise.mean())))
    np.testing.assert_allclose(means[0], means[1], rtol=0.03)


def test_noise_that_hides_the_signal_asks_for_more_than_any_batch():
    model = jaxbp.MLP((1, 1), (), HEADS["linear_half_squared_error"])
    params = (jaxbp.Layer(jnp.zeros((1, 1)), jnp.zeros(1)),)
    batch = jaxbp.Batch(jnp.ones((2, 1)), jnp.array([[1.0], [-1.0]]))
    scale = per_example.gradient_noise_scale(model, params, batch)
    assert scale.curved is None
    assert scale.signal < 0
    assert scale.simple == np.inf
    with pytest.raises(ValueError, match="x: got one example, expected at least two"):
        per_example.gradient_noise_scale(model, params, jax.tree.map(lambda leaf: leaf[:1], batch))


def test_what_does_not_fit_is_named(x64):
    model, params, batch = problem()
    clip = partial(per_example.clipped_gradient, model, params, batch)
    for bound, message in [
        (0.0, "max_norm: got 0.0, expected more than 0"),
        (np.nan, "max_norm: got nan, expected more than 0"),
        ((1.0, 2.0), r"max_norm: got shape \(2,\), expected one number$"),
    ]:
        with pytest.raises(ValueError, match=message):
            clip(bound)
    with pytest.raises(ValueError, match="expected one number, or one for each of 3 layers"):
        clip((1.0, 2.0), per_layer=True)
    with pytest.raises(ValueError, match="reduction: got 'max', expected 'mean' or 'sum'"):
        clip(1.0, reduction="max")
    with pytest.raises(ValueError, match="noise_multiplier: got -1, expected at least 0"):
        per_example.noisy_clipped_gradient(
            model, params, batch, 1.0, noise_multiplier=-1, key=jax.random.key(0)
        )
    with pytest.raises(ValueError, match=r"x: got shape \(6, 2\)"):
        per_example.per_example_norms(model, params, batch._replace(x=batch.x[:, :2]))
