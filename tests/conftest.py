"""What the tests share: float64 where exactness is at stake, and stricter rules than a user's."""

import os

# Several processes test side by side, and must not each take a GPU's memory whole.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile(
    "jaxbp",
    deadline=None,  # the first example compiles
    max_examples=30,
    derandomize=True,  # a failure on one machine is a failure on all
    print_blob=True,
)
hypothesis.settings.load_profile("jaxbp")


@pytest.fixture
def strict():
    """No silent dtype promotion (which optax needs, so not for training)."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def x64():
    """float64 for exactness."""
    with jax.enable_x64(True):
        yield
