// Charts of curves over the steps of a run: thinned by the server, smoothed and drawn here.

import { EVENTS, style } from "./colours.js";
import { element } from "./dom.js";
import { count, number } from "./figures.js";

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

// Merges points that have steps of their own, as the figures after an epoch, into the places of a curve.
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

// One chart of one quantity. `series` are {label, colour, isPoints, band, dash}, `onZoom(first, last)` is called with a
// range, `shown(value)` returns a value's text, and `events()` what is marked.
export class Chart {
  constructor(parent, title, series, { shown = number, isLog = false, onZoom, events = () => [] }) {
    this.box = element("div", undefined, "chart");
    this.box.append(element("h3", title));
    parent.append(this.box);
    this.title = title;
    this.options = { series, isLog, onZoom, events };
    this.shown = (value) => shown(value);
    this.data = [[], ...series.flatMap((one) => (one.band ? [[], [], []] : [[]]))];
    this.range = null;
    this.build();
    this.observer = new ResizeObserver(() => this.plot.setSize(this.size()));
    this.observer.observe(this.box);
  }

  size() {
    return { width: Math.max(240, this.box.clientWidth), height: 250 };
  }

  build() {
    const { isLog, onZoom, events } = this.options;
    const { drawn, bands } = this.lines();
    const line = style("--line"), font = "12px system-ui, sans-serif";
    const axis = { stroke: style("--soft"), font, labelFont: font, labelSize: 20, grid: { stroke: line, width: 0.6 }, ticks: { stroke: line, width: 0.6 } };
    const onSelect = (plot) => {
      const { left, width } = plot.select;
      if (width < 4) return;
      plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
      onZoom(plot.posToVal(left, "x"), plot.posToVal(left + width, "x"));
    };
    this.plot = new uPlot({
      ...this.size(),
      legend: { live: true },
      cursor: { sync: { key: "steps" }, drag: { x: true, y: false, setScale: false } },
      scales: { x: { time: false, range: () => this.range ?? this.whole() }, y: { distr: isLog ? 3 : 1 } },
      axes: [
        { ...axis, label: "step", size: 38, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? count(tick) : "")) },
        { ...axis, label: this.title, size: 72, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : this.shown(tick).replace(/\.00(?=\u00a0%)/, ""))) },
      ],
      series: drawn,
      bands,
      hooks: { setSelect: [onSelect], draw: [(plot) => drawMarks(plot, events())], setLegend: [(plot) => this.showLast(plot)] },
    }, this.data, this.box);
    this.plot.over.addEventListener("dblclick", () => onZoom(null, null));
    this.label();
  }

  lines() {
    const value = (_, shown) => this.shown(shown);
    const drawn = [{ label: "step", value: (_, step) => count(step) }], bands = [];
    for (const one of this.options.series) {
      if (one.band) {
        const edge = { stroke: `${one.colour}00`, value, points: { show: false }, class: "edge" };
        bands.push({ series: [drawn.length, drawn.length + 1], fill: `${one.colour}2e` });
        drawn.push({ ...edge, label: "highest" }, { ...edge, label: "lowest" });
      }
      const points = one.isPoints ? { show: true, size: 7, fill: one.colour } : { show: false };
      drawn.push({ label: one.label, stroke: one.colour, width: one.isPoints ? 0 : 1.8, dash: one.dash, spanGaps: true, points, value });
    }
    return { drawn, bands };
  }

  // While nobody points at a step, the legend has the last value of each curve.
  showLast(plot) {
    if (plot.cursor.idx !== null && plot.cursor.idx !== undefined) return;
    plot.setLegend({ idxs: this.data.map(lastPlace) }, false);
  }

  // Names the canvas and the legend for those who do not see them.
  label() {
    const texts = this.options.series.map((one, index) => `${one.label} ${this.shown(this.data[this.column(index)].findLast((value) => value !== null))}`);
    const canvas = this.plot.root.querySelector("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${this.title} over the steps; last: ${texts.join(", ")}`);
    this.plot.root.querySelectorAll(".u-legend th").forEach((head) => { head.scope = "row"; });
  }

  // The column of `data` that has the values of a series.
  column(index) {
    return this.options.series.slice(0, index + 1).reduce((at, one) => at + (one.band ? 3 : 1), 0);
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
    this.showLast(this.plot);
    this.label();
  }

  restyle(isLog) {
    this.options.isLog = isLog ?? this.options.isLog;
    this.plot.destroy();
    this.build();
    this.show(this.data, this.range);
  }

  destroy() {
    this.observer.disconnect();
    this.plot.destroy();
    this.box.remove();
  }
}

const lastPlace = (values) => {
  const place = values.findLastIndex((value) => value !== null);
  return place < 0 ? null : place;
};

function drawMarks(plot, events) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  for (const event of events) {
    const x = Math.round(plot.valToPos(event.step, "x", true)) + 0.5;
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.strokeStyle = EVENTS[event.kind];
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
