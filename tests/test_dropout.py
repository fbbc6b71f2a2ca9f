"""Dropout: a gradient whose hidden units are left out at random."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxbp
from benchmarks.problems import random_batch, random_params
from jaxbp import activations, heads
from jaxbp.training.dropout import _masked
from jaxbp.training.epoch import is_random

MODEL = jaxbp.MLP(
    (3, 6, 5, 2), (activations.tanh, activations.gelu), heads.softmax_cross_entropy, l2=0.1
)
KEY = jax.random.key(3)
by_hand = jaxbp.with_dropout(0.4)(jaxbp.backprop)


def problem(dtype):
    return random_params(MODEL, 0, dtype), random_batch(MODEL, 8, 1, weighted=True, dtype=dtype)


def test_it_is_jax_grad_with_the_same_mask(x64):
    params, batch = problem(np.float64)
    loss, grads = by_hand(MODEL, params, batch, key=KEY)
    expected, by_jax = jaxbp.with_dropout(0.4)(jaxbp.autodiff)(MODEL, params, batch, key=KEY)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    assert jaxbp.compare(grads, by_jax).relative_error < 1e-12
    plain, _ = jaxbp.backprop(MODEL, params, batch)
    assert abs(loss - plain) > 1e-3
    without = jaxbp.with_dropout(0)(jaxbp.backprop)(MODEL, params, batch, key=KEY)
    jax.tree.map(np.testing.assert_array_equal, without, jaxbp.backprop(MODEL, params, batch))


def test_a_unit_is_kept_as_often_as_said_and_has_the_same_mean():
    unit = _masked(activations.sigmoid, 0.3, KEY)
    h, slope = unit(jnp.full((200, 500), 0.5))
    plain, plain_slope = map(float, activations.sigmoid(jnp.float32(0.5)))
    assert np.mean(h == 0) == pytest.approx(0.3, abs=0.01)
    assert np.mean(h) == pytest.approx(plain, rel=0.01)
    np.testing.assert_array_equal(h == 0, slope == 0)
    np.testing.assert_allclose(slope[slope != 0], plain_slope / 0.7, rtol=1e-6)


def test_every_layer_and_every_key_has_a_mask_of_its_own():
    params, batch = problem(np.float32)
    model = MODEL._replace(sizes=(3, 6, 6, 2), l2=0.0)
    params = random_params(model, 0, np.float32)

    def dropped(key):
        _, grads = by_hand(model, params, jax.tree.map(lambda row: row[:1], batch), key=key)
        return [np.asarray(grad.bias == 0) for grad in grads[:2]]

    first, second = dropped(KEY), dropped(jax.random.key(8))
    assert any(map(np.any, first))
    assert not np.array_equal(*first)
    assert not all(map(np.array_equal, first, second))


@pytest.mark.slow
def test_it_is_a_random_gradient_known_by_what_it_is_made_of():
    assert is_random(by_hand)
    assert jaxbp.with_dropout(0.4)(jaxbp.backprop) is by_hand
    assert is_random(jaxbp.mixed_precision(by_hand))
    params, batch = problem(np.float32)
    noisy = partial(jaxbp.noisy_clipped_gradient, max_norm=1.0, noise_multiplier=1.0)
    both = jaxbp.with_dropout(0.4)(noisy)
    first, second = (both(MODEL, params, batch, key=jax.random.key(i))[1] for i in range(2))
    assert jaxbp.compare(first, second).relative_error > 0.01


@pytest.mark.parametrize("rate", [1, -0.1, np.nan, "half", True, None])
def test_a_rate_that_is_none_is_named(rate):
    with pytest.raises(ValueError, match=r"rate: got .*, expected at least 0 and less than 1"):
        jaxbp.with_dropout(rate)


@pytest.mark.slow
@pytest.mark.parametrize("together", [False, True])
def test_fit_draws_anew_at_every_step_and_predicts_with_all_units(together):
    batch = random_batch(MODEL, 8, 1, integer=True, dtype=np.float32)
    options = {"epochs": 2, "batch_size": 4}
    if together:
        many = partial(jaxbp.fit_many, MODEL, batch, keys=KEY[None], learning_rate=0.1, **options)
        params, history = many(gradient=by_hand)
        plain, _ = many()
    else:
        one = partial(jaxbp.fit, MODEL, batch, key=KEY, optimizer=optax.sgd(0.1), **options)
        params, history = one(gradient=by_hand)
        plain, _ = one()
        by_jax, _ = one(gradient=jaxbp.with_dropout(0.4)(jaxbp.autodiff))
        assert jaxbp.compare(params, by_jax).relative_error < 1e-5
    assert np.isfinite(history.training_loss).all()
    assert jaxbp.compare(params, plain).relative_error > 1e-3
