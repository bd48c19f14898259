"""How fast the way to a server is, and what that means for the job that runs there. Pure: others send and wait."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import msgspec

from lockstep.common.job.job import Job
from lockstep.common.protocol.messages import ECHO_LIMIT, Status
from lockstep.runs.cost_model import BYTES_PER_PARAMETER, HANDLING, CostModel, Machines, bytes_per_parameter

#: Values of the first echoes, whose time is that of the way alone, and how many there are.
SHORT, SHORT_TIMES = 1, 3

#: Values of the first echo that counts. Each is twice as long until one takes so many seconds; then it is repeated.
FIRST, ENOUGH_S, TIMES = 2**12, 0.2, 3

#: Seconds per value of an update, on a machine that was measured: `lockstep bench predict` has it too.
UPDATE_S = 0.47e-9

#: Numbers of local steps to consider, and whether vectors are rounded: what changes a job least comes first.
WAYS = ((1, False), (1, True), (4, False), (16, False), (64, False), (64, True), (256, True))

#: Exchanges that a run needs at least for its outer optimizer: `bench local-steps` has figures for so few.
FEWEST_EXCHANGES = 8

#: How vectors are rounded then.
ROUNDED = ("int8", "bfloat16")

#: Most hosts to consider, whatever the number of micro-batches.
MOST_HOSTS = 64

#: One more host helps as long as it is not that close to the best speed without it.
CLOSE = 0.95

#: What is enough: a link that is used for at most this share of a step, and so many times the speed of one process at
#: the server.
LINK_SHARE, FASTER = 0.5, 1.5


class LinkSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of a link, while whoever else used it."""

    #: In each direction.
    bytes_per_s: float
    round_trip_s: float

    def text(self) -> str:
        mbit = float(f"{self.bytes_per_s * 8 / 1e6:.3g}")
        return f"{mbit:,.10g} Mbit/s each way, {self.round_trip_s * 1e3:.3g} ms there and back"


@dataclass
class LinkMeter:
    """Decides how many values go there and back next."""

    _short_s: list[float] = field(default_factory=list)
    _long_s: list[float] = field(default_factory=list)
    _values: int = FIRST

    def next(self) -> int | None:
        """Return how many values to send next; None at the end."""
        if len(self._short_s) < SHORT_TIMES:
            return SHORT
        return self._values if len(self._long_s) < TIMES else None

    def record(self, seconds: float) -> None:
        """Record how long they took."""
        if len(self._short_s) < SHORT_TIMES:
            self._short_s.append(seconds)
        elif not self._long_s and seconds < ENOUGH_S and self._values < ECHO_LIMIT:
            self._values *= 2
        else:
            self._long_s.append(seconds)

    def speed(self) -> LinkSpeed | None:
        """Return what was measured; None if nothing was."""
        if not self._long_s:
            return None
        round_trip_s = min(self._short_s)
        # All of it has to be there before it is sent back.
        moving_s = max(median(self._long_s) - round_trip_s, 1e-9)
        return LinkSpeed(bytes_per_s=2 * 4 * self._values / moving_s, round_trip_s=round_trip_s)


class LinkOption(msgspec.Struct, frozen=True, kw_only=True):
    """A way to run the job over the link, and what it would bring."""

    name: str
    #: What changes the job to it; empty for the job as it is.
    flags: str
    #: The fewest hosts with which it is nearly as fast as it can be.
    hosts: int
    images_per_s: float
    #: Images/s over those of one process at the server, which needs no link.
    speedup: float
    #: The share of a step for which the link is in use.
    link_share: float
    is_recommended: bool = False


class LinkAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """A link, and the ways to run a job over it."""

    speed: LinkSpeed
    #: Seconds that a process computes for all micro-batches of a step, and that the link takes for one host in it; None
    #: if nobody knows how long computing takes.
    compute_s: float | None = None
    link_s: float | None = None
    options: list[LinkOption] = []

    def lines(self) -> list[str]:
        lines = [f"{'link':<10} {self.speed.text()}, as it is used now"]
        if self.compute_s is None or self.link_s is None:
            return [*lines, f"{'advice':<10} none: no worker has computed yet; ask again when one has"]
        lines.append(
            f"{'a step':<10} {_ms(self.compute_s)} of computing in one process, {_ms(self.link_s)} of link per host"
        )
        heading = f"{'':<10} {'':<42}{'hosts':>6}{'images/s':>10}{'speedup':>9}"
        return [*lines, heading, *map(_line, self.options), *self._recommendation()]

    def _recommendation(self) -> Iterator[str]:
        for option in self.options:
            if option.is_recommended:
                several = "1 host helps" if option.hosts == 1 else f"up to {option.hosts} hosts help"
                yield f"{'advice':<10} {option.name}: {several}"
                if option.flags:
                    yield f"  {option.flags}"
                return
        yield f"{'advice':<10} train at the server alone: over this link no host makes it faster"


def _line(option: LinkOption) -> str:
    return f"{'':<10} {option.name:<42}{option.hosts:>6}{option.images_per_s:>10,.0f}{option.speedup:>8.1f}x"


def seconds_per_sample(status: Status) -> float | None:
    """Return the seconds that the workers of a run have needed for a sample; None if they have computed none yet."""
    samples = sum(worker.samples for worker in status.workers)
    return sum(worker.compute_s for worker in status.workers) / samples if samples else None


def most_local_steps(job: Job, status: Status) -> int:
    """Return with how many local steps a run still has `FEWEST_EXCHANGES` exchanges, and one in each epoch."""
    return status.steps * job.local_steps // max(FEWEST_EXCHANGES, status.epochs)


def advice_of(job: Job, size: int, speed: LinkSpeed, sample_s: float | None, most: int = WAYS[-1][0]) -> LinkAdvice:
    """Return what would make a job fast over a link, with at most so many local steps.

    `sample_s` are the seconds that a process takes for a sample.
    """
    if sample_s is None or not size:
        return LinkAdvice(speed=speed)
    now = _model_of(job, size, speed, sample_s)
    at = Machines(link=speed.bytes_per_s)
    is_exact = job.wire == job.wire_weights == "float32"
    options = [
        _option(job, steps, now, speed, is_rounded=is_rounded)
        for steps, is_rounded in WAYS
        if (job.local_steps < steps <= most or steps == 1) and (is_exact or not is_rounded)
    ]
    compute_s, link_s = now.compute_s(1), now.link_s(at)
    return LinkAdvice(speed=speed, compute_s=compute_s, link_s=link_s, options=_recommended(options))


def _recommended(options: Sequence[LinkOption]) -> list[LinkOption]:
    """Mark the first option that is enough, which changes the job least; or else the fastest if it helps at all."""
    enough = [each for each in options if each.link_share <= LINK_SHARE and each.speedup >= FASTER]
    fastest = max(options, key=lambda each: each.speedup)
    best = enough[0] if enough else fastest if fastest.speedup > 1.0 / CLOSE else None
    return [msgspec.structs.replace(each, is_recommended=each is best) for each in options]


def _model_of(job: Job, size: int, speed: LinkSpeed, sample_s: float) -> CostModel:
    samples = job.global_batch / job.micro_batches
    return CostModel(
        parameters=size,
        micro_batch_samples=samples,
        micro_batch_s=samples * sample_s,
        micro_batches=job.micro_batches,
        is_weak=False,
        latency_s=speed.round_trip_s,
        per_host_s=BYTES_PER_PARAMETER * size / HANDLING,
        update_s=UPDATE_S * size,
        jitter_s=0.0,
        bytes_per_parameter=bytes_per_parameter(job.wire, job.wire_weights),
    )


def _option(job: Job, steps: int, model: CostModel, speed: LinkSpeed, *, is_rounded: bool) -> LinkOption:
    names, flags = list[str](), list[str]()
    if steps > 1:
        model = model.with_local_steps(steps, job.local_steps)
        names.append(f"{steps} local steps")
        flags += ["--local-steps", str(steps), "--global-batch", str(job.global_batch * steps // job.local_steps)]
    if is_rounded:
        model = replace(model, bytes_per_parameter=bytes_per_parameter(*ROUNDED))
        names.append(" and ".join(ROUNDED))
        flags += ["--wire", ROUNDED[0], "--wire-weights", ROUNDED[1]]

    def machines(hosts: int) -> Machines:
        return Machines(workers=hosts, hosts=hosts, link=speed.bytes_per_s)

    counts = range(1, min(job.micro_batches, MOST_HOSTS) + 1)
    speeds = [model.samples_per_s(machines(hosts)) for hosts in counts]
    hosts = next(hosts for hosts, each in zip(counts, speeds, strict=True) if each >= CLOSE * max(speeds))
    alone = model.samples_per_s(Machines(is_local=True))
    return LinkOption(
        name=", ".join(names) or "as it is",
        flags=" ".join(flags),
        hosts=hosts,
        images_per_s=speeds[hosts - 1],
        speedup=speeds[hosts - 1] / alone,
        link_share=model.link_share(machines(hosts)),
    )


def _ms(seconds: float) -> str:
    """Return a time in three digits, or whole milliseconds."""
    return f"{seconds * 1e3:,.0f} ms" if seconds >= 1.0 else f"{seconds * 1e3:.3g} ms"
