"""Liveness: each of several processes hears, within a minute, when one of them has ended.

JAX tells that some process is dead, and ends the others by an abort; here they learn which one it
was, and end with a line.  Every process has a connection to process 0, over TCP, and says every
second that it lives.  A process that is killed closes its connection, as its system does that; one
whose machine is gone, or that is stopped, falls silent.  Process 0 tells the others.

    {"hello": ...}    from a process that joins: its number, how many it expects, and where it runs
    {"welcome": ...}  from process 0, when all are there: where each one runs
    {"refused": why}  from process 0 instead
    {"alive": true}   every second, in both directions
    {"done": true}    before a connection is closed in good order
    {"ended": why}    before a process ends by an exception
    {"lost": text}    from process 0: what the others are to say

A line of JSON each.  Nothing is encrypted, as nothing of JAX's own connections is by default.
"""

import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

BEAT = 1.0  # seconds from one sign of life to the next
SILENCE = 30.0  # seconds without one, after which a process counts as gone
GRACE = 4.0  # seconds that the main thread has to end by itself, when a process is gone
_HELLO = 5.0  # seconds that whoever connects has to say who it is
_LONGEST = 2**16  # bytes of a line


class JoinError(RuntimeError):
    """The processes could not be brought together."""


class ProcessLostError(RuntimeError):
    """Another of the processes that train together is gone, or has ended by an exception."""


class Link:
    """A connection to another process, by lines of JSON."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self._rest = connection, b""
        self.heard = time.monotonic()
        self.done = False  # whether the other one has ended in good order

    def fileno(self) -> int:
        """The number of the socket, for ``select``."""
        return self.connection.fileno()

    def say(self, **words: Any) -> None:
        """Send a message; one that is gone is noticed where it is listened to."""
        with suppress(OSError):
            self.connection.sendall(json.dumps(words).encode() + b"\n")

    def messages(self) -> list[dict[str, Any]] | None:
        """Those that have come; None where the connection is closed, or talks of other things."""
        try:
            came = self.connection.recv(_LONGEST)
        except OSError:
            return None
        *lines, self._rest = (self._rest + came).split(b"\n")
        if not came or len(self._rest) > _LONGEST:
            return None
        self.heard = time.monotonic()
        try:
            said = [json.loads(line) for line in lines]
        except ValueError:
            return None
        return said if all(isinstance(each, dict) for each in said) else None

    def message(self, seconds: float) -> dict[str, Any] | None:
        """The next message, if it comes within some seconds."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and select.select([self], [], [], left)[0]:
            if said := self.messages():
                return said[0]
            if said is None:
                break
        return None


def address_of(host: str, port: int) -> tuple[Any, Any]:
    """The family and the address of a TCP socket.  Raises OSError for a host that is not known."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return family, address


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; port 0 is any that is free."""
    family, address = address_of(host, port)
    return socket.create_server(address, family=family)


def called(host: str, port: int, hello: dict[str, Any], seconds: float) -> tuple[Link, Any]:
    """Call process 0, as often as is needed, and wait for all -> the connection, its welcome.

    host, port: where process 0 listens.
    hello: says who calls.
    seconds: to be answered in, and then to be welcomed in.

    Raises JoinError where nobody answers in time, or process 0 refuses.
    """
    until, place = time.monotonic() + seconds, f"{host}:{port}"
    while isinstance(answered := _connected(host, port, until), OSError):
        if time.monotonic() >= until - 0.2:
            reason = answered.strerror or str(answered)
            raise JoinError(f"process 0 does not answer at {place} within {seconds:g} s ({reason})")
        time.sleep(0.2)
    link = Link(answered)
    link.say(hello=hello)
    answer = link.message(seconds)
    if answer is not None and "welcome" in answer:
        return link, answer["welcome"]
    link.connection.close()
    if answer is None:
        raise JoinError(f"process 0, at {place}, ended before all processes were there")
    raise JoinError(f"process 0, at {place}, refuses: {answer.get('refused')}")


def _connected(host: str, port: int, until: float) -> socket.socket | OSError:
    """A connection, or why there is none yet."""
    try:
        family, address = address_of(host, port)
        connection = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        return error
    try:
        connection.settimeout(max(0.1, until - time.monotonic()))
        connection.connect(address)
        connection.settimeout(None)
    except OSError as error:
        connection.close()
        return error
    return connection


def awaited(
    listener: socket.socket, hello: dict[str, Any], seconds: float
) -> tuple[dict[int, Link], dict[int, dict[str, Any]]]:
    """Wait, as process 0, for all others -> their connections, and their hellos, by number.

    Raises JoinError where some are not there in time.
    """
    count, until = hello["processes"], time.monotonic() + seconds
    links: dict[int, Link] = {}
    hellos = {0: hello}
    while len(hellos) < count:
        left = until - time.monotonic()
        if left <= 0 or not select.select([listener], [], [], left)[0]:
            missing = ", ".join(str(n) for n in range(count) if n not in hellos)
            place = ":".join(map(str, listener.getsockname()[:2]))
            raise JoinError(
                f"process {missing} of {count} has not joined at {place} within {seconds:g} s"
            )
        link = Link(listener.accept()[0])
        theirs: Any = (link.message(_HELLO) or {}).get("hello")
        why = _unwanted(theirs, hello, hellos)
        if why:
            link.say(refused=why)
            link.connection.close()
        else:
            links[theirs["process"]], hellos[theirs["process"]] = link, theirs
    return links, hellos


def _unwanted(theirs: Any, own: dict[str, Any], there: dict[int, Any]) -> str:
    """Why a process cannot join; empty where it can."""
    if not isinstance(theirs, dict) or theirs.keys() != own.keys():
        return "this is the port of a training by jaxbp"
    for name, each in own.items():
        if name in {"processes", "versions", "secret"} and theirs[name] != each:
            shown = "another one" if name == "secret" else f"{theirs[name]} here and {each} there"
            return f"{name}: {shown}"
    number = theirs["process"]
    if number in there:
        return f"process {number} is there already, on {place_of(there[number])}"
    return "" if number in range(own["processes"]) else f"process: got {number}"


def place_of(hello: dict[str, Any]) -> str:
    """Where a process runs."""
    return f"{hello['host']}, pid {hello['pid']}"


class Watch:
    """The connections of a process to others, and a thread that listens to them.

    ``lost`` says which process is gone.  The process then has ``GRACE`` seconds to ``leave``; after
    that the thread prints the line and ends the process, whatever its main thread waits for.
    """

    def __init__(self, links: dict[int, Link], hellos: dict[int, dict[str, Any]]) -> None:
        self.links, self.hellos = links, hellos
        self.lost = ""
        self._is_lost, self._left = threading.Event(), threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def lost_within(self, seconds: float) -> str:
        """Which process is gone, if one is or will be in so many seconds."""
        self._is_lost.wait(seconds)
        return self.lost

    def leave(self, **words: Any) -> None:
        """Say that this process ends, by ``done`` or ``ended``: nobody ends it any more."""
        self._say(self.links.values(), **words)
        if "done" not in words:
            self._left.set()

    def close(self) -> None:
        """Close all connections."""
        self._left.set()
        self._over = True
        self._thread.join()
        for link in self.links.values():
            link.connection.close()

    def _say(self, links: Iterable[Link], **words: Any) -> None:
        for link in list(links):
            link.say(**words)

    def _listen(self) -> None:
        said = 0.0
        while not self._over:
            now = time.monotonic()
            if now - said >= BEAT:
                self._say(self.links.values(), alive=True)
                said = now
            listened_to = {number: link for number, link in self.links.items() if not link.done}
            ready = select.select(listened_to.values(), [], [], BEAT / 4)[0]
            for number, link in listened_to.items():
                text = self._news(number, link) if link in ready else self._silence(number, link)
                if text:
                    self._end(text)
                    return

    def _news(self, number: int, link: Link) -> str:
        """A line that says why a process that was heard is gone; mostly empty."""
        said = link.messages()
        if said is None:
            return f"{self._named(number)} is gone"
        for each in said:
            if "lost" in each:
                return str(each["lost"])
            if "ended" in each:
                return f"{self._named(number)} ended by {each['ended']}"
            link.done |= "done" in each
        return ""

    def _silence(self, number: int, link: Link) -> str:
        silent = time.monotonic() - link.heard
        return f"{self._named(number)} is silent for {silent:.0f} s" if silent > SILENCE else ""

    def _named(self, number: int) -> str:
        return f"process {number} of {len(self.hellos)} ({place_of(self.hellos[number])})"

    def _end(self, text: str) -> None:
        """Tell the others, and end this process unless it does that by itself."""
        self.lost = text
        self._say(self.links.values(), lost=text)
        self._is_lost.set()
        if self._over or self._left.wait(GRACE):
            return
        sys.stdout.flush()
        print(f"jaxbp: {text}", file=sys.stderr, flush=True)
        os._exit(1)
