"""What the tests share: cheap compiling, float64 where exactness is at stake, stricter rules than a
user's, and child processes that always end."""

import atexit
import builtins
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

try:
    import resource
except ImportError:  # on Windows
    resource = None

# What a test needs otherwise it says: float64, or another terminal.
os.environ |= {"JAX_ENABLE_X64": "0", "COLUMNS": "100"}

import hypothesis
import jax
import pytest
import tf32

import jaxbp
from jaxbp.checking.rounded_products import digits_multiplied

collect_ignore = [
    "on_a_mesh.py",
    "process.py",
    "sharded.py",
    "typed_script.py",
]  # programs, which tests start

jax.config.update("jax_enable_x64", False)  # if a plugin imported jax before

hypothesis.settings.register_profile(
    "jaxbp",
    deadline=None,  # the first example compiles
    max_examples=30,
    derandomize=True,  # a failure on one machine is a failure on all
    print_blob=True,
)
hypothesis.settings.load_profile("jaxbp")


LARGEST = 2**29  # bytes of compiled programs; one run leaves some 2**25


def pytest_configure(config):
    """How JAX compiles, here, in the workers and in programs that tests start: most of the tests'
    time is compiling.  What the environment says comes first."""
    config.pluginmanager.register(Forgetful())
    if hasattr(config, "workerinput"):  # a worker: it has the environment of who started it
        return
    settings = {
        # What one worker has compiled, neither another nor the next run compiles again.
        "jax_compilation_cache_dir": str(cache_folder()),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        # Several processes test side by side, and must not each take a GPU's memory whole.
        "xla_python_client_preallocate": "false",
    }
    if config.option.markexpr != "slow":  # those compile as users do
        settings["jax_disable_most_optimizations"] = True
        if version("jaxlib").startswith("0.10."):  # a third less; later ones do not know the flag
            settings["xla_flags"] = "--xla_cpu_use_fusion_emitters=false"
    for name, value in settings.items():
        if name.upper() not in os.environ:
            os.environ[name.upper()] = str(value)
            if name.startswith("jax_"):  # read when jax was imported
                jax.config.update(name, value)


class Forgetful:
    """A plugin, for the package's doctests as well: a file's compiled programs leave the memory
    with it (the cache on disk still has them), and a doctest's last value does, as ``_``."""

    def pytest_runtest_teardown(self, item, nextitem):
        vars(builtins).pop("_", None)  # which tyro would hash when it is imported
        if nextitem is None or nextitem.path != item.path:
            jax.clear_caches()


def cache_folder():
    """Beside pytest's own cache, or one for this run where the checkout cannot be written."""
    checkout = Path(__file__).parents[1]
    if not os.access(checkout, os.W_OK):
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder
    folder = checkout / ".pytest_cache" / "xla"
    if sum(file.stat().st_size for file in folder.glob("*")) > LARGEST:
        shutil.rmtree(folder)
    return folder


def pytest_terminal_summary(terminalreporter):
    """What the run cost, its workers and the programs that tests started included."""
    if resource is None:
        return
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(each.ru_utime + each.ru_stime for each in used)
    kilobytes = max(each.ru_maxrss for each in used) / (1024 if sys.platform == "darwin" else 1)
    terminalreporter.write_line(f"{seconds:.0f} CPU-seconds, {kilobytes / 1e6:.1f} GB at most")


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


@pytest.fixture(scope="module")
def tf32_products():
    """Float32 products are TF32, for all tests of a file: on a CPU it is made to multiply so."""
    if jax.default_backend() != "cpu":
        if digits_multiplied() != 10:
            pytest.skip("this device's default products are not TF32")
        yield
        return
    with tf32.rounding_products():
        yield


@pytest.fixture
def sigint():
    """Ctrl-C works, here and in child processes, also where the tests run in the background; and
    SIGHUP does under nohup."""
    from jaxbp.cli.interrupts import SIGNALS  # the command's imports take a second

    usual = {each: signal.signal(each, signal.SIG_DFL) for each in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.SIGINT
    for each, handler in usual.items():
        signal.signal(each, handler)


class Child:
    """A Python process beside the test, with the same jaxbp; it prints into files, and so never
    waits for a reader."""

    HUNG = 1800  # seconds: no machine is so slow, only a program that hangs is still at it

    def __init__(self, arguments, folder):
        self.files = folder / "out", folder / "err"
        paths = [str(Path(jaxbp.__file__).parents[1]), os.environ.get("PYTHONPATH")]
        with self.files[0].open("w") as out, self.files[1].open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def printed(self):
        """What it has printed so far: (standard output, standard error)."""
        return tuple(file.read_text(encoding="utf-8") for file in self.files)

    def until(self, happened):
        """Wait for an event for as long as the process lives."""
        hung = time.monotonic() + self.HUNG
        while not happened():
            assert self.process.poll() is None, self.printed()
            assert time.monotonic() < hung, self.printed()
            time.sleep(0.02)

    def ended(self, status=0):
        """Wait for its end, with the status expected -> what it has printed."""
        assert self.process.wait(self.HUNG) == status, self.printed()
        return self.printed()


@pytest.fixture
def python(tmp_path_factory):
    """``python(*arguments)`` starts a Child, which ends with the test at the latest."""
    children = []

    def start(*arguments):
        children.append(Child(arguments, tmp_path_factory.mktemp("child")))
        return children[-1]

    yield start
    for child in children:
        child.process.kill()
        child.process.wait()
