// Curves of several runs in one picture. A run keeps its colour for as long as it is chosen.

import { Chart, merged, smoothed } from "./charts.js";
import { curveColour } from "./colours.js";
import { count, percent } from "./figures.js";

const POINTS = 600, SMOOTHING = 0.9, COLOURS = 8;
const QUANTITIES = [
  { name: "loss", title: "training loss" },
  { name: "accuracy", title: "training accuracy", shown: percent },
  { name: "r2", title: "training R²" },
  { name: "throughput", title: "samples per second", shown: count },
];

// The runs that were chosen, by their names: kept while the reader looks at one of them and comes back.
export class Choice {
  #places = new Map();

  has(run) {
    return this.#places.has(run);
  }

  toggle(run) {
    if (this.#places.delete(run)) return;
    const taken = new Set(this.#places.values());
    let place = 0;
    while (taken.has(place)) place++;
    this.#places.set(run, place);
  }

  colour(run) {
    return curveColour(this.#places.get(run));
  }

  dash(run) {
    return this.#places.get(run) < COLOURS ? undefined : [6, 3];
  }
}

export class Comparison {
  constructor(page, choice) {
    this.page = page;
    this.choice = choice;
    this.charts = new Map();
    this.found = new Map();
    this.range = null;
  }

  // Shows the runs of the list that are chosen; asks again for those that have written something since.
  async show(runs) {
    this.runs = runs.filter((run) => this.choice.has(run.id));
    this.page.$("comparison").hidden = !this.runs.length;
    this.draw();
    const stale = this.runs.filter((run) => this.found.get(run.id)?.written !== run.written || !this.found.get(run.id).curves.is_whole);
    await Promise.all(stale.map((run) => this.load(run)));
    if (stale.length) this.draw();
  }

  async load({ id, written }) {
    const curves = await this.page.ask(`api/runs/${encodeURIComponent(id)}/curves?points=${POINTS}`).catch(() => ({ step: [] }));
    this.found.set(id, { written, curves });
  }

  // Charts stay as they are while their runs do: only what is drawn in them changes.
  draw() {
    const shown = QUANTITIES.map((quantity) => [quantity, this.runs.filter((run) => this.found.get(run.id)?.curves[quantity.name])]);
    for (const [quantity, runs] of shown) {
      const key = JSON.stringify(runs.map((run) => run.id));
      if (this.charts.get(quantity.name)?.key !== key) this.build(quantity, runs, key);
      if (runs.length) this.charts.get(quantity.name).chart.show(this.dataOf(quantity, runs), this.range);
    }
  }

  build({ name, title, shown }, runs, key) {
    this.charts.get(name)?.chart.destroy();
    this.charts.delete(name);
    if (!runs.length) return;
    const series = runs.map((run) => ({ label: run.name, colour: this.choice.colour(run.id), dash: this.choice.dash(run.id) }));
    const chart = new Chart(this.page.$("compared"), title, series, { shown, onZoom: (first, last) => this.zoom(first, last) });
    this.charts.set(name, { chart, key });
  }

  dataOf({ name }, runs) {
    const curves = runs.map((run) => this.found.get(run.id).curves);
    const { all, spread } = merged([], curves.flatMap((one) => one.step));
    return [all, ...curves.map((one) => spread(one.step, smoothed(one[name], SMOOTHING)))];
  }

  zoom(first, last) {
    this.range = first === null ? null : [first, last];
    this.charts.forEach(({ chart }) => chart.show(chart.data, this.range));
  }

  restyle() {
    this.charts.forEach(({ chart }) => chart.restyle());
  }
}
