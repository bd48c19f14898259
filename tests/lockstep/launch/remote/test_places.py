"""Where teams start in a cluster: one per node, of all cores there, once the cluster has given them all."""

from lockstep.launch.remote.places import Core, TeamPlaces


def cores(*numbers: int) -> set[Core]:
    return {(0, number) for number in numbers}


def taken(places: TeamPlaces) -> list[tuple[str, list[Core]]]:
    """Take all places that there are."""
    found = []
    while (place := places.take()) is not None:
        found.append(place)
    return found


def test_a_node_is_one_team_of_all_cores_there() -> None:
    places, nodes = TeamPlaces(256), {"a": cores(3, 1), "b": cores(2)}
    places.look(nodes, set())
    places.look(nodes, set())
    assert not places.is_empty
    assert taken(places) == [("a", [(0, 1), (0, 3)]), ("b", [(0, 2)])]
    assert places.is_empty


def test_a_node_that_still_gets_cores_has_to_wait_and_no_other() -> None:
    places = TeamPlaces(256)
    places.look({"a": cores(1), "b": cores(2)}, set())
    places.look({"a": cores(1, 3), "b": cores(2)}, set())
    assert taken(places) == [("b", [(0, 2)])]
    places.look({"a": cores(1, 3), "b": cores(2)}, cores(2))
    assert taken(places) == [("a", [(0, 1), (0, 3)])]


def test_cores_of_a_team_are_free_at_once_when_it_has_ended() -> None:
    places, nodes = TeamPlaces(256), {"a": cores(1, 2)}
    places.look(nodes, set())
    places.look(nodes, cores(1, 2))
    assert taken(places) == []
    places.look(nodes, set())
    assert taken(places) == [("a", [(0, 1), (0, 2)])]


def test_cores_that_come_later_are_a_team_of_their_own() -> None:
    places, nodes = TeamPlaces(256), {"a": cores(1, 2, 3)}
    for _ in range(2):
        places.look(nodes, cores(1, 2))
    assert taken(places) == [("a", [(0, 3)])]


def test_a_node_that_is_gone_has_no_place() -> None:
    places = TeamPlaces(256)
    for nodes in ({"a": cores(1)}, {"a": cores(1)}, {"b": cores(1)}):
        places.look(nodes, set())
    assert taken(places) == []


def test_no_team_has_more_processes_than_it_may_have() -> None:
    places, nodes = TeamPlaces(2), {"a": cores(1, 2, 3, 4, 5)}
    for _ in range(2):
        places.look(nodes, set())
    assert [[number for _, number in held] for _, held in taken(places)] == [[1, 2], [3, 4], [5]]
