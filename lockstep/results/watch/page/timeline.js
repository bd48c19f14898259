// Who computed what in the last steps, and when; who was waited for.

import { colourOf, style } from "./charts.js";

const ROW = 26, GAP = 4, LEFT = 96, HEAD = 18, FOOT = 20;

export function drawTimeline(canvas, legend, steps, workers) {
  const timed = steps.filter((step) => step.used.every(([, , , , ended]) => ended !== null));
  const ranks = [...new Set([...workers.map((one) => one.rank), ...timed.flatMap((step) => step.used.map((share) => share[2]))])].sort((a, b) => a - b);
  const rows = new Map(ranks.map((rank, index) => [rank, index]));
  const width = Math.max(300, canvas.parentElement.clientWidth);
  const height = HEAD + (ranks.length + 1) * (ROW + GAP) + FOOT;
  const scale = devicePixelRatio || 1;
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.height = `${height}px`;
  const ctx = canvas.getContext("2d");
  ctx.scale(scale, scale);
  ctx.font = "12px system-ui, sans-serif";
  ctx.textBaseline = "middle";
  const ink = style("--ink"), soft = style("--soft"), line = style("--line");
  ranks.forEach((rank) => label(ctx, `worker ${rank}`, rows.get(rank), ink));
  label(ctx, "update", ranks.length, soft);
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
      bar(ctx, x, at, share, began, rows, { isLast: share[4] === last, isUnused: step.unused.includes(share), ink });
    }
    ctx.fillStyle = soft;
    ctx.fillRect(x(at), y(ranks.length), Math.max(1, x(at + step.update_s) - x(at)), ROW);
    at += step.round_s;
  }
  ctx.fillStyle = soft;
  ctx.fillText(timed.length ? "0" : "", LEFT, height - FOOT / 2);
  const end = `${(1000 * total).toFixed(1)} ms`;
  if (timed.length) ctx.fillText(end, width - 8 - ctx.measureText(end).width, height - FOOT / 2);
  explain(legend, timed.length > 0);
  return timed.length > 0;
}

// Leases with the seconds at which their workers began with them. A worker is leased more than it computes at a time, so
// that it never waits: it begins with a lease once it is done with the one before.
function inOrder(step) {
  const free = new Map();
  const all = [...step.used, ...step.unused].filter((share) => share[4] !== null).sort((a, b) => a[4] - b[4]);
  return all.map((share) => {
    const before = free.get(share[2]) ?? (share[3] === null ? share[4] : 0);
    free.set(share[2], share[4]);
    return [share, Math.min(share[4], Math.max(share[3] ?? 0, before))];
  });
}

const y = (row) => HEAD + row * (ROW + GAP);

function label(ctx, text, row, colour) {
  ctx.fillStyle = colour;
  ctx.fillText(text, 4, y(row) + ROW / 2, LEFT - 8);
}

function bar(ctx, x, at, [lo, hi, rank, , ended], began, rows, { isLast, isUnused, ink }) {
  const row = rows.get(rank);
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
