"""The cost model of a step with other numbers of hosts, processes and servers and another link. Pure.

In a step, the slowest process computes its micro-batches, each team adds up the vectors of its processes, teams
exchange one vector each with the servers, and the weights are updated. The model assumes no overlap, so that hiding an
exchange behind computing can only be faster than predicted. docs/explanation/performance.md has the formulas.
"""

from bisect import bisect_left
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from lockstep.common.aggregation.quantization import bytes_per_value
from lockstep.common.job.job import Job
from lockstep.ps.records.run_folder import RunResult
from lockstep.ps.run.progress import Split

#: Bytes that cross the link of the server per host and parameter: a float32 of sums in, one of weights out.
BYTES_PER_PARAMETER = 8.0

#: Most hosts to consider in the search for the point at which a link saturates.
MOST_HOSTS = 65_536

#: Bytes/s of a host's memory, if no team was measured: two processes that each wrote and read 25 million values
#: (`bench exchange --params 25000000`, the filling, 15.8 ms).
MEMORY = 25e9

#: Bytes/s at which a server takes sums and hands out weights, if none was measured: 8 bytes for each of 535,818 values
#: and two workers (`bench exchange --transport tcp`, 4.0 ms).
HANDLING = 2.1e9

#: Seconds per value of an update, if none was measured (0.25 ms for 535,818 of them).
UPDATE_S = 0.47e-9

#: Seconds of a step of a team besides computing, adding and the update, and bytes/s at which it adds, if none was
#: measured: with two workers, a net of 50,890 parameters took 0.6 ms, one of 535,818 took 1.8 ms.
TEAM_S, TEAM_MEMORY = 0.5e-3, 5e9


class Machines(msgspec.Struct, frozen=True, kw_only=True):
    """The machines of a run: processes in a team on each host, and servers."""

    #: Processes of all teams.
    workers: int = 1
    #: Hosts, with a team each.
    hosts: int = 1
    servers: int = 1
    #: Bytes/s of each host's link in each direction; None if they all are one machine.
    link: float | None = None
    #: Whether the only team shares the memory of the only server, and updates the weights itself.
    is_local: bool = False
    #: Whether each host has one of the servers, next to its team.
    is_spread: bool = False

    @property
    def team(self) -> float:
        """Processes of a team, on average."""
        return self.workers / self.hosts


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One run whose steps were timed."""

    workers: int
    servers: int
    micro_batches: int
    global_batch: int
    #: Values in a gradient.
    parameters: int
    split: Split
    teams: int = 1
    #: See `Machines`.
    is_local: bool = False
    #: Seconds of a micro-batch in which its process slept.
    sleep_s: float = 0.0
    #: See `bytes_per_parameter`.
    bytes_per_parameter: float = BYTES_PER_PARAMETER

    @classmethod
    def of(cls, result: RunResult) -> "Measured | None":
        """Return what a run measured, None if it had no workers, or no step that was timed."""
        if result.split is None or not result.workers:
            return None
        teams = result.teams or result.workers  # of an older version, in which each worker had a connection
        return cls(
            workers=result.workers,
            teams=teams,
            servers=result.servers,
            micro_batches=result.micro_batches,
            global_batch=result.global_batch,
            parameters=result.parameters,
            split=result.split,
            is_local=shares_memory(teams, result.servers, result.transport),
            bytes_per_parameter=bytes_per_parameter(result.wire, result.wire_weights),
        )

    def machines(self) -> Machines:
        """Return where it was measured: on one machine."""
        return Machines(workers=self.workers, hosts=self.teams, servers=self.servers, is_local=self.is_local)


def shares_memory(teams: int, servers: int, carrier: str) -> bool:
    """Return whether a run has one team, which shares the memory of the only server."""
    return teams == 1 and servers == 1 and carrier == "shm"


class CostModel(msgspec.Struct, frozen=True, kw_only=True):
    """The costs of a step, in seconds."""

    parameters: int
    #: Samples of a micro-batch, and the seconds that a process with its own core takes for it.
    micro_batch_samples: float
    micro_batch_s: float
    #: Of these, those in which it sleeps, and another process can have the core.
    sleep_s: float = 0.0
    #: Micro-batches of a step; per process if `is_weak`.
    micro_batches: float
    #: Whether the step grows with the processes (weak scaling) or not (strong scaling).
    is_weak: bool = False
    #: Bytes/s at which the processes of a host together add up vectors.
    memory: float = MEMORY
    #: The other costs of a step that a team makes without the server.
    local_s: float = 0.0
    #: An exchange with servers: the least that it takes, and what one server takes per host.
    latency_s: float = 0.0
    per_host_s: float = 0.0
    #: One process's update of all weights.
    update_s: float = 0.0
    #: The time of the slowest of several processes beyond its share of the micro-batches.
    jitter_s: float = 0.0
    #: Cores that all processes share; None if each has its own.
    cores: int | None = None
    #: Bytes that cross a link per host and parameter, in and out.
    bytes_per_parameter: float = BYTES_PER_PARAMETER

    def with_local_steps(self, steps: int, measured: int = 1) -> "CostModel":
        """Return the model of a job whose micro-batches take so many local steps, each of as many samples as before.

        `measured` is the number of them in the measurement. If it had none, the updates of local steps are added.
        """
        update_s = self.update_s if measured == 1 < steps else 0.0
        return replace(
            self,
            micro_batch_samples=self.micro_batch_samples * steps / measured,
            micro_batch_s=(self.micro_batch_s / measured + update_s) * steps,
            sleep_s=self.sleep_s * steps / measured,
        )

    def samples(self, workers: int) -> float:
        """Return the samples of a step."""
        return self._micro_batches(workers) * self.micro_batch_samples

    def _micro_batches(self, workers: int) -> float:
        return self.micro_batches * workers if self.is_weak else self.micro_batches

    def compute_s(self, workers: int, served_s: float = 0.0) -> float:
        """Return the seconds until the slowest process is done, and a server has worked for `served_s` after it.

        If they share cores, a step takes at least the work of all of them. All sleep at the same time, because all
        begin a step together.
        """
        micro_batches = self._micro_batches(workers)
        # A micro-batch is not divided: of 8, the slowest of 3 processes has 3.
        share = self.micro_batches if self.is_weak else -(-micro_batches // workers)
        busy_s = self.micro_batch_s - self.sleep_s
        seconds = busy_s * share + served_s
        if self.cores is not None:
            seconds = max(seconds, (busy_s * micro_batches + served_s) / self.cores)
        return self.sleep_s * share + seconds + (self.jitter_s if workers > 1 else 0.0)

    def reduce_s(self, at: Machines) -> float:
        """Return the seconds in which teams add up the vectors of their processes, by slices."""
        return reduced_bytes(self.parameters, at) / self.memory

    def link_s(self, at: Machines) -> float:
        """Return the seconds for which the busiest link is in use.

        Pushing comes before pulling, so that both directions count although a link can carry both at once.
        """
        if at.link is None or at.is_local:
            return 0.0
        # The link of a host carries the whole vector, whatever the number of servers; less the slice that it has.
        vectors = 1.0 - 1.0 / at.hosts if at.is_spread else max(1.0, at.hosts / at.servers)
        return self.bytes_per_parameter * self.parameters * vectors / at.link

    def exchange_s(self, at: Machines) -> float:
        """Return the seconds in which teams and servers exchange vectors."""
        if at.is_local:
            return self.local_s
        # A server adds vectors that have arrived while the rest is on its way, so that the slower of the two counts.
        return self.latency_s + max(self.per_host_s * at.hosts / at.servers, self.link_s(at))

    def updated_s(self, at: Machines) -> float:
        """Return the seconds of the update: by slices by a team that shares the memory, or else by the servers."""
        return self.update_s / (updaters(at, self.cores) if at.is_local else at.servers)

    def step_s(self, at: Machines) -> float:
        """Return the seconds of a step."""
        rest_s = self.exchange_s(at) + self.updated_s(at)
        if at.is_local:
            return self.compute_s(at.workers) + self.reduce_s(at) + rest_s
        return self.compute_s(at.workers, rest_s) + self.reduce_s(at)

    def samples_per_s(self, at: Machines) -> float:
        """Return the training samples per second."""
        return self.samples(at.workers) / self.step_s(at)

    def link_share(self, at: Machines) -> float:
        """Return the share of a step for which the busiest link carries bytes."""
        return self.link_s(at) / self.step_s(at)

    def slowdown(self, at: Machines) -> float:
        """Return how many times as long a step takes as with one server per host."""
        return self.step_s(at) / self.step_s(replace(at, servers=at.hosts))

    def saturation(self, at: Machines) -> int | None:
        """Return the number of hosts from which on a step takes at least twice as long as with one server each.

        Each host has a team as large as there, and there are as many servers. None if it never does.
        """
        numbers = range(1, MOST_HOSTS + 1)

        def is_saturated(hosts: int) -> bool:
            return self.slowdown(replace(at, hosts=hosts, workers=round(at.team * hosts), is_local=False)) >= 2.0

        place = bisect_left(numbers, True, key=is_saturated)
        return numbers[place] if place < len(numbers) else None

    def shards(self, at: Machines) -> int:
        """Return the fewest servers with which a step does not take twice as long as with one per host."""
        numbers = range(1, at.hosts + 1)
        return numbers[
            bisect_left(numbers, True, key=lambda servers: self.slowdown(replace(at, servers=servers)) < 2.0)
        ]

    def is_bound_by_link(self, link: float) -> bool:
        """Return whether the link of a server, and not the server itself, is the first bottleneck."""
        return self.bytes_per_parameter * self.parameters / link > self.per_host_s


def team_step_s(job: Job, parameters: int, single_s: float, cores: int, workers: int) -> float:
    """Return the seconds of a step of workers in one team on so many cores, from those of a step in one process."""
    model = CostModel(
        parameters=parameters,
        micro_batch_samples=job.global_batch / job.micro_batches,
        # The update counts with the micro-batches, and so is assumed to be shared: workers help with it.
        micro_batch_s=single_s / job.micro_batches,
        micro_batches=job.micro_batches,
        local_s=TEAM_S,
        memory=TEAM_MEMORY,
        cores=cores,
    )
    return model.step_s(Machines(workers=workers, is_local=True))


def reduced_bytes(parameters: int, at: Machines) -> float:
    """Return the bytes of one memory that are read and written to add up the vectors of a team's processes.

    One process has nothing to add. Teams of one machine share its memory.
    """
    teams = at.hosts if at.link is None else 1
    return 4.0 * parameters * teams * (at.team + 1) if at.team > 1 else 0.0


def updaters(at: Machines, cores: int | None) -> float:
    """Return how many processes of a team update slices at the same time."""
    return at.team if cores is None else min(at.team, cores)


def bytes_per_parameter(wire: str, wire_weights: str) -> float:
    """Return the bytes that cross the link of the server per host and parameter: sums in, weights out."""
    return bytes_per_value(wire) + bytes_per_value(wire_weights)


def fitted(points: Sequence[Measured], *, is_weak: bool = False, cores: int | None = None) -> CostModel:
    """Return the model that fits measurements with one or more numbers of workers that shared `cores` cores.

    The point with the most workers gives the costs of a micro-batch and an update. If there are points whose workers
    had a core each, only these count: in all others, part of every cost is waiting for a core.
    """
    points = [point for point in points if cores is None or point.workers <= cores] or points
    most = max(points, key=lambda point: point.workers)
    busy = min(most.workers, most.micro_batches)
    contention = 1.0 if cores is None else max(1.0, busy / cores)
    elapsed_s = most.split.compute_s * busy / most.micro_batches
    local_s, memory = _fitted_team([point for point in points if point.is_local])
    latency_s, per_host_s = _fitted_server([point for point in points if not point.is_local], memory, most.parameters)
    model = CostModel(
        parameters=most.parameters,
        micro_batch_samples=most.global_batch / most.micro_batches,
        micro_batch_s=most.sleep_s + max(0.0, elapsed_s - most.sleep_s) / contention,
        sleep_s=most.sleep_s,
        micro_batches=most.micro_batches / most.workers if is_weak else float(most.micro_batches),
        is_weak=is_weak,
        memory=memory,
        local_s=local_s,
        latency_s=latency_s,
        per_host_s=per_host_s,
        update_s=most.split.update_s * (updaters(most.machines(), cores) if most.is_local else most.servers),
        cores=cores,
        bytes_per_parameter=most.bytes_per_parameter,
    )
    slowest_s = most.split.compute_s + most.split.waiting_s
    jitter_s = max(0.0, slowest_s - model.compute_s(most.workers)) if most.workers > 1 else 0.0
    return replace(model, jitter_s=jitter_s)


def _fitted_team(points: Sequence[Measured]) -> tuple[float, float]:
    """Return what a step without the server takes, and the bytes/s of adding: a straight line over the bytes.

    With only one number of processes, all of it is assumed to be adding; with one process, there was nothing to add.
    """
    times = [(reduced_bytes(point.parameters, point.machines()), _exchange_s(point)) for point in points]
    if not any(moved for moved, _ in times):
        return sum(seconds for _, seconds in times) / max(1, len(times)), MEMORY
    local_s, s_per_byte = best_line(times)
    return local_s, 1.0 / s_per_byte if s_per_byte else MEMORY


def _fitted_server(points: Sequence[Measured], memory: float, parameters: int) -> tuple[float, float]:
    """Return the least that an exchange with a server takes, and what it takes per host: a line over the hosts.

    With only one number of hosts, all of it is assumed to grow with them.
    """
    if not points:
        return 0.0, BYTES_PER_PARAMETER * parameters / HANDLING
    rests = []
    for point in points:
        added_s = reduced_bytes(point.parameters, point.machines()) / memory
        rests.append((point.teams / point.servers, max(0.0, _exchange_s(point) - added_s)))
    return best_line(rests)


def _exchange_s(point: Measured) -> float:
    return max(0.0, point.split.exchange_s)


def best_line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the constant and the slope of the line that fits points best, neither below zero."""
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    through_zero = sum(x * y for x, y in points) / sum(x * x for x, _ in points)
    if not spread:
        return 0.0, through_zero
    slope = max(0.0, sum((x - mean_x) * (y - mean_y) for x, y in points) / spread)
    constant = mean_y - slope * mean_x
    return (constant, slope) if constant >= 0.0 else (0.0, through_zero)
