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

from lockstep.common.errors import AddressError, RemoteProtocolError, UsageError
from lockstep.common.protocol.messages import Status
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.transport.address import TcpAddress, parse
from lockstep.common.transport.auth.keys import read_ours
from lockstep.common.transport.port import PeerGone, PeerSlow
from lockstep.common.transport.zeromq.ports import dial
from lockstep.launch.client import StatusClient
from lockstep.launch.endpoints import credential_of
from lockstep.results.watch.app import WatchApp
from lockstep.results.watch.connections import LimitedConnection
from lockstep.results.watch.guard import Guard
from lockstep.results.watch.sources import WatchedRuns

#: Seconds between two questions to a server, and after which one that does not answer counts as gone.
ASK_S, SILENCE_S = 1.0, 5.0

#: Seconds that open streams have at the end.
GRACE_S = 1

#: Most connections at the same time: streams, those that are answered, and those that wait.
MOST_CONNECTIONS = 600

#: Names of this machine by which a browser on it may call.
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

#: The longest line of a status.
MOST_STATUS_BYTES = 2**21


def parse_place(text: str) -> TcpAddress:
    """Return the address that HOST:PORT, or PORT alone, names; `UsageError` if it is malformed."""
    try:
        address = parse(f"tcp://{text}" if ":" in text else f"tcp://127.0.0.1:{text}")
    except AddressError:
        raise UsageError(f"{text!r} is not a valid address: expected HOST:PORT or PORT, as 127.0.0.1:8000") from None
    assert isinstance(address, TcpAddress)
    return address


def listen(place: TcpAddress) -> socket.socket:
    """Return a socket that listens there; `UsageError` if the port is in use, or the address is not ours."""
    family = socket.AF_INET6 if place.is_ipv6 else socket.AF_INET
    try:
        return socket.create_server((place.host, place.port), family=family, backlog=128)
    except OSError as error:
        # Without the address, which `create_server` adds in its own way.
        reason = str(error.strerror).partition(" (while")[0]
        host = _bracketed(place.host)
        raise UsageError(
            f"cannot listen on {host}:{place.port}: {reason}: choose another port, as --listen {host}:0 for any that "
            "is free"
        ) from None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@dataclass
class PageServer:
    """Serves one source of runs."""

    source: WatchedRuns
    place: TcpAddress
    is_metrics_only: bool = False
    #: What the link has in it; by default something new, and nothing if only this machine can reach us.
    token: str = ""
    #: By which browsers reach us, if that is another place: a proxy's, or one outside of a container.
    published: TcpAddress | None = None

    @property
    def is_reachable(self) -> bool:
        """Whether others than this machine may reach us: directly, or by way of a proxy, as of a container."""
        return not self.place.is_loopback or self.published is not None

    def secret(self) -> str:
        """Return the token of the link, empty if none is needed; by default a new one each time."""
        return self.token or (secrets.token_urlsafe(24) if self.is_reachable else "")

    def run(self, say: Callable[[str], None]) -> None:
        """Say the link, and serve until SIGINT or SIGTERM."""
        with listen(self.place) as listening:
            port = listening.getsockname()[1]
            token = self.secret()
            names = [_bracketed(self.place.host)] if self.place.is_loopback else _names_of(self.place)
            hosts = {f"{name.lower()}:{port}" for name in (*LOOPBACK, *names)}
            shown = f"{_named(self.place)}:{port}"
            if self.published is not None:
                shown = f"{_bracketed(self.published.host)}:{self.published.port}"
                # Browsers leave out the port that is usual.
                hosts |= {shown.lower(), _bracketed(self.published.host).lower()}
            clock = SystemClock()
            app = WatchApp(self.source, clock.now, is_metrics_only=self.is_metrics_only)
            guard = Guard(app.asgi(), frozenset(hosts), clock.now, token)
            config = uvicorn.Config(
                guard,
                http=LimitedConnection,
                ws="none",
                log_level="error",
                access_log=False,
                server_header=False,
                # Only a proxy of ours may say for whom it asks: otherwise, every process here could.
                proxy_headers=self.published is not None,
                timeout_graceful_shutdown=GRACE_S,
                limit_concurrency=MOST_CONNECTIONS,
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


def _named(place: TcpAddress) -> str:
    return socket.gethostname() if place.host in ("0.0.0.0", "::") else _bracketed(place.host)


def _names_of(place: TcpAddress) -> list[str]:
    """Return the names by which other machines may call us."""
    names = {_bracketed(place.host), _named(place), socket.gethostname(), socket.getfqdn()}
    with suppress(OSError):
        names.update(socket.gethostbyname_ex(socket.gethostname())[2])
    return sorted(names)


# What the server of the run says


def read_statuses(source: WatchedRuns) -> None:
    """Take statuses from lines of standard input, as `train` writes them to its page; end this process with it."""
    while line := sys.stdin.buffer.readline(MOST_STATUS_BYTES):
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


def read_token(path: Path) -> str:
    """Return the token in a file of ours that nobody else can read; `UsageError` if it is not fit to be one."""
    token = read_ours(path, forbidden=0o077).strip()
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,200}", token):
        raise UsageError(
            f"{str(path)!r} does not hold a token: expected 16 to 200 letters, digits, - and _, as printed by "
            "`openssl rand -hex 24`"
        )
    return token
