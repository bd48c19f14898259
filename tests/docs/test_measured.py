"""The page of speed shows what docs/measured.json has, and nothing else."""

import re
from pathlib import Path

import msgspec
import pytest

from docs.generators.expansion import COMMENT, MEASURED, collapsed
from docs.generators.measured import MAKERS, Report
from lockstep.bench.bench import Bench
from lockstep.bench.peers import BaselineRow
from lockstep.bench.performance import BenchMachine, MeasuredPart, Measurements, command_text, parts_of
from lockstep.bench.step import StepFigures
from tests.architecture.source import ROOT
from tests.docs.pages import page_paths
from tests.lockstep.bench.scaling_rows import scaling_row

PAGE = ROOT / "docs" / "explanation" / "performance.md"

MACHINE = BenchMachine(
    processor="Some Processor",
    cores=2,
    memory_gib=24,
    system="Linux x86_64",
    python="3.11.7",
    numpy="2.4.6",
    blas="scipy-openblas 0.3.31",
    kernel="Haswell",
    coretype="Haswell",
    lockstep="0.1.0",
)


def peer(ratio: float, threads: int = 1, layout: str = "contiguous") -> BaselineRow:
    return BaselineRow(
        version="2.13",
        layout=layout,
        threads=threads,
        ms_per_step=2.0 * ratio,
        ms_spread=(1.9 * ratio, 2.2 * ratio),
        images_per_s=1.0,
        ratio=ratio,
        ratio_spread=(ratio - 0.1, ratio + 0.1),
    )


def step(micro_batches: int, ms: float, with_peer: BaselineRow | None = None) -> StepFigures:
    return StepFigures(
        model="lenet",
        batch=128,
        micro_batches=micro_batches,
        ms_per_step=ms,
        ms_spread=(ms * 0.8, ms * 1.25),
        steps=100,
        images_per_s=128 / ms * 1e3,
        peak_rss_mb=176.0,
        gemm_gflops_share=0.5,
        gemm_peak_gflops=240.0,
        peer=with_peer,
    )


def part(bench: Bench[msgspec.Struct], rows: list[msgspec.Struct]) -> MeasuredPart:
    return MeasuredPart(
        command=command_text(bench),
        machine=MACHINE,
        begun="2026-11-28 23:31",
        took_s=12.3,
        rounds=5,
        busy_cores=0.04,
        rows=[msgspec.to_builtins(row) for row in rows],
    )


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """Return the report of a made-up file with some of the parts."""
    benches, file = parts_of(Path("python3"), 5), tmp_path / "measured.json"
    scaling = scaling_row(
        workers=2,
        exchange_s=0.010,
        batch=128,
        peer=peer(3.0),
        all_threads=peer(0.8, 2),
        compiled=None,
        ms_spread=(80.0, 125.0),
    )
    rows: dict[str, list[msgspec.Struct]] = {
        "step": [step(1, 2.0, peer(0.95))],
        "scaling": [scaling],
        "micro-batches": [step(1, 2.0), step(2, 4.0)],
    }
    Measurements(parts={name: part(benches[name], found) for name, found in rows.items()}).write(file)
    return Report(file)


def test_each_figure_is_that_of_the_file_with_its_spread(report: Report) -> None:
    assert "| mlp | 128 | 8 | 2,560 (2,048 to 3,200) | 80% | 0.80 (0.70 to 0.90) |  | 3.00 (2.90 to 3.10) |" in (
        report.piece("scaling")
    )
    assert "| lenet 128 | 2.00 (1.60 to 2.50) | 1.90 (1.80 to 2.09) | 0.95 (0.85 to 1.05) | contiguous |  |" in (
        report.piece("step")
    )
    assert "| lenet 128 | 2.00 (1.60 to 2.50) | 0.50 (0.40 to 0.62) |" in report.piece("micro-batches")
    assert report.piece("scaling").startswith("```bash\nlockstep bench scaling --model mlp,lenet,cnn")


def test_losses_are_shown_with_the_largest_first(report: Report) -> None:
    text = report.piece("losses")
    assert text.startswith("PyTorch was faster in 2 of 3 comparisons")
    assert re.findall(r"PyTorch with \w+ threads?", text) == ["PyTorch with 2 threads", "PyTorch with one thread"]
    assert "DDP" not in text


def test_machine_and_time_are_those_of_the_file(report: Report) -> None:
    text = report.piece("machine")
    assert "2 cores (Some Processor)" in text
    assert "kernel Haswell, which `OPENBLAS_CORETYPE=Haswell` asked for" in text


#: A number with a unit of what is measured. The speed of a link is an assumption, and the numbers of things are no
#: figures.
FIGURE = re.compile(r"\d\s?(?:%|(?:ms|µs|ns|s|[kMG]B|GB/s|images/s|per cent|GFLOP/s|times|x)\b)|\b\d+\.\d+\b")


def test_no_figure_of_the_page_is_typed_by_hand() -> None:
    typed = collapsed(PAGE.read_text(encoding="utf-8"))
    assert [line for line in typed.splitlines() if FIGURE.search(line)] == []


@pytest.mark.parametrize("text", ["It takes 12 ms.", "45,000 images/s", "a ratio of 1.35", "3 times as fast", "7 %"])
def test_figures_are_found(text: str) -> None:
    assert FIGURE.search(text)


def test_each_part_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = {name for page in page_paths() for name in COMMENT.findall(page.read_text(encoding="utf-8"))}
    assert {MEASURED + name for name in MAKERS} <= shown
    # Losses first.
    assert text.index("measured losses") < text.index("measured scaling") < text.index("measured step")
