"""Early stopping: which epoch is the last, and which is the best."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import EarlyStopping, Epoch, Evaluation


def ended(stopping, losses):
    """The number of the epoch with which training ends, by the losses of epochs; 0 if it does not.

    An epoch's only parameter is its number."""
    for number, loss in enumerate(losses, start=1):
        measured = Evaluation(*[loss if np.ndim(loss) == 0 else np.array(loss)] * 2)
        if stopping(Epoch(number, jnp.full(np.shape(loss), number), 0.0, measured)):
            return number
    return 0


@pytest.mark.parametrize(
    ("losses", "options", "last", "best"),
    [
        ([3, 2, 1, 1, 2, 0], {}, 5, 3),  # an equal loss is not better
        ([3, 2, 1, 2, 0, 1, 1], {}, 7, 5),
        ([3, 2.9, 2.8, 2.7], {"min_delta": 0.5}, 3, 1),
        ([np.nan, 2, np.nan, 1, np.nan, np.nan], {}, 6, 4),
        ([3, 2, 1], {}, 0, 3),
        ([3, np.nan, np.nan, 1], {}, 3, 1),
        ([np.nan, np.nan, np.nan], {}, 3, 1),
    ],
)
def test_it_ends_after_so_many_epochs_without_a_better_one(losses, options, last, best):
    stopping = EarlyStopping(patience=2, **options)
    assert ended(stopping, losses) == last
    assert stopping.best.number == stopping.best.params == best
    np.testing.assert_equal(stopping.best.validation.loss, losses[best - 1])
    assert ended(stopping, [5, 6, 7]) == 3  # a new training
    assert stopping.best.validation.loss == 5


def test_each_of_many_networks_has_its_own_best():
    stopping = EarlyStopping(patience=2)
    assert ended(stopping, [[3, 1], [2, 2], [1, 3], [1, 0.5], [2, 1], [2, 2]]) == 6
    assert stopping.best.number.tolist() == stopping.best.params.tolist() == [3, 4]
    assert stopping.best.validation.loss.tolist() == [1, 0.5]


def test_what_it_cannot_do_is_named():
    for patience in (0, 2.5, True):
        with pytest.raises(ValueError, match=f"patience: got {patience}, expected at least 1"):
            EarlyStopping(patience)
    for min_delta in (np.nan, True, "0"):
        with pytest.raises(ValueError, match=r"min_delta: got .*, expected a number of at least 0"):
            EarlyStopping(min_delta=min_delta)
    assert EarlyStopping(np.int64(3)).patience == 3


def test_a_run_that_goes_on_is_a_new_training():
    stopping = EarlyStopping(patience=3)
    ended(stopping, [1, 2])
    resumed = Epoch(11, (), 0.0, Evaluation(5.0, 0.0))
    assert not stopping(resumed)
    assert stopping.best.number == 11
    with pytest.raises(ValueError, match="EarlyStopping needs validation data"):
        EarlyStopping()(Epoch(1, (), 0.0, None))
