// The curves of one run: which part of them is shown, how smoothly, and when they are asked for again.

import { Chart, merged, smoothed } from "./charts.js";
import { curveColour } from "./colours.js";
import { count, number, percent } from "./figures.js";

const POINTS = 900, CURVES_MS = 300;

export class RunCurves {
  constructor(page) {
    this.page = page;
    this.range = [null, null];
    this.charts = [];
    this.asked = -CURVES_MS;
    page.on(page.$("reset"), "click", () => this.zoom(null, null));
    for (const id of ["smoothing", "marks"]) page.on(page.$(id), "input", () => this.show());
    page.on(page.$("log"), "change", () => this.restyle());
  }

  // Asks at most every 300 ms, and once more after the last call.
  async schedule() {
    this.isStale = true;
    if (this.isAsking) return;
    this.isAsking = true;
    while (this.isStale) {
      await this.page.pause(Math.max(0, this.asked + CURVES_MS - performance.now()));
      this.isStale = false;
      await this.load();
    }
    this.isAsking = false;
  }

  async load() {
    this.asked = performance.now();
    const range = this.range, query = new URLSearchParams({ points: POINTS });
    if (range[0] !== null) { query.set("first", range[0]); query.set("last", range[1]); }
    const found = await this.page.ask(`${this.page.base}/curves?${query}`).catch(() => null);
    // Without an answer the snapshots show that the server is gone; one to another range is out of date.
    if (found === null || range !== this.range) return;
    this.found = found;
    this.show();
  }

  plans() {
    const { epochs, epoch_ends: ends } = this.page.snapshot;
    const steps = ends.map((end, index) => end ?? epochs[index].epoch);
    const points = (name, label, index) => ({ label, colour: curveColour(index), isPoints: true, steps, values: epochs.map((one) => one[name] ?? null) });
    const measured = (name) => [points(`test_${name}`, "test", 1), points(`val_${name}`, "validation", 2)].filter((one) => one.values.some((value) => value !== null));
    return [
      { title: "loss", name: "loss", label: "training", colour: curveColour(0), points: measured("loss") },
      { title: "accuracy", name: "accuracy", label: "training", colour: curveColour(0), points: measured("accuracy"), shown: percent },
      { title: "R²", name: "r2", label: "training", colour: curveColour(0), points: measured("r2") },
      { title: "learning rate", name: "lr", label: "learning rate", colour: curveColour(2), points: [], isExact: true, shown: (rate) => number(rate, 6) },
      { title: "samples per second", name: "throughput", label: "samples per second", colour: curveColour(3), points: [], shown: count },
    ].filter((plan) => this.found[plan.name]);
  }

  show() {
    if (!this.found) return;
    const plans = this.plans();
    this.build(plans);
    plans.forEach((plan, index) => this.charts[index].show(this.dataOf(plan), this.range[0] === null ? null : this.range));
    this.page.$("reset").hidden = this.range[0] === null;
  }

  build(plans) {
    const names = plans.map((plan) => `${plan.title}/${plan.points.map((one) => one.label)}`).join();
    if (names === this.names) return;
    this.names = names;
    this.charts.forEach((chart) => chart.destroy());
    this.charts = plans.map(({ title, label, colour, points, shown, isExact, name }) => new Chart(this.page.$("charts"), title, [{ label, colour, band: !isExact }, ...points], {
      shown,
      isLog: name === "loss" && this.page.$("log").checked,
      onZoom: (first, last) => this.zoom(first, last),
      events: () => (this.page.$("marks").checked ? this.page.snapshot.events : []),
    }));
  }

  dataOf({ name, isExact, points }) {
    const [first, last] = this.range, steps = this.found.step, of = this.found;
    const inside = (step) => first === null || (step >= first && step <= last);
    const { all, spread } = merged(steps, points.flatMap((one) => one.steps.filter(inside)));
    const curve = isExact ? [of[name]] : [of[`${name}_max`], of[`${name}_min`], smoothed(of[name], this.weight())];
    const rest = points.map((one) => {
      const kept = one.steps.map((step, at) => [step, one.values[at]]).filter(([step]) => inside(step));
      return spread(kept.map(([step]) => step), kept.map(([, value]) => value));
    });
    return [all, ...curve.map((values) => spread(steps, values)), ...rest];
  }

  weight() {
    const chosen = Number(this.page.$("smoothing").value);
    return chosen && (chosen / 100) ** 0.35 * 0.995;
  }

  zoom(first, last) {
    if (!this.page.snapshot) return;
    if (first !== null) {
      const { first_step: low, last_step: high } = this.page.snapshot;
      first = Math.max(low ?? 0, Math.floor(first));
      last = Math.min(high ?? 0, Math.ceil(last));
      if (last - first < 2) [first, last] = this.range;
      else if (first === low && last === high) [first, last] = [null, null];
    }
    this.range = [first, last];
    this.asked = -CURVES_MS;
    this.schedule();
  }

  // Moves by a quarter, or halves or doubles what is shown.
  move(direction, factor) {
    const { first_step: low, last_step: high } = this.page.snapshot ?? {};
    if (high === null || high === undefined) return;
    const [first, last] = this.range[0] === null ? [low, high] : this.range;
    const middle = (first + last) / 2 + (direction * (last - first)) / 4;
    const half = ((last - first) * factor) / 2;
    const from = Math.min(Math.max(low, middle - half), high - Math.min(2 * half, high - low));
    this.zoom(from, from + 2 * half);
  }

  restyle() {
    for (const chart of this.charts) chart.restyle(chart.title === "loss" && this.page.$("log").checked);
    this.show();
  }
}
