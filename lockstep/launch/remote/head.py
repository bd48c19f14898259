"""The machine of rank 0, under a launcher: it has the server and one worker, and the other ranks are its guests."""

from dataclasses import dataclass, field
from pathlib import Path

from common.transport.auth.key_folder import SERVER
from common.transport.zeromq.ports import dial
from lockstep.launch.endpoints import server_credential
from lockstep.launch.process_backend import HERE, Observer, WatchedProcess, start_here
from lockstep.launch.remote.place import LauncherPlace
from lockstep.launch.status_client import StatusClient
from lockstep.runs.launch import Launch


@dataclass(frozen=True, kw_only=True)
class HeadBackend:
    """Starts what belongs to rank 0; its launcher starts the rest."""

    place: LauncherPlace
    #: The server's folder of keys, None if there are none.
    keys: Path | None = None
    is_insecure: bool = False
    has_external_workers: bool = field(default=True, init=False)

    def worker_count(self, launch: Launch) -> int:
        return 1

    def start_server(self, arguments: list[str], address: str, folder: Path) -> WatchedProcess:
        opening = [] if self.keys is None else ["--keys", str(self.keys)]
        opening += ["--insecure"] if self.is_insecure else []
        # At the same address again: the others know no other.
        return start_here("the server", [*arguments, "--bind", self.place.bind, *opening], folder, "server.log")

    def start_shard(self, number: int, server: str, folder: Path) -> WatchedProcess:
        raise NotImplementedError("a launcher's processes are a server and workers: `lockstep node` refuses shards")

    def start_worker(self, number: int, server: str, folder: Path) -> WatchedProcess:
        showing = [] if self.keys is None else ["--key", str(self.keys / SERVER)]
        arguments = ["worker", self.place.local_address, "--supervised", HERE, *showing]
        return start_here("a worker", arguments, folder, "worker-0.log")

    def observer(self, address: str, server: WatchedProcess) -> Observer:
        return StatusClient(dial(self.place.local_address, credential=server_credential(self.keys, None)))
