// One run: what its server streams, and the parts of the page that show it.

import { EVENTS, workerColour } from "./colours.js";
import { element, fillTable, setText, swatch } from "./dom.js";
import { Drawing } from "./draw.js";
import { evaluate } from "./evaluation.js";
import { bytes, count, duration, number, percent, speed } from "./figures.js";
import { Page } from "./page.js";
import { RunCurves } from "./run_curves.js";
import { drawTimeline } from "./timeline.js";

const LOOK_MS = 3000;

const STATES = {
  interrupted: "Somebody interrupted this run. Resume it with:",
  stopped: "This run has written nothing for a while: its processes were probably killed. Resume it with:",
};

export class RunPage extends Page {
  // `lookAgain` finds out what a folder holds in which nothing was yet.
  constructor(run, source, lookAgain) {
    super("run-page");
    this.run = run;
    this.base = `api/runs/${encodeURIComponent(run)}`;
    this.source = source;
    this.lookAgain = lookAgain;
    this.snapshot = null;
    this.curves = new RunCurves(this);
    this.on(this.$("evaluate"), "click", () => evaluate(this));
    this.on(window, "resize", () => this.snapshot && this.drawTimeline());
    this.$("all").hidden = !source.is_many;
    setText(this.$("title"), this.run);
    this.follow(`${this.base}/snapshot`, (snapshot) => this.update(snapshot), () => this.showUnknown());
  }

  showUnknown() {
    this.$("shown").hidden = true;
    const { folder } = this.source;
    const advice = folder ? "Go back to the list of all runs, or start one with this name:" : "Go back to the list of all runs.";
    this.showNotice(`There is no run called ${this.run} here: it was removed, renamed, or the link is wrong. ${advice}`, folder && `lockstep train --run-dir ${folder}/${this.run}`);
  }

  showNotice(text, command) {
    this.$("notice").hidden = false;
    this.$("notice").textContent = text;
    if (command) this.$("notice").append(element("pre", command));
  }

  update(snapshot) {
    const before = this.snapshot;
    this.snapshot = snapshot;
    const { state, phase } = snapshot;
    setText(this.$("title"), snapshot.name + (snapshot.model ? ` · ${snapshot.model}` : ""));
    document.title = `${snapshot.name} · Lockstep`;
    setText(this.$("state"), phase && state === "running" ? phase : state);
    this.$("state").className = `badge ${state}`;
    this.$("shown").hidden = state === "missing";
    this.showState(snapshot);
    this.showFigures(snapshot);
    this.$("workers").hidden = snapshot.is_alone;
    this.$("alone").hidden = !snapshot.is_alone;
    showWorkers(this.$("workers"), snapshot.workers);
    showProcesses(this, snapshot.processes);
    showEpochs(this.$("epochs"), snapshot.epochs);
    if (!before || JSON.stringify(before.events) !== JSON.stringify(snapshot.events)) this.showEvents(snapshot.events);
    this.drawTimeline();
    const isOther = !before || before.state !== state || before.weights_sha256 !== snapshot.weights_sha256;
    if (isOther || !this.facts?.has_begun) this.loadFacts();
    this.curves.schedule();
  }

  showState({ state, failure, folder }) {
    const told = `${state} ${failure}`;
    if (told === this.told) return;
    this.told = told;
    this.$("notice").hidden = true;
    if (state === "interrupted" || state === "stopped") this.showNotice(STATES[state], `lockstep train --resume ${folder}`);
    else if (failure) this.showNotice(failure);
    if (state !== "missing") return;
    if (folder) this.showNotice("Nothing is here yet. This page shows the run as soon as it begins:", `lockstep train --run-dir ${folder}`);
    else this.showNotice("The server of this run does not answer.");
    this.wait();
  }

  async wait() {
    if (this.isWaiting) return;
    this.isWaiting = true;
    while (this.snapshot.state === "missing") {
      await this.pause(LOOK_MS);
      await this.lookAgain();
    }
    this.isWaiting = false;
  }

  restyle() {
    this.curves.restyle();
    if (this.snapshot) this.drawTimeline();
  }

  zoom(first, last) {
    this.curves.zoom(first, last);
  }

  move(direction, factor) {
    this.curves.move(direction, factor);
  }

  drawTimeline() {
    this.$("leases").hidden = !drawTimeline(this.$("timeline"), this.$("timeline-legend"), this.snapshot);
  }

  showFigures(snapshot) {
    const shown = snapshot.tiles.map(({ name, value, unit, whole }) => [name, UNITS[unit](value, whole)]), box = this.$("figures");
    if (box.children.length !== shown.length) {
      box.replaceChildren(...shown.map(([name]) => {
        const one = element("div", undefined, name.startsWith("weights") ? "wide digest" : "");
        one.append(element("b"), element("span"));
        return one;
      }));
    }
    shown.forEach(([name, value], index) => {
      setText(box.children[index].firstChild, value);
      setText(box.children[index].lastChild, name);
    });
  }

  showEvents(events) {
    this.$("events").replaceChildren(...[...events].reverse().map((one) => {
      const line = element("li"), kind = element("span", one.kind);
      kind.prepend(swatch(EVENTS[one.kind]));
      line.append(element("span", `step ${count(one.step)}`), kind, element("span", one.text));
      return line;
    }));
    const kinds = Object.keys(EVENTS).filter((kind) => events.some((one) => one.kind === kind));
    this.$("events-key").replaceChildren(...kinds.map((kind) => {
      const line = element("span", kind);
      line.prepend(swatch(EVENTS[kind], true));
      return line;
    }));
  }

  async loadFacts() {
    let facts;
    try {
      facts = await this.ask(`${this.base}/facts`);
    } catch {
      return;
    }
    this.facts = facts;
    this.$("evaluation").hidden = !facts.is_classification;
    if (facts.has_begun && !this.isOffered) this.offerDrawing();
    showJob(this.$("job"), facts.job, this.snapshot.folder);
    describe(this.$("receipt"), facts.receipt);
  }

  async offerDrawing() {
    this.isOffered = true;
    const { is_possible: isPossible, names } = await this.ask(`${this.base}/drawing`).catch(() => ({}));
    this.$("drawing").hidden = !isPossible;
    if (isPossible) this.drawing = new Drawing(this, names);
  }
}

// What the units of tiles are called, and how they are read.
const UNITS = {
  count: (value, whole) => (whole ? `${count(value)} / ${count(whole)}` : count(value)),
  rate: (value) => number(value, 6),
  number: (value) => number(value), percent, speed, duration, text: (value) => value,
};

// "test_f1" is f1 of the test set, and "f1" is that of the training samples.
const metricName = (name) => name.replace(/^test_/, "test ").replace(/^val_/, "validation ");

function showWorkers(table, workers) {
  const heads = [
    { text: "team", isText: true }, { text: "workers" }, { text: "state", isText: true }, { text: "share of the last steps" },
    { text: "speed" }, { text: "micro-batches" }, { text: "unused" }, { text: "host", isText: true }, { text: "pid" },
  ];
  fillTable(table, heads, workers.map((one) => [
    worker(one, `${one.rank}`), `${one.processes}`, one.reason ? `${one.state}: ${one.reason}` : one.state, percent(one.share),
    speed(one.samples_per_s), count(one.accepted), count(one.unused), one.host, one.pid ? `${one.pid}` : "",
  ]));
  workers.forEach((one, index) => { table.tBodies[0].rows[index].className = one.is_gone ? "gone" : ""; });
}

// A team's name, after the colours of its workers.
function worker({ first, processes }, name) {
  const made = element("span", name);
  const colours = [...new Set(Array.from({ length: Math.min(processes, 8) }, (_, process) => workerColour(first + process)))];
  made.prepend(...colours.map((colour) => swatch(colour)));
  return made;
}

function showProcesses(page, processes) {
  page.$("use").hidden = !processes.length;
  const heads = [{ text: "process", isText: true }, { text: "pid" }, { text: "processor" }, { text: "memory" }];
  fillTable(page.$("processes"), heads, processes.map((one) => {
    const name = element("span", one.name);
    if (one.number !== null) name.prepend(swatch(workerColour(one.number)));
    return [name, `${one.pid}`, one.cpu === null ? "–" : `${Math.round(100 * one.cpu)}\u00a0%`, bytes(one.memory_bytes)];
  }));
}

function showEpochs(table, epochs) {
  const hasR2 = epochs.some((one) => one.r2 !== undefined), hasValidation = epochs.some((one) => one.val_loss !== undefined);
  const share = hasR2 ? number : percent, score = hasR2 ? "R²" : "accuracy";
  const validation = hasValidation ? ["validation loss", "validation accuracy"] : [];
  const metrics = [...new Set(epochs.flatMap((one) => Object.keys(one.metrics ?? {})))];
  const heads = ["epoch", "loss", score, ...validation, "test loss", `test ${score}`, ...metrics.map(metricName), "time", "weights"].map((text) => ({ text }));
  fillTable(table, heads, epochs.map((one) => [
    `${one.epoch}`, number(one.loss), share(hasR2 ? one.r2 : one.accuracy),
    ...(hasValidation ? [number(one.val_loss), percent(one.val_accuracy)] : []),
    number(one.test_loss), share(hasR2 ? one.test_r2 : one.test_accuracy), ...metrics.map((name) => number(one.metrics?.[name])), duration(one.wall_s), (one.weights_sha256 ?? "").slice(0, 12),
  ]));
}

// The values of a job, those that were changed first, then all in their groups.
function showJob(box, job, folder) {
  const isOpen = new Set([...box.querySelectorAll("details[open]")].map((one) => one.dataset.group));
  const changed = job.flatMap((group) => group.values).filter((one) => one.is_unusual);
  const named = (values) => Object.fromEntries(values.map(({ name, text }) => [name, text]));
  const first = element("dl");
  describe(first, { ...(folder ? { folder } : {}), ...named(changed) });
  box.replaceChildren(first, ...job.map(({ group, values }) => {
    const one = element("details"), list = element("dl");
    one.dataset.group = group;
    one.open = isOpen.has(group);
    describe(list, named(values));
    one.append(element("summary", group), list);
    return one;
  }));
}

function describe(list, values) {
  list.replaceChildren(...Object.entries(values).filter(([, value]) => value !== "").flatMap(([name, value]) => [
    element("dt", name.replaceAll("_", " ")), element("dd", value),
  ]));
}
