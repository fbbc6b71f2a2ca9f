"""Several processes, on one machine or many, that train one network together.

``joined`` brings them together by ``jax.distributed``, and sees to it that none of them waits for
one that is gone: ``liveness``.  A mesh of ``jax.devices()`` then has the devices of all of them.
"""

import atexit
import ctypes
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxbp.liveness import (
    JoinError,
    Link,
    ProcessLostError,
    Watch,
    awaited,
    called,
    listening,
)

PATIENCE = 60.0  # seconds for all processes to come together
_HEARTBEAT = 60  # seconds of silence after which JAX aborts: it is told here long before
_AT_THE_END = 24 * 3600  # seconds that a process waits for process 0, which may have much to write
_NEWS = 3.0  # seconds from a broken sum over the processes to the news of who broke it

__all__ = ["JoinError", "ProcessLostError", "joined"]


@contextmanager
def joined(
    coordinator: str | None = None,
    process: int | None = None,
    processes: int | None = None,
    *,
    listen: str | None = None,
    patience: float = PATIENCE,
) -> Iterator[None]:
    """Join the processes that train together, before any other work of JAX; a context of all of it.

    coordinator: HOST:PORT where process 0 listens, as the others reach it.  None: what
        ``jax.distributed.initialize`` finds by itself, as on Slurm, Kubernetes and with Open MPI.
    process: the number of this one, from 0.
    processes: how many there are.
    listen: the address that process 0 listens on, where that is another one than coordinator's
        host, such as "0.0.0.0" for all of its addresses; unless given it is that host alone, and so
        "127.0.0.1:PORT" is heard on this machine alone.
    patience: seconds to wait for all of them; 60 unless given.

    Where one of them is killed, or ends by an exception, the others get a ``ProcessLostError`` that
    names it, or are ended with that line and the status 1 if their main thread does not hear.
    Afterwards the process can do no more work by JAX.  Raises ValueError for arguments that do not
    fit, and ``JoinError`` where the processes do not come together.
    """
    check(coordinator, process, processes, listen)
    if not patience > 0:
        raise ValueError(f"patience: got {patience}, expected seconds")
    with _delayed_abort():
        if coordinator is None:
            watch = _found(patience)
        else:
            watch = _met(coordinator, process, processes, listen, patience)
        with _together(watch):
            yield


def leave(status: int) -> None:
    """End this process at once, with a status, if the others have been left by an exception: JAX
    would wait for them when Python ends."""
    if _left_behind:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


_left_behind: list[bool] = []
atexit.register(leave, 1)  # before what JAX has registered


@contextmanager
def _together(watch: Watch) -> Iterator[None]:
    """The work of this process, and its end: that of all others, too."""
    try:
        yield
    except BaseException as error:
        _left_behind.append(True)
        broken = isinstance(error, jax.errors.JaxRuntimeError | ValueError)  # of gloo: the latter
        if broken and "UNKNOWN" in str(error) and (lost := watch.lost_within(_NEWS)):
            watch.leave(ended="what it has heard")
            raise ProcessLostError(lost) from None
        words = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        watch.leave(ended=words)
        raise
    watch.leave(done=True)
    jax.distributed.shutdown()  # type: ignore[no-untyped-call]
    watch.close()


def check(coordinator: Any, process: Any, processes: Any, listen: Any) -> None:
    """Raise ValueError for arguments of ``joined`` that do not fit."""
    if coordinator is None:
        given = {"process": process, "processes": processes, "listen": listen}
        for name, each in given.items():
            if each is not None:
                raise ValueError(f"{name}: got {each}, and no coordinator, where process 0 listens")
    else:
        host, _, port = str(coordinator).rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(f"coordinator: got {coordinator}, expected HOST:PORT")
        for name, each, least in (("processes", processes, 1), ("process", process, 0)):
            if isinstance(each, bool) or not isinstance(each, int) or each < least:
                raise ValueError(
                    f"{name}: got {each}, expected a number from {least} beside the coordinator"
                )
        if process >= processes:
            raise ValueError(
                f"process: got {process}, expected 0 to {processes - 1}: there are {processes}"
            )


def hello_of(process: int, processes: int, secret: str) -> dict[str, Any]:
    versions = f"Python {sys.version_info[0]}.{sys.version_info[1]}, jax {jax.__version__}"
    return {
        "process": process,
        "processes": processes,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "versions": versions,
        "secret": secret,
    }


def _met(
    coordinator: str, process: Any, processes: Any, listen: str | None, patience: float
) -> Watch:
    """Come together where process 0 listens, and then let JAX do so, at another port there."""
    host, _, number = coordinator.rpartition(":")
    name, port, hello = host.strip("[]"), int(number), hello_of(process, processes, "")
    if process == 0:
        links, hellos, port = welcomed(hello, listen or name, port, patience)
    else:
        link, welcome = called(name, port, hello, patience)
        hellos = {int(each): theirs for each, theirs in welcome["hellos"].items()}
        links, port = {0: link}, welcome["port"]
    bound = listen or name
    jax.distributed.initialize(
        f"{host}:{port}",
        processes,
        process,
        coordinator_bind_address=f"[{bound}]:{port}" if ":" in bound else f"{bound}:{port}",
        cluster_detection_method="deactivate",
        initialization_timeout=int(patience) + 1,
        heartbeat_timeout_seconds=_HEARTBEAT,
        shutdown_timeout_seconds=_AT_THE_END,
    )
    watch = Watch(links, hellos)
    _told_by_process_0(coordinator)
    return watch


def welcomed(
    hello: dict[str, Any], host: str, port: int, patience: float
) -> tuple[dict[int, Link], dict[int, dict[str, Any]], int]:
    """Wait, as process 0, for the others -> connections, who they are, and a port for JAX."""
    try:
        listener = listening(host, port)
    except OSError as error:
        reason = error.strerror or error
        raise JoinError(f"process 0 cannot listen at {host}:{port} ({reason})") from None
    with closing(listener):
        links, hellos = awaited(listener, hello, patience)
    with closing(listening(host, 0)) as free:
        port = free.getsockname()[1]
    for link in links.values():
        link.say(welcome={"hellos": hellos, "port": port})
    return links, hellos, port


def _found(patience: float) -> Watch:
    """Come together by what JAX finds of a cluster, and tell one another then where to listen."""
    late = threading.Timer(patience, _too_late, [patience])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            initialization_timeout=int(10 * patience),
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_AT_THE_END,
        )
    except (ValueError, KeyError, RuntimeError) as error:
        raise JoinError(
            f"JAX finds no cluster by itself here, such as Slurm, Kubernetes or Open MPI ({error})"
        ) from None
    finally:
        late.cancel()
    process, processes = jax.process_index(), jax.process_count()
    listener = listening(_own_address(), 0) if process == 0 and processes > 1 else None
    own = [*listener.getsockname()[:2], secrets.token_hex(16)] if listener else ["", 0, ""]
    host, port, secret = _told_by_process_0(*own)
    hello = hello_of(process, processes, secret)
    links: dict[int, Link] = {}
    hellos = {0: hello}
    if listener is not None:
        with closing(listener):
            links, hellos = awaited(listener, hello, patience)
        for link in links.values():
            link.say(welcome={"hellos": hellos})
    elif processes > 1:
        links[0], welcome = called(host, int(port), hello, patience)
        hellos = {int(each): theirs for each, theirs in welcome["hellos"].items()}
    return Watch(links, hellos)


def _told_by_process_0(*words: Any) -> list[str]:
    """Words of process 0, in every process.

    gloo prints who is connected, to the standard output of C, when it is first used: here, where
    that leads to nowhere.
    """
    numbers = np.frombuffer("\n".join(map(str, words)).encode().ljust(256), np.uint8)
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        told = np.asarray(multihost_utils.broadcast_one_to_all(numbers))
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
    return told.astype(np.uint8).tobytes().decode().rstrip(" ").split("\n")


def _own_address() -> str:
    """The address by which this machine reaches others; that of the loopback where it has none."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # of no machine (RFC 5737); nothing is sent
            address: str = probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"
    return address


def _too_late(patience: float) -> None:
    """End the process, which waits in JAX for others."""
    said = f"the processes of this cluster have not come together within {patience:g} s"
    print(f"jaxbp: {said}", file=sys.stderr, flush=True)
    os._exit(2)


@contextmanager
def _delayed_abort() -> Iterator[None]:
    """Let JAX's abort, where process 0 is gone, wait until this process has said so in a line.

    A thread of JAX calls ``abort`` as soon as it finds that out.  The handler of the signal is the
    C library's ``sleep``, and its argument the signal's number: 6 seconds.
    """
    if os.name != "posix":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    before = libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
    try:
        yield
    finally:
        if not _left_behind:  # else the abort may come after the context
            libc.signal(signal.SIGABRT, before)
