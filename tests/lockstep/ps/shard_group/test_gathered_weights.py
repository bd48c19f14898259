"""The whole vector, put together from slices: what is missing is noticed."""

import numpy as np
import pytest

from lockstep.common.aggregation.slices import Slice
from lockstep.common.errors import RemoteProtocolError
from lockstep.ps.shard_group.distributed_update import GatheredWeights


def gathered() -> GatheredWeights:
    return GatheredWeights(np.zeros(10, np.float32), {"momentum": np.zeros(8, np.float32)}, updates=0)


def ones(count: int) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    return np.ones(count, np.float32)


def test_it_is_whole_once_all_parts_have_come() -> None:
    whole = gathered()
    whole.begin()
    whole.put("weights", Slice(4, 10), ones(6))
    assert not whole.end(3)
    # Those of the time before are not touched: a run whose shard is lost now ends with them.
    assert (whole.updates, float(whole.weights.sum())) == (0, 0.0)
    whole.put("momentum", Slice(4, 8), ones(4))
    assert not whole.end(3)
    whole.put("weights", Slice(0, 4), ones(4))
    assert whole.end(3)
    assert (whole.updates, float(whole.weights.sum()), float(whole.state["momentum"].sum())) == (3, 10.0, 4.0)


@pytest.mark.parametrize(("name", "part"), [("weights", Slice(8, 11)), ("momentum", Slice(6, 9)), ("no", Slice(0, 1))])
def test_what_has_no_place_breaks_the_protocol(name: str, part: Slice) -> None:
    with pytest.raises(RemoteProtocolError, match="expected up to"):
        gathered().put(name, part, ones(len(part)))
