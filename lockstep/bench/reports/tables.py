"""The rows of the benches as lines of a table, within 80 columns."""

from collections.abc import Sequence

from lockstep.bench.reports.rows import (
    CoordinatorRow,
    ExchangeRow,
    Prediction,
    PredictionRow,
    QuantizationRow,
    ScalingRow,
    StepFigures,
    StragglerRow,
)
from lockstep.ps.run.timing import Split


def step_lines(figures: StepFigures) -> list[str]:
    """Return the figures as lines."""
    lines = [
        f"{figures.model}, batch {figures.batch}{_cut(figures)}, one thread, median of {figures.steps} steps",
        f"step          {figures.ms_per_step:.3f} ms, {figures.images_per_s:,.0f} images/s",
        f"products      {figures.gemm_gflops_share:.0%} of it at the peak of {figures.gemm_peak_gflops:.0f} GFLOP/s",
        f"peak memory   {figures.peak_rss_mb:.0f} MB",
    ]
    if figures.peer is not None:
        torch, size = figures.peer, figures.peer.peak_rss_mb
        lines += [
            f"torch         {torch.ms_per_step:.3f} ms, torch {torch.version}, {torch.layout}, {size:.0f} MB",
            f"torch / ours  {torch.ratio:.2f}",
        ]
    return lines


def _cut(figures: StepFigures) -> str:
    return f" in {figures.micro_batches} micro-batches" if figures.micro_batches > 1 else ""


def cut_lines(rows: Sequence[StepFigures]) -> list[str]:
    """Return, for each model and batch, the speed with each number of micro-batches over that with the first."""
    cuts = list(dict.fromkeys(row.micro_batches for row in rows))
    lines = ["micro-batches  " + "".join(f"{cut:>6}" for cut in cuts)]
    by_place = {(row.model, row.batch): row.ms_per_step for row in rows if row.micro_batches == cuts[0]}
    for (model, batch), first in by_place.items():
        times = [row.ms_per_step for row in rows if (row.model, row.batch) == (model, batch)]
        lines.append(f"{f'{model} {batch}':<15}" + "".join(f"{first / ms:>6.2f}" for ms in times))
    return lines


SCALING_HEAD = "model  batch over            ms  images/s  /one /ceil /torch comp exch updt wait"


def scaling_line(row: ScalingRow) -> str:
    """Return a row as a line: times, ratios, and the parts of a step."""
    of_one = f"{row.of_one_worker:.0%}" if row.of_one_worker is not None else "-"
    ratio = f"{row.peer.ratio:.2f}x" if row.peer is not None else "-"
    where = f"{row.workers}+{row.servers} {row.transport}"
    return (
        f"{row.model[:6]:<6} {row.batch:>5} {where:<10} {row.ms_per_step:>7.3f} {row.images_per_s:>9,.0f} "
        f"{of_one:>5} {row.of_ceiling:>5.0%} {ratio:>6} {shares(row.split)}"
    )


STRAGGLER_HEAD = "the last worker         ms  images/s  /alone  /all  /ideal  twice  fast  slow"


def straggler_line(row: StragglerRow) -> str:
    """Return a row as a line: speed, ratios, what was computed twice, and micro-batches of each worker."""
    slow = f"{row.micro_batches_of_slow:.1f}" if row.micro_batches_of_slow is not None else "-"
    return (
        f"{case_name(row.case):<17} {row.ms_per_step:>8.2f} {row.images_per_s:>9,.0f} "
        f"{row.of_alone:>7.2f} {row.of_all:>5.2f} {row.of_ideal:>7.2f} {row.duplicates:>6.1%} "
        f"{row.micro_batches_of_fast:>5.1f} {slow:>5}"
    )


def case_name(case: str) -> str:
    """Return what is done to the last worker in a case."""
    names = {"alone": "is not there", "all": "is as fast", "stall": "stalls", "stopped": "is stopped"}
    return names.get(case, f"is {case} times slower")


EXCHANGE_HEAD = "parameters  workers over sums           ms    GB/s  /torch  fill exch updt wait"


def exchange_line(row: ExchangeRow) -> str:
    """Return a row as a line."""
    ratio = f"{row.peer.ratio:.2f}x" if row.peer is not None else "-"
    where = f"{row.workers}+{row.servers} {row.transport}"
    return (
        f"{row.parameters:>10}  {where:<12} {row.wire:<8} {row.ms_per_exchange:>8.3f} {row.gb_per_s:>7.2f}  "
        f"{ratio:>6}  {shares(row.split)}"
    )


COORDINATOR_HEAD = "workers  micro-batches    events   events/s  us/event  growth  ms/step"


def coordinator_line(row: CoordinatorRow) -> str:
    """Return a row as a line."""
    return (
        f"{row.workers:>7}  {row.micro_batches:>13}  {row.events:>8,}  {row.events_per_s:>9,.0f}  "
        f"{row.us_per_event:>8.1f}  {row.growth:>5.2f}x  {row.ms_per_step:>7.2f}"
    )


QUANTIZATION_HEAD = "sums       bytes/value  add+round ns   pack ns  unpack ns"


def quantization_line(row: QuantizationRow) -> str:
    """Return a row as a line."""
    return f"{row.wire:<8}  {row.bytes_a_value:>12.3f}  {row.add_ns:>12.2f}  {row.pack_ns:>8.2f}  {row.unpack_ns:>9.2f}"


PREDICTION_HEAD = "workers  servers    ms/step      images/s  speedup  link  shards needed"


def prediction_line(row: PredictionRow) -> str:
    """Return a row as a line."""
    return (
        f"{row.workers:>7}  {row.servers:>7}  {row.ms_per_step:>9.2f}  {row.images_per_s:>12,.0f}  "
        f"{row.speedup:>6.1f}x  {row.link_share:>4.0%}  {row.shards:>13}"
    )


def prediction_summary(prediction: Prediction) -> list[str]:
    """Return a prediction in words: at how many workers links saturate, and how many shards avoid that."""
    lines = []
    for servers, row in {row.servers: row for row in prediction.rows}.items():
        name = "1 server" if servers == 1 else f"{servers} servers"
        if prediction.is_bound_by_link:
            name = f"the {prediction.link_gbit:g} Gbit/s link of 1 server" if servers == 1 else f"the links of {name}"
        if row.saturates_at is None:
            lines.append(f"{name} would never be a bottleneck")
        else:
            at = "1 worker" if row.saturates_at == 1 else f"{row.saturates_at} workers"
            lines.append(f"{name} would saturate at {at}: a step takes twice as long as with one server per worker")
    most = max(prediction.rows, key=lambda row: row.workers)
    lines.append(f"{most.workers} workers would need {most.shards} shards to avoid that")
    return lines


def shares(split: Split) -> str:
    """Return the parts of a step as shares of it: computing, exchange, update, waiting."""
    parts = (split.compute_s, split.exchange_s, split.update_s, split.waiting_s)
    return " ".join(f"{part / split.step_s:>4.0%}" for part in parts)
