// The page: which run is shown, what its server streams, and what the reader asks for.

import { Chart, colourOf, merged, number, percent, smoothed } from "./charts.js";
import { drawTimeline } from "./timeline.js";
import { Pad } from "./draw.js";

const $ = (id) => document.getElementById(id);
const element = (name, text, className) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
};

const POINTS = 900;
const LIST_MS = 3000, CURVES_MS = 300;

async function ask(path, options) {
  const answer = await fetch(path, options);
  if (!answer.ok) throw new Error((await answer.text()).trim() || answer.statusText);
  return answer.json();
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 90) return `${seconds.toFixed(0)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// Writes only what is new, so that nothing flickers and a selection stays.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function fillTable(table, heads, rows, textColumns = [0]) {
  const cell = (tag, text, column) => {
    const made = element(tag, text);
    if (textColumns.includes(column)) made.className = "text";
    return made;
  };
  if (table.rows.length !== rows.length + 1 || table.rows[0].cells.length !== heads.length) {
    const head = element("tr");
    head.append(...heads.map((text, column) => cell("th", text, column)));
    const body = rows.map((row) => {
      const line = element("tr");
      line.append(...row.map((text, column) => cell("td", text, column)));
      return line;
    });
    table.replaceChildren(head, ...body);
    return;
  }
  rows.forEach((row, index) => row.forEach((text, column) => setText(table.rows[index + 1].cells[column], text)));
}

// ---- One run

class RunPage {
  constructor(run) {
    this.base = `api/runs/${encodeURIComponent(run)}`;
    this.snapshot = null;
    this.range = [null, null];
    this.curves = null;
    this.charts = [];
    this.asked = 0;
    $("run").hidden = false;
    this.stream = new EventSource(`${this.base}/live`);
    this.stream.addEventListener("snapshot", (event) => this.update(JSON.parse(event.data)));
    this.stream.onopen = () => { $("connection").hidden = true; };
    this.stream.onerror = () => { $("connection").hidden = false; };
  }

  close() {
    this.stream.close();
    clearTimeout(this.timer);
    clearInterval(this.waiting);
    this.charts.forEach(({ chart }) => chart.destroy());
    // Its listeners are this run's.
    $("pad").replaceWith($("pad").cloneNode());
    for (const id of ["figures", "job", "receipt", "events", "confusion", "mistakes", "bars"]) $(id).replaceChildren();
    $("run").hidden = true;
  }

  update(snapshot) {
    const before = this.snapshot;
    this.snapshot = snapshot;
    setText($("title"), snapshot.name + (snapshot.model ? ` · ${snapshot.model}` : ""));
    document.title = `${snapshot.name} · Lockstep`;
    setText($("state"), snapshot.phase && snapshot.state === "running" ? snapshot.phase : snapshot.state);
    $("state").className = `badge ${snapshot.state}`;
    $("failure").hidden = !snapshot.failure;
    setText($("failure"), snapshot.failure);
    this.showFigures(snapshot);
    this.showWorkers(snapshot);
    this.showEpochs(snapshot);
    this.showEvents(snapshot, before);
    $("leases").hidden = !drawTimeline($("timeline"), $("timeline-legend"), snapshot.timeline, snapshot.workers);
    if (!before || before.state !== snapshot.state || before.weights_sha256 !== snapshot.weights_sha256 || !this.facts?.job) this.loadFacts();
    this.schedule();
    // A folder that was empty may hold a run by now, or many.
    if (snapshot.state === "missing" && !this.waiting) this.waiting = setInterval(() => this.lookAgain(), LIST_MS);
  }

  async lookAgain() {
    const found = await ask("api/source").catch(() => source);
    if (found.is_many === source.is_many) return;
    source = found;
    open();
  }

  showFigures({ state, figures, weights_sha256: digest, restarts, epochs, copied, is_whole: isWhole }) {
    const last = epochs[epochs.length - 1];
    const shown = [
      ["step", figures.steps ? `${figures.step.toLocaleString("en")} / ${figures.steps.toLocaleString("en")}` : figures.step.toLocaleString("en")],
      ["epoch", figures.epochs ? `${figures.epoch} / ${figures.epochs}` : `${figures.epoch}`],
      ["loss", number(figures.loss)],
      figures.r2 !== null ? ["R²", number(figures.r2)] : ["accuracy", percent(figures.accuracy)],
      ...(last ? [last.test_r2 !== undefined ? ["test R²", number(last.test_r2)] : ["test accuracy", percent(last.test_accuracy)]] : []),
      ["learning rate", number(figures.lr, 6)],
      ["samples per second", Math.round(figures.samples_per_s).toLocaleString("en")],
      ...(state === "running" ? [["time left", duration(figures.left_s)]] : last ? [["time", duration(last.wall_s)]] : []),
      ...(copied ? [["second copies", copied.toLocaleString("en")]] : []),
      ...(restarts ? [["restarts", `${restarts}`]] : []),
      ...(isWhole ? [] : [["reading", "…"]]),
      ...(digest ? [["weights, SHA-256", digest]] : []),
    ];
    const box = $("figures");
    if (box.children.length !== shown.length) {
      box.replaceChildren(...shown.map(([name]) => {
        const one = element("div", undefined, name.startsWith("weights") ? "wide digest" : "");
        one.append(element("b"), element("span", name));
        return one;
      }));
    }
    shown.forEach(([name, value], index) => {
      setText(box.children[index].firstChild, value);
      setText(box.children[index].lastChild, name);
    });
  }

  showWorkers({ workers }) {
    const rows = workers.map((one) => [
      `${one.rank}`, `${one.processes}`, one.state, percent(one.share),
      one.samples_per_s === null ? "–" : Math.round(one.samples_per_s).toLocaleString("en"),
      one.accepted.toLocaleString("en"), one.unused.toLocaleString("en"), one.host, one.pid ? `${one.pid}` : "",
    ]);
    const heads = ["team", "workers", "state", "share of the last steps", "own samples / s", "micro-batches", "unused", "host", "pid"];
    fillTable($("workers"), heads, rows, [0, 2, 7]);
  }

  showEpochs({ epochs }) {
    const hasR2 = epochs.some((one) => one.r2 !== undefined);
    const hasValidation = epochs.some((one) => one.val_loss !== undefined);
    const heads = ["epoch", "loss", hasR2 ? "R²" : "accuracy", ...(hasValidation ? ["validation loss", "validation accuracy"] : []), "test loss", hasR2 ? "test R²" : "test accuracy", "seconds", "weights"];
    const share = hasR2 ? number : percent;
    const rows = epochs.map((one) => [
      `${one.epoch}`, number(one.loss), share(hasR2 ? one.r2 : one.accuracy),
      ...(hasValidation ? [number(one.val_loss), percent(one.val_accuracy)] : []),
      number(one.test_loss), share(hasR2 ? one.test_r2 : one.test_accuracy), one.wall_s.toFixed(1), one.weights_sha256.slice(0, 12),
    ]);
    fillTable($("epochs"), heads, rows);
  }

  showEvents({ events }, before) {
    if (before && before.events.length === events.length && before.events.at(-1)?.text === events.at(-1)?.text) return;
    $("events").replaceChildren(...[...events].reverse().map((one) => {
      const line = element("li");
      line.append(element("span", `step ${one.step.toLocaleString("en")}`), element("span", one.kind), element("span", one.text));
      return line;
    }));
  }

  async loadFacts() {
    try {
      this.facts = await ask(`${this.base}/facts`);
    } catch {
      return;
    }
    const { job, launch, receipt, result, folder } = this.facts;
    $("evaluation").hidden = !job || job.loss === "mse";
    if (job && !this.drawing) this.offerDrawing();
    $("evaluate").onclick = () => this.evaluate();
    describe($("job"), { folder, ...(job ?? {}), ...(launch ?? {}) });
    const numerics = receipt?.numerics ?? {};
    describe($("receipt"), {
      ...(receipt ? { job_sha256: receipt.job_sha256, dataset_sha256: receipt.dataset_sha256, layout_sha256: receipt.layout_sha256, code: receipt.code } : {}),
      ...numerics,
      ...(result ? { weights_sha256: result.weights_sha256, transport: result.transport, wall_s: result.wall_s, obstacle: result.obstacle, stopped: result.stopped } : {}),
    });
  }

  async offerDrawing() {
    this.drawing = await ask(`${this.base}/drawing`).catch(() => ({ is_possible: false, names: [] }));
    $("drawing").hidden = !this.drawing.is_possible;
    if (!this.drawing.is_possible) return;
    this.pad = new Pad($("pad"), () => this.recognise());
    $("clear").onclick = () => this.pad.clear();
  }

  // ---- Curves

  schedule() {
    const wait = Math.max(0, this.asked + CURVES_MS - performance.now());
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.loadCurves(), wait);
  }

  async loadCurves() {
    if (this.isLoading) return;
    this.isLoading = true;
    this.asked = performance.now();
    const [first, last] = this.range;
    const query = new URLSearchParams({ points: POINTS });
    if (first !== null) { query.set("first", first); query.set("last", last); }
    try {
      this.curves = await ask(`${this.base}/curves?${query}`);
      this.showCurves();
    } catch {
      // The stream says that the server is gone.
    } finally {
      this.isLoading = false;
    }
  }

  plans() {
    const { curves } = this;
    const epochs = this.snapshot.epochs;
    const ends = this.snapshot.epoch_ends.map((end, index) => end ?? epochs[index].epoch);
    const of = (name, label, colour, extra) => ({ name, label, colour, extra });
    const points = (name, label, colour) => ({ label, colour, isPoints: true, steps: ends, values: epochs.map((one) => one[name] ?? null) });
    const has = (name) => epochs.some((one) => one[name] !== undefined);
    const plans = [
      { title: "loss", curve: of("loss", "training", colourOf(0)), points: [points("test_loss", "test", colourOf(1)), ...(has("val_loss") ? [points("val_loss", "validation", colourOf(2))] : [])], canLog: true },
      { title: "accuracy", isShare: true, curve: of("accuracy", "training", colourOf(0)), points: [points("test_accuracy", "test", colourOf(1)), ...(has("val_accuracy") ? [points("val_accuracy", "validation", colourOf(2))] : [])] },
      { title: "R²", curve: of("r2", "training", colourOf(0)), points: [points("test_r2", "test", colourOf(1))] },
      { title: "learning rate", curve: of("lr", "learning rate", colourOf(2)), points: [], isExact: true },
      { title: "samples per second", curve: of("throughput", "samples per second", colourOf(3)), points: [] },
    ];
    return plans.filter((plan) => curves[plan.curve.name]);
  }

  showCurves() {
    const plans = this.plans();
    const names = plans.map((plan) => `${plan.title}/${plan.points.map((one) => one.label)}`).join();
    if (names !== this.shownNames) {
      this.shownNames = names;
      this.charts.forEach(({ chart }) => chart.destroy());
      this.charts = plans.map((plan) => ({
        title: plan.title,
        chart: new Chart($("charts"), plan.title, [
          { label: plan.curve.label, colour: plan.curve.colour, band: !plan.isExact },
          ...plan.points,
        ], {
          isShare: plan.isShare,
          isLog: plan.canLog && $("log").checked,
          onZoom: (first, last) => this.zoom(first, last),
          events: () => ($("marks").checked ? this.snapshot.events : []),
        }),
      }));
    }
    const weight = ($("smoothing").value / 100) ** 0.35 * 0.995 * ($("smoothing").value > 0);
    const steps = this.curves.step;
    plans.forEach((plan, index) => {
      const { name } = plan.curve;
      const mean = plan.isExact ? this.curves[name] : smoothed(this.curves[name], weight);
      const [first, last] = this.range;
      const inside = (step) => first === null || (step >= first && step <= last);
      const extra = plan.points.flatMap((one) => one.steps.filter(inside));
      const { all, spread } = merged(steps, extra);
      const band = plan.isExact ? [] : [spread(steps, this.curves[`${name}_max`]), spread(steps, this.curves[`${name}_min`])];
      const rest = plan.points.map((one) => {
        const kept = one.steps.map((step, at) => [step, one.values[at]]).filter(([step]) => inside(step));
        return spread(kept.map(([step]) => step), kept.map(([, value]) => value));
      });
      this.charts[index].chart.show([all, ...band, spread(steps, mean), ...rest], first === null ? null : [first, last]);
    });
    $("reset").hidden = this.range[0] === null;
  }

  zoom(first, last) {
    if (first !== null) {
      const { first_step: low, last_step: high } = this.snapshot;
      first = Math.max(low ?? 0, Math.floor(first));
      last = Math.min(high ?? 0, Math.ceil(last));
      if (last - first < 2 || (first === low && last === high)) [first, last] = last - first < 2 ? this.range : [null, null];
    }
    this.range = [first, last];
    this.asked = 0;
    this.loadCurves();
  }

  // Moves by a quarter, or halves or doubles what is shown.
  move(direction, factor) {
    const { first_step: low, last_step: high } = this.snapshot ?? {};
    if (high === null || high === undefined) return;
    const [first, last] = this.range[0] === null ? [low, high] : this.range;
    const middle = (first + last) / 2 + (direction * (last - first)) / 4;
    const half = ((last - first) * factor) / 2;
    const from = Math.min(Math.max(low, middle - half), high - Math.min(2 * half, high - low));
    this.zoom(from, from + 2 * half);
  }

  restyle() {
    for (const { chart, title } of this.charts) chart.restyle(title === "loss" && $("log").checked);
    if (this.curves) this.showCurves();
  }

  // ---- Its model

  async recognise() {
    if (!this.pad || this.pad.isEmpty) {
      $("bars").replaceChildren();
      setText($("drawn"), "with a mouse, a finger or a pen");
      return;
    }
    this.isStale = true;
    if (this.isAsking) return;
    this.isAsking = true;
    while (this.isStale && !this.pad.isEmpty) {
      this.isStale = false;
      try {
        const answer = await ask(`${this.base}/answer`, { method: "POST", body: this.pad.pixels() });
        if (!this.pad.isEmpty) showBars(answer.probabilities, this.drawing.names);
        setText($("drawn"), answer.weights === "last" ? "by the final weights" : `by the weights after ${Number(answer.weights).toLocaleString("en")} steps`);
      } catch (error) {
        setText($("drawn"), error.message);
      }
      await new Promise((done) => setTimeout(done, 60));
    }
    this.isAsking = false;
  }

  async evaluate() {
    $("evaluate").disabled = true;
    setText($("evaluated"), "evaluating …");
    try {
      const found = await ask(`${this.base}/evaluation`);
      const of = found.weights === "last" ? "final weights" : `weights after ${Number(found.weights).toLocaleString("en")} steps`;
      setText($("evaluated"), `${of}: loss ${number(found.loss)}, accuracy ${percent(found.accuracy)}`);
      showConfusion(found.counts, found.names);
      showMistakes(found.mistakes, found.names);
    } catch (error) {
      setText($("evaluated"), error.message);
    } finally {
      $("evaluate").disabled = false;
    }
  }
}

function describe(list, values) {
  list.replaceChildren(...Object.entries(values).filter(([, value]) => value !== null && value !== "").flatMap(([name, value]) => [
    element("dt", name.replaceAll("_", " ")),
    element("dd", typeof value === "object" ? JSON.stringify(value) : `${value}`),
  ]));
}

function showBars(probabilities, names) {
  const box = $("bars");
  if (box.children.length !== probabilities.length) {
    box.replaceChildren(...probabilities.map((_, label) => {
      const line = element("div", undefined, "bar");
      line.append(element("span", names[label] ?? `${label}`), element("i"), element("span"));
      return line;
    }));
  }
  const best = probabilities.indexOf(Math.max(...probabilities));
  probabilities.forEach((value, label) => {
    const line = box.children[label];
    line.classList.toggle("best", label === best);
    line.children[1].style.width = `${100 * value}%`;
    setText(line.children[2], percent(value));
  });
}

function showConfusion(counts, names) {
  const named = (label) => names[label] ?? `${label}`;
  const table = $("confusion");
  const most = Math.max(1, ...counts.flatMap((row, i) => row.filter((_, j) => i !== j)));
  const head = element("tr");
  head.append(element("th", "class \\ predicted"), ...counts.map((_, label) => element("th", named(label))));
  table.replaceChildren(head, ...counts.map((row, label) => {
    const line = element("tr");
    line.append(element("th", named(label)), ...row.map((count, predicted) => {
      const cell = element("td", count ? count.toLocaleString("en") : "");
      if (predicted === label) cell.style.fontWeight = "700";
      else if (count) cell.style.background = `color-mix(in srgb, var(--bad) ${Math.round((65 * count) / most) + 8}%, transparent)`;
      cell.title = `${count} of class ${named(label)} predicted as ${named(predicted)}`;
      return cell;
    }));
    return line;
  }));
}

function showMistakes(mistakes, names) {
  const named = (label) => names[label] ?? `${label}`;
  $("mistakes").replaceChildren(...mistakes.map((one) => {
    const figure = element("figure"), canvas = element("canvas");
    canvas.width = one.width;
    canvas.height = one.height;
    const ctx = canvas.getContext("2d");
    const image = ctx.createImageData(one.width, one.height);
    [...atob(one.gray)].forEach((character, place) => {
      const value = character.charCodeAt(0);
      image.data.set([value, value, value, 255], 4 * place);
    });
    ctx.putImageData(image, 0, 0);
    figure.append(canvas, element("figcaption", `${named(one.label)}, not ${named(one.predicted)}`));
    return figure;
  }));
}

// ---- Many runs

class ListPage {
  constructor() {
    this.chosen = new Set();
    this.charts = [];
    $("list").hidden = false;
    setText($("title"), "");
    setText($("state"), "");
    $("state").className = "";
    document.title = "Lockstep";
    this.load();
  }

  close() {
    clearTimeout(this.timer);
    this.charts.forEach((chart) => chart.destroy());
    $("list").hidden = true;
  }

  async load() {
    try {
      this.runs = await ask("api/runs");
      $("connection").hidden = true;
      this.show();
    } catch {
      $("connection").hidden = false;
    }
    this.timer = setTimeout(() => this.load(), LIST_MS);
  }

  show() {
    const text = JSON.stringify(this.runs);
    if (text === this.shown) return;
    this.shown = text;
    const heads = ["compare", "run", "model", "state", "epoch", "loss", "test", "seconds", "weights"];
    const head = element("tr");
    head.append(...heads.map((name, column) => element("th", name, [1, 2, 3].includes(column) ? "text" : "")));
    $("runs").replaceChildren(head, ...this.runs.map((run) => this.line(run)));
    this.compare();
  }

  line(run) {
    const line = element("tr"), box = element("input"), link = element("a", run.name), chosen = element("td"), name = element("td", undefined, "text");
    box.type = "checkbox";
    box.checked = this.chosen.has(run.id);
    box.setAttribute("aria-label", `compare ${run.name}`);
    box.onchange = () => {
      if (box.checked) this.chosen.add(run.id);
      else this.chosen.delete(run.id);
      this.compare();
    };
    link.href = `#${encodeURIComponent(run.id)}`;
    chosen.append(box);
    name.append(link);
    const test = run.test_r2 !== null ? `R² ${number(run.test_r2)}` : percent(run.test_accuracy);
    line.append(chosen, name, element("td", run.model, "text"), element("td", run.state, "text"),
      ...[run.epochs ? `${run.epoch} / ${run.epochs}` : `${run.epoch}`, number(run.loss), test, run.wall_s === null ? "–" : run.wall_s.toFixed(1), run.weights_sha256.slice(0, 12)].map((value) => element("td", value)));
    return line;
  }

  async compare() {
    const chosen = this.runs.filter((run) => this.chosen.has(run.id));
    $("comparison").hidden = !chosen.length;
    this.charts.forEach((chart) => chart.destroy());
    this.charts = [];
    if (!chosen.length) return;
    const found = await Promise.all(chosen.map((run) => ask(`api/runs/${encodeURIComponent(run.id)}/curves?points=600`).catch(() => ({ step: [] }))));
    if (chosen.some((run) => !this.chosen.has(run.id))) return;
    for (const [name, title, isShare] of [["loss", "training loss", false], ["accuracy", "training accuracy", true], ["r2", "R²", false], ["throughput", "samples per second", false]]) {
      const having = chosen.map((run, index) => ({ run, curves: found[index], colour: colourOf(index) })).filter(({ curves }) => curves[name]);
      if (!having.length) continue;
      const { all, spread } = merged([], having.flatMap(({ curves }) => curves.step));
      const chart = new Chart($("compared"), title, having.map(({ run, colour }, index) => ({ label: run.name, colour, dash: index >= 8 ? [6, 3] : undefined })), { isShare, onZoom: (first, last) => this.charts.forEach((one) => one.show(one.data, first === null ? null : [first, last])) });
      chart.show([all, ...having.map(({ curves }) => spread(curves.step, smoothed(curves[name], 0.9)))], null);
      this.charts.push(chart);
    }
    // A run that has just been opened is still being read.
    if (found.some((curves) => !curves.step.length)) setTimeout(() => this.chosen.size && this.compare(), 1000);
  }
}

// ---- Which page

let page = null, source = null;

function open() {
  page?.close();
  const wanted = decodeURIComponent(location.hash.slice(1));
  $("home").hidden = false;
  page = source.is_many && !wanted ? new ListPage() : new RunPage(source.run ?? wanted);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("lockstep-theme", theme);
  } catch {
    // A browser that keeps nothing follows the system each time.
  }
  page?.restyle?.();
}

function toggleTheme() {
  const now = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  setTheme(now === "dark" ? "light" : "dark");
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || ["INPUT", "CANVAS"].includes(event.target.tagName)) return;
  const moves = { "+": [0, 0.5], "=": [0, 0.5], "-": [0, 2], ArrowLeft: [-1, 1], ArrowRight: [1, 1] };
  if (event.key === "t") toggleTheme();
  else if (!(page instanceof RunPage)) return;
  else if (event.key === "0") page.zoom(null, null);
  else if (moves[event.key]) page.move(...moves[event.key]);
  else return;
  event.preventDefault();
});
$("theme").onclick = toggleTheme;
$("reset").onclick = () => page.zoom(null, null);
$("smoothing").oninput = () => page.curves && page.showCurves();
$("log").onchange = () => page.restyle?.();
$("marks").onchange = () => page.curves && page.showCurves();
addEventListener("hashchange", open);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => page?.restyle?.());

try {
  const kept = localStorage.getItem("lockstep-theme");
  if (kept) document.documentElement.dataset.theme = kept;
} catch {
  // As above.
}
source = await ask("api/source");
open();
