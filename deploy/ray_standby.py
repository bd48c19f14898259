"""Train on a Ray cluster of which any node but the head may be lost, that of the server too. See docs/how-to/ray.md.

    python deploy/ray_standby.py runs/mine --workers 4 --model lenet --set checkpoint_every_seconds=10

Ray only places processes, finds their addresses and notices that they are gone. What `lockstep server` and `lockstep
worker` do, they do everywhere: a server that is started again finds out whether it leads the run or mirrors it.
"""

import io
import json
import secrets
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import ray
from ray.exceptions import RayActorError
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

SERVERS = ("first", "second")

#: Stands in a command for the private folder with the keys of its process.
KEYS = "KEYS"


@ray.remote(num_cpus=1, max_concurrency=2)
class Seat:
    """A place for one process, on the node that Ray has chosen."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        self.keys = tempfile.TemporaryDirectory(prefix="lockstep-")
        for name, text in keys.items():
            path = Path(self.keys.name) / name
            path.touch(mode=0o600)
            path.write_bytes(text)

    def address(self) -> str:
        """Return an address of this node that nobody uses, by which the others can reach it."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as bound:
            bound.bind((host, 0))
            return f"tcp://{host}:{bound.getsockname()[1]}"

    def run(self, *words: str) -> int:
        """Run a command of Lockstep to its end, which comes with the end of this actor, and return its exit code."""
        words = tuple(word.replace(KEYS, self.keys.name) for word in words)
        guarded = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-u", "-m", "lockstep", *words]
        self.process = subprocess.Popen(guarded, stdin=subprocess.DEVNULL)
        return self.process.wait()

    def stop(self) -> None:
        """Let the command end, which is a worker's: it gives its work back."""
        self.process.terminate()

    def files(self, folder: str) -> bytes:
        """Return what a folder of this node holds, as a tar archive."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(folder, arcname=".")
        return archive.getvalue()


class Run:
    """The processes of a run: two servers on different nodes, and workers anywhere."""

    def __init__(self, folder: Path, workers: int, job: list[str]) -> None:
        self.folder, self.job = folder, job
        self.names = [*SERVERS, *(f"worker-{number}" for number in range(workers))]
        self.keys = made_keys()
        self.servers = placement_group([{"CPU": 1}] * len(SERVERS), strategy="STRICT_SPREAD")
        self.seats: dict[str, Any] = {}
        self.addresses: dict[str, str] = {}
        #: By server, its folder on its node. A new seat has a new one, since its address is new too: a server that has
        #: led the run in its folder expects to be found where it was.
        self.folders: dict[str, str] = {}
        #: By process, the addresses of servers in its command.
        self.known: dict[str, set[str]] = {}
        #: What is awaited: that a seat has been placed, or that its process has ended.
        self.placing: dict[Any, str] = {}
        self.running: dict[Any, str] = {}

    def train(self) -> str:
        """Start everything, and again what is lost, until one of the servers has the whole run; return its name."""
        for name in self.names:
            self.place(name)
        while True:
            (done,), _ = ray.wait([*self.placing, *self.running], num_returns=1)
            is_placed = done in self.placing
            name = self.placing.pop(done) if is_placed else self.running.pop(done)
            try:
                value = ray.get(done)
            except RayActorError:
                print(f"{name}: its node is gone, and Ray looks for another one", flush=True)
                self.place(name)
                continue
            if is_placed:
                self.addresses[name] = value
                self.start_placed()
            elif value == 2:
                raise SystemExit(f"{name} cannot take part: see what it has reported above")
            elif value == 0 and name in SERVERS:
                return name
            elif value:
                print(f"{name}: ended with {value}, and is started again", flush=True)
                time.sleep(1.0)
                self.start(name)

    def place(self, name: str) -> None:
        """Ask Ray for a seat, the two servers' on different nodes."""
        self.addresses.pop(name, None)
        keys, options = self.keys, {}
        if name in SERVERS:
            self.folders[name] = f"{self.folder}-{secrets.token_hex(3)}-{name}"
            strategy = PlacementGroupSchedulingStrategy(self.servers, SERVERS.index(name))
            options = {"scheduling_strategy": strategy}
        else:
            keys = {"worker.key": keys["worker.key"]}
        self.seats[name] = Seat.options(**options).remote(keys)
        self.placing[self.seats[name].address.remote()] = name

    def start_placed(self) -> None:
        """Start each process that has a seat and does not run; end workers that know neither server any more."""
        for name in self.addresses.keys() - set(self.running.values()):
            self.start(name)
        for name in set(self.running.values()) - set(SERVERS):
            if self.known[name].isdisjoint(self.addresses.values()):
                self.seats[name].stop.remote()

    def start(self, name: str) -> None:
        """Start a process, the same way if it is started again, once it is known where both servers are."""
        if not self.addresses.keys() >= set(SERVERS):
            return
        first, second = (self.addresses[server] for server in SERVERS)
        self.known[name] = {first, second}
        words = {
            "first": ["server", *self.job, "--bind", first, "--standbys", second, "--transport", "tcp"],
            "second": ["server", "--bind", second, "--standby-of", first],
        }.get(name, ["worker", f"{first},{second}", "--key", f"{KEYS}/worker.key", "--workers", "1"])
        if name in SERVERS:
            words += ["--keys", KEYS, "--run-dir", self.folders[name]]
        self.running[self.seats[name].run.remote(*words)] = name

    def fetch(self, server: str) -> None:
        """Copy the run from a server's node to this one."""
        archive = io.BytesIO(ray.get(self.seats[server].files.remote(self.folders[server])))
        with tarfile.open(fileobj=archive) as tar:
            tar.extractall(self.folder, filter="data")

    def end(self) -> None:
        """End all processes."""
        for seat in self.seats.values():
            ray.kill(seat)
        remove_placement_group(self.servers)


def made_keys() -> dict[str, bytes]:
    """Make keys for this run alone, and return their files."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["keys", "create", f"{folder}/keys", "--name", "worker"]
        subprocess.run([sys.executable, "-m", "lockstep", *words], stdout=subprocess.DEVNULL, check=True)
        return {path.name: path.read_bytes() for path in Path(folder, "keys").iterdir()}


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--workers", default=2, show_default=True, help="workers, with one core each")
@click.argument("job", nargs=-1, type=click.UNPROCESSED)
def main(folder: Path, workers: int, job: tuple[str, ...]) -> None:
    """Train the JOB, given as flags of `lockstep server`, on a Ray cluster, and leave the run in the new FOLDER."""
    if folder.exists():
        raise click.UsageError(f"{folder} exists: expected a new folder")
    ray.init(address="auto")
    run = Run(folder.absolute(), workers, list(job))
    try:
        run.fetch(run.train())
    finally:
        run.end()
    result = json.loads((folder / "result.json").read_text())
    print(f"weights sha256  {result['weights_sha256']}")
    print(f"run folder      {folder}")


if __name__ == "__main__":
    main()
