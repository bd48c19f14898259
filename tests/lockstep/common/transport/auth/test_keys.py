"""Keys are written for one user, never over another, and not read where others could have read or changed them."""

import errno
import os
import resource
import stat
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lockstep.cli.main import run
from lockstep.common.errors import KeyFileError
from lockstep.common.transport.auth.credentials import ClientKeys, KeyPair
from lockstep.common.transport.auth.curve import new_pair
from lockstep.common.transport.auth.keys import (
    ALLOWED,
    MOST_BYTES,
    SERVER,
    AllowList,
    KeyFolder,
    SecretKey,
    read_key,
    write_new,
    write_secret,
)

#: The keys of ZeroMQ's own CURVE tests: the parametrized tests have the same names in each process that collects them.
PAIR = KeyPair("Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID", "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs")
OTHER = new_pair()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def refused(text: str) -> Iterator[None]:
    """Expect a KeyFileError of exactly this text."""
    with pytest.raises(KeyFileError) as caught:
        yield
    assert str(caught.value) == text


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let writing fail as on a full disk: the system takes no more bytes into a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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
    assert key.read_text().startswith(
        "# A secret key of Lockstep. A process that has it can join as worker-1: keep it readable"
    )


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
    with refused(f"'{key}' exists already: choose another name, or remove it first"):
        write_secret(key, SecretKey("worker-1", OTHER))
    assert key.read_bytes() == before


def test_what_cannot_be_written_whole_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    with refused(f"'{path}' cannot be written: {os.strerror(errno.EFBIG)}"), files_of_at_most(100):
        write_new(path, "x" * 101, 0o600)
    assert list(tmp_path.iterdir()) == []
    with refused(f"'{path / 'b.key'}' cannot be written: {os.strerror(errno.ENOENT)}"):
        write_new(path / "b.key", "", 0o600)


@pytest.mark.parametrize("loose", [0o640, 0o604, 0o660, 0o602, 0o610, 0o644, 0o777])
def test_a_secret_that_is_open_to_others_is_refused_with_the_cure(key: Path, loose: int) -> None:
    key.chmod(loose)
    with refused(f"'{key}' has mode 0{loose:o} and is open to others: chmod {loose & 0o700:o} '{key}'"):
        read_key(key)
    key.chmod(loose & 0o700)
    read_key(key)


def test_a_secret_may_be_read_only_and_behind_a_link(key: Path, tmp_path: Path) -> None:
    key.chmod(0o400)
    link = tmp_path / "link.key"
    link.symlink_to(key)
    assert read_key(link).name == "worker-1"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_secret_of_another_user_is_refused(key: Path) -> None:
    os.chown(key, 12345, 12345)
    with refused(f"'{key}' belongs to user 12345, and this process to 0: chown it, or copy it"):
        read_key(key)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "it lacks name, public or secret"),
        ("name = 3", "it lacks name, public or secret"),
        ("name", "Expected '='"),
        (b"\xff\xfe", "it is not text"),
        ("x" * 5000, "it is longer than 4096 bytes"),
        ("name = '../x'\npublic = ''\nsecret = ''", "its name is '../x'"),
        (f"name = 'x'\npublic = 3\nsecret = '{PAIR.secret}'", "its public is not a key of 40 characters"),
        ("name = 'x'\npublic = ''\nsecret = ''\nmore = 1", "it has more, which keys of this version have not"),
        ("a = " + "[" * 3000, ""),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(key: Path, text: str | bytes, expected: str) -> None:
    key.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(KeyFileError) as caught:
        read_key(key)
    assert str(caught.value).startswith(f"'{key}' is not a key file: {expected}")
    assert str(caught.value).endswith("; expected one of `lockstep keys create`, as it was written")
    assert "\n" not in str(caught.value)


def test_a_file_has_as_many_bytes_as_the_limit_at_most_and_no_more_are_read(key: Path) -> None:
    text = key.read_text()
    key.write_text(text + "#" * (MOST_BYTES - len(text)))
    assert read_key(key).pair == PAIR
    os.truncate(key, 2**26)
    tracemalloc.start()
    try:
        with pytest.raises(KeyFileError, match="it is longer than 4096 bytes"):
            read_key(key)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_a_secret_that_is_malformed_is_not_shown(key: Path) -> None:
    key.write_text(key.read_text().replace(PAIR.secret, PAIR.secret[:-1]))
    with pytest.raises(KeyFileError, match="its secret is not a key of 40 characters") as caught:
        read_key(key)
    assert PAIR.secret[:-1] not in str(caught.value)


def test_halves_of_two_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "server.key"
    write_secret(path, SecretKey("a", KeyPair(PAIR.public, OTHER.secret)))
    text = f"the public and the secret key in '{path}' do not belong together: make a new one"
    with refused(text):
        read_key(path)
    with refused(text):
        KeyFolder(tmp_path).server_key()


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    fifo, absent = tmp_path / "fifo", tmp_path / "absent"
    os.mkfifo(fifo, 0o600)
    with refused(f"'{fifo}' is not a regular file: expected one of `lockstep keys`"):
        read_key(fifo)
    with refused(
        f"'{absent}' cannot be read: {os.strerror(errno.ENOENT)}; expected a file that `lockstep keys` has made"
    ):
        read_key(absent)


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
    # With the server's own file one talks to that server.
    own = read_key(folder.path / SERVER)
    assert (own, own.client()) == (SecretKey("server", server.pair), ClientKeys(server.pair, server.pair.public))
    assert (folder.path / "server.public").read_text().strip() == server.pair.public
    for name in ("ada", "ben"):
        key = read_key(folder.path / f"{name}.key")
        assert (key.name, key.server) == (name, server.pair.public)
        assert server.allowed()[key.pair.public] == name


def test_a_server_has_no_folder_that_was_there(folder: KeyFolder) -> None:
    before = {path: path.read_bytes() for path in folder.path.iterdir()}
    with refused(
        f"'{folder.path}' exists already: choose another, or add a worker with `lockstep keys add {folder.path} NAME`"
    ):
        KeyFolder.create(folder.path, ["cleo"])
    assert {path: path.read_bytes() for path in folder.path.iterdir()} == before
    assert [path.name for path in folder.path.parent.iterdir()] == ["keys"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir(mode=0o755)
    folder = KeyFolder.create(tmp_path / "keys", [])
    assert (mode(folder.path), mode(folder.path / ALLOWED)) == (0o700, 0o600)
    assert folder.names() == {}


def test_the_folders_above_are_created_too(tmp_path: Path) -> None:
    assert KeyFolder.create(tmp_path / "runs" / "mnist" / "keys", ["ada"]).names()


def test_a_folder_that_cannot_be_completed_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=f"cannot be written: {os.strerror(errno.EFBIG)}"), files_of_at_most(100):
        KeyFolder.create(tmp_path / "keys", ["ada"])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "keys"
    with refused(f"'{path}' cannot be created: {os.strerror(errno.ENOTDIR)}"):
        KeyFolder.create(path, [])


@pytest.mark.parametrize("name", ["server", "a/b", "", "-x", "a b", "a" * 65, "ä"])
def test_a_bad_name_leaves_nothing(tmp_path: Path, name: str) -> None:
    with refused(
        f"a worker cannot be called {name!r}: expected at most 64 letters, digits, '.', '_' and '-', and not 'server'"
    ):
        KeyFolder.create(tmp_path / "keys", ["ada", name])
    assert list(tmp_path.iterdir()) == []


def test_two_workers_of_one_name_leave_nothing(tmp_path: Path) -> None:
    with refused("two workers have the same name in ada, ben, ada: expected different ones"):
        KeyFolder.create(tmp_path / "keys", ["ada", "ben", "ada"])
    assert list(tmp_path.iterdir()) == []


def test_workers_come_and_go(folder: KeyFolder) -> None:
    allowed = folder.server().allowed
    path = folder.add("cleo")
    assert allowed()[read_key(path).pair.public] == "cleo"
    folder.allow("dora", PAIR.public)
    folder.revoke("ben")
    assert sorted(allowed().values()) == ["ada", "cleo", "dora"]
    assert mode(folder.path / ALLOWED) == 0o600


def test_a_worker_that_cannot_be_let_in_has_no_key(folder: KeyFolder) -> None:
    with (folder.path / ALLOWED).open("a") as file:
        file.writelines(f"{new_pair().public} worker-{number}\n" for number in range(10))
    before = {path: path.read_bytes() for path in folder.path.iterdir()}
    with refused("a worker 'ada' is already admitted: choose another name, or revoke that one first"):
        folder.add("ada")
    # The file of a key is shorter than this, and the list longer.
    with refused(f"'{folder.path / ALLOWED}' cannot be written: {os.strerror(errno.EFBIG)}"), files_of_at_most(500):
        folder.add("cleo")
    assert {path: path.read_bytes() for path in folder.path.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "public", "expected"),
    [
        ("ada", PAIR.public, "'ada' is already admitted"),
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


def test_a_key_that_is_let_in_has_one_name(folder: KeyFolder) -> None:
    public = read_key(folder.path / "ada.key").pair.public
    with refused(f"the key {public!r} is already admitted, as 'ada': nothing to do"):
        folder.allow("cleo", public)


def test_one_that_is_not_there_cannot_be_revoked(folder: KeyFolder, tmp_path: Path) -> None:
    with refused("no worker 'cleo' is admitted: expected one of ada, ben"):
        folder.revoke("cleo")
    with refused("no worker 'cleo' is admitted: the list is empty"):
        KeyFolder.create(tmp_path / "empty", []).revoke("cleo")


def test_a_list_may_be_long_and_have_comments(folder: KeyFolder) -> None:
    path = folder.path / ALLOWED
    before, more = path.read_text(), {new_pair().public: f"worker-{number}" for number in range(100)}
    path.write_text(f"# From the second floor\n\n{before}" + "".join(f"{key} {name}\n" for key, name in more.items()))
    assert list(folder.names().values()) == ["ada", "ben", *more.values()]


@pytest.mark.parametrize("harmless", [0o400, 0o600, 0o644, 0o755])
def test_a_list_may_be_read_by_all_and_is_not_read_again_before_it_changes(folder: KeyFolder, harmless: int) -> None:
    (folder.path / ALLOWED).chmod(harmless)
    allowed = AllowList(folder.path / ALLOWED)
    assert allowed() is allowed()


@pytest.mark.parametrize("line", ["nonsense", f"{PAIR.public}", f"{PAIR.public}  two", f"{PAIR.public} a b"])
def test_a_list_with_a_bad_line_lets_nobody_in(folder: KeyFolder, line: str) -> None:
    allowed = folder.server().allowed
    with (folder.path / ALLOWED).open("a") as file:
        file.write(f"{line}\n")
    with refused(
        f"the list '{folder.path / ALLOWED}' has the line {line!r}: expected a public key, a space, and a name"
    ):
        allowed()


def test_a_list_that_others_could_have_changed_lets_nobody_in(folder: KeyFolder) -> None:
    (folder.path / ALLOWED).chmod(0o622)
    with pytest.raises(KeyFileError, match="has mode 0622 and is open to others: chmod 600"):
        AllowList(folder.path / ALLOWED)()


def test_a_list_that_is_gone_lets_nobody_in(folder: KeyFolder) -> None:
    allowed = folder.server().allowed
    (folder.path / ALLOWED).unlink()
    with refused(f"the list '{folder.path / ALLOWED}' cannot be read: {os.strerror(errno.ENOENT)}"):
        allowed()


def test_a_folder_that_others_may_write_to_is_refused(folder: KeyFolder) -> None:
    for harmless in (0o500, 0o711, 0o755):
        folder.path.chmod(harmless)
        folder.server()
    for loose in (0o770, 0o702):
        folder.path.chmod(loose)
        with refused(
            f"the folder of keys '{folder.path}' has mode 0{loose:o} and belongs to user {os.geteuid()}: "
            f"expected it to be writable by its user only: chmod 700 '{folder.path}'"
        ):
            folder.server()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("user", [1, 12345])
def test_a_folder_of_another_user_is_refused(folder: KeyFolder, user: int) -> None:
    os.chown(folder.path, user, user)
    with pytest.raises(KeyFileError, match=f"has mode 0700 and belongs to user {user}: expected it to be writable by"):
        folder.server()


def test_a_folder_that_is_not_there_is_to_be_made(tmp_path: Path) -> None:
    path = tmp_path / "absent"
    with refused(
        f"the folder of keys '{path}' cannot be read: {os.strerror(errno.ENOENT)}; make one with `lockstep keys create "
        f"{path}`"
    ):
        KeyFolder(path).server()


def test_a_servers_own_secret_is_looked_at_too(folder: KeyFolder) -> None:
    (folder.path / SERVER).chmod(0o644)
    with pytest.raises(KeyFileError, match=r"server\.key' has mode 0644 and is open to others: chmod 600"):
        folder.server()


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ([], ["worker-1"]),
        (["--workers", "2"], ["worker-1", "worker-2"]),
        (["--name", "ann"], ["ann"]),
        (["--workers", "2", "--name", "spare", "--name", "worker-2"], ["spare", "worker-1", "worker-2"]),
    ],
)
def test_keys_are_made_of_as_many_workers_and_of_those_with_names(
    tmp_path: Path, flags: list[str], names: list[str]
) -> None:
    assert run(["keys", "create", str(tmp_path / "keys"), *flags]) == 0
    assert sorted(KeyFolder(tmp_path / "keys").names().values()) == names
