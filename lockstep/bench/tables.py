"""The rows of a bench for a person, a line each; below 80 columns."""

from lockstep.bench.rows import ScalingRow

SCALING_HEAD = "model   batch  workers over        ms  images/s   /one  /ceil  /peer  comp exch updt wait"


def scaling_line(row: ScalingRow) -> str:
    """Return a row on one line: times, what it is compared to, and the parts of a step."""
    of_one = f"{row.of_one_worker:.0%}" if row.of_one_worker is not None else "-"
    ratio = f"{row.peer.ratio:.2f}x" if row.peer is not None else "-"
    parts = (row.split.compute_s, row.split.exchange_s, row.split.update_s, row.split.waiting_s)
    shares = " ".join(f"{part / row.split.step_s:>4.0%}" for part in parts)
    where = f"{row.workers}+{row.servers} {row.transport}"
    return (
        f"{row.model[:7]:<7} {row.batch:>5}  {where:<13} {row.ms_per_step:>8.3f} {row.images_per_s:>9,.0f}  "
        f"{of_one:>5}  {row.of_ceiling:>5.0%}  {ratio:>5}  {shares}"
    )
