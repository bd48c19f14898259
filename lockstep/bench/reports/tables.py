"""The rows of a bench for a person, a line each; below 80 columns."""

from lockstep.bench.reports.rows import CoordinatorRow, ExchangeRow, Prediction, PredictionRow, ScalingRow, WireRow
from ps.run.timing import Split

SCALING_HEAD = "model   batch  workers over        ms  images/s   /one  /ceil  /peer  comp exch updt wait"


def scaling_line(row: ScalingRow) -> str:
    """Return a row on one line: times, what it is compared to, and the parts of a step."""
    of_one = f"{row.of_one_worker:.0%}" if row.of_one_worker is not None else "-"
    ratio = f"{row.peer.ratio:.2f}x" if row.peer is not None else "-"
    where = f"{row.workers}+{row.servers} {row.transport}"
    return (
        f"{row.model[:7]:<7} {row.batch:>5}  {where:<13} {row.ms_per_step:>8.3f} {row.images_per_s:>9,.0f}  "
        f"{of_one:>5}  {row.of_ceiling:>5.0%}  {ratio:>5}  {shares(row.split)}"
    )


EXCHANGE_HEAD = "parameters  workers over sums           ms    GB/s   /peer  fill exch updt wait"


def exchange_line(row: ExchangeRow) -> str:
    """Return a row on one line."""
    ratio = f"{row.peer.ratio:.2f}x" if row.peer is not None else "-"
    where = f"{row.workers}+{row.servers} {row.transport}"
    return (
        f"{row.parameters:>10}  {where:<12} {row.wire:<8} {row.ms_per_exchange:>8.3f} {row.gb_per_s:>7.2f}  "
        f"{ratio:>6}  {shares(row.split)}"
    )


COORDINATOR_HEAD = "workers  micro-batches    events   events/s  us/event  growth  ms/step"


def coordinator_line(row: CoordinatorRow) -> str:
    """Return a row on one line."""
    return (
        f"{row.workers:>7}  {row.micro_batches:>13}  {row.events:>8,}  {row.events_per_s:>9,.0f}  "
        f"{row.us_per_event:>8.1f}  {row.growth:>5.2f}x  {row.ms_per_step:>7.2f}"
    )


WIRE_HEAD = "sums       bytes/value  add+round ns   pack ns  unpack ns"


def wire_line(row: WireRow) -> str:
    """Return a row on one line."""
    return f"{row.wire:<8}  {row.bytes_a_value:>12.3f}  {row.add_ns:>12.2f}  {row.pack_ns:>8.2f}  {row.unpack_ns:>9.2f}"


PREDICTION_HEAD = "workers  servers    ms/step      images/s  speedup  link  shards needed"


def prediction_line(row: PredictionRow) -> str:
    """Return a row on one line."""
    return (
        f"{row.workers:>7}  {row.servers:>7}  {row.ms_per_step:>9.2f}  {row.images_per_s:>12,.0f}  "
        f"{row.speedup:>6.1f}x  {row.link_share:>4.0%}  {row.shards:>13}"
    )


def prediction_words(prediction: Prediction) -> list[str]:
    """Return what a prediction comes to: where links saturate, and how many shards that takes."""
    lines = []
    for servers, row in {row.servers: row for row in prediction.rows}.items():
        who = "1 server" if servers == 1 else f"{servers} servers"
        if prediction.is_bound_by_link:
            who = f"the {prediction.link_gbit:g} Gbit/s link of 1 server" if servers == 1 else f"the links of {who}"
        if row.saturates_at is None:
            lines.append(f"{who} would never be in the way")
        else:
            at = "1 worker" if row.saturates_at == 1 else f"{row.saturates_at} workers"
            lines.append(f"{who} would saturate at {at}: a step twice as long as with a server for each")
    most = max(prediction.rows, key=lambda row: row.workers)
    lines.append(f"{most.workers} workers would take {most.shards} shards, so as not to be held up that long")
    return lines


def shares(split: Split) -> str:
    """Return the parts of a step as shares of it: computing, exchange, update, waiting."""
    parts = (split.compute_s, split.exchange_s, split.update_s, split.waiting_s)
    return " ".join(f"{part / split.step_s:>4.0%}" for part in parts)
