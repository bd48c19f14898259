"""Plot rows as a PNG: a program of its own, since matplotlib is an extra that takes half a second to load.

PYTHON -m lockstep.bench.reports.plot KIND FILE.png < rows.json
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle

import msgspec
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from lockstep.bench.reports.rows import CoordinatorRow, ExchangeRow, Prediction, ScalingRow, StepFigures, StragglerRow
from lockstep.bench.reports.tables import case_name
from lockstep.ps.run.timing import Split

#: The four parts of a step in the order of stacking, and their colours (by Okabe and Ito, which people with a colour
#: vision deficiency can tell apart).
PARTS = {"compute": "#0072B2", "exchange": "#E69F00", "update": "#009E73", "waiting": "#BBBBBB"}
CEILING, BASELINE = "#000000", "#D55E00"

#: Inches of a bar, of a panel without its bars, and of the width of the figure.
BAR, FRAME, WIDTH = 0.34, 1.3, 12.0

PLAIN = StrMethodFormatter("{x:,.0f}")


def scaling(raw: bytes) -> Figure:
    """Plot two panels per model: images/s next to ceiling and baseline, and the parts of a step."""
    rows = msgspec.json.decode(raw, type=list[ScalingRow])
    models = list(dict.fromkeys(row.model for row in rows))
    by_model = [[row for row in rows if row.model == model] for model in models]
    figure, heights = bars_figure([len(group) for group in by_model])
    grid = figure.subplots(len(models), 2, squeeze=False, height_ratios=heights)
    for model, group, (left, right) in zip(models, by_model, grid, strict=True):
        names = [f"batch {row.batch}, {workers(row.workers)}, {setup(row)}" for row in group]
        speeds(left, group)
        left.set(title=f"{model}, {group[0].scaling} scaling: speed, and its share of the ceiling", xlabel="images/s")
        parts(right, [row.split for row in group])
        right.set(title="time of a step", xlabel="ms")
        label_bars(left, names)
        label_bars(right, [""] * len(names))
    legend(figure, {CEILING: True, BASELINE: any(row.peer for row in rows)})
    return figure


def speeds(axes: Axes, rows: Sequence[ScalingRow]) -> None:
    """Plot our images/s as bars, and those of the ceiling and the baseline as markers."""
    places = range(len(rows))
    axes.barh(places, [row.images_per_s for row in rows], color=PARTS["compute"])
    markers(axes, [(at, row.ceiling_images_per_s) for at, row in enumerate(rows)], CEILING, "|")
    markers(axes, [(at, row.peer.images_per_s) for at, row in enumerate(rows) if row.peer], BASELINE, "D")
    for at, row in enumerate(rows):
        end = max(row.images_per_s, row.ceiling_images_per_s, row.peer.images_per_s if row.peer else 0.0)
        annotate(axes, end, at, f"{row.of_ceiling:.0%}" + (f", {row.peer.ratio:.2f}x torch" if row.peer else ""))
    axes.set_xlim(right=axes.get_xlim()[1] * 1.3)
    axes.xaxis.set_major_formatter(PLAIN)
    axes.locator_params(axis="x", nbins=6)  # more numbers of six digits would overlap


def step(raw: bytes) -> Figure:
    """Plot a pair of bars per model and batch: the time and memory of a step, ours and the baseline's."""
    rows = msgspec.json.decode(raw, type=list[StepFigures])
    figure = Figure(figsize=(WIDTH, len(rows) * 2 * BAR + FRAME + 0.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [f"{row.model}, {row.batch}" for row in rows]
    pair(left, [row.ms_per_step for row in rows], [row.peer.ms_per_step if row.peer else 0.0 for row in rows])
    left.set(title="a training step of one process, one thread", xlabel="ms", xscale="log")
    for at, row in enumerate(rows):
        end = max(row.ms_per_step, row.peer.ms_per_step if row.peer else 0.0)
        text = f"{row.images_per_s:,.0f}/s" + (f", {row.peer.ratio:.2f}x torch" if row.peer else "")
        annotate(left, end, at, text)
    left.set_xlim(left=min(row.ms_per_step for row in rows) / 2, right=left.get_xlim()[1] * 12)
    pair(right, [row.peak_rss_mb for row in rows], [row.peer.peak_rss_mb if row.peer else 0.0 for row in rows])
    right.set(title="peak memory of the process", xlabel="MB")
    for axes, labels in ((left, names), (right, [""] * len(names))):
        axes.set_yticks(range(len(rows)), labels)
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    handles = left.containers[: 2 if any(row.peer for row in rows) else 1]
    names = ["Lockstep", "torch, in its faster layout"]
    figure.legend(handles, names[: len(handles)], loc="outside upper center", ncols=2, frameon=False)
    return figure


def pair(axes: Axes, ours: Sequence[float], theirs: Sequence[float]) -> None:
    """Plot two bars at each place, ours above."""
    axes.barh([at - 0.2 for at in range(len(ours))], ours, height=0.4, color=PARTS["compute"])
    axes.barh([at + 0.2 for at in range(len(theirs))], theirs, height=0.4, color=BASELINE)


def exchange(raw: bytes) -> Figure:
    """Plot a panel per size: the parts of each exchange as a bar, and the baseline's time as a marker."""
    rows = msgspec.json.decode(raw, type=list[ExchangeRow])
    by_size = [
        [row for row in rows if row.parameters == size] for size in dict.fromkeys(row.parameters for row in rows)
    ]
    figure, heights = bars_figure([len(group) for group in by_size])
    for axes, group in zip(
        figure.subplots(len(by_size), squeeze=False, height_ratios=heights)[:, 0], by_size, strict=True
    ):
        parts(axes, [row.split for row in group])
        markers(axes, [(at, row.peer.ms_per_exchange) for at, row in enumerate(group) if row.peer], BASELINE, "D")
        label_bars(axes, [f"{workers(row.workers)}, {setup(row)}" for row in group])
        for at, row in enumerate(group):
            end = max(row.split.step_s * 1e3, row.peer.ms_per_exchange if row.peer else 0.0)
            text = f"{row.ms_per_exchange:.2f} ms, {row.gb_per_s:.1f} GB/s"
            annotate(axes, end, at, text + (f", {row.peer.ratio:.1f}x torch" if row.peer else ""))
        axes.set(title=f"{group[0].parameters:,} parameters: push, sum, update, pull", xlabel="ms")
        axes.set_xlim(right=axes.get_xlim()[1] * 1.35)
    legend(figure, {BASELINE: any(row.peer for row in rows)})
    return figure


def straggler(raw: bytes) -> Figure:
    """Plot two panels: images/s of each case next to the ideal, and the micro-batches of each worker in a step."""
    rows = msgspec.json.decode(raw, type=list[StragglerRow])
    figure = Figure(figsize=(WIDTH, len(rows) * BAR + FRAME + 1.0), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    ideals = [rows[0].images_per_s * row.of_alone / row.of_ideal for row in rows]
    left.barh(range(len(rows)), [row.images_per_s for row in rows], color=PARTS["compute"])
    markers(left, list(enumerate(ideals)), CEILING, "|")
    left.axvline(rows[0].images_per_s, color=BASELINE, linewidth=1.2)
    for at, (row, ideal) in enumerate(zip(rows, ideals, strict=True)):
        text = f"{row.of_alone:.2f}x without it, {row.of_ideal:.0%} of the ideal"
        annotate(left, max(row.images_per_s, ideal, rows[0].images_per_s), at, text)
    label_bars(left, [f"the last worker {case_name(row.case)}" for row in rows])
    left.set_xlim(right=left.get_xlim()[1] * 1.6)
    left.xaxis.set_major_formatter(PLAIN)
    left.locator_params(axis="x", nbins=6)
    split = f"{rows[0].batch} samples in {rows[0].micro_batches} micro-batches"
    left.set(title=f"{rows[0].model}, {split}", xlabel="images/s")
    micro_batches_of_workers(right, rows)
    key = [left.containers[0], left.collections[0], left.lines[0], *right.containers]
    names = ["measured", "ideal: the speeds of all workers", "the other workers alone"]
    figure.legend(key, [*names, *MICRO_BATCHES], loc="outside upper center", ncols=3, frameon=False)
    return figure


#: Whose micro-batches they are, and the colours of their bars.
MICRO_BATCHES = {
    "micro-batches of the others": PARTS["update"],
    "micro-batches of the last worker": PARTS["exchange"],
    "leased and not used": PARTS["waiting"],
}


def micro_batches_of_workers(axes: Axes, rows: Sequence[StragglerRow]) -> None:
    """Plot stacked bars of the micro-batches of a step."""
    lasts = [row.micro_batches_of_slow or 0.0 for row in rows]
    others = [row.micro_batches - last for row, last in zip(rows, lasts, strict=True)]
    unused, lefts = [row.duplicates * row.micro_batches for row in rows], [0.0] * len(rows)
    for color, widths in zip(MICRO_BATCHES.values(), (others, lasts, unused), strict=True):
        axes.barh(range(len(rows)), widths, left=lefts, color=color)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axes.set(title="micro-batches of a step", xlabel="micro-batches")
    label_bars(axes, [""] * len(rows))


def coordinator(raw: bytes) -> Figure:
    """Plot the costs of an event and of a step by the number of workers."""
    rows = msgspec.json.decode(raw, type=list[CoordinatorRow])
    figure = Figure(figsize=(WIDTH, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts = [row.workers for row in rows]
    left.plot(counts, [row.us_per_event for row in rows], "o-", color=PARTS["compute"])
    left.set(title="the coordinator: microseconds per event", ylabel="µs")
    left.set_ylim(0, 1.15 * max(row.us_per_event for row in rows))
    right.plot(counts, [row.ms_per_step for row in rows], "o-", color=PARTS["exchange"])
    right.set(title="milliseconds of all decisions per step", ylabel="ms", yscale="log")
    right.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    for axes in (left, right):
        by_workers(axes)
    return figure


def predict(raw: bytes) -> Figure:
    """Plot images/s by the number of workers, with a curve per number of servers, and the measurements."""
    prediction = msgspec.json.decode(raw, type=Prediction)
    figure = Figure(figsize=(WIDTH, 6.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for color, servers in zip(
        cycle(PARTS.values()), dict.fromkeys(row.servers for row in prediction.rows), strict=False
    ):
        rows = [row for row in prediction.rows if row.servers == servers]
        counts, name = [row.workers for row in rows], "1 server" if servers == 1 else f"{servers} servers"
        left.plot(counts, [row.images_per_s for row in rows], "o-", ms=4, color=color, label=name)
        right.plot(counts, [row.link_share * 100 for row in rows], "o-", ms=4, color=color)
        if (at := rows[0].saturates_at) is not None and at <= counts[-1]:
            right.axvline(at, color=color, ls=":", label=f"{name}: saturated at {workers(at)}")
    here = prediction.here
    left.plot(
        [at.workers for at in here], [at.images_per_s for at in here], "--", color="#555555", label=_machine(prediction)
    )
    measured = prediction.measured
    places = [at.workers for at in measured], [at.images_per_s for at in measured]
    left.scatter(*places, marker="D", color=BASELINE, zorder=3, label="measured")
    left.set(title=f"{prediction.name}: images/s", ylabel="images/s", yscale="log")
    right.set(
        title=f"use of the busiest link, {prediction.link_gbit:g} Gbit/s each", ylabel="% of a step", ylim=(0, 100)
    )
    for axes in (left, right):
        by_workers(axes)
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    left.yaxis.set_major_formatter(PLAIN)
    return figure


def _machine(prediction: Prediction) -> str:
    return f"the model of one machine ({prediction.cores} cores)"


def by_workers(axes: Axes) -> None:
    """Make the x axis the number of workers."""
    axes.set(xlabel="workers", xscale="log")
    axes.xaxis.set_major_formatter(PLAIN)
    axes.grid(alpha=0.3)


def bars_figure(counts: Sequence[int]) -> tuple[Figure, list[float]]:
    """Return a figure for panels with those numbers of bars, one above the other, and their heights."""
    heights = [count * BAR + FRAME for count in counts]
    return Figure(figsize=(WIDTH, sum(heights) + 0.5), layout="constrained"), heights


def parts(axes: Axes, splits: Sequence[Split]) -> None:
    """Plot stacked bars of milliseconds."""
    lefts = [0.0] * len(splits)
    for name, color in PARTS.items():
        widths = [max(0.0, getattr(split, f"{name}_s")) * 1e3 for split in splits]
        axes.barh(range(len(splits)), widths, left=lefts, color=color)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]


def markers(axes: Axes, points: Sequence[tuple[int, float]], color: str, shape: str) -> None:
    """Plot a marker for some of the bars."""
    if points:
        places, values = zip(*points, strict=True)
        size = 260 if shape == "|" else 40
        axes.scatter(values, places, marker=shape, color=color, s=size, linewidths=2 if shape == "|" else 1, zorder=3)


def annotate(axes: Axes, end: float, at: int, text: str) -> None:
    """Write a text next to a bar."""
    axes.annotate(text, (end, at), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9)


def label_bars(axes: Axes, names: Sequence[str]) -> None:
    """Label the bars from top to bottom."""
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def legend(figure: Figure, markers_of: Mapping[str, bool]) -> None:
    """Add a legend of the colours above the panels, and of those markers that occur."""
    key = figure.add_axes((0, 0, 0.001, 0.001))
    key.set_axis_off()
    handles: list[Container | Artist] = [key.barh([0], [0], color=color, label=name) for name, color in PARTS.items()]
    if markers_of.get(CEILING):
        name = "ceiling (independent processes)"
        handles.append(key.scatter([], [], marker="|", color=CEILING, s=160, linewidths=2, label=name))
    if markers_of.get(BASELINE):
        handles.append(key.scatter([], [], marker="D", color=BASELINE, s=40, label="torch over gloo"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)


def workers(count: int) -> str:
    """Return a number of workers in words."""
    return "1 worker" if count == 1 else f"{count} workers"


def setup(row: ScalingRow | ExchangeRow) -> str:
    """Return the transport and the number of servers."""
    carried = row.transport if row.transport == row.carrier else f"{row.transport} ({row.carrier})"
    return carried if row.servers == 1 else f"{carried}, {row.servers} servers"


PLOTS: dict[str, Callable[[bytes], Figure]] = {
    "step": step,
    "scaling": scaling,
    "straggler": straggler,
    "exchange": exchange,
    "coordinator": coordinator,
    "predict": predict,
}


def main(arguments: Sequence[str]) -> None:
    """Read rows from standard input and plot them."""
    kind, path = arguments
    PLOTS[kind](sys.stdin.buffer.read()).savefig(path, dpi=150, format="png")


if __name__ == "__main__":
    main(sys.argv[1:])
