// Who computed what in the last steps, and when; who was waited for.

import { colourOf, style } from "./charts.js";

const ROW = 26, GAP = 4, LEFT = 96, HEAD = 18, FOOT = 20;

export function drawTimeline(canvas, legend, steps, workers) {
  const timed = steps.filter((step) => step.used.every(([, , , , ended]) => ended !== null));
  const names = rowsOf(timed, workers);
  const rows = new Map(names.map((name, index) => [name, index]));
  const width = Math.max(300, canvas.parentElement.clientWidth);
  const height = HEAD + (names.length + 1) * (ROW + GAP) + FOOT;
  const scale = devicePixelRatio || 1;
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.height = `${height}px`;
  const ctx = canvas.getContext("2d");
  ctx.scale(scale, scale);
  ctx.font = "12px system-ui, sans-serif";
  ctx.textBaseline = "middle";
  const ink = style("--ink"), soft = style("--soft"), line = style("--line");
  names.forEach((name) => label(ctx, `worker ${name}`, rows.get(name), ink));
  label(ctx, "update", names.length, soft);
  const total = timed.reduce((sum, step) => sum + step.round_s, 0) || 1;
  const x = (seconds) => LEFT + ((width - LEFT - 8) * seconds) / total;
  let at = 0;
  for (const step of timed) {
    ctx.fillStyle = line;
    ctx.fillRect(x(at), HEAD, 1, height - HEAD - FOOT);
    ctx.fillStyle = soft;
    const name = `step ${step.step.toLocaleString("en")}`;
    if (ctx.measureText(name).width < x(at + step.round_s) - x(at)) ctx.fillText(name, x(at) + 3, HEAD / 2);
    const last = Math.max(...step.used.map((share) => share[4]));
    for (const [share, began] of inOrder(step)) {
      bar(ctx, x, at, share, began, rows.get(nameOf(step, share)), { isLast: share[4] === last, isUnused: step.unused.includes(share), ink });
    }
    ctx.fillStyle = soft;
    ctx.fillRect(x(at), y(names.length), Math.max(1, x(at + step.update_s) - x(at)), ROW);
    at += step.round_s;
  }
  ctx.fillStyle = soft;
  ctx.fillText(timed.length ? "0" : "", LEFT, height - FOOT / 2);
  const end = `${(1000 * total).toFixed(1)} ms`;
  if (timed.length) ctx.fillText(end, width - 8 - ctx.measureText(end).width, height - FOOT / 2);
  explain(legend, timed.length > 0);
  return timed.length > 0;
}

// A row for each worker: rank and process in a team that says which of its processes computed what, or else the rank.
function rowsOf(timed, workers) {
  const computed = timed.flatMap((step) => step.used.map((share) => nameOf(step, share)));
  const seen = new Set(computed.map((name) => name.split(".")[0]));
  const others = workers.map((one) => `${one.rank}`).filter((rank) => !seen.has(rank));
  return [...new Set([...computed, ...others])].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
}

function nameOf(step, share) {
  const process = step.processes[step.used.indexOf(share)];
  return process === undefined ? `${share[2]}` : `${share[2]}.${process}`;
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

function bar(ctx, x, at, [lo, hi, , , ended], began, row, { isLast, isUnused, ink }) {
  if (row === undefined) return;
  const [left, right] = [x(at + began), x(at + ended)];
  const wide = Math.max(1, right - left);
  ctx.save();
  if (isUnused) {
    ctx.strokeStyle = colourOf(1);
    ctx.setLineDash([3, 2]);
    ctx.strokeRect(left + 0.5, y(row) + 2.5, wide - 1, ROW - 5);
  } else {
    ctx.fillStyle = colourOf(row === 1 ? 4 : row === 0 ? 5 : row);
    ctx.fillRect(left, y(row), Math.max(1, wide - 1), ROW);
    if (isLast) {
      ctx.fillStyle = ink;
      ctx.fillRect(right - 3, y(row), 2, ROW);
    }
  }
  ctx.fillStyle = isUnused ? ink : "#000000";
  const name = hi === lo + 1 ? `${lo}` : `${lo}–${hi - 1}`;
  if (ctx.measureText(name).width + 6 < wide) ctx.fillText(name, left + 3, y(row) + ROW / 2);
  ctx.restore();
}

function explain(legend, hasTimes) {
  const texts = hasTimes
    ? ["numbers: micro-batches", "dark end: the worker that the step waited for", "dashed: a second copy that was not used", "update: the weights change"]
    : ["no step with times yet"];
  if (legend.dataset.shown === texts.join()) return;
  legend.dataset.shown = texts.join();
  legend.replaceChildren(...texts.map((text) => Object.assign(document.createElement("span"), { textContent: text })));
}
