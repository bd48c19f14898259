"""What a link is like follows from times of echoes, and what to do from that and the job. Figures are round."""

from typing import Any

import msgspec
import pytest

from lockstep.checking.checkup.connection import (
    FIRST,
    SHORT,
    LinkMeter,
    LinkSpeed,
    advice_of,
    most_local_steps,
    seconds_per_sample,
)
from lockstep.common.job.job import Job
from lockstep.common.protocol.messages import ECHO_LIMIT, WorkerStatus
from tests.lockstep.statuses import status

#: 100 Mbit/s.
SLOW = LinkSpeed(bytes_per_s=12.5e6, round_trip_s=0.001)

#: A vector takes 80 ms each way over that.
SIZE = 250_000

#: Four micro-batches of 32 samples.
JOB = Job(global_batch=128, micro_batches=4)


def measured(bytes_per_s: float, round_trip_s: float) -> tuple[LinkMeter, list[int]]:
    """Measure a link of that speed; return the sizes of the echoes too."""
    meter, sizes = LinkMeter(), list[int]()
    while (values := meter.next()) is not None:
        sizes.append(values)
        meter.record(round_trip_s + 8 * values / bytes_per_s)
    return meter, sizes


@pytest.mark.parametrize("bytes_per_s", [1.25e5, 1.25e6, 12.5e6, 125e6, 1.25e9])
def test_the_speed_of_a_link_is_found(bytes_per_s: float) -> None:
    meter, sizes = measured(bytes_per_s, 0.002)
    speed = meter.speed()
    assert speed is not None
    assert speed.bytes_per_s == pytest.approx(bytes_per_s, rel=1e-3)
    assert speed.round_trip_s == pytest.approx(0.002, rel=0.1)
    assert sizes[:3] == [SHORT] * 3
    assert max(sizes) <= ECHO_LIMIT
    # A link that is slow is not asked to carry more than it takes to know that.
    assert sum(sizes[3:]) <= 6 * sizes[-1]


def test_a_slow_link_carries_little() -> None:
    assert measured(1.25e5, 0.002)[1][3:] == [FIRST] * 3
    assert measured(125e6, 0.002)[1][-1] == ECHO_LIMIT


def test_a_link_that_carried_nothing_has_no_speed() -> None:
    assert LinkMeter().speed() is None


@pytest.mark.parametrize(("mbit", "text"), [(7_482.3, "7,480"), (0.18765, "0.188"), (98.76, "98.8")])
def test_a_speed_is_a_number_that_people_read(mbit: float, text: str) -> None:
    assert LinkSpeed(bytes_per_s=mbit / 8 * 1e6, round_trip_s=0.001).text().startswith(f"{text} Mbit/s each way, 1 ms ")


def test_one_echo_that_was_held_up_does_not_count() -> None:
    meter = LinkMeter()
    for seconds in (0.002, 0.002, 0.002, 0.5, 9.0, 0.5):
        assert meter.next() is not None
        meter.record(seconds)
    speed = meter.speed()
    assert speed is not None
    assert speed.bytes_per_s == pytest.approx(8 * FIRST / 0.498)


def test_a_job_that_computes_little_is_to_take_local_steps() -> None:
    # A step: 4 micro-batches of 16 ms, and 160 ms of link for each host.
    advice = advice_of(JOB, SIZE, SLOW, 0.016 / 32)
    assert (advice.compute_s, advice.link_s) == pytest.approx((0.064, 0.160))
    assert advice.lines()[1] == "a step     64 ms of computing in one process, 160 ms of link per host"
    plain, rounded, four, sixteen, sixty_four, *_ = advice.options
    assert (plain.flags, plain.hosts) == ("", 1)
    assert plain.images_per_s == pytest.approx(128 / (0.064 + 0.161), rel=0.01)
    assert plain.speedup == pytest.approx(0.064 / 0.225, rel=0.01)
    # int8 and bfloat16 are 3 bytes instead of 8.
    assert rounded.images_per_s == pytest.approx(128 / (0.064 + 0.061), rel=0.01)
    assert four.flags == "--local-steps 4 --global-batch 512"
    assert sixteen.speedup < 1.5 < sixty_four.speedup
    assert sixty_four.link_share < 0.5
    assert [option.is_recommended for option in advice.options] == [False] * 4 + [True] + [False] * 2
    assert advice.lines()[-2:] == [
        "advice     64 local steps: up to 4 hosts help",
        "  --local-steps 64 --global-batch 8192",
    ]


def test_a_fast_link_needs_nothing() -> None:
    advice = advice_of(JOB, SIZE, LinkSpeed(bytes_per_s=125e8, round_trip_s=0.0001), 0.008 / 32)
    assert [option.is_recommended for option in advice.options] == [True] + [False] * 6
    assert advice.options[0].hosts == 4
    assert "advice     as it is: up to 4 hosts help" in advice.lines()


def test_a_link_over_which_nothing_helps_is_said_to_be_one() -> None:
    advice = advice_of(JOB, SIZE, LinkSpeed(bytes_per_s=1e4, round_trip_s=0.1), 0.0001 / 32)
    assert not any(option.is_recommended for option in advice.options)
    assert advice.lines()[-1] == "advice     train at the server alone: over this link no host makes it faster"


@pytest.mark.parametrize(
    ("values", "flags"),
    [
        ({"wire": "int8"}, ["", "--local-steps 4", "--local-steps 16", "--local-steps 64"]),
        ({"local_steps": 64}, ["", "--wire int8", "--local-steps 256 --global-batch 32768 --wire int8"]),
        ({"local_steps": 64, "wire_weights": "bfloat16"}, [""]),
    ],
)
def test_what_the_job_has_already_is_not_recommended(values: dict[str, Any], flags: list[str]) -> None:
    job = msgspec.structs.replace(JOB, global_batch=8192, **values)
    found = [option.flags for option in advice_of(job, SIZE, SLOW, 1e-4).options]
    assert [each[: len(start)] for each, start in zip(found, flags, strict=True)] == flags


@pytest.mark.parametrize(
    ("steps", "epochs", "local_steps", "most"), [(940, 4, 1, 117), (128, 2, 4, 64), (128, 64, 1, 2), (3, 3, 1, 0)]
)
def test_local_steps_leave_a_run_some_exchanges_and_one_in_each_epoch(
    steps: int, epochs: int, local_steps: int, most: int
) -> None:
    job = msgspec.structs.replace(JOB, global_batch=8192, local_steps=local_steps)
    assert most_local_steps(job, status(steps=steps, epochs=epochs)) == most
    flags = [option.flags for option in advice_of(job, SIZE, SLOW, 1e-4, most).options]
    numbers = [int(words[1]) for words in map(str.split, flags) if words[:1] == ["--local-steps"]]
    assert numbers == [number for number in (4, 16, 64, 64) if local_steps < number <= most]


def test_without_a_time_of_computing_the_link_is_all_that_is_said() -> None:
    lines = advice_of(JOB, SIZE, SLOW, None).lines()
    assert lines[0] == "link       100 Mbit/s each way, 1 ms there and back, as it is used now"
    assert lines[1] == "advice     none: no worker has computed yet; ask again when one has"


def test_the_time_of_a_sample_is_that_of_all_workers() -> None:
    workers = [
        WorkerStatus(rank=rank, host="here", pid=1, state="ready", samples=samples, compute_s=seconds)
        for rank, samples, seconds in ((0, 100, 1.0), (1, 300, 1.0))
    ]
    assert seconds_per_sample(status(workers=workers)) == pytest.approx(2.0 / 400)
    assert seconds_per_sample(status(workers=[])) is None


def test_lines_fit_a_terminal() -> None:
    assert max(map(len, advice_of(JOB, SIZE, SLOW, 0.008 / 32).lines())) <= 80
