"""The nodes of a Ray cluster: Ray finds places for a run's processes and gives them up again; the rest is ours.

One placement group holds a core for each worker that the run begins with; servers, which take little, have their places
in it too. Workers beyond those wait outside of it until a node has a core for them, so that a run grows as nodes join.
No gradient goes through Ray: processes dial one another, with keys that are made for this run alone.
"""

import logging
import secrets
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.exceptions
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from lockstep.common.errors import JobError, RunError, UsageError
from lockstep.common.runtime.environment import own_environment
from lockstep.common.runtime.numerics import Numerics
from lockstep.common.transport.auth.keys import ALLOWED, SERVER, SERVER_PUBLIC, KeyFolder
from lockstep.common.transport.port import ClientPort
from lockstep.common.transport.transports import TRANSPORTS
from lockstep.launch.child import HERE, LOG, ProcessLog, WatchedProcess
from lockstep.launch.endpoints import tcp_address
from lockstep.launch.lifetime import interrupt_on_signals, uninterrupted
from lockstep.launch.process_backend import JOB_FILE, ProcessCommand, Role, private_folder
from lockstep.launch.remote.agent import KEYS, LaunchAgent
from lockstep.launch.remote.ray_child import RayChild, RayPort
from lockstep.results.reports.display import Display
from lockstep.runs.launch_config import Launch
from lockstep.runs.run_dir import JOB
from lockstep.runs.session import Destination

#: Seconds between two polls for a place, and between two reminders that one is awaited.
POLL_S, REMINDER_S = 0.1, 10.0

#: Polls before the first reminder: Ray takes a moment even if there is room.
FIRST_REMINDER = 25

#: Seconds for an answer of an actor whose node has been found.
ANSWER_S = 60.0

#: Seconds within which a cluster takes a connection.
LISTENER_S = 5.0

#: The name of the worker's key, which all of them share.
WORKER = "worker"

#: Lies in the run's folder while nodes are asked whether they see it.
CHECK = ".seen-by-all-nodes"

#: What is waited for.
Found = TypeVar("Found")


@contextmanager
def ray_backend(address: str, destination: Destination, display: Display) -> Iterator["RayBackend"]:
    """Give the backend for the Ray cluster at `address`: `ray` for the one that is running here.

    Nothing of ours is left there at the end. `UsageError` if there is no such cluster, or it is not fit for the run.
    """
    check(destination.launch)
    connect(address)
    folder = private_folder()
    backend = RayBackend(destination, display, KeyFolder.create(folder / KEYS, [WORKER]))
    try:
        backend.reserve()
        backend.examine()
        yield backend
    finally:
        with uninterrupted():
            backend.give_up()
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def check(launch: Launch) -> None:
    """Raise `JobError` for what makes no sense on several machines."""
    if not launch.workers:
        raise JobError("workers = 0, which trains in this process alone, has no use for a cluster: expected 1 or more")
    if not TRANSPORTS[launch.transport].reaches_other_machines:
        others = " or ".join(name for name, transport in TRANSPORTS.items() if transport.reaches_other_machines)
        raise JobError(f"transport = {launch.transport!r} cannot reach other machines: expected {others}")


def connect(address: str) -> None:
    """Become a driver of the cluster; `UsageError` if there is none."""
    named = own_environment().get("RAY_ADDRESS", "") if address == "ray" else address
    demand_listener(address, named.removeprefix("ray://"))
    try:
        begin("auto" if address == "ray" else address)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        text = " ".join(str(error).split())
        raise UsageError(
            f"no Ray cluster at {address!r} ({text}): start one with `ray start --head`, set RAY_ADDRESS, or use "
            "--on ray://HOST:10001"
        ) from None
    finally:
        # Ray has put its own in their place.
        interrupt_on_signals()


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


def demand_listener(address: str, place: str) -> None:
    """Raise `UsageError` if nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = place.rpartition(":")
    if not (host and port.isascii() and port.isdigit()):
        return  # Ray has other names for what is here
    try:
        socket.create_connection((host.strip("[]"), int(port)), LISTENER_S).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"no Ray cluster at {address!r}: {place} cannot be reached ({error}): check that it is running"
        ) from None


@dataclass
class RayBackend:
    """Places on the nodes of a cluster."""

    destination: Destination
    display: Display
    keys: KeyFolder
    has_external_workers: bool = field(default=False, init=False)
    #: Each place is a core somewhere, and so a team of one process.
    team_size: int = field(default=1, init=False)
    #: The placement group, and attendants in it that have no process yet, by their bundle.
    _group: Any = None
    _idle: dict[int, Any] = field(default_factory=dict)

    @property
    def workers(self) -> int:
        return self.destination.launch.workers

    @property
    def fewest(self) -> int:
        """The workers that the run begins with."""
        return self.destination.launch.min_workers or self.destination.launch.workers

    def reserve(self) -> None:
        """Wait until there is a core for each of the workers to begin with."""
        self._group = placement_group([{"CPU": 1}] * self.fewest, strategy="SPREAD")
        self._await(f"room for {self.fewest} workers", lambda: self._table()["state"] == "CREATED")

    def _await(self, what: str, poll: Callable[[], Found]) -> Found:
        """Poll until there is something, and return it; remind of what is awaited meanwhile."""
        polls = 0
        while not (found := poll()):
            if polls % round(REMINDER_S / POLL_S) == FIRST_REMINDER:
                cores = ray.cluster_resources().get("CPU", 0.0)
                self.display.remind(f"waiting for {what}: Ray has {cores:g} cores in all")
            polls += 1
            threading.Event().wait(POLL_S)
        return found

    def examine(self) -> None:
        """Look at each node; `UsageError` if one has other code, or does not see the run's folder."""
        check, text = self.destination.folder / CHECK, secrets.token_hex(16)
        self._idle = {bundle: self._agent(bundle, cpus=1) for bundle in range(self.fewest)}
        ours = LaunchAgent().about()
        try:
            check.write_text(text, encoding="utf-8")
            for actor in self._idle.values():
                theirs = answer_of(actor.about.remote())
                for name in ("lockstep", "code"):
                    if ours[name] != theirs[name]:
                        raise UsageError(
                            f"node {theirs['host']!r} has {name} {theirs[name]!r}, and here it is {ours[name]!r}: "
                            f"install the same version of lockstep for {theirs['python']} there"
                        )
                self._demand_sight(actor, CHECK, text)
        finally:
            check.unlink(missing_ok=True)

    def start(self, command: ProcessCommand, folder: Path, numerics: Numerics) -> WatchedProcess:
        if command.role is Role.WORKER:
            bundle = command.number if command.number < self.fewest else None
            actor = self._idle.pop(command.number, None) or self._agent(bundle, cpus=1)
            names, added = [f"{WORKER}.key"], ["--workers", "1", "--key", f"{HERE}/{KEYS}/{WORKER}.key"]
        else:
            living = self._await("room for a server", self._living)
            bundle = list(living)[command.number % len(living)]
            actor = self._agent(bundle, cpus=0)
            names, added = [SERVER, SERVER_PUBLIC, ALLOWED], ["--keys", f"{HERE}/{KEYS}"]
            # Where Ray reaches that node, the other nodes do.
            added += ["--bind", tcp_address(living[bundle], 0)]
        files = {f"{KEYS}/{name}": (self.keys.path / name).read_text(encoding="utf-8") for name in names}
        if command.role is Role.SERVER:
            files[JOB_FILE] = (folder / JOB_FILE).read_text(encoding="utf-8")
            if command.address:
                self._demand_sight(actor, JOB, (self.destination.folder / JOB).read_text(encoding="utf-8"))
        asked = actor.start.remote(command.name, [*command.arguments, *added], files, str(Path.cwd()), numerics)
        return RayChild(command.name, ProcessLog.at_end_of(folder / f"{command.stem}{LOG}"), actor, asked)

    def dial(self, address: str, server: WatchedProcess) -> ClientPort:
        assert isinstance(server, RayChild)
        return RayPort(server.actor, address)

    def give_up(self) -> None:
        """Leave nothing in the cluster."""
        for actor in self._idle.values():
            ray.kill(actor)
        if self._group is not None:
            remove_placement_group(self._group)

    def _agent(self, bundle: int | None, cpus: int) -> Any:
        """Start an actor in a bundle of the group, or, with None, wherever there is or will be a core."""
        strategy: Any = "SPREAD"
        if bundle is not None:
            strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
        kind = ray.remote(LaunchAgent).options(num_cpus=cpus, scheduling_strategy=strategy, max_restarts=0)
        return kind.remote()

    def _table(self) -> Any:
        return placement_group_table(self._group)

    def _living(self) -> dict[int, str]:
        """Return the bundles whose nodes live, and where Ray reaches each; none while Ray finds room again."""
        hosts = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        nodes = self._table()["bundles_to_node_id"]
        return {bundle: hosts[nodes[bundle]] for bundle in range(self.fewest) if nodes.get(bundle) in hosts}

    def _demand_sight(self, actor: Any, name: str, text: str) -> None:
        """Raise `UsageError` if a node does not see the run's folder, in which a file has that text."""
        folder = str(self.destination.folder.absolute())
        if obstacle := answer_of(actor.obstacle.remote(folder, name, text)):
            host = answer_of(actor.about.remote())["host"]
            raise UsageError(
                f"the run folder {folder!r} has to be seen by all nodes, for a server that has to move: node {host!r} "
                f"{obstacle}: expected --run-dir on a file system that they share"
            )


def answer_of(asked: Any) -> Any:
    """Return what an actor answers whose node has been found; an error says what is wrong with the node."""
    try:
        return ray.get(asked, timeout=ANSWER_S)
    except ray.exceptions.GetTimeoutError:
        raise RunError(f"a node of the Ray cluster does not answer within {ANSWER_S:g} s") from None
    except ray.exceptions.RayError as error:
        text = " ".join(str(error).split())
    if "ModuleNotFoundError" in text or "No module named" in text:
        raise UsageError(
            "a node of the Ray cluster cannot import lockstep: install the same version in the Python that runs Ray on "
            "each node"
        )
    raise RunError(f"a node of the Ray cluster is gone: {text[:300]}")
