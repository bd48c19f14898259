"""The cost model on worked examples: round figures, so that each can be checked in the head."""

from dataclasses import replace

import pytest

from lockstep.ps.run.timing import Split
from lockstep.runs.cost_model import CostModel, Measured, bytes_per_parameter, fitted

#: One worker computes 8 micro-batches for 80 ms; the exchange takes 10 ms, of which 2 ms do not depend on the workers.
ONE = Measured(
    workers=1,
    servers=1,
    micro_batches=8,
    global_batch=128,
    parameters=1_000_000,
    split=Split(steps=9, compute_s=0.080, exchange_s=0.010, update_s=0.006, waiting_s=0.0),
)
TWO = Measured(
    workers=2,
    servers=1,
    micro_batches=8,
    global_batch=128,
    parameters=1_000_000,
    split=Split(steps=9, compute_s=0.040, exchange_s=0.018, update_s=0.006, waiting_s=0.003),
)
#: A gigabit.
LINK = 125e6


def test_one_point_takes_the_exchange_to_grow_with_the_workers() -> None:
    model = fitted([ONE])
    assert model.step_s(1) == pytest.approx(0.096)
    assert model.exchange_s(1) == pytest.approx(0.010)
    assert model.exchange_s(4) == pytest.approx(0.040)
    # A quarter of the micro-batches, four times the exchange, the same update.
    assert model.step_s(4) == pytest.approx(0.020 + 0.040 + 0.006)


def test_two_points_tell_what_of_the_exchange_grows() -> None:
    model = fitted([ONE, TWO])
    assert (model.latency_s, model.per_worker_s) == pytest.approx((0.002, 0.008))
    assert model.exchange_s(3) == pytest.approx(0.026)


def test_what_was_measured_is_predicted() -> None:
    assert fitted([ONE, TWO]).step_s(2) == pytest.approx(0.067)
    assert fitted([TWO]).step_s(2) == pytest.approx(0.067)
    assert fitted([TWO]).samples_per_s(2) == pytest.approx(128 / 0.067)


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


def test_weak_scaling_lets_the_step_grow() -> None:
    model = fitted([TWO], is_weak=True)
    assert (model.samples(1), model.samples(2), model.samples(16)) == (64, 128, 1024)
    assert model.compute_s(16) == pytest.approx(0.043)
    assert fitted([TWO], is_weak=True, cores=2).compute_s(4) == pytest.approx(0.083)


def test_a_link_carries_each_workers_vector_in_both_directions() -> None:
    model = fitted([ONE])
    # 8 MB for each worker at 125 MB/s.
    assert model.link_s(1, 1, LINK) == pytest.approx(0.064)
    assert model.link_s(10, 1, LINK) == pytest.approx(0.64)
    assert model.link_s(10, 5, LINK) == pytest.approx(0.128)
    # A worker's own link still carries all of it.
    assert model.link_s(10, 100, LINK) == pytest.approx(0.064)
    assert model.step_s(10, 5, LINK) == pytest.approx(0.010 + 0.128 + 0.006 / 5)


def test_the_slower_of_link_and_server_counts() -> None:
    model = fitted([ONE])
    assert model.exchange_s(4, 1, 1e12) == pytest.approx(model.exchange_s(4))


def by_hand(**values: float) -> CostModel:
    given = {
        "micro_batch_samples": 32,
        "micro_batch_s": 0.1,
        "micro_batches": 1,
        "parameters": 1_250_000,
        "update_s": 0.0,
    }
    rest = {"latency_s": 0.0, "per_worker_s": 0.0, "jitter_s": 0.0}
    return CostModel(**{**given, **rest, **values}, is_weak=True)  # type: ignore[arg-type]


def test_where_the_link_saturates_and_how_many_shards_that_takes() -> None:
    model = by_hand()  # 100 ms of computing, 10 MB or 80 ms at 1 Gbit for each worker
    assert model.link_share(1, 1, LINK) == pytest.approx(0.08 / 0.18)
    # 180 ms with a server for each worker, of which a worker's own link takes 80: twice that at 260 / 80 workers.
    assert model.slowdown(3, 1, LINK) == pytest.approx(340 / 180)
    assert model.saturation(1, LINK) == 4
    assert model.saturation(4, LINK) == 13
    assert model.saturation(1, 1e15) is None
    assert [model.shards(workers, LINK) for workers in (1, 3, 4, 13, 1000)] == [1, 1, 2, 5, 308]
    assert model.is_bound_by_link(LINK)


def test_servers_saturate_without_any_link_too() -> None:
    model = by_hand(per_worker_s=0.01)  # 110 ms with a server for each worker, 220 with 12 workers at one
    assert model.saturation(1) == 12
    assert model.shards(24) == 3
    assert not model.is_bound_by_link(1e15)


def test_measurements_that_fall_give_a_level_line() -> None:
    falling = replace(TWO, split=Split(steps=9, compute_s=0.04, exchange_s=0.006, update_s=0.0, waiting_s=0.0))
    model = fitted([ONE, falling])
    assert (model.latency_s, model.per_worker_s) == pytest.approx((0.008, 0.0))


def test_measurements_that_rise_faster_than_the_workers_give_a_line_through_nothing() -> None:
    rising = replace(TWO, split=Split(steps=9, compute_s=0.04, exchange_s=0.030, update_s=0.0, waiting_s=0.0))
    model = fitted([ONE, rising])
    assert (model.latency_s, model.per_worker_s) == pytest.approx((0.0, 0.014))


def test_fewer_bytes_take_a_link_for_less_time() -> None:
    assert bytes_per_parameter("float32", "float32") == 8.0
    assert bytes_per_parameter("bfloat16", "bfloat16") == 4.0
    assert bytes_per_parameter("int8", "float32") == 5.03125
    fewer = fitted([replace(ONE, bytes_per_parameter=4.0)])
    assert fewer.link_s(4, 1, LINK) == fitted([ONE]).link_s(4, 1, LINK) / 2
