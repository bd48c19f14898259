import numpy as np

from common.nn.layers.running_statistic import RunningStatistic


def test_an_observation_moves_the_value_by_momentum_in_place() -> None:
    value = np.array([1.0, 2.0], np.float32)
    statistic = RunningStatistic(value, momentum=0.25)
    statistic.observe(np.array([5.0, 2.0]), count=7)
    assert statistic.value is value
    assert value.tolist() == [2.0, 2.0]


def test_with_a_view_set_the_weighted_observation_goes_there_and_the_value_stays() -> None:
    flat = np.full(4, 9.0, np.float32)
    statistic = RunningStatistic(np.zeros(2, np.float32), momentum=0.25)
    statistic.observed = flat[1:3]
    statistic.observe(np.array([5.0, 2.0]), count=7)
    assert statistic.value.tolist() == [0.0, 0.0]
    assert flat.tolist() == [9.0, 35.0, 14.0, 9.0]


def test_the_reduced_observations_of_two_pieces_update_as_their_weighted_mean() -> None:
    pieces = [(np.array([1.0]), 3), (np.array([5.0]), 1)]
    worker, server = (RunningStatistic(np.zeros(1, np.float32), momentum=0.5) for _ in range(2))
    total = np.zeros(1, np.float32)
    for observation, count in pieces:
        worker.observed = np.zeros(1, np.float32)
        worker.observe(observation, count)
        total += worker.observed
    server.update(total / 4)
    assert server.value.tolist() == [1.0]
