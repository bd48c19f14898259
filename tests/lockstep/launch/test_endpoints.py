"""Addresses as this machine and others dial them."""

import os
import stat
from pathlib import Path

import pytest

from lockstep.common.errors import KeyFileError, UnreachableError, UsageError
from lockstep.common.transport.auth.keys import KeyFolder
from lockstep.launch.endpoints import TOKEN, address_towards, check_worker_key, make_token


def test_a_machine_is_reached_from_itself_at_loopback_and_from_nowhere_at_nothing() -> None:
    assert address_towards("127.0.0.1") == "127.0.0.1"
    with pytest.raises(UnreachableError, match="no interface of this machine leads to"):
        address_towards("no-such-host.invalid")


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_token_of_a_run_is_one_and_only_its_user_can_read_it(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        token = make_token(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / TOKEN).stat().st_mode) == 0o600
    assert make_token(tmp_path) == token


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604])
def test_a_token_that_a_group_or_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    make_token(tmp_path)
    (tmp_path / TOKEN).chmod(mode)
    with pytest.raises(KeyFileError, match="is open to others"):
        make_token(tmp_path)


def test_the_key_of_the_server_does_not_pass_as_that_of_a_worker(tmp_path: Path) -> None:
    folder = KeyFolder.create(tmp_path / "my keys", ["worker-1"]).path
    check_worker_key(folder / "worker-1.key")
    with pytest.raises(UsageError) as caught:
        check_worker_key(folder / "server.key")
    assert f"such as '{folder / 'worker-1.key'}'; `lockstep keys add '{folder}' NAME` makes one" in str(caught.value)
