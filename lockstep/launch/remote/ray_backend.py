"""The nodes of a Ray cluster: Ray finds cores for a run and gives them up again; the rest is ours.

A placement group holds a core for each worker that the run begins with, and each further worker has one of its own,
which waits until a node has a core for it, so that a run grows as nodes join. On each node an actor starts a team of
as many processes as the run has cores there. The servers run here. No gradient goes through Ray: teams dial the
servers, with a key that is made for this run alone.
"""

import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lockstep.common.errors import JobError, UsageError
from lockstep.common.protocol.messages import PROCESSES_LIMIT
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import Clock, SystemClock
from lockstep.common.runtime.environment import own_environment
from lockstep.common.transport.auth.keys import SERVER, KeyFolder
from lockstep.common.transport.transports import TRANSPORTS
from lockstep.launch.endpoints import address_towards, tcp_address
from lockstep.launch.lifetime import interrupt_on_signals, uninterrupted
from lockstep.launch.process_backend import run_folder, start_here
from lockstep.launch.remote.agent import Core, LaunchAgent, TeamPlaces
from lockstep.launch.supervision.channel import ChildReport, EndReport, decode_report
from lockstep.launch.supervision.child import LOG, ProcessLog, WatchedProcess
from lockstep.launch.supervision.restarts import USAGE, ProcessPlace, Role
from lockstep.results.display import Display

#: The exit code of a team whose machine is gone: the same as if it had been killed.
LOST = -int(signal.SIGKILL)

#: Seconds between two looks for news of a team, and for an answer of an actor that may be gone.
NEWS_S, ANSWER_S = 0.05, 5.0

#: Seconds between two polls for cores, and between two reminders that they are awaited.
POLL_S, REMINDER_S = 0.1, 10.0

#: Polls before the first reminder: Ray takes a moment even if there is room.
FIRST_REMINDER = 25

#: Seconds between two looks for places of teams.
LOOK_S = 0.5

#: Seconds within which a cluster takes a connection.
LISTENER_S = 5.0


@contextmanager
def ray_backend(cluster: str, launch: RunOptions, display: Display) -> Iterator["RayBackend"]:
    """Give the backend for a Ray cluster: `ray` for the one that is running here.

    Nothing of ours is left there at the end. `UsageError` if there is no such cluster.
    """
    check(launch)
    host = connect(cluster)
    with run_folder() as folder:
        backend = RayBackend(launch, address_towards(host), folder / "keys")
        try:
            backend.reserve(display)
            yield backend
        finally:
            with uninterrupted():
                backend.give_up()
                ray.shutdown()


def check(launch: RunOptions) -> None:
    """Raise `JobError` for what makes no sense on several machines."""
    if not launch.workers:
        raise JobError("workers = 0, which trains in this process alone, has no use for a cluster: expected 1 or more")
    if not TRANSPORTS[launch.transport].reaches_other_machines:
        others = " or ".join(name for name, transport in TRANSPORTS.items() if transport.reaches_other_machines)
        raise JobError(f"transport = {launch.transport!r} cannot reach other machines: expected {others}")


def connect(cluster: str) -> str:
    """Become a driver of the cluster, and return its host; `UsageError` if there is no such cluster."""
    named = own_environment().get("RAY_ADDRESS", "") if cluster == "ray" else cluster
    host = listening_host(cluster, named.removeprefix("ray://"))
    try:
        begin("auto" if cluster == "ray" else cluster)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        text = " ".join(str(error).split())
        raise UsageError(
            f"no Ray cluster at {cluster!r} ({text}): start one with `ray start --head`, set RAY_ADDRESS, or use "
            "--on ray://HOST:10001"
        ) from None
    finally:
        # Ray has put its own in their place.
        interrupt_on_signals()
    return host or str(ray.get_runtime_context().gcs_address).rpartition(":")[0]


def begin(where: str) -> None:
    """Connect; again if the cluster accepted us and then gave up on the process that it starts for each client.

    It waits 30 s for that one, which on a busy head takes longer; the second is quicker.
    """
    for is_last in (False, False, True):
        try:
            ray.init(address=where, namespace="lockstep", log_to_driver=False, logging_level=logging.ERROR)
            return
        except ConnectionAbortedError:
            if is_last:
                raise


def listening_host(cluster: str, place: str) -> str:
    """Return the host of HOST:PORT, or nothing; `UsageError` if it does not listen: Ray would try for minutes."""
    host, _, port = place.rpartition(":")
    if not (host and port.isascii() and port.isdigit()):
        return ""  # Ray has other names for a cluster on this machine
    try:
        socket.create_connection((host.strip("[]"), int(port)), LISTENER_S).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"no Ray cluster at {cluster!r}: {place} cannot be reached ({error}): check that it is running"
        ) from None
    return host.strip("[]")


@dataclass
class RayTeam(WatchedProcess):
    """A team, and the node on which it starts once there is room; its pid is of the process that starts the others."""

    #: Starts it: returns the handle of a `LaunchAgent`; None while there is no room.
    begin: Callable[["RayTeam"], Any]
    #: The cores of the cluster that it has while it runs.
    cores: Sequence[Core] = ()
    actor: Any = None
    clock: Clock = field(default_factory=SystemClock)
    #: Its news that are on their way.
    _asked: Any = None
    _pid: int = 0
    _node: str = ""
    _code: int | None = None
    #: Bytes of its log that have arrived, and its reports: how many, and those that were not read yet.
    _known_bytes: int = 0
    _known_reports: int = 0
    _arrived: list[ChildReport] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def code(self) -> int:
        return LOST if self._code is None else self._code

    @property
    def is_over(self) -> bool:
        """True if it is known to have ended."""
        return self._code is not None

    def place(self) -> str:
        self.wait(0.0)
        return f"pid {self._pid} on {self._node}" if self._node else "not placed yet"

    def wait(self, timeout_s: float) -> bool:
        deadline = self.clock.now() + timeout_s
        while not self._take_news(max(0.0, deadline - self.clock.now())):
            left_s = deadline - self.clock.now()
            if left_s <= 0.0:
                return False
            threading.Event().wait(min(NEWS_S, left_s))
        return True

    def read(self, timeout_s: float | None) -> list[ChildReport] | None:
        self.wait(timeout_s or 0.0)
        if self.is_over and not self._arrived:
            return None
        found, self._arrived = self._arrived, []
        return found

    def send(self, number: signal.Signals) -> None:
        if self._node and not self.is_over:
            self.actor.send.remote(int(number))

    def end(self, grace_s: float) -> None:
        if self.actor is not None:
            self.wait(grace_s if self._node else 0.0)
            if self._node and not self.is_lost:
                with suppress(ray.exceptions.RayError):
                    self.log.add(ray.get(self.actor.end.remote(self._known_bytes), timeout=ANSWER_S))
            ray.kill(self.actor)
            self.actor = None
        self._code = LOST if self._code is None else self._code

    def _take_news(self, timeout_s: float) -> bool:
        """Take the news that come in time, and ask for the next; return whether the team is gone."""
        if self.is_over or not self._has_begun():
            return self.is_over
        self._asked = self._asked or self.actor.news.remote(self._known_bytes, self._known_reports)
        try:
            self._pid, self._node, words, lines, self._code = ray.get(self._asked, timeout=timeout_s)
            self.log.add(words)
            self._known_bytes += len(words)
            self._known_reports += len(lines)
            self._arrived += [report for line in lines if (report := decode_report(line)) is not None]
        except ray.exceptions.GetTimeoutError:
            return False
        except ray.exceptions.ActorUnavailableError:
            pass  # the connection is broken, and the question lost with it
        except ray.exceptions.RayError as error:
            self._lose(error)
        self._asked = None
        return self.is_over

    def _has_begun(self) -> bool:
        if self.actor is None and (actor := self.begin(self)) is not None:
            self.actor, self.log = actor, ProcessLog.at_end_of(self.log.path)
        return self.actor is not None

    def _lose(self, error: ray.exceptions.RayError) -> None:
        # Its creation raises nothing else: the agent reports what it meets on its node.
        cannot_import = isinstance(error, ray.exceptions.RayActorError) and error.actor_init_failed
        if cannot_import:
            text = (
                "a node of the Ray cluster cannot import lockstep: install the same version in the Python that runs "
                "Ray on each node"
            )
            self.log.add(f"error: {text}\n".encode())
            self._arrived.append(EndReport(text=text))
        self.is_lost, self._code = not cannot_import, USAGE if cannot_import else LOST


@dataclass
class RayBackend:
    """Teams on the nodes of a cluster, and servers here."""

    launch: RunOptions
    #: The host at which the nodes reach the servers.
    host: str
    #: The folder of the run's key, which is made.
    keys: Path
    has_external_workers: bool = field(default=False, init=False)
    #: For the run, a team is one process, which starts the others, and starts them again, on its node.
    team_size: int = field(default=1, init=False)
    #: The placement groups that have our cores: of those to begin with, and of each of the others.
    _groups: list[Any] = field(default_factory=list)
    _teams: list[RayTeam] = field(default_factory=list)
    #: The free places for teams, and when to look again.
    _places: TeamPlaces = field(init=False)
    _next_s: float = 0.0

    def __post_init__(self) -> None:
        KeyFolder.create(self.keys, [])
        # An audit needs another worker, which computes again.
        self._places = TeamPlaces(1 if self.launch.audit else PROCESSES_LIMIT)

    @property
    def workers(self) -> int:
        """The most teams that there may be, if each core is on a node of its own."""
        return self.launch.workers

    def reserve(self, display: Display) -> None:
        """Wait until there is a core for each of the workers to begin with, and ask for those of the others."""
        fewest = self.launch.min_workers or self.workers
        # Few large teams: the processes of one node share memory and one connection.
        self._groups = [placement_group([{"CPU": 1}] * fewest, strategy="PACK")]
        polls = 0
        while placement_group_table(self._groups[0])["state"] != "CREATED":
            if polls % round(REMINDER_S / POLL_S) == FIRST_REMINDER:
                cores = ray.cluster_resources().get("CPU", 0.0)
                display.remind(f"waiting for room for {fewest} workers: Ray has {cores:g} cores in all")
            polls += 1
            threading.Event().wait(POLL_S)
        self._groups += [placement_group([{"CPU": 1}]) for _ in range(fewest, self.workers)]

    def start(self, place: ProcessPlace, words: list[str], folder: Path, address: str) -> WatchedProcess:
        if place.role is not Role.WORKER:
            bind = address or tcp_address(self.host, 0)
            return start_here(place, [*words, "--bind", bind, "--keys", str(self.keys)], folder)

        def begin_team(team: RayTeam) -> Any:
            self._look()
            if (found := self._places.take()) is None:
                return None
            node, team.cores = found
            flags = ["--workers", str(len(team.cores))]
            key = (self.keys / SERVER).read_text(encoding="utf-8")
            return agent_on(node).remote(place.name, [*words, *flags], key, str(Path.cwd()))

        self._teams.append(RayTeam(place.name, ProcessLog(folder / f"{place.stem}{LOG}"), begin_team))
        return self._teams[-1]

    def give_up(self) -> None:
        """Leave nothing in the cluster."""
        for group in self._groups:
            remove_placement_group(group)

    def _look(self) -> None:
        """Look for places of teams, if none is known and it is time."""
        now = SystemClock().now()
        if self._places.is_empty and now >= self._next_s:
            self._next_s = now + LOOK_S
            self._places.look(self._cores(), {core for team in self._teams if not team.is_over for core in team.cores})

    def _cores(self) -> dict[str, set[Core]]:
        """Return which cores the run has on each node that lives: bundles, by the number of their group."""
        tables, found = placement_group_table(), dict[str, set[Core]]()
        living = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        for number, group in enumerate(self._groups):
            for bundle, node in tables[group.id.hex()]["bundles_to_node_id"].items():
                if node in living:
                    found.setdefault(node, set()).add((number, bundle))
        return found


def agent_on(node: str) -> Any:
    """Return what starts an actor on a node; the placement groups hold its cores."""
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(LaunchAgent).options(num_cpus=0, max_restarts=0, scheduling_strategy=strategy)
