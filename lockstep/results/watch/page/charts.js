// Charts of curves over the steps of a run: thinned by the server, smoothed and drawn here.

// Okabe and Ito's colours, which the colour-blind can tell apart.
export const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d00", "#999999"];
export const colourOf = (index) => COLOURS[index % COLOURS.length];

const MARKS = { begun: "#999999", joined: "#009e73", reassigned: "#d55e00", resumed: "#cc79a7", checkpoint: "#56b4e9" };

export const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// An exponential moving average, corrected for its beginning (Kingma and Ba, Adam, 2015, section 3).
export function smoothed(values, weight) {
  if (weight <= 0) return values;
  let average = 0, norm = 0;
  return values.map((value) => {
    if (value === null) return null;
    average = weight * average + (1 - weight) * value;
    norm = weight * norm + (1 - weight);
    return average / norm;
  });
}

export function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(2);
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

export const percent = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(2)}\u00a0%`);

// One chart of one quantity. `series` are {label, colour, isPoints, band}, `onZoom(first, last)` is called with a range.
export class Chart {
  constructor(parent, title, series, { isShare = false, isLog = false, onZoom, events = () => [] }) {
    this.box = document.createElement("div");
    this.box.className = "chart";
    const heading = document.createElement("h3");
    heading.textContent = title;
    this.box.append(heading);
    parent.append(this.box);
    this.options = { series, isShare, isLog, onZoom, events };
    this.data = [[], ...series.flatMap((one) => (one.band ? [[], [], []] : [[]]))];
    this.range = null;
    this.build();
    this.observer = new ResizeObserver(() => this.plot.setSize(this.size()));
    this.observer.observe(this.box);
  }

  size() {
    return { width: Math.max(240, this.box.clientWidth), height: 230 };
  }

  build() {
    const { series, isShare, isLog, onZoom, events } = this.options;
    const shown = isShare ? (value) => percent(value) : (value) => number(value);
    const ink = style("--soft"), line = style("--line");
    const axis = { stroke: ink, grid: { stroke: line, width: 0.6 }, ticks: { stroke: line, width: 0.6 } };
    const drawn = [{ label: "step", value: (_, value) => (value === null ? "–" : Math.round(value).toLocaleString("en")) }];
    const bands = [];
    for (const one of series) {
      if (one.band) {
        const faint = `${one.colour}00`;
        const at = drawn.length;
        drawn.push({ label: `${one.label}, highest`, stroke: faint, value: (_, v) => shown(v), points: { show: false } });
        drawn.push({ label: `${one.label}, lowest`, stroke: faint, value: (_, v) => shown(v), points: { show: false } });
        bands.push({ series: [at, at + 1], fill: `${one.colour}2e` });
      }
      drawn.push({
        label: one.label,
        stroke: one.colour,
        width: one.isPoints ? 0 : 1.8,
        dash: one.dash,
        spanGaps: true,
        points: one.isPoints ? { show: true, size: 7, fill: one.colour } : { show: false },
        value: (_, value) => shown(value),
      });
    }
    const options = {
      ...this.size(),
      legend: { live: true },
      cursor: { sync: { key: "steps" }, drag: { x: true, y: false, setScale: false } },
      scales: { x: { time: false, range: () => this.range ?? this.whole() }, y: { distr: isLog ? 3 : 1 } },
      axes: [
        { ...axis, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? tick.toLocaleString("en") : "")) },
        { ...axis, size: 64, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : isShare ? `${+(100 * tick).toFixed(2)} %` : number(tick))) },
      ],
      series: drawn,
      bands,
      hooks: {
        setSelect: [(plot) => {
          if (plot.select.width < 4) return;
          const [first, last] = [plot.posToVal(plot.select.left, "x"), plot.posToVal(plot.select.left + plot.select.width, "x")];
          plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
          onZoom(first, last);
        }],
        draw: [(plot) => drawMarks(plot, events())],
      },
    };
    this.plot = new uPlot(options, this.data, this.box);
    this.plot.over.addEventListener("dblclick", () => onZoom(null, null));
    // The lines of the range have no legend of their own: the mean's is enough to look at.
    this.plot.root.querySelectorAll(".u-legend .u-series").forEach((row) => {
      if (/, (highest|lowest)$/.test(row.querySelector(".u-label").textContent)) row.hidden = true;
    });
  }

  whole() {
    const steps = this.data[0];
    if (!steps.length) return [0, 1];
    const [first, last] = [steps[0], steps[steps.length - 1]];
    return first === last ? [first - 1, last + 1] : [first, last];
  }

  // `data` is [steps, and for each series its values, before them with a band the highest and the lowest].
  show(data, range) {
    this.data = data;
    this.range = range;
    this.plot.setData(data, true);
  }

  restyle(isLog) {
    this.options.isLog = isLog ?? this.options.isLog;
    this.plot.destroy();
    this.build();
  }

  destroy() {
    this.observer.disconnect();
    this.plot.destroy();
    this.box.remove();
  }
}

function drawMarks(plot, events) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  for (const event of events) {
    const x = Math.round(plot.valToPos(event.step, "x", true)) + 0.5;
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.strokeStyle = MARKS[event.kind] ?? "#999999";
    ctx.globalAlpha = event.kind === "checkpoint" ? 0.35 : 0.8;
    ctx.setLineDash(event.kind === "checkpoint" ? [2, 4] : [6, 3]);
    ctx.lineWidth = devicePixelRatio;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

// Merges points that stand at steps of their own, as the figures after an epoch, into the places of a curve.
export function merged(steps, extra) {
  const all = [...new Set([...steps, ...extra])].sort((a, b) => a - b);
  const place = new Map(all.map((step, index) => [step, index]));
  const spread = (at, values) => {
    const out = new Array(all.length).fill(null);
    at.forEach((step, index) => { out[place.get(step)] = values[index] ?? null; });
    return out;
  };
  return { all, spread };
}
