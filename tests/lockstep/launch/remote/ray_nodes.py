"""A Ray cluster on this machine, as a program: it obeys lines on standard input, and is gone with them.

Its head has no core, and each other node has one. `add` starts a node, whose number it tells; `blind FOLDER` one
that sees nothing in a folder, until `see` ends it; `remove N` takes the N-th away; `holder PID` tells at which node a
process is; `held` tells how many cores and placement groups are in use. Each answer is a line. Apart from the tests,
since it would put threads, signal handlers and warnings of Ray's into their process.
"""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import ray
from ray._private.node import Node
from ray.cluster_utils import Cluster
from ray.util import placement_group_table

#: Bytes of each node's object store: nothing of ours goes there.
_MEMORY = 80 * 2**20


class Nodes:
    """The cluster."""

    def __init__(self, count: int) -> None:
        head = {"num_cpus": 0, "object_store_memory": _MEMORY, "ray_client_server_port": int(sys.argv[2])}
        self.cluster = Cluster(initialize_head=True, connect=True, head_node_args=head)
        self.nodes = {number: self.add() for number in range(count)}
        self.blind: subprocess.Popen[bytes] | None = None

    def add(self) -> Node:
        return self.cluster.add_node(num_cpus=1, object_store_memory=_MEMORY)

    def blind_node(self, folder: str) -> str:
        """Start a node for which another file system lies over a folder; return "done", or why that may not be."""
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--address", self.cluster.address, "--block"]
        covered = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', folder, *start]
        try:
            self.blind = subprocess.Popen([*covered, "--num-cpus", "1"], stdout=subprocess.DEVNULL)
        except FileNotFoundError as error:
            return str(error)
        count = len(ray.nodes())
        while len(ray.nodes()) == count:
            with suppress(subprocess.TimeoutExpired):
                self.blind.wait(0.1)
                return "namespaces of mounts may not be made here"
        return "done"

    def end_blind(self) -> None:
        """End the node that does not see."""
        if self.blind is not None:
            self.blind.terminate()
            self.blind.wait()

    def obey(self, verb: str, rest: str) -> str:
        """Do what a line says; return the answer."""
        match verb:
            case "add":
                number = 1 + max(self.nodes)
                self.nodes[number] = self.add()
                return str(number)
            case "remove":
                self.cluster.remove_node(self.nodes.pop(int(rest)))
            case "blind":
                return self.blind_node(rest)
            case "see":
                self.end_blind()
            case "holder":
                raylets = {node.all_processes["raylet"][0].process.pid: number for number, node in self.nodes.items()}
                pid = int(rest)
                while pid and pid not in raylets:
                    pid = parent_of(pid)
                return str(raylets.get(pid, "nowhere"))
            case "held":
                used = ray.cluster_resources().get("CPU", 0) - ray.available_resources().get("CPU", 0)
                groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
                return f"{used:g} cores, {len(groups)} groups"
        return "done"


def parent_of(pid: int) -> int:
    """Return who started a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def main() -> None:
    """Start so many nodes as the first argument says, with a port for clients; then obey."""
    nodes = Nodes(int(sys.argv[1]))
    print(nodes.cluster.address, flush=True)
    for line in sys.stdin:
        verb, _, rest = line.strip().partition(" ")
        print(nodes.obey(verb, rest), flush=True)
    nodes.end_blind()
    ray.shutdown()
    nodes.cluster.shutdown()


if __name__ == "__main__":
    main()
