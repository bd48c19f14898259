"""Commands of one machine share a team if they are of one run."""

from pathlib import Path

import pytest

from lockstep.cli.machines.worker import WorkerRequest, team_name


def test_the_same_relative_path_in_two_folders_is_that_of_two_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = dict[str, list[str]]()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        for address in ("ipc://run.sock", f"ipc://{tmp_path}/a/run.sock", "tcp://127.0.0.1:5555"):
            names.setdefault(address, []).append(team_name(WorkerRequest(address=address, processes=2)))
    (first, second), whole, over_tcp = names.values()
    assert first != second
    assert whole == [first, first]
    assert over_tcp[0] == over_tcp[1]
