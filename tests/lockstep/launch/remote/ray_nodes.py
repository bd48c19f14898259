"""A Ray cluster on this machine, as a program: it obeys lines on standard input, and is gone with them.

Its head has no core, and each other node has one. `add CORES` starts a node, whose number it tells; `remove N` takes
the N-th away; `holder PID` tells at which node a process is; `held` tells how many cores and placement groups are in
use. Each answer is a line. Apart from the tests, since it would put threads, signal handlers and warnings of Ray's into
their process.
"""

import sys
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

    def add(self, cores: int = 1) -> Node:
        return self.cluster.add_node(num_cpus=cores, object_store_memory=_MEMORY)

    def obey(self, verb: str, rest: str) -> str:
        """Do what a line says; return the answer."""
        match verb:
            case "add":
                number = 1 + max(self.nodes)
                self.nodes[number] = self.add(int(rest))
                return str(number)
            case "remove":
                self.cluster.remove_node(self.nodes.pop(int(rest)))
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
    ray.shutdown()
    nodes.cluster.shutdown()


if __name__ == "__main__":
    main()
