"""The rows of a bench for a person, a line each; below 80 columns."""

from lockstep.bench.rows import ExchangeRow, ScalingRow
from ps.timing import Split

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


EXCHANGE_HEAD = "parameters  workers over        ms     GB/s   /peer  fill exch updt wait"


def exchange_line(row: ExchangeRow) -> str:
    """Return a row on one line."""
    ratio = f"{row.peer.ratio:.2f}x" if row.peer is not None else "-"
    where = f"{row.workers}+{row.servers} {row.transport}"
    return (
        f"{row.parameters:>10}  {where:<12} {row.ms_per_exchange:>9.3f} {row.gb_per_s:>8.2f}  {ratio:>6}  "
        f"{shares(row.split)}"
    )


def shares(split: Split) -> str:
    """Return the parts of a step as shares of it: computing, exchange, update, waiting."""
    parts = (split.compute_s, split.exchange_s, split.update_s, split.waiting_s)
    return " ".join(f"{part / split.step_s:>4.0%}" for part in parts)
