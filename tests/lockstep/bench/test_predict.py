"""Predictions are read off a run's result or a scaling bench's rows; what they say is the cost model's."""

from pathlib import Path

import msgspec
import pytest

from lockstep.bench.bench import heading, line
from lockstep.bench.predict import PredictionRow, basis_of_result, basis_of_rows, basis_of_sleep, predict, read_basis
from lockstep.bench.scaling import ScalingRow
from lockstep.cli.bench import json_of
from lockstep.cli.main import run
from lockstep.common.runtime.environment import cores
from lockstep.ps.run.progress import Split
from lockstep.runs.cost_model import MEMORY, Machines
from tests.lockstep.bench.scaling_rows import hosts_row, scaling_row
from tests.lockstep.statuses import result

#: A gigabit, in bytes a second.
LINK = 125e6

#: A run whose worker computed 80 ms a step, of which the exchange took 10 and the update 6.
RUN = result(
    workers=1,
    parameters=1_000_000,
    split=Split(steps=9, compute_s=0.080, exchange_s=0.010, update_s=0.006, waiting_s=0.0),
)

#: The same in the rows of the scaling bench: 4 micro-batches per worker, 20 ms each. Teams share memory, or there are
#: two of them with sockets to the server.
ROWS = [
    scaling_row(workers=1, exchange_s=0.0, images_per_s=640.0),
    scaling_row(workers=2, exchange_s=0.010, images_per_s=1200.0),
    scaling_row(workers=1, exchange_s=0.5, batch=32),
    scaling_row(workers=2, teams=2, exchange_s=0.024, transport="tcp", carrier="tcp", images_per_s=1000.0),
    scaling_row(workers=4, teams=2, exchange_s=0.044, transport="tcp", carrier="tcp", images_per_s=1500.0),
]


def test_a_run_predicts_the_same_step_on_more_hosts() -> None:
    prediction = predict(basis_of_result(RUN), [2, 8], [1], [1, 8], LINK)
    # 8 MB for each host take 64 ms; each of two hosts has four micro-batches of 10 ms, each of eight has one.
    assert [(row.servers, row.hosts, row.workers) for row in prediction.rows] == [
        *((1, 2, 1), (1, 8, 1)),
        *((8, 2, 1), (8, 8, 1)),
    ]
    steps = [row.ms_per_step for row in prediction.rows]
    assert steps == pytest.approx([40 + 128 + 6, 10 + 512 + 6, 40 + 64 + 6 / 8, 10 + 64 + 6 / 8])
    # One process alone computes and updates.
    assert prediction.rows[3].speedup == pytest.approx(86 / steps[3])
    assert prediction.rows[1].link_share == pytest.approx(512 / steps[1])
    assert (prediction.link_text(), prediction.is_bound_by_link) == ("1 Gbit/s", True)
    assert prediction.basis.measured == ((Machines(), RUN.images_per_s),)
    assert prediction.basis.largest_team() == 1


def test_local_steps_share_one_exchange() -> None:
    one, sixteen = (predict(basis_of_result(RUN), [2], [1], [1], LINK, None, steps).rows[0] for steps in (1, 16))
    # Each of two hosts has four micro-batches, of 16 times 10 ms and an update of 6 ms.
    assert (one.ms_per_step, sixteen.ms_per_step) == pytest.approx((40 + 128 + 6, 4 * 16 * 16 + 128 + 6))
    assert sixteen.images_per_s / one.images_per_s == pytest.approx(16 * one.ms_per_step / sixteen.ms_per_step)


def test_teams_send_what_one_process_does() -> None:
    one, eight = predict(basis_of_result(RUN), [2], [1, 4], [1], LINK).rows
    # Each of eight processes has one micro-batch; four vectors of 4 MB are read and one is written.
    assert eight.ms_per_step == pytest.approx(10 + 20e6 / MEMORY * 1e3 + 128 + 6)
    assert (one.workers, eight.workers) == (1, 4)
    # Three hosts have three micro-batches each and three vectors on one link: 30 + 192 + 6 ms, or 30 + 64 + 2 ms.
    assert one.saturates_at == 3


def test_one_host_has_its_server_in_its_memory() -> None:
    row, with_servers = predict(basis_of_result(RUN), [1], [8], [1, 2], LINK).rows
    assert row.ms_per_step == pytest.approx(10 + 36e6 / MEMORY * 1e3 + 6 / 8)
    assert (row.link_share, row.saturates_at is None, row.shards) == (0.0, False, 1)
    # Two servers have machines of their own.
    assert with_servers.ms_per_step == pytest.approx(10 + 36e6 / MEMORY * 1e3 + 64 + 6 / 2)


def test_rows_of_what_was_trained_are_taken_together_over_memory_and_one_kind_of_socket() -> None:
    basis = basis_of_rows(ROWS)
    places = [(at.workers, at.hosts, at.is_local) for at, _ in basis.measured]
    assert places == [(1, 1, True), (2, 1, True), (2, 2, False), (4, 2, False)]
    assert [speed for _, speed in basis.measured] == [640.0, 1200.0, 1000.0, 1500.0]
    assert basis.name == "mlp, 64 samples each, shm and tcp"
    assert basis.largest_team() == 2
    # Weak: each with a core of its own takes 80 ms, and four on two cores do not count. A team of two reads and writes
    # three vectors of 4 MB in 10 ms, and updates a half each; two teams of one send in 24 ms.
    model = basis.model
    assert (model.is_weak, model.cores) == (True, 2)
    assert model.memory == pytest.approx(12e6 / 0.010)
    assert (model.latency_s, model.per_host_s) == pytest.approx((0.0, 0.012))
    (at,) = predict(basis, [16], [2], [16], LINK).rows
    assert at.ms_per_step == pytest.approx(80 + 10 + 64 + 2 * 6 / 16)


def test_other_sockets_do_not_count() -> None:
    assert basis_of_rows([*ROWS, scaling_row(workers=2, teams=2, exchange_s=9.0, carrier="ipc")]) == basis_of_rows(ROWS)


def test_the_machine_that_was_measured_is_predicted_next_to() -> None:
    basis = basis_of_rows(ROWS[:2])
    here = predict(basis, [1], [1], [1], LINK).here
    alone = here[1, True]
    assert [at.workers for at in alone] == list(range(1, 9))
    # 80 ms, three vectors in 10 ms, and an update by two; until four share two cores.
    assert basis.model.samples_per_s(alone[1]) == pytest.approx(128 / (0.080 + 0.010 + 0.006))
    assert basis.model.samples_per_s(alone[3]) == pytest.approx(256 / (0.160 + 0.010 * 5 / 3 + 0.006))
    assert [at.workers for at in predict(basis_of_rows(ROWS), [1], [1], [1], LINK).here[2, False]] == [2, 4, 6, 8]


def test_hosts_that_share_cores_predict_hosts_that_do_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The server takes 1 ms per step and 1 ms per host, of which 0.5 ms are the update.
    rows = [hosts_row(hosts, server_ms=1.0 + hosts, ms_per_step=ms) for hosts, ms in ((1, 24.0), (2, 25.0), (16, 44.5))]
    file = tmp_path / "hosts.json"
    file.write_bytes(json_of([*rows, hosts_row(1, server_ms=9.0, parameters=62_000)]))
    ask = ["bench", "predict", "--from", str(file), "--servers", "1,16", "--link", "100Gbit", "--hosts"]
    assert run([*ask, "16,1024"]) == 0
    # All sleep; then one works and is served. Of 16 on two cores, the work of all counts.
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "from 536k, 1 sample each, tcp, measured with 1 and 2 and 16 workers on 2 cores",
        "1 worker in 1 team on 2 cores: measured 24.0 ms, calculated 24.0 ms (+0%)",
        "2 workers in 2 teams on 2 cores: measured 25.0 ms, calculated 25.0 ms (+0%)",
        "16 workers in 16 teams on 2 cores: measured 44.5 ms, calculated 44.5 ms (+0%)",
    ]
    basis = read_basis([file])
    found = {(r.hosts, r.servers): r.ms_per_step for r in predict(basis, [16, 1024], [1], [1, 16], 12.5e9).rows}
    assert found[16, 1] == pytest.approx(20 + 2 + 0.5 + 16 + 0.5)
    assert found[1024, 16] == pytest.approx(20 + 2 + 0.5 + 64 + 0.5 / 16)
    assert read_basis([file], values=62_000).name == "62k, 1 sample each, tcp"
    assert run([*ask, "2", "--values", "5"]) == 2
    assert "did not measure 5: expected one of 536k at 1, 62k at 1" in capsys.readouterr().err


def test_a_model_that_sleeps_needs_no_measurement() -> None:
    basis = basis_of_sleep(1_000_000, 0.020, 32)
    assert basis.measured == ()
    assert basis.source() == "calculated for 1,000,000 values, sleeping 20 ms, 32 samples each"
    alone, team, hosts = (
        predict(basis, [1, 4], [1, 8], [1], LINK).rows[::2][:2] + predict(basis, [4], [8], [1], LINK).rows
    )
    # 20 ms, 0.28 ms to fill and 0.47 ms to update; eight update an eighth each, and add nine vectors of 4 MB.
    assert alone.ms_per_step == pytest.approx(20 + 0.28 + 0.47)
    assert team.ms_per_step == pytest.approx(20 + 0.28 + 0.47 / 8 + 36e6 / MEMORY * 1e3)
    assert hosts.ms_per_step == pytest.approx(20 + 0.28 + 36e6 / MEMORY * 1e3 + 4 * 64 + 0.47)
    assert team.speedup == pytest.approx(8 * alone.ms_per_step / team.ms_per_step)


def test_rows_of_one_that_sleeps_leave_the_cores_free() -> None:
    one, four, many = (scaling_row(workers=count, exchange_s=0.0, model="sleep", sleep_s=0.019) for count in (1, 4, 16))
    model = basis_of_rows([four, many]).model
    # Of the 20 ms of a micro-batch, 1 ms is computing, by 16 on two cores.
    assert (model.sleep_s, model.micro_batch_s) == pytest.approx((0.019, 0.019 + 0.001 / 8))
    # One with a core of its own shows it better.
    assert basis_of_rows([one, many]).model.micro_batch_s == pytest.approx(0.020)


def test_it_is_said_where_a_link_saturates_and_what_that_takes() -> None:
    prediction = predict(basis_of_result(RUN), [2, 100], [1], [1, 4], LINK)
    one, *_ = (row.saturates_at for row in prediction.rows)
    shards = prediction.rows[-1].shards
    words = prediction.summary()
    name = "the 1 Gbit/s link of 1 server"
    assert words[0].startswith(f"{name} would saturate at {one} hosts: a step takes twice as long as with one server")
    assert words[1].startswith("the links of 4 servers would saturate at ")
    assert words[2] == f"100 hosts would need {shards} shards to avoid that"
    fast = predict(basis_of_result(RUN), [2], [1], [1], 1e15)
    assert not fast.is_bound_by_link
    assert fast.summary()[0].startswith("1 server would saturate at ")


def test_a_line_fits_its_heading() -> None:
    (row,) = predict(basis_of_result(RUN), [1024], [64], [16], LINK).rows
    assert len(line(row)) == len(heading(PredictionRow)) <= 80


def test_the_command_reads_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_file, rows_file, json_file = (tmp_path / name for name in ("result.json", "rows.json", "out.json"))
    run_file.write_bytes(msgspec.json.encode(RUN))
    rows_file.write_bytes(json_of(ROWS))
    ask = ["bench", "predict", "--hosts", "1..8", "--to", str(json_file)]
    assert run([*ask, "--from", str(run_file), "--servers", "1,2", "--plot", str(tmp_path / "p.png")]) == 0
    rows = msgspec.json.decode(json_file.read_bytes(), type=list[PredictionRow])
    spread = [(h, h) for h in (2, 4, 8)]
    assert [(row.servers, row.hosts) for row in rows] == [*((s, h) for s in (1, 2) for h in (1, 2, 4, 8)), *spread]
    assert {row.workers for row in rows} == {1}
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert run([*ask, "--from", str(rows_file), "--batch", "32", "--link", "10Gbit"]) == 0
    message = capsys.readouterr().out
    assert f"from lenet, 128 samples a step, ipc, measured with 1 worker on {cores()} cores" in message
    assert "from mlp, 32 samples each, shm, measured with 1 worker on 2 cores" in message
    assert (
        run([*ask, "--from", f"{rows_file},{rows_file}", "--workers", "1..4", "--plot", str(tmp_path / "q.png")]) == 0
    )
    assert "from mlp, 64 samples each, shm and tcp, measured with 1 and 2 and 4 workers" in capsys.readouterr().out
    assert (tmp_path / "q.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_several_models_are_predicted_one_after_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows_file = tmp_path / "rows.json"
    rows_file.write_bytes(json_of([*ROWS, *(msgspec.structs.replace(row, model="cnn") for row in ROWS)]))
    ask = ["bench", "predict", "--hosts", "4", "--servers", "1", "--from", str(rows_file), "--batch", "64", "--json"]
    assert run([*ask, "--model", "mlp,cnn", "--plot", str(tmp_path / "p.png")]) == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    rows = msgspec.json.decode(capsys.readouterr().out, type=list[PredictionRow])
    names = [f"{model}, 64 samples each, shm and tcp" for model in ("mlp", "cnn")]
    assert [(row.basis, row.is_spread) for row in rows] == [(name, each) for name in names for each in (False, True)]


@pytest.mark.slow
def test_without_a_file_this_machine_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "predict", "--hosts", "4", "--model", "linear", "--batch", "32", "--steps", "8"]) == 0
    assert capsys.readouterr().out.startswith("from linear, 32 samples each, ")


def test_files_that_are_of_no_use_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file.json"
    for text, message in [
        (b"{}", "is neither a run's result.json nor a file of `lockstep bench scaling --to FILE`"),
        (msgspec.json.encode(result(workers=0)), "has no times of an exchange (workers = 0"),
        (b"[]", "the scaling bench did not measure row"),
    ]:
        path.write_bytes(text)
        assert run(["bench", "predict", "--from", str(path)]) == 2
        assert message in capsys.readouterr().err
    path.write_bytes(json_of(ROWS))
    assert run(["bench", "predict", "--from", str(path), "--model", "cnn"]) == 2
    assert "did not measure cnn: expected one of mlp at 64, mlp at 32" in capsys.readouterr().err


def test_a_file_of_rows_can_be_narrowed(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(json_of(ROWS))
    assert read_basis([tmp_path / "rows.json"], None, 32).name == "mlp, 32 samples each, shm"
    assert isinstance(ROWS[0], ScalingRow)


def test_a_server_on_each_host_is_predicted_too() -> None:
    prediction = predict(basis_of_result(RUN), [1, 4], [1], [1], LINK)
    assert [(row.servers, row.hosts, row.is_spread) for row in prediction.rows] == [(1, 1, False), (1, 4, False)]
    # A single host has its server anyway.
    (each,) = prediction.spread
    assert (each.servers, each.hosts, each.is_spread) == (4, 4, True)
    assert each.ms_per_step < prediction.rows[1].ms_per_step / 2
