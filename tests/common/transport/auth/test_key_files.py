"""Keys are written for one user, never over another, and not read where others could have read or changed them."""

import os
import stat
from pathlib import Path

import pytest

from common.errors import KeyFileError
from common.transport.auth.credentials import ClientKeys, KeyPair
from common.transport.auth.curve import new_pair
from common.transport.auth.key_file import SecretKey, read_secret, write_secret
from common.transport.auth.key_folder import ALLOWED, SERVER, AllowList, KeyFolder, read_key

#: The keys of ZeroMQ's own CURVE tests: the parametrized tests have the same names in each process that collects them.
PAIR = KeyPair("Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID", "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs")
OTHER = new_pair()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "worker-1.key"
    write_secret(path, SecretKey("worker-1", PAIR, OTHER.public))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    return KeyFolder.create(tmp_path / "keys", ["ada", "ben"])


def test_what_is_written_is_read(key: Path) -> None:
    read = read_key(key)
    assert read == SecretKey("worker-1", PAIR, OTHER.public)
    assert read.client() == ClientKeys(PAIR, OTHER.public)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_secrets_are_for_one_user_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_secret(tmp_path / "a.key", SecretKey("a", PAIR))
    finally:
        os.umask(before)
    assert mode(tmp_path / "a.key") == 0o600


def test_nothing_is_overwritten(key: Path) -> None:
    before = key.read_bytes()
    with pytest.raises(KeyFileError, match=r"worker-1\.key' exists already: choose another name"):
        write_secret(key, SecretKey("worker-1", OTHER))
    assert key.read_bytes() == before


@pytest.mark.parametrize("loose", [0o640, 0o604, 0o660, 0o602, 0o610, 0o644, 0o777])
def test_a_secret_that_is_open_to_others_is_refused_with_the_cure(key: Path, loose: int) -> None:
    key.chmod(loose)
    with pytest.raises(KeyFileError) as caught:
        read_secret(key)
    assert str(caught.value) == f"'{key}' has mode 0{loose:o} and is open to others: chmod {loose & 0o700:o} '{key}'"
    key.chmod(loose & 0o700)
    read_secret(key)


def test_a_secret_may_be_read_only_and_behind_a_link(key: Path, tmp_path: Path) -> None:
    key.chmod(0o400)
    link = tmp_path / "link.key"
    link.symlink_to(key)
    assert read_secret(link).name == "worker-1"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_secret_of_another_user_is_refused(key: Path) -> None:
    os.chown(key, 12345, 12345)
    with pytest.raises(KeyFileError, match="belongs to user 12345, and this process to 0: chown it, or copy it"):
        read_secret(key)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "it lacks name, public or secret"),
        ("name = 3", "it lacks"),
        ("name", "is not a key file: Expected '='"),
        (b"\xff\xfe", "it is not text"),
        ("x" * 5000, "it is longer than 4096 bytes"),
        ("name = '../x'\npublic = ''\nsecret = ''", "its name is '../x'"),
        ("name = 'x'\npublic = 3\nsecret = ''", "not a key of 40 characters"),
        ("name = 'x'\npublic = ''\nsecret = ''\nmore = 1", "or has more than these"),
        ("a = " + "[" * 3000, "is not a key file"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(key: Path, text: str | bytes, expected: str) -> None:
    key.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(KeyFileError) as caught:
        read_key(key)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_secret_that_is_malformed_is_not_shown(key: Path) -> None:
    key.write_text(key.read_text().replace(PAIR.secret, PAIR.secret[:-1]))
    with pytest.raises(KeyFileError, match="its secret is not a key of 40 characters") as caught:
        read_key(key)
    assert PAIR.secret[:-1] not in str(caught.value)


def test_halves_of_two_keys_are_refused(tmp_path: Path) -> None:
    write_secret(tmp_path / "a.key", SecretKey("a", KeyPair(PAIR.public, OTHER.secret)))
    with pytest.raises(KeyFileError, match="do not belong together"):
        read_key(tmp_path / "a.key")


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(KeyFileError, match="is not a regular file"):
        read_key(tmp_path / "fifo")
    with pytest.raises(KeyFileError, match="cannot be read: No such file or directory; expected a file that"):
        read_key(tmp_path / "absent")


def test_a_folder_holds_what_server_and_workers_need(folder: KeyFolder) -> None:
    assert mode(folder.path) == 0o700
    assert {path.name: mode(path) for path in folder.path.iterdir()} == {
        "server.key": 0o600,
        "server.public": 0o644,
        "allowed": 0o600,
        "ada.key": 0o600,
        "ben.key": 0o600,
    }
    server = folder.server()
    assert (folder.path / "server.public").read_text().strip() == server.pair.public
    for name in ("ada", "ben"):
        key = read_key(folder.path / f"{name}.key")
        assert (key.name, key.server) == (name, server.pair.public)
        assert server.allowed()[key.pair.public] == name


def test_a_server_has_no_folder_that_was_there(folder: KeyFolder) -> None:
    before = {path: path.read_bytes() for path in folder.path.iterdir()}
    with pytest.raises(KeyFileError, match="exists already: choose another, or add a worker by"):
        KeyFolder.create(folder.path, ["cleo"])
    assert {path: path.read_bytes() for path in folder.path.iterdir()} == before
    assert [path.name for path in folder.path.parent.iterdir()] == ["keys"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir(mode=0o755)
    folder = KeyFolder.create(tmp_path / "keys", [])
    assert mode(folder.path) == 0o700
    assert folder.names() == {}


@pytest.mark.parametrize("names", [["a", "a"], ["server"], ["a/b"], [""], ["-x"], ["a b"], ["a" * 65], ["ä"]])
def test_a_bad_name_leaves_nothing(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(KeyFileError, match=r"cannot be called|have the same name"):
        KeyFolder.create(tmp_path / "keys", names)
    assert list(tmp_path.iterdir()) == []


def test_workers_come_and_go(folder: KeyFolder) -> None:
    allowed = folder.server().allowed
    path = folder.add("cleo")
    assert allowed()[read_key(path).pair.public] == "cleo"
    folder.allow("dora", PAIR.public)
    folder.revoke("ben")
    assert sorted(allowed().values()) == ["ada", "cleo", "dora"]
    assert mode(folder.path / ALLOWED) == 0o600


@pytest.mark.parametrize(
    ("name", "public", "expected"),
    [
        ("ada", PAIR.public, "'ada' is let in already"),
        ("cleo", "", "'' is not a public key"),
        ("cleo", PAIR.public + "\n", "is not a public key"),
        ("x y", PAIR.public, "cannot be called 'x y'"),
    ],
)
def test_who_cannot_be_let_in_changes_nothing(folder: KeyFolder, name: str, public: str, expected: str) -> None:
    before = (folder.path / ALLOWED).read_bytes()
    with pytest.raises(KeyFileError, match=expected):
        folder.allow(name, public)
    assert (folder.path / ALLOWED).read_bytes() == before


def test_one_that_is_not_there_cannot_be_revoked(folder: KeyFolder) -> None:
    with pytest.raises(KeyFileError, match="no worker 'cleo' is let in: expected one of ada, ben"):
        folder.revoke("cleo")


@pytest.mark.parametrize("line", ["nonsense", f"{PAIR.public}", f"{PAIR.public}  two", f"{PAIR.public} a b"])
def test_a_list_with_a_bad_line_lets_nobody_in(folder: KeyFolder, line: str) -> None:
    allowed = folder.server().allowed
    with (folder.path / ALLOWED).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(KeyFileError, match="expected a public key, a space, and a name"):
        allowed()


def test_a_list_that_others_could_have_changed_lets_nobody_in(folder: KeyFolder) -> None:
    (folder.path / ALLOWED).chmod(0o622)
    with pytest.raises(KeyFileError, match="has mode 0622 and is open to others: chmod 600"):
        AllowList(folder.path / ALLOWED)()


def test_a_list_that_is_gone_lets_nobody_in(folder: KeyFolder) -> None:
    allowed = folder.server().allowed
    (folder.path / ALLOWED).unlink()
    with pytest.raises(KeyFileError, match="cannot be read"):
        allowed()


def test_a_folder_that_others_may_write_to_is_refused(folder: KeyFolder) -> None:
    folder.path.chmod(0o770)
    with pytest.raises(KeyFileError, match=r"has mode 0770 .*: chmod 700"):
        folder.server()
    with pytest.raises(KeyFileError, match="cannot be read: No such file or directory; make one by"):
        KeyFolder(folder.path / "absent").server()


def test_a_servers_own_secret_is_looked_at_too(folder: KeyFolder) -> None:
    (folder.path / SERVER).chmod(0o644)
    with pytest.raises(KeyFileError, match=r"server\.key' has mode 0644 and is open to others: chmod 600"):
        folder.server()
