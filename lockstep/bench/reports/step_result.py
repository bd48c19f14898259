"""What a step bench measured, ours and the peer's, as written to JSON."""

import statistics
from collections.abc import Sequence

import msgspec


class BaselineFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The peer in its faster memory layout."""

    version: str
    layout: str
    ms_per_step: float
    peak_rss_mb: float
    #: The peer's time over ours: above 1 where we are faster.
    ratio: float


class StepFigures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row: a model at a batch size."""

    model: str
    batch: int
    micro_batches: int
    #: Median over `steps` steps.
    ms_per_step: float
    steps: int
    images_per_s: float
    peak_rss_mb: float
    #: Share of the step that its unavoidable matrix products take at the peak, and that peak.
    gemm_gflops_share: float
    gemm_peak_gflops: float
    peer: BaselineFigures | None = None


def median_ms(seconds: Sequence[float]) -> float:
    """Return the median in milliseconds."""
    return statistics.median(seconds) * 1e3


def mean_ratio(rows: Sequence[StepFigures]) -> float:
    """Return the geometric mean of the peer's times over ours."""
    return statistics.geometric_mean(row.peer.ratio for row in rows if row.peer is not None)


def lines_of(figures: StepFigures) -> list[str]:
    """Return the figures for a person, a line each."""
    lines = [
        f"{figures.model}, batch {figures.batch}, one thread, median of {figures.steps} steps",
        f"step          {figures.ms_per_step:.3f} ms, {figures.images_per_s:,.0f} images/s",
        f"products      {figures.gemm_gflops_share:.0%} of it at the peak of {figures.gemm_peak_gflops:.0f} GFLOP/s",
        f"peak memory   {figures.peak_rss_mb:.0f} MB",
    ]
    if figures.peer is not None:
        peer = figures.peer
        lines += [
            f"peer          {peer.ms_per_step:.3f} ms, torch {peer.version}, {peer.layout}, {peer.peak_rss_mb:.0f} MB",
            f"peer / ours   {peer.ratio:.2f}",
        ]
    return lines
