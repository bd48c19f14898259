"""The cost model on worked examples: round figures, so that each can be checked in the head."""

import pytest
from msgspec.structs import replace

from lockstep.ps.run.progress import Split
from lockstep.runs.cost_model import (
    HANDLING,
    MEMORY,
    CostModel,
    Machines,
    Measured,
    bytes_per_parameter,
    fitted,
    shares_memory,
)
from tests.lockstep.statuses import result


def split(compute_s: float, exchange_s: float, update_s: float = 0.006, waiting_s: float = 0.0) -> Split:
    return Split(steps=9, compute_s=compute_s, exchange_s=exchange_s, update_s=update_s, waiting_s=waiting_s)


#: One worker with a connection computes 8 micro-batches for 80 ms; the exchange takes 10 ms, of which 2 ms do not
#: depend on the teams.
ONE = Measured(
    workers=1,
    servers=1,
    micro_batches=8,
    global_batch=128,
    parameters=1_000_000,
    split=split(0.080, 0.010),
)
#: Two of them.
TWO = replace(ONE, workers=2, teams=2, split=split(0.040, 0.018, waiting_s=0.003))

#: One process that shares the server's memory, and teams of two and four: 1 ms for a step, and 1 ms for each 4 MB that
#: are read or written to add vectors. The update of one process takes 8 ms.
ALONE = replace(ONE, is_local=True, split=split(0.080, 0.001, 0.008))
PAIR = replace(ALONE, workers=2, split=split(0.040, 0.004, 0.004))
FOUR = replace(ALONE, workers=4, split=split(0.020, 0.006, 0.002))

#: A gigabit.
LINK = 125e6


def remote(hosts: int, servers: int = 1, link: float | None = None) -> Machines:
    """Return hosts with one worker each."""
    return Machines(workers=hosts, hosts=hosts, servers=servers, link=link)


def local(workers: int) -> Machines:
    """Return a team that shares the server's memory."""
    return Machines(workers=workers, is_local=True)


def test_one_point_takes_the_exchange_to_grow_with_the_hosts() -> None:
    model = fitted([ONE])
    assert model.step_s(remote(1)) == pytest.approx(0.096)
    assert model.exchange_s(remote(1)) == pytest.approx(0.010)
    assert model.exchange_s(remote(4)) == pytest.approx(0.040)
    # A quarter of the micro-batches, four times the exchange, the same update.
    assert model.step_s(remote(4)) == pytest.approx(0.020 + 0.040 + 0.006)


def test_two_points_tell_what_of_the_exchange_grows() -> None:
    model = fitted([ONE, TWO])
    assert (model.latency_s, model.per_host_s) == pytest.approx((0.002, 0.008))
    assert model.exchange_s(remote(3)) == pytest.approx(0.026)


def test_what_was_measured_is_predicted() -> None:
    assert fitted([ONE, TWO]).step_s(remote(2)) == pytest.approx(0.067)
    assert fitted([TWO]).step_s(remote(2)) == pytest.approx(0.067)
    assert fitted([TWO]).samples_per_s(remote(2)) == pytest.approx(128 / 0.067)
    for points in ([ALONE, PAIR, FOUR], [ALONE, FOUR], [FOUR]):
        assert fitted(points).step_s(FOUR.machines()) == pytest.approx(0.028)


def test_a_team_adds_its_vectors_by_slices() -> None:
    model = fitted([ALONE, PAIR, FOUR])
    assert (model.local_s, model.memory) == pytest.approx((0.001, 4e9))
    # It reads a vector of each process and writes one.
    assert [model.reduce_s(local(workers)) for workers in (1, 2, 8)] == pytest.approx([0.0, 0.003, 0.009])
    assert model.step_s(local(8)) == pytest.approx(0.010 + 0.009 + 0.001 + 0.001)


def test_one_number_of_processes_takes_all_of_the_exchange_for_adding() -> None:
    model = fitted([FOUR])
    assert (model.local_s, model.memory) == pytest.approx((0.0, 20e6 / 0.006))
    alone = fitted([ALONE])
    assert (alone.local_s, alone.memory) == (0.001, MEMORY)


def test_a_team_that_shares_memory_updates_by_slices() -> None:
    model = fitted([FOUR])
    assert [model.updated_s(local(workers)) for workers in (1, 4, 8)] == pytest.approx([0.008, 0.002, 0.001])
    # Servers update alone.
    assert model.updated_s(Machines(workers=8, hosts=2)) == pytest.approx(0.008)
    # Four processes on two cores took as long as two.
    crowded = fitted([FOUR], cores=2)
    assert crowded.updated_s(local(1)) == pytest.approx(0.004)
    assert crowded.updated_s(local(8)) == pytest.approx(0.002)


def test_a_host_sends_one_vector_whatever_its_processes() -> None:
    model = fitted([ALONE, PAIR, FOUR, ONE, TWO])
    for workers in (2, 16):
        at = Machines(workers=workers, hosts=2, link=LINK)
        assert model.link_s(at) == pytest.approx(0.128)
        # The servers' work is that for two hosts, too.
        assert model.exchange_s(replace(at, link=1e12)) == pytest.approx(0.018)
    # One micro-batch of 10 ms; nine vectors of 4 MB in memory; 2 ms and 128 ms on the link; and an update of 8 ms.
    assert model.step_s(Machines(workers=16, hosts=2, link=LINK)) == pytest.approx(0.010 + 0.009 + 0.130 + 0.008)


def test_teams_of_one_machine_share_its_memory() -> None:
    model = fitted([FOUR])
    apart, together = (Machines(workers=8, hosts=2, link=link) for link in (LINK, None))
    assert model.reduce_s(together) == pytest.approx(2 * model.reduce_s(apart))


def test_teams_with_a_server_are_told_from_their_adding() -> None:
    teams = [
        replace(FOUR, teams=1, is_local=False, split=split(0.020, 0.006 + 0.007)),
        replace(FOUR, workers=8, teams=2, is_local=False, split=split(0.010, 0.011 + 0.009)),
    ]
    model = fitted([ALONE, FOUR, *teams])
    assert model.memory == pytest.approx(4e9)
    # Less 5 ms and 10 ms of adding, 8 and 10 ms: 6 ms and 2 ms per team.
    assert (model.latency_s, model.per_host_s) == pytest.approx((0.006, 0.002))


def test_what_was_not_measured_follows_from_known_rates() -> None:
    model = fitted([ONE])
    assert (model.local_s, model.memory) == (0.0, MEMORY)
    model = fitted([ALONE])
    assert (model.latency_s, model.per_host_s) == (0.0, 8e6 / HANDLING)


@pytest.mark.parametrize(
    ("workers", "micro_batches"), [(1, 8), (2, 4), (3, 3), (4, 2), (7, 2), (8, 1), (9, 1), (100, 1)]
)
def test_micro_batches_are_not_divided(workers: int, micro_batches: int) -> None:
    assert fitted([ONE]).compute_s(workers) == pytest.approx(0.010 * micro_batches)


def test_the_slowest_of_several_takes_longer_than_its_share() -> None:
    model = fitted([TWO])
    assert model.jitter_s == pytest.approx(0.003)
    assert model.compute_s(1) == pytest.approx(0.080)
    assert model.compute_s(4) == pytest.approx(0.023)


def test_workers_share_the_cores() -> None:
    model = fitted([ONE], cores=2)
    assert model.compute_s(2) == pytest.approx(0.040)
    assert model.compute_s(8) == pytest.approx(0.040)
    # Measured with two workers a core, a micro-batch took twice what it takes alone.
    crowded = fitted([TWO], cores=1)
    assert crowded.micro_batch_s == pytest.approx(0.005)
    assert crowded.compute_s(2) == pytest.approx(0.040 + 0.003)


def test_who_sleeps_leaves_the_core_to_others() -> None:
    # 8 micro-batches that sleep 9 of 10 ms.
    model = fitted([replace(ONE, sleep_s=0.009)], cores=2)
    assert (model.micro_batch_s, model.sleep_s) == pytest.approx((0.010, 0.009))
    # All sleep at once, and then eight compute for 1 ms on two cores.
    assert model.compute_s(8) == pytest.approx(0.013)
    # 64 of them need 1 ms of a core each.
    assert replace(model, micro_batches=64).compute_s(64) == pytest.approx(0.009 + 0.032)
    # Of four processes that shared two cores, each sleeps 9 ms and then computes for 2 ms, half of them waiting.
    crowded = fitted([replace(ONE, workers=4, teams=4, sleep_s=0.009, split=split(0.022, 0.010))], cores=2)
    assert crowded.micro_batch_s == pytest.approx(0.009 + 0.001)


def test_weak_scaling_lets_the_step_grow() -> None:
    model = fitted([TWO], is_weak=True)
    assert (model.samples(1), model.samples(2), model.samples(16)) == (64, 128, 1024)
    assert model.compute_s(16) == pytest.approx(0.043)
    assert fitted([TWO], is_weak=True, cores=2).compute_s(4) == pytest.approx(0.083)


def test_a_link_carries_each_hosts_vector_in_both_directions() -> None:
    model = fitted([ONE])
    # 8 MB for each host at 125 MB/s.
    assert model.link_s(remote(1, 1, LINK)) == pytest.approx(0.064)
    assert model.link_s(remote(10, 1, LINK)) == pytest.approx(0.64)
    assert model.link_s(remote(10, 5, LINK)) == pytest.approx(0.128)
    # A host's own link still carries all of it.
    assert model.link_s(remote(10, 100, LINK)) == pytest.approx(0.064)
    assert model.step_s(remote(10, 5, LINK)) == pytest.approx(0.010 + 0.128 + 0.006 / 5)
    # With a server on each host, all but the host's own slice.
    assert model.link_s(replace(remote(10, 10, LINK), is_spread=True)) == pytest.approx(0.9 * 0.064)
    # Nothing crosses a link between a team and a server that share memory.
    assert model.link_s(replace(local(4), link=LINK)) == 0.0


def test_the_slower_of_link_and_server_counts() -> None:
    model = fitted([ONE])
    assert model.exchange_s(remote(4, 1, 1e12)) == pytest.approx(model.exchange_s(remote(4)))


def by_hand(**values: float) -> CostModel:
    given = {
        "micro_batch_samples": 32,
        "micro_batch_s": 0.1,
        "micro_batches": 1,
        "parameters": 1_250_000,
        "update_s": 0.0,
    }
    rest = {"latency_s": 0.0, "per_host_s": 0.0, "jitter_s": 0.0}
    return CostModel(**{**given, **rest, **values}, is_weak=True)  # type: ignore[arg-type]


def test_where_the_link_saturates_and_how_many_shards_that_takes() -> None:
    model = by_hand()  # 100 ms of computing, 10 MB or 80 ms at 1 Gbit for each host
    assert model.link_share(remote(1, 1, LINK)) == pytest.approx(0.08 / 0.18)
    # 180 ms with a server for each host, of which a host's own link takes 80: twice that at 260 / 80 hosts.
    assert model.slowdown(remote(3, 1, LINK)) == pytest.approx(340 / 180)
    assert model.saturation(remote(1, 1, LINK)) == 4
    assert model.saturation(remote(7, 4, LINK)) == 13
    assert model.saturation(remote(1, 1, 1e15)) is None
    # Teams of eight do not change that, but for the adding.
    assert replace(model, memory=1e15).saturation(Machines(workers=8, hosts=1, link=LINK)) == 4
    assert [model.shards(remote(hosts, 1, LINK)) for hosts in (1, 3, 4, 13, 1000)] == [1, 1, 2, 5, 308]
    assert model.is_bound_by_link(LINK)


def test_servers_saturate_without_any_link_too() -> None:
    model = by_hand(per_host_s=0.01)  # 110 ms with a server for each host, 220 with 12 hosts at one
    assert model.saturation(remote(1)) == 12
    assert model.shards(remote(24)) == 3
    assert not model.is_bound_by_link(1e15)


def test_measurements_that_fall_give_a_level_line() -> None:
    model = fitted([ONE, replace(TWO, split=split(0.04, 0.006, 0.0))])
    assert (model.latency_s, model.per_host_s) == pytest.approx((0.008, 0.0))
    model = fitted([PAIR, replace(FOUR, split=split(0.02, 0.002, 0.0))])
    assert model.local_s == pytest.approx(0.003)
    assert model.memory == MEMORY


def test_measurements_that_rise_faster_than_the_hosts_give_a_line_through_nothing() -> None:
    model = fitted([ONE, replace(TWO, split=split(0.04, 0.030, 0.0))])
    assert (model.latency_s, model.per_host_s) == pytest.approx((0.0, 0.014))


def test_fewer_bytes_take_a_link_for_less_time() -> None:
    assert bytes_per_parameter("float32", "float32") == 8.0
    assert bytes_per_parameter("bfloat16", "bfloat16") == 4.0
    assert bytes_per_parameter("int8", "float32") == 5.03125
    fewer, at = fitted([replace(ONE, bytes_per_parameter=4.0)]), remote(4, 1, LINK)
    assert fewer.link_s(at) == fitted([ONE]).link_s(at) / 2


def test_a_result_says_whether_a_team_shared_memory() -> None:
    team = Measured.of(result(workers=4, teams=1, transport="shm", split=ALONE.split))
    assert team is not None
    assert team.machines() == local(4)
    # Of an older version: each worker had a connection.
    old = Measured.of(result(workers=4, transport="shm", split=ALONE.split))
    assert old is not None
    assert old.machines() == remote(4)
    assert not shares_memory(1, 2, "shm")
    assert not shares_memory(1, 1, "tcp")


def test_local_steps_take_their_time_and_one_exchange() -> None:
    model = fitted([replace(ONE, split=split(0.080, 0.010, 0.006))])
    local = model.with_local_steps(4)
    # Each of the 8 micro-batches takes four times 10 ms and an update of 6 ms.
    assert local.compute_s(1) == pytest.approx(8 * 4 * 0.016)
    assert local.samples(1) == 4 * model.samples(1)
    assert local.exchange_s(remote(3, link=LINK)) == model.exchange_s(remote(3, link=LINK))
    # A run that took local steps has measured the updates as well.
    assert model.with_local_steps(8, measured=4).micro_batch_s == pytest.approx(2 * model.micro_batch_s)
    assert model.with_local_steps(1) == model
