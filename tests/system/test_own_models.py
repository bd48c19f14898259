"""Real processes train a model of several files, and all of them the same one, even if a file changes meanwhile."""

import pytest

from tests.system.jobs import BRIEF
from tests.system.processes import GONE_S, Place, digest_in

#: A model of two files, by the way in which it is named.
NET = (
    "from lockstep import nn\nfrom {helpers} import WIDTH\n\n\n"
    "def build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, WIDTH), nn.Linear(WIDTH, 10))\n"
)
NAMED = {
    "net.py:build": ("helpers", "net.py", "helpers.py"),
    "package.module:build": (".helpers", "package/module.py", "package/helpers.py"),
}


@pytest.mark.parametrize("model", NAMED)
def test_a_model_of_several_files_is_the_same_in_all_processes(place: Place, model: str) -> None:
    imported, *files = NAMED[model]
    (place.folder / "package").mkdir()
    for name, text in zip(files, (NET.format(helpers=imported), "WIDTH = 9\n"), strict=True):
        (place.folder / name).write_text(text)
    job = (*BRIEF, "--model", model)
    assert place.start("train", *job, "--workers", "0", "--run-dir", "alone").end()[0::2] == (0, "")
    server, address = place.serve(*job)
    server.line_with("waiting for workers")
    (place.folder / files[1]).write_text("raise ValueError\n")
    assert place.start("worker", address, "--workers", "2").end()[0] == 0
    assert server.end()[0::2] == (0, "")
    assert digest_in(place.folder / "run") == digest_in(place.folder / "alone")
    assert (place.folder / "run/model" / files[1]).read_text() == "WIDTH = 9\n"
    assert place.is_empty(GONE_S)
