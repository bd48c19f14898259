"""A run's folder: joined by its user's processes only, and swept once its maker is gone, never before."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PosixPath

import pytest

from lockstep.common.errors import SharingError
from lockstep.common.transport.shared_memory.folder import NAME, SharedFolder, shared_root, sweep
from lockstep.common.transport.shared_memory.segment import Shape
from tests.leftovers import LINUX_ONLY, nothing_left_open

SHAPE = Shape(vectors=2, size=100)

#: Makes a folder with one file, says its name, and stays until its standard input ends.
MAKER = """if True:
    import sys
    from pathlib import Path, PosixPath
    from lockstep.common.transport.shared_memory.segment import Shape
    from lockstep.common.transport.shared_memory.folder import SharedFolder
    folder = SharedFolder.create(Path(sys.argv[1]))
    folder.make("weights", Shape(2, 100))
    print(folder.name, flush=True)
    sys.stdin.read()
"""


@contextmanager
def maker(root: Path) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """A process that has made a folder, and that folder."""
    command = [sys.executable, "-c", MAKER, str(root)]
    place = Path(__file__).parents[5]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=place) as process:
        assert process.stdout is not None
        yield process, root / process.stdout.readline().strip()
        process.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[SharedFolder]:
    made = SharedFolder.create(tmp_path)
    yield made
    made.remove()


def test_a_folder_is_named_by_its_user_and_maker_and_open_to_them_only(folder: SharedFolder) -> None:
    assert NAME.fullmatch(folder.name)
    assert folder.name.startswith(f"lockstep-{os.geteuid()}-{os.getpid()}-")
    assert folder.path.stat().st_mode & 0o777 == 0o700


def test_one_that_joins_reads_the_nonce_back(folder: SharedFolder, tmp_path: Path) -> None:
    folder.make("weights", SHAPE).vectors[1][3] = 4.0
    joined = SharedFolder.join(tmp_path, folder.name)
    segment = joined.attach("weights", SHAPE)
    assert segment.nonce == folder.nonce
    assert segment.vectors[1][3] == 4.0
    joined.close()


def test_two_folders_differ_in_name_and_nonce(folder: SharedFolder, tmp_path: Path) -> None:
    other = SharedFolder.create(tmp_path)
    assert (other.name != folder.name, other.nonce != folder.nonce) == (True, True)
    other.remove()


def test_one_that_joins_makes_a_file_that_the_maker_maps(folder: SharedFolder, tmp_path: Path) -> None:
    joined = SharedFolder.join(tmp_path, folder.name)
    joined.make("sums-0", SHAPE).vectors[0][:] = 2.0
    assert set(folder.attach("sums-0", SHAPE).vectors[0].tolist()) == {2.0}
    joined.close()


def test_a_file_that_is_dropped_stays_mapped(folder: SharedFolder) -> None:
    vector = folder.make("sums-0", SHAPE).vectors[0]
    folder.drop("sums-0")
    folder.drop("sums-0")
    vector[:] = 1.0
    assert list(folder.path.iterdir()) == []


def test_nothing_is_left(tmp_path: Path) -> None:
    folder = SharedFolder.create(tmp_path)
    vector = folder.make("weights", SHAPE).vectors[0]
    folder.make("sums-0", SHAPE)
    folder.remove()
    folder.close()
    vector[:] = 1.0
    assert list(tmp_path.iterdir()) == []


@LINUX_ONLY
def test_what_is_made_joined_and_swept_leaves_nothing_open(tmp_path: Path) -> None:
    with nothing_left_open():
        folder = SharedFolder.create(tmp_path)
        folder.make("weights", SHAPE)
        joined = SharedFolder.join(tmp_path, folder.name)
        joined.attach("weights", SHAPE)
        joined.make("sums-0", SHAPE)
        assert sweep(tmp_path) == []
        joined.close()
        folder.close()  # as by the end of its process
        assert sweep(tmp_path) == [folder.path]
        SharedFolder.create(tmp_path).remove()
    assert list(tmp_path.iterdir()) == []


@LINUX_ONLY
def test_a_folder_that_is_not_joined_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / name_of(1)).mkdir(mode=0o755)
    with nothing_left_open(), pytest.raises(SharingError, match="has mode 0755"):
        SharedFolder.join(tmp_path, name_of(1))


def test_a_file_cannot_be_made_once_the_folder_is_gone(tmp_path: Path) -> None:
    folder = SharedFolder.create(tmp_path)
    joined = SharedFolder.join(tmp_path, folder.name)
    folder.remove()
    with pytest.raises(SharingError, match=os.strerror(errno.ENOENT)):
        joined.make("sums-0", SHAPE)
    joined.close()


@pytest.mark.parametrize("root", ["gone", "file"])
def test_a_root_that_is_no_folder_is_told(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SharingError, match=rf"{root}/lockstep-\S+ cannot be created: No"):
        SharedFolder.create(tmp_path / root)
    assert sweep(tmp_path / root) == []


@pytest.mark.parametrize("name", ["..", "/etc", "a/b", "lockstep-0-1-zz", f"../lockstep-0-1-{'0' * 16}", ""])
def test_only_a_folder_of_ours_can_be_joined_whatever_a_server_says(tmp_path: Path, name: str) -> None:
    with pytest.raises(SharingError, match="is not the name of a shared folder"):
        SharedFolder.join(tmp_path, name)


def name_of(number: int, uid: int | None = None) -> str:
    return f"lockstep-{os.geteuid() if uid is None else uid}-1-{number:016x}"


def test_what_is_not_there_is_not_joined(tmp_path: Path) -> None:
    with pytest.raises(SharingError, match=f"cannot be opened here: {os.strerror(errno.ENOENT)}"):
        SharedFolder.join(tmp_path, name_of(1))


def test_a_symbolic_link_is_not_joined(folder: SharedFolder, tmp_path: Path) -> None:
    (tmp_path / name_of(1)).symlink_to(folder.path)
    with pytest.raises(SharingError, match=f"cannot be opened here: {os.strerror(errno.ENOTDIR)}"):
        SharedFolder.join(tmp_path, name_of(1))


def test_a_folder_open_to_others_is_not_joined(tmp_path: Path) -> None:
    (tmp_path / name_of(1)).mkdir()
    (tmp_path / name_of(1)).chmod(0o750)
    with pytest.raises(SharingError, match="has mode 0750: expected it to be open to its user only"):
        SharedFolder.join(tmp_path, name_of(1))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_is_neither_joined_nor_swept(tmp_path: Path) -> None:
    (tmp_path / name_of(1)).mkdir(mode=0o700)
    os.chown(tmp_path / name_of(1), 1, -1)
    with pytest.raises(SharingError, match="belongs to user 1"):
        SharedFolder.join(tmp_path, name_of(1))
    assert sweep(tmp_path) == []


# Sweeping.


def test_a_folder_is_swept_once_its_maker_is_killed_and_not_before(tmp_path: Path) -> None:
    with maker(tmp_path) as (process, path):
        assert sweep(tmp_path) == []
        joined = SharedFolder.join(tmp_path, path.name)
        process.send_signal(signal.SIGSTOP)
        assert sweep(tmp_path) == []
        process.kill()
        process.wait()
        assert (path / "weights").is_file()
        # That somebody has joined it keeps nothing there.
        assert sweep(tmp_path) == [path]
        assert list(tmp_path.iterdir()) == []
        joined.close()


def test_our_own_folder_is_not_swept(folder: SharedFolder, tmp_path: Path) -> None:
    assert sweep(tmp_path) == []
    assert folder.path.is_dir()


def test_what_is_not_a_folder_of_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / name_of(1, uid=os.geteuid() + 1)).mkdir()
    (tmp_path / name_of(2)).write_text("a file")
    (tmp_path / "precious").mkdir()
    (tmp_path / name_of(3)).symlink_to(tmp_path / "precious")
    (tmp_path / "lockstep-abcd").mkdir()
    before = sorted(tmp_path.iterdir())
    assert sweep(tmp_path) == []
    assert sorted(tmp_path.iterdir()) == before


def test_an_abandoned_folder_is_swept_whatever_lies_in_it(tmp_path: Path) -> None:
    abandoned = tmp_path / name_of(1)
    (abandoned / "keys").mkdir(parents=True, mode=0o700)
    (abandoned / "weights").write_text("x")
    (abandoned / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "precious").write_text("kept")
    assert sweep(tmp_path) == [abandoned]
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can empty any folder")
def test_one_that_cannot_be_emptied_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / name_of(1) / "sub").mkdir(parents=True, mode=0o700)
    (tmp_path / name_of(1)).chmod(0o500)
    (tmp_path / name_of(2)).mkdir(mode=0o700)
    assert sweep(tmp_path) == [tmp_path / name_of(2)]


class Swept(PosixPath):
    """A root in which each new folder is swept before its maker has locked it, so many times."""

    sweeps = 0

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        super().mkdir(mode, parents, exist_ok)
        if Swept.sweeps > 0:
            Swept.sweeps -= 1
            assert sweep(Path(self.parent)) == [Path(self)]


@pytest.mark.parametrize("sweeps", [1, 9])
def test_a_maker_that_a_sweep_has_overtaken_makes_another(tmp_path: Path, sweeps: int) -> None:
    Swept.sweeps = sweeps
    folder = SharedFolder.create(Swept(tmp_path))
    assert [folder.path.name] == [path.name for path in tmp_path.iterdir()]
    assert sweep(tmp_path) == []
    folder.remove()


def test_a_maker_that_is_overtaken_for_ever_gives_up(tmp_path: Path) -> None:
    Swept.sweeps = 10
    with pytest.raises(SharingError, match="has no folder for us: each of 10 was swept at once"):
        SharedFolder.create(Swept(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_starting_and_killing_leaves_nothing_after_the_next_start(tmp_path: Path) -> None:
    for _ in range(3):
        sweep(tmp_path)
        assert list(tmp_path.iterdir()) == []
        with maker(tmp_path) as (_, path):
            assert (path / "weights").is_file()
    assert len(sweep(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []


def test_memory_is_preferred_to_a_disk() -> None:
    root = shared_root()
    assert root.is_dir()
    assert root == Path("/dev/shm") or not os.access("/dev/shm", os.W_OK)


def test_a_lock_is_one_process_at_most_and_released_when_that_is_gone(tmp_path: Path) -> None:
    with maker(tmp_path) as (process, path):
        folder = SharedFolder.join(tmp_path, path.name)
        ours, others = folder.lock_of("weights"), folder.lock_of("weights")
        assert ours.acquire()
        assert ours.acquire()
        assert not others.acquire()
        ours.release()
        assert others.acquire()
        assert not ours.acquire()
        others.close()
        others.close()
        assert ours.acquire()
        ours.close()
        with pytest.raises(SharingError, match=f"sums-9 cannot be locked: {os.strerror(errno.ENOENT)}"):
            folder.lock_of("sums-9")
        folder.close()
        process.kill()


def test_a_lock_that_is_made_is_an_empty_file_which_others_open_by_its_name(folder: SharedFolder) -> None:
    ours = folder.make_lock("lock-0")
    theirs = folder.lock_of("lock-0")
    assert (folder.path / "lock-0").stat().st_size == 0
    assert (theirs.acquire(), ours.acquire()) == (True, False)
    with pytest.raises(SharingError, match=f"lock-0 cannot be locked: {os.strerror(errno.EEXIST)}"):
        folder.make_lock("lock-0")
    ours.close()
    theirs.close()


def test_a_file_that_replaces_another_leaves_that_to_those_who_have_it(folder: SharedFolder) -> None:
    old = folder.make("weights", SHAPE).vectors[0]
    new = folder.make("weights-next", SHAPE).vectors[0]
    old[:], new[:] = 1.0, 2.0
    folder.replace("weights", by="weights-next")
    assert sorted(path.name for path in folder.path.iterdir()) == ["weights"]
    assert folder.attach("weights", SHAPE).vectors[0][0] == 2.0
    assert old[0] == 1.0


def test_a_folder_that_is_opened_together_stays_as_long_as_one_process_has_it_open(tmp_path: Path) -> None:
    name = f"lockstep-{os.geteuid()}-0-0011223344556677"
    first, second = (SharedFolder.open_together(tmp_path, name) for _ in range(2))
    assert first.path == second.path == tmp_path / name
    first.close()
    assert sweep(tmp_path) == []
    second.close()
    assert sweep(tmp_path) == [tmp_path / name]


@LINUX_ONLY
def test_a_folder_that_others_may_write_to_is_not_opened_together(tmp_path: Path) -> None:
    name = f"lockstep-{os.geteuid()}-0-0011223344556677"
    (tmp_path / name).mkdir()
    (tmp_path / name).chmod(0o777)
    with nothing_left_open(), pytest.raises(SharingError):
        SharedFolder.open_together(tmp_path, name)
