"""Training: step 5 of the lecture's algorithm, over minibatches, for as many epochs as wanted.

Read ``epoch``, a whole epoch as one compiled program; ``fitting``, which trains one network by
``blocks`` of epochs, and ``many``, which trains N of them, as ``networks`` in one program that
``dealing`` spreads over the cores, and of which ``best`` picks one; ``streams`` are batches that
come from elsewhere, as ``stacks`` on the device, and ``streamed`` has the epochs over them;
``records`` are what they give back, and a ``run`` is what can be gone on with, on disk by
``checkpoints`` and ``saved``, which know a run by its ``inputs``. ``checks`` says what may be
trained on what, ``pieces`` compares a user's own heads, activations and gradients with
``jax.grad``, ``device`` is about its memory and the wait for it, ``metrics`` says how well a
network does, and ``batch_methods`` has the lectures' optimisers for full batches.
``early_stopping`` is an ``on_epoch``, and ``dropout`` makes a gradient that leaves units out.
``constants`` and the package's ``same_program`` see to it that nothing is compiled twice. On a GPU
``kernel_choice`` decides whether ``one_kernel`` takes the minibatches in the scan's place.
"""

from jaxbp.training import batch_methods
from jaxbp.training.best import Best, best_of
from jaxbp.training.dropout import with_dropout
from jaxbp.training.early_stopping import EarlyStopping
from jaxbp.training.epoch import RandomGradient, make_step, random_gradient
from jaxbp.training.fitting import fit
from jaxbp.training.many import fit_many
from jaxbp.training.metrics import Evaluation, evaluate, metric_name
from jaxbp.training.records import Epoch, History, NonFiniteLossError, TrainingInterrupt
from jaxbp.training.run import Run
from jaxbp.training.saved import load_run

__all__ = [
    "Best",
    "EarlyStopping",
    "Epoch",
    "Evaluation",
    "History",
    "NonFiniteLossError",
    "RandomGradient",
    "Run",
    "TrainingInterrupt",
    "batch_methods",
    "best_of",
    "evaluate",
    "fit",
    "fit_many",
    "load_run",
    "make_step",
    "metric_name",
    "random_gradient",
    "with_dropout",
]
