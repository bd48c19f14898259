"""Who a process is to the server that it joins."""

from lockstep.common.protocol.messages import CORES_LIMIT, PROTOCOL_VERSION, Join
from lockstep.common.runtime.environment import core_numbers, machine_id
from lockstep.launch.client import ProcessIdentity, own_identity


def test_a_worker_joins_with_the_machine_and_the_cores_of_its_process() -> None:
    join = ProcessIdentity(incarnation="a1", host="h", pid=7, machine="m", cores=(2, 5)).worker_join()
    assert isinstance(join, Join)
    assert (join.protocol, join.incarnation, join.host, join.pid) == (PROTOCOL_VERSION, "a1", "h", 7)
    assert (join.machine, join.cores) == ("m", [2, 5])


def test_if_nobody_knows_the_machine_a_worker_says_so() -> None:
    join = ProcessIdentity(incarnation="a1", host="h", pid=7).worker_join()
    assert (join.machine, join.cores) == ("", [])


def test_this_process_knows_where_it_runs_and_is_another_each_time() -> None:
    identity = own_identity()
    assert identity.machine == (machine_id() or identity.host)
    assert list(identity.cores) == core_numbers()[:CORES_LIMIT]
    assert own_identity().incarnation != identity.incarnation
