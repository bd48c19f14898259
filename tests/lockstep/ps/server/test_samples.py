"""A server sends the samples that are asked for, and nothing that there is not."""

import numpy as np
import pytest

from lockstep.common.data.manifest import PartName, manifest_of, unpacked
from lockstep.common.errors import RemoteProtocolError
from lockstep.common.protocol.messages import SamplesRequest
from lockstep.ps.server.samples import answer_to
from tests.simulation.small import digits

MANIFEST = manifest_of(digits())


def asked(*places: int, part: PartName = "train") -> SamplesRequest:
    return SamplesRequest(part=part, places=np.array(places, "<u4").tobytes())


@pytest.mark.parametrize("part", ["train", "test"])
def test_the_samples_that_are_asked_for_are_sent(part: PartName) -> None:
    samples, words = answer_to(asked(5, 2, part=part), digits(), MANIFEST)
    info, data = MANIFEST.parts()[part], digits().train if part == "train" else digits().test
    sent = unpacked(info, 2, words)
    assert sent is not None
    assert sent == (data.images[[5, 2]].tobytes(), data.labels[[5, 2]].tobytes())
    assert samples.places == asked(5, 2).places


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (asked(1, part="validation"), "no such set"),
        (asked(40), "sample 40"),
        (asked(), "0 bytes of places"),
        (SamplesRequest(part="train", places=b"123"), "3 bytes of places"),
        (asked(*[0] * 2000), "expected 1 to"),
    ],
)
def test_what_there_is_not_is_refused(message: SamplesRequest, told: str) -> None:
    with pytest.raises(RemoteProtocolError, match=told):
        answer_to(message, digits(), MANIFEST)
