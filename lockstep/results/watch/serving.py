"""Serves the page until it is interrupted, and keeps what its server says of the run up to date."""

import asyncio
import os
import re
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import msgspec
import uvicorn

from lockstep.common.errors import RemoteProtocolError, UsageError
from lockstep.common.protocol.messages import Status
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.transport.auth.key_file import read_ours
from lockstep.common.transport.port import PeerGone, PeerSlow
from lockstep.common.transport.zeromq.ports import dial
from lockstep.launch.client import StatusClient
from lockstep.launch.endpoints import credential_of
from lockstep.results.watch.app import WatchApp
from lockstep.results.watch.guard import Guard
from lockstep.results.watch.sources import WatchedRuns

#: Seconds between two questions to a server, and after which one that does not answer counts as gone.
ASK_S, SILENCE_S = 1.0, 5.0

#: Seconds that open streams have at the end.
GRACE_S = 1

#: Names of this machine by which a browser on it may call.
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

#: The longest line of a status.
MOST_STATUS_BYTES = 2**21


@dataclass(frozen=True)
class Place:
    """Where the page is served."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        return self.host in ("127.0.0.1", "localhost", "::1")

    def bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def parse_place(text: str) -> Place:
    """Return the place that HOST:PORT, or PORT alone, names; `UsageError` if it is malformed."""
    host, separator, port = text.rpartition(":")
    host = host.strip("[]") if separator else "127.0.0.1"
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{text!r} is not a valid address: expected HOST:PORT or PORT, as 127.0.0.1:8000")
    return Place(host, int(port))


def listen(place: Place) -> socket.socket:
    """Return a socket that listens there; `UsageError` if the port is in use, or the address is not ours."""
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((place.host, place.port))
        made.listen(128)
    except OSError as error:
        made.close()
        shown = f"{place.bracketed()}:{place.port}"
        raise UsageError(
            f"cannot listen on {shown}: {error.strerror}: choose another port, as --listen {place.bracketed()}:0 for "
            "any that is free"
        ) from None
    return made


@dataclass
class PageServer:
    """Serves one source of runs."""

    source: WatchedRuns
    place: Place
    is_metrics_only: bool = False
    #: What the link has in it on any address but loopback; by default something new.
    token: str = ""
    #: By which browsers reach us, if that is another place: a proxy's, or one outside of a container.
    published: Place | None = None

    def run(self, say: Callable[[str], None]) -> None:
        """Say the link, and serve until SIGINT or SIGTERM."""
        with listen(self.place) as listening:
            port = listening.getsockname()[1]
            token = "" if self.place.is_loopback else self.token or secrets.token_urlsafe(24)
            names = LOOPBACK if self.place.is_loopback else (*LOOPBACK, *_names_of(self.place))
            hosts = {f"{name.lower()}:{port}" for name in names}
            shown = f"{_named(self.place)}:{port}"
            if self.published is not None:
                shown = f"{self.published.bracketed()}:{self.published.port}"
                # Browsers leave out the port that is usual.
                hosts |= {shown.lower(), self.published.bracketed().lower()}
            clock = SystemClock()
            app = WatchApp(self.source, clock.now, is_metrics_only=self.is_metrics_only)
            guard = Guard(app.asgi(), frozenset(hosts), clock.now, token)
            config = uvicorn.Config(
                guard,
                log_level="error",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
                limit_concurrency=400,
            )
            page = "metrics" if self.is_metrics_only else ""
            say(f"http://{shown}/{f'{token}/' if token else ''}{page}")
            asyncio.run(_PageServer(config, app.is_over).serve(sockets=[listening]))


class _PageServer(uvicorn.Server):
    """Ends open streams with itself, for which it would wait otherwise."""

    def __init__(self, config: uvicorn.Config, is_over: asyncio.Event) -> None:
        super().__init__(config)
        self._is_over = is_over

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._is_over.set()
        super().handle_exit(sig, frame)


def _named(place: Place) -> str:
    everywhere = place.host in ("0.0.0.0", "::")
    return socket.gethostname() if everywhere else place.bracketed()


def _names_of(place: Place) -> list[str]:
    """Return the names by which other machines may call us."""
    names = {place.bracketed(), _named(place), socket.gethostname(), socket.getfqdn()}
    with suppress(OSError):
        names.update(socket.gethostbyname_ex(socket.gethostname())[2])
    return sorted(names)


# What the server of the run says


def read_statuses(source: WatchedRuns, line_of: Callable[[], bytes]) -> None:
    """Take statuses from lines of JSON, as `train` writes them to its page; at their end, end this process."""
    while line := line_of():
        with suppress(msgspec.MsgspecError):
            source.status = msgspec.json.decode(line, type=Status)
    os.kill(os.getpid(), signal.SIGTERM)


def ask_statuses(source: WatchedRuns, address: str, key: Path | None, is_over: threading.Event) -> None:
    """Ask a server how its run stands, about once a second, until `is_over` is set."""
    clock = SystemClock()
    client = StatusClient(dial(address, credential=credential_of(key, None)))
    heard = clock.now()
    try:
        while not is_over.is_set():
            try:
                answer = client.ask(ASK_S)
            except (PeerGone, PeerSlow, RemoteProtocolError):
                answer = None
            if answer is not None:
                source.status, heard = answer, clock.now()
                is_over.wait(ASK_S)
            elif clock.now() > heard + SILENCE_S:
                source.status = None
    finally:
        client.close()


def stdin_lines() -> Callable[[], bytes]:
    """Return what returns the next line of standard input, empty at its end."""
    return lambda: sys.stdin.buffer.readline(MOST_STATUS_BYTES)


def read_token(path: Path) -> str:
    """Return the token in a file of ours that nobody else can read; `UsageError` if it is not fit to be one."""
    token = read_ours(path, forbidden=0o077).strip()
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,200}", token):
        raise UsageError(
            f"{str(path)!r} does not hold a token: expected 16 to 200 letters, digits, - and _, as printed by "
            "`openssl rand -hex 24`"
        )
    return token
