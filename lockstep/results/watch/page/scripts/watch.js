// Which page is shown, in which theme, and what the keys do.

import { ListPage } from "./list.js";
import { RunPage } from "./run.js";

let page = null, source = null;

async function learnSource() {
  const answer = await fetch("api/source");
  source = await answer.json();
}

function open() {
  page?.close();
  const wanted = decodeURIComponent(location.hash.slice(1));
  page = source.is_many && !wanted ? new ListPage() : new RunPage(source.run ?? wanted, source, lookAgain);
}

// A folder that was empty may hold a run by now, or many.
async function lookAgain() {
  const before = source;
  await learnSource().catch(() => {});
  if (source.is_many !== before.is_many) open();
}

const isDarkSystem = matchMedia("(prefers-color-scheme: dark)");

function toggleTheme() {
  const now = document.documentElement.dataset.theme ?? (isDarkSystem.matches ? "dark" : "light");
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
  try {
    localStorage.setItem("lockstep-theme", document.documentElement.dataset.theme);
  } catch {
    // A browser that keeps nothing follows the system each time.
  }
  page?.restyle();
}

const MOVES = { "+": [0, 0.5], "=": [0, 0.5], "-": [0, 2], ArrowLeft: [-1, 1], ArrowRight: [1, 1] };

document.addEventListener("keydown", (event) => {
  // Arrows also scroll a table or a list that has the focus.
  const busy = event.key.startsWith("Arrow") ? "input, canvas, [tabindex]" : "input, canvas";
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest(busy)) return;
  if (event.key === "t") toggleTheme();
  else if (!(page instanceof RunPage)) return;
  else if (event.key === "0") page.zoom(null, null);
  else if (MOVES[event.key]) page.move(...MOVES[event.key]);
  else return;
  event.preventDefault();
});
document.getElementById("theme").onclick = toggleTheme;
addEventListener("hashchange", open);
isDarkSystem.addEventListener("change", () => page?.restyle());

try {
  const kept = localStorage.getItem("lockstep-theme");
  if (kept) document.documentElement.dataset.theme = kept;
} catch {
  // As above.
}
await learnSource();
open();
