"""`lockstep plot`: which files it writes, of one run, several, and runs that are not finished."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep import fit, nn
from lockstep.cli.main import run
from lockstep.common.numerics.random import Purpose, generator
from lockstep.runs.shared_run import share
from tests.lockstep.results.plots.records import LEDGER, write_ledger, write_steps
from tests.lockstep.small_runs import small_run

PNG = b"\x89PNG\r\n\x1a\n"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_drawn_into_its_own_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib: .venv/bin/pip install -e '.[plot]'")
    folder = small_run(tmp_path, epochs=1, lr=1e-6).folder
    assert run(["plot", str(folder)]) == 0
    names = {"learning.png", "throughput.png", "timeline.png", "confusion.png", "first_layer.png", "mistakes.png"}
    assert files(folder / "plots") == names
    assert all((folder / "plots" / name).read_bytes().startswith(PNG) for name in names)
    assert all(line.startswith("wrote ") for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(
    ("shape", "job", "left_out"),
    [
        ((4, 6), {"ignore_index": 255}, {"mistakes.png"}),
        ((4, 6), {}, {"mistakes.png"}),
        ((2,), {"loss": "bce"}, {"confusion.png", "mistakes.png"}),
    ],
    ids=["places", "places that all count", "labels"],
)
def test_plots_that_a_run_with_several_labels_has_not_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: tuple[int, ...], job: dict[str, Any], left_out: set[str]
) -> None:
    pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib: .venv/bin/pip install -e '.[plot]'")
    rng = generator(6, Purpose.CANARY)
    x, y = rng.standard_normal((24, 1, 4, 6)).astype(np.float32), rng.integers(0, 2, (24, *shape))
    if "ignore_index" in job:
        y[:, 0] = job["ignore_index"]
    ends = [] if len(shape) == 2 else [nn.Flatten(), nn.Linear(48, 2)]
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), *ends).initialize(1)
    folder = tmp_path / "run"
    fit(net, ((x, y), (x, y)), workers=0, verbose=False, run_dir=folder, steps=2, global_batch=8, **job)
    assert run(["plot", str(folder)]) == 0
    names = {"learning.png", "throughput.png", "timeline.png", "confusion.png", "first_layer.png", "mistakes.png"}
    assert files(folder / "plots") == names - left_out
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[2].rstrip(":") for line in lines if line.startswith("left out ")} == left_out


def test_several_runs_share_their_curves_and_what_cannot_be_drawn_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib: .venv/bin/pip install -e '.[plot]'")
    for name in ("a", "b"):
        write_steps(tmp_path / name, range(5))
    write_ledger(tmp_path / "a", LEDGER)
    assert run(["plot", str(tmp_path / "a"), str(tmp_path / "b"), "--to", str(tmp_path / "pictures")]) == 0
    assert files(tmp_path / "pictures") == {"learning.png", "throughput.png", "a-timeline.png"}
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines if line.startswith("left out")] == [
        *("left out a-confusion.png", "left out a-first_layer.png", "left out a-mistakes.png"),
        *(
            "left out b-timeline.png",
            "left out b-confusion.png",
            "left out b-first_layer.png",
            "left out b-mistakes.png",
        ),
    ]


def test_plots_of_files_are_named_by_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib: .venv/bin/pip install -e '.[plot]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = small_run(tmp_path, epochs=1, lr=1e-6).folder
    # Of two colleagues who both named their run the same.
    for file in ("hers.v1.zip", "his.zip"):
        share(folder, Path(file))
        assert run(["plot", file, "--learning"]) == 0
    assert capsys.readouterr().out == "wrote plots/hers.v1/learning.png\nwrote plots/his/learning.png\n"
    (tmp_path / "other").mkdir()
    share(small_run(tmp_path / "other", epochs=1, lr=1e-5).folder, Path("his.zip"))
    assert run(["plot", "hers.v1.zip", "his.zip", "--to", "both"]) == 0
    assert {"hers.v1-timeline.png", "his-timeline.png"} <= files(Path("both"))


def test_event_files_hold_the_figures(tmp_path: Path) -> None:
    pytest.importorskip(
        "tensorboardX", reason="event files are written by tensorboardX: .venv/bin/pip install -e '.[tensorboard]'"
    )
    write_steps(tmp_path / "a", range(5))
    assert run(["plot", str(tmp_path / "a"), "--to", str(tmp_path / "events"), "--tensorboard"]) == 0
    (name,) = files(tmp_path / "events")
    assert name.startswith("a/events.out.tfevents.")
    found = read_events((tmp_path / "events" / name).read_bytes())
    assert found["loss/train"] == {step: pytest.approx(2 / (step + 1)) for step in range(5)}
    assert found["accuracy/test"] == {4: 0.75}
    assert found["throughput/samples_per_s"] == dict.fromkeys(range(5), 16.0)
    assert found["step_ms/waiting"] == dict.fromkeys(range(5), pytest.approx(100))


def test_event_files_are_replaced_and_hold_the_validation_too(tmp_path: Path) -> None:
    pytest.importorskip(
        "tensorboardX", reason="event files are written by tensorboardX: .venv/bin/pip install -e '.[tensorboard]'"
    )
    write_steps(tmp_path / "a", range(4), validation=(0.125, 0.875))
    events = tmp_path / "events" / "a"
    events.mkdir(parents=True)
    for name in ("events.out.tfevents.1.host.lockstep", "events.out.tfevents.1.host"):
        (events / name).touch()
    assert run(["plot", str(tmp_path / "a"), "--to", str(tmp_path / "events"), "--tensorboard"]) == 0
    # That of an earlier call is gone, and what others wrote is still there.
    others, name = sorted(files(events))
    assert others == "events.out.tfevents.1.host"
    found = read_events((events / name).read_bytes())
    assert (found["loss/validation"], found["accuracy/validation"]) == ({4: 0.125}, {4: 0.875})


def read_events(content: bytes) -> dict[str, dict[int, Any]]:
    """Return the scalars of an event file by tag and step: records of a length, its check, an Event, its check."""
    protocol: Any = pytest.importorskip("tensorboardX.proto.event_pb2")
    found: dict[str, dict[int, Any]] = {}
    place = 0
    while place < len(content):
        length = int.from_bytes(content[place : place + 8], "little")
        event = protocol.Event.FromString(content[place + 12 : place + 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
        place += length + 16
    return found


def test_what_cannot_be_drawn_at_all_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="without it, that is what is told")
    (tmp_path / "a").mkdir()
    write_steps(tmp_path / "a" / "run", range(3))
    write_steps(tmp_path / "run", range(3))
    (tmp_path / "file").touch()
    cases = {
        "expected the folder of a run": [str(tmp_path / "gone")],
        "two runs have the name 'run': expected folders or files with different names": [
            str(tmp_path / "run"),
            str(tmp_path / "a" / "run"),
        ],
        "cannot write to the folder": [str(tmp_path / "run"), "--to", str(tmp_path / "file" / "x")],
        "missing argument 'RUN...'": [],
    }
    for text, arguments in cases.items():
        assert run(["plot", *arguments]) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("error: ")
        assert text in error
        assert error.count("\n") == 1
    assert files(tmp_path) == {"a/run/metrics.jsonl", "run/metrics.jsonl", "file"}


@pytest.mark.parametrize("command", ["plot", "predict", "export", "evaluate", "doctor"])
def test_help_fits_80_columns_and_has_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert run([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert f"  lockstep {command} " in text
