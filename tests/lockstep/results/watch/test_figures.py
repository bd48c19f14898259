"""The figures for Prometheus: its own parser reads them, and each is in the docs."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip(
    "prometheus_client", reason="metrics are written by prometheus-client: .venv/bin/pip install -e '.[watch]'"
)

from prometheus_client.parser import text_string_to_metric_families

from lockstep.results.watch.figures import exposition
from tests.architecture.source import ROOT
from tests.lockstep.results.watch.folders import running, viewed
from tests.lockstep.statuses import status, worker


def samples(folder: Path, *, is_asked: bool = False) -> dict[str, float]:
    view = viewed(folder)
    if is_asked:
        view.refresh(
            2.0, status(workers=[worker(0, processes=4), worker(1), worker(2, state='odd "name"\n')], refused=3)
        )
    families = text_string_to_metric_families(exposition(view.snapshot(), view.totals()).decode())
    return {
        sample.name + "".join(f"/{value}" for value in sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_figures_are_those_of_the_run(tmp_path: Path) -> None:
    found = samples(running(tmp_path / "mine", steps=6), is_asked=True)
    assert found["lockstep_steps_done"] == 6
    assert found["lockstep_samples_total"] == 48
    assert found["lockstep_train_accuracy_ratio"] == 0.5
    assert found["lockstep_test_accuracy_ratio"] == 0.75
    assert found["lockstep_run_info/mlp/mine"] == 1
    assert found["lockstep_run_state/running"] == 1
    assert found["lockstep_run_state/finished"] == 0
    assert found["lockstep_refused_connections_total"] == 3
    assert found["lockstep_workers/computing"] == 5
    assert found["lockstep_teams/computing"] == 2
    assert found['lockstep_workers/odd "name"\\n'] == 1
    # Six rounds of half a second: each has 0.2 s of computing and 0.1 of waiting, all but the first 0.1 of an update.
    expected = {"compute": 1.2, "waiting": 0.6, "update": 0.5, "exchange": 0.7}
    assert {name: found[f"lockstep_step_seconds_total/{name}"] for name in expected} == pytest.approx(expected)


def test_the_metrics_of_a_job_have_a_name_each(tmp_path: Path) -> None:
    folder = running(tmp_path / "mine")
    with (folder / "metrics.jsonl").open("a") as file:
        metrics = '{"f1": 0.5, "test_f1": 0.25}'
        file.write(
            f'{{"kind": "epoch", "epoch": 2, "loss": 1, "test_loss": 1, "wall_s": 1, "metrics": {metrics}, '
            '"val_loss": 2, "val_r2": 0.125, "weights_sha256": ""}\n'
        )
    found = samples(folder)
    assert found["lockstep_metric/f1"] == 0.5
    assert found["lockstep_metric/test_f1"] == 0.25
    assert found["lockstep_validation_r2"] == 0.125


def test_a_run_without_steps_has_metrics_too(tmp_path: Path) -> None:
    found = samples(tmp_path / "none")
    assert found["lockstep_run_state/missing"] == 1
    assert "lockstep_train_loss" not in found


def test_names_and_units_follow_the_conventions_and_each_is_documented(tmp_path: Path) -> None:
    view = viewed(running(tmp_path / "mine"))
    view.refresh(2.0, status(workers=[worker(0)]))
    documented = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    families = list(text_string_to_metric_families(exposition(view.snapshot(), view.totals()).decode()))
    assert families
    for family in families:
        assert re.fullmatch(r"lockstep_[a-z0-9_]+", family.name)
        assert family.documentation.endswith(".")
        assert family.type in ("gauge", "counter", "info")
        # promtool: only counters end in _total, and units are base units.
        assert not family.name.endswith(("_ms", "_milliseconds", "_percent", "_kb"))
        assert all(sample.name.endswith("_total") == (family.type == "counter") for sample in family.samples)
        name = f"{family.name}_total" if family.type == "counter" else family.samples[0].name
        assert f"`{name}`" in documented


def test_the_dashboard_shows_figures_that_there_are_and_those_of_the_jobs_own_metrics() -> None:
    documented = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    panels = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    shown = {
        name for panel in panels for each in panel["targets"] for name in re.findall(r"lockstep_\w+", each["expr"])
    }
    assert [name for name in sorted(shown) if f"`{name}`" not in documented] == []
    (legend,) = (each["legendFormat"] for panel in panels for each in panel["targets"] if "_metric{" in each["expr"])
    assert legend == "{{name}}"
