"""Results that have come and do not count yet: not all servers have their part of the sums. Pure."""

from dataclasses import dataclass, field

from common.aggregation.tree import Node
from common.protocol.messages import Result


@dataclass
class PendingAcknowledgements:
    """The results of one round that other servers are still to confirm."""

    results: dict[tuple[int, Node], Result] = field(default_factory=dict)

    def add(self, rank: int, result: Result) -> bool:
        """Book a result; return whether it is the first of its lease."""
        key = rank, result.node()
        if key in self.results:
            return False
        self.results[key] = result
        return True

    def take(self, rank: int, node: Node) -> Result | None:
        """Return a result that all servers have confirmed, None where it is not awaited any more."""
        return self.results.pop((rank, node), None)

    def forget(self, rank: int) -> None:
        """Book that a worker is gone: what of its sums is nowhere yet will not come."""
        for key in [key for key in self.results if key[0] == rank]:
            del self.results[key]

    def has(self, rank: int) -> bool:
        """Tell whether a result of a worker's is awaited."""
        return any(owner == rank for owner, _ in self.results)

    def numbers(self, rank: int) -> list[int]:
        """Return the numbers of the leases whose results of a worker have come: their sums are still being read."""
        return [result.number for (owner, _), result in self.results.items() if owner == rank]
