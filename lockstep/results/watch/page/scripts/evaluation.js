// How the run's model does on its test set: asked for by the reader, computed by the page's server.

import { element, headCell, part, setText } from "./dom.js";
import { count, number, percent } from "./figures.js";

export const weightsName = (weights) => (weights === "last" ? "final weights" : `weights after ${count(Number(weights))} steps`);

export async function evaluate(page) {
  page.$("evaluate").disabled = true;
  setText(page.$("evaluated"), "evaluating …");
  try {
    const found = await page.ask(`${page.base}/evaluation`);
    setText(page.$("evaluated"), `${weightsName(found.weights)}: loss ${number(found.loss)}, accuracy ${percent(found.accuracy)}`);
    const named = (label) => found.names[label] ?? `${label}`;
    showConfusion(page.$("confusion"), found.counts, named);
    page.$("mistakes").replaceChildren(...found.mistakes.map((one) => mistake(one, named)));
  } catch (error) {
    setText(page.$("evaluated"), error.message);
  } finally {
    page.$("evaluate").disabled = false;
  }
}

function showConfusion(table, counts, named) {
  const most = Math.max(1, ...counts.flatMap((row, i) => row.filter((_, j) => i !== j)));
  const head = element("tr");
  head.append(headCell("class \\ predicted", "col"), ...counts.map((_, label) => headCell(named(label), "col")));
  table.setAttribute("role", "table");
  table.replaceChildren(head, ...counts.map((row, label) => {
    const line = part("tr");
    line.append(headCell(named(label), "row"), ...row.map((times, predicted) => confusionCell(times, predicted === label, most)));
    return line;
  }));
}

function confusionCell(times, isRight, most) {
  const cell = part("td", times ? count(times) : "", isRight ? "right" : "");
  if (times && !isRight) cell.style.background = `color-mix(in srgb, var(--bad) ${Math.round((45 * times) / most) + 8}%, transparent)`;
  return cell;
}

function mistake(one, named) {
  const figure = element("figure"), canvas = element("canvas"), text = `${named(one.label)}, not ${named(one.predicted)}`;
  canvas.width = one.width;
  canvas.height = one.height;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `a sample of class ${text}`);
  const ctx = canvas.getContext("2d");
  const image = ctx.createImageData(one.width, one.height);
  [...atob(one.gray)].forEach((character, place) => {
    const value = character.charCodeAt(0);
    image.data.set([value, value, value, 255], 4 * place);
  });
  ctx.putImageData(image, 0, 0);
  figure.append(canvas, element("figcaption", text));
  return figure;
}
