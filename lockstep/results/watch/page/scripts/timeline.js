// Who computed what in the last steps, and when; who was waited for.

import { curveColour, style, workerColour } from "./colours.js";
import { element } from "./dom.js";

const ROW = 26, GAP = 4, LEFT = 96, HEAD = 18, FOOT = 20;

// Draws the steps that have times; returns whether there are any.
export function drawTimeline(canvas, legend, { timeline, workers, is_alone: isAlone }) {
  const timed = timeline.filter((step) => step.used.every(([, , , , ended]) => ended !== null));
  const rows = rowsOf(timed, workers), names = [...rows.keys()];
  const width = Math.max(280, canvas.parentElement.clientWidth);
  const height = HEAD + (names.length + 1) * (ROW + GAP) + FOOT;
  const ctx = sized(canvas, width, height);
  const ink = style("--ink"), soft = style("--soft");
  names.forEach((name) => label(ctx, isAlone ? "the process" : rowName(name, workers), rows.get(name).row, ink));
  label(ctx, "update", names.length, soft);
  const total = timed.reduce((sum, step) => sum + step.round_s, 0) || 1;
  const x = (seconds) => LEFT + ((width - LEFT - 8) * seconds) / total;
  let at = 0;
  for (const step of timed) {
    drawStep(ctx, step, at, x, rows, { ink, soft, line: style("--line"), height });
    at += step.round_s;
  }
  const end = `${(1000 * total).toFixed(1)} ms`;
  ctx.fillStyle = soft;
  ctx.fillText("0", LEFT, height - FOOT / 2);
  ctx.fillText(end, width - 8 - ctx.measureText(end).width, height - FOOT / 2);
  explain(canvas, legend, timed, names);
  return timed.length > 0;
}

function sized(canvas, width, height) {
  const scale = devicePixelRatio || 1;
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.height = `${height}px`;
  const ctx = canvas.getContext("2d");
  ctx.scale(scale, scale);
  ctx.font = "12px system-ui, sans-serif";
  ctx.textBaseline = "middle";
  return ctx;
}

// A row for each worker that computed something, or is there: "rank.process" in a team that says which of its processes
// computed what, or else the rank. Its colour is that of its number among all that ever were.
function rowsOf(timed, workers) {
  const computed = timed.flatMap((step) => [...step.used, ...step.unused].map((share) => nameOf(step, share)));
  const seen = new Set(computed.map((name) => name.split(".")[0]));
  const others = workers.filter((one) => !one.is_gone && !seen.has(`${one.rank}`)).map((one) => `${one.rank}`);
  const sorted = [...new Set([...computed, ...others])].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const first = new Map(workers.map((one) => [`${one.rank}`, one.first]));
  return new Map(sorted.map((name, row) => {
    const [rank, process = "0"] = name.split(".");
    return [name, { row, colour: workerColour((first.get(rank) ?? 0) + Number(process)) }];
  }));
}

// A lease of a team that does not say which of its processes computed it has the row of the whole team.
function rowName(name, workers) {
  const isTeam = !name.includes(".") && workers.some((one) => `${one.rank}` === name && one.processes > 1);
  return `${isTeam ? "team" : "worker"} ${name}`;
}

function nameOf(step, share) {
  const process = step.processes[step.used.indexOf(share)];
  return process === undefined ? `${share[2]}` : `${share[2]}.${process}`;
}

function drawStep(ctx, step, at, x, rows, { ink, soft, line, height }) {
  ctx.fillStyle = line;
  ctx.fillRect(x(at), HEAD, 1, height - HEAD - FOOT);
  ctx.fillStyle = soft;
  const name = `step ${step.step.toLocaleString("en")}`;
  if (ctx.measureText(name).width < x(at + step.round_s) - x(at)) ctx.fillText(name, x(at) + 3, HEAD / 2);
  const last = Math.max(...step.used.map((share) => share[4]));
  for (const [share, began] of inOrder(step)) {
    const { row, colour } = rows.get(nameOf(step, share));
    const place = [x(at + began), y(row), x(at + share[4]) - x(at + began)];
    if (step.unused.includes(share)) unusedBar(ctx, share, place, ink);
    else bar(ctx, share, place, colour, share[4] === last ? ink : null);
  }
  ctx.fillStyle = soft;
  ctx.fillRect(x(at), y(rows.size), Math.max(1, x(at + step.update_s) - x(at)), ROW);
}

// Leases with the seconds at which their workers began with them. A worker is leased more than it computes at a time, so
// that it never waits: it begins with a lease once it is done with the one before.
function inOrder(step) {
  const free = new Map();
  const all = [...step.used, ...step.unused].filter((share) => share[4] !== null).sort((a, b) => a[4] - b[4]);
  return all.map((share) => {
    const name = nameOf(step, share), before = free.get(name) ?? (share[3] === null ? share[4] : 0);
    free.set(name, share[4]);
    return [share, Math.min(share[4], Math.max(share[3] ?? 0, before))];
  });
}

const y = (row) => HEAD + row * (ROW + GAP);

function label(ctx, text, row, colour) {
  ctx.fillStyle = colour;
  ctx.fillText(text, 4, y(row) + ROW / 2, LEFT - 8);
}

function bar(ctx, share, [left, top, wide], colour, edge) {
  ctx.fillStyle = colour;
  ctx.fillRect(left, top, Math.max(1, wide - 1), ROW);
  if (edge) {
    ctx.fillStyle = edge;
    ctx.fillRect(left + wide - 3, top, 2, ROW);
  }
  numbers(ctx, share, [left, top, wide], "#000000");
}

function unusedBar(ctx, share, [left, top, wide], ink) {
  ctx.save();
  ctx.strokeStyle = curveColour(1);
  ctx.setLineDash([3, 2]);
  ctx.strokeRect(left + 0.5, top + 2.5, Math.max(1, wide - 1), ROW - 5);
  ctx.restore();
  numbers(ctx, share, [left, top, wide], ink);
}

function numbers(ctx, [lo, hi], [left, top, wide], colour) {
  const text = hi === lo + 1 ? `${lo}` : `${lo}–${hi - 1}`;
  ctx.fillStyle = colour;
  if (ctx.measureText(text).width + 6 < wide) ctx.fillText(text, left + 3, top + ROW / 2);
}

function explain(canvas, legend, timed, names) {
  if (timed.length) canvas.setAttribute("aria-label", `which of ${names.length} workers computed which micro-batches in steps ${timed[0].step} to ${timed.at(-1).step}, and when`);
  if (legend.children.length) return;
  const texts = ["numbers: micro-batches", "dark end: the worker that the step waited for", "dashed: a second copy that was not used", "update: the weights change"];
  legend.append(...texts.map((text) => element("span", text)));
}
