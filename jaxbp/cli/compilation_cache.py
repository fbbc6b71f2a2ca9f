"""The compilation cache: programs kept on disk, so that the next command finds them compiled."""

import hashlib
import os
import platform
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import jax
import platformdirs

LIMIT = 100 * 2**20  # bytes; a run of ``jaxbp train`` keeps a third of a megabyte
_WORTH_KEEPING = 0.1  # seconds of compiling: a faster one takes no longer than to read the file
_FEATURES = ("model name", "flags", "CPU part", "Features")  # the lines of x86, and those of ARM
_config: Any = jax.config  # each version of JAX types it in its own way


def cache_folder() -> Path | None:
    """The folder in the user's cache for compiled programs.

    It is None where JAX's own variables decide: JAX_COMPILATION_CACHE_DIR, or
    JAX_ENABLE_COMPILATION_CACHE=0.
    """
    if _config.jax_compilation_cache_dir or not _config.jax_enable_compilation_cache:
        return None
    return platformdirs.user_cache_path("jaxbp", appauthor=False) / f"programs-{_processor()}"


def keep_compiled_programs() -> None:
    """Have JAX look for compiled programs on disk, and keep there those that took long to compile.

    The environment's settings come first, those of the limit and the least time too.  A folder that
    cannot be written is not an error: programs are then compiled each time.
    """
    folder = cache_folder()
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    for name, value in {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": LIMIT,
        "jax_persistent_cache_min_compile_time_secs": _WORTH_KEEPING,
    }.items():
        if name.upper() not in os.environ:
            _config.update(name, value)


@cache
def _processor() -> str:
    """A name for this kind of processor.

    XLA compiles for the processor at hand, and several machines may share a home folder.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = sorted({line for line in lines if line.startswith(_FEATURES)})
    except OSError:
        features = []
    description = "\n".join([platform.machine(), platform.processor(), *features])
    return hashlib.sha256(description.encode()).hexdigest()[:8]
