// The list of many runs: search, order, and which of them are compared.

import { Choice, Comparison } from "./comparison.js";
import { element, headCell, part, setText, swatch } from "./dom.js";
import { count, duration, moment, number, percent } from "./figures.js";
import { Page } from "./page.js";

const LIST_MS = 3000;

// Longer texts are cut in a column, and whole in the cell's title.
const MOST_LETTERS = 15;

// An epoch lacks the figures that its run does not have.
const score = ({ tested }) => tested?.test_r2 ?? tested?.test_accuracy;
const validationScore = ({ tested }) => tested?.val_r2 ?? tested?.val_accuracy ?? tested?.val_loss;

function validation({ tested }) {
  if (tested?.val_r2 !== undefined) return `R² ${number(tested.val_r2)}`;
  if (tested?.val_accuracy !== undefined) return percent(tested.val_accuracy);
  return tested?.val_loss === undefined ? "" : `loss ${number(tested.val_loss)}`;
}

// {text, of: what is shown, by: what is sorted by}
const COLUMNS = [
  { text: "run", isText: true, by: (run) => run.name },
  { text: "date", isText: true, of: (run) => moment(run.written), by: (run) => run.written },
  { text: "state", isText: true, by: (run) => run.state },
  { text: "epoch", of: (run) => (run.epochs ? `${run.epoch} / ${run.epochs}` : `${run.epoch}`), by: (run) => run.epoch },
  { text: "loss", of: (run) => number(run.loss), by: (run) => run.loss },
  { text: "test", of: ({ tested }) => (tested?.test_r2 === undefined ? percent(tested?.test_accuracy) : `R² ${number(tested.test_r2)}`), by: score },
  { text: "time", of: (run) => duration(run.wall_s), by: (run) => run.wall_s },
  { text: "model", isText: true, of: (run) => run.model, by: (run) => run.model },
];
// Settings are chosen by it, so it comes before the test set; shown if a run has one.
const VALIDATION = { text: "validation", of: validation, by: validationScore };
const BEFORE_TEST = COLUMNS.findIndex((column) => column.text === "test");
const WEIGHTS = { text: "weights", isText: true, of: (run) => run.weights_sha256.slice(0, 8), by: (run) => run.weights_sha256 };

// How the list was left, for when the reader comes back to it.
const choice = new Choice();
const order = { column: "date", isDescending: true };
let wanted = "";

export class ListPage extends Page {
  constructor() {
    super("list-page");
    document.title = "Lockstep";
    this.comparison = new Comparison(this, choice);
    this.$("search").value = wanted;
    this.on(this.$("search"), "input", () => {
      wanted = this.$("search").value;
      this.show();
    });
    this.on(window, "resize", () => {
      this.shown = null;
      if (this.list) this.show();
    });
    this.load();
  }

  async load() {
    for (;;) {
      try {
        this.list = await this.ask("api/runs");
        this.showConnection(true);
        this.show();
      } catch {
        this.showConnection(false);
      }
      await this.pause(LIST_MS);
    }
  }

  restyle() {
    this.comparison.restyle();
  }

  // The values in which the runs differ are columns of their own.
  columns() {
    const values = this.list.differing.map((name) => ({
      text: name.replaceAll("_", " "), isText: true, of: (run) => run.values[name] ?? "", by: (run) => sortable(run.values[name]),
    }));
    return [...this.fixed(), ...values, WEIGHTS];
  }

  fixed() {
    return this.list.runs.some((run) => validationScore(run) !== undefined) ? COLUMNS.toSpliced(BEFORE_TEST, 0, VALIDATION) : COLUMNS;
  }

  show() {
    const { runs, total } = this.list;
    const shown = this.sorted(runs.filter((run) => matches(run, wanted)));
    setText(this.$("count"), counted(shown.length, runs.length, total));
    this.$("empty").hidden = runs.length > 0;
    const state = JSON.stringify([shown, this.list.differing, order]);
    if (state !== this.shown) {
      this.shown = state;
      this.fill(shown);
    }
    this.comparison.show(runs);
  }

  sorted(runs) {
    const by = this.columns().find((column) => column.text === order.column)?.by ?? ((run) => run.written);
    const sign = order.isDescending ? -1 : 1;
    return runs.toSorted((a, b) => compare(by(a), by(b), sign));
  }

  fill(runs) {
    const columns = this.columns(), focused = document.activeElement?.dataset.key;
    const head = part("thead"), body = part("tbody"), line = part("tr");
    line.append(headCell("compare", "col"), ...columns.map((column) => this.head(column)));
    head.append(line);
    body.append(...runs.map((run) => this.line(run, columns)));
    this.$("runs").setAttribute("role", "table");
    this.$("runs").replaceChildren(head, body);
    this.fit(columns);
    // The list was made again under the reader's hands.
    if (focused) this.root.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  // Hides the last columns of values for which the window has no room, and names them.
  fit(columns) {
    const box = this.$("list-of-runs"), lines = [...this.$("runs").rows], hidden = [];
    for (let place = columns.length - 2; box.scrollWidth > box.clientWidth && place >= this.fixed().length; place--) {
      // After the box of the comparison, which is no column.
      for (const line of lines) line.cells[place + 1].hidden = true;
      hidden.unshift(columns[place].text);
    }
    setText(this.$("more-values"), hidden.length ? `They also differ in ${hidden.join(", ")}: see each run, or search for a value.` : "");
  }

  head({ text, isText }) {
    const cell = headCell("", "col", isText ? "text" : ""), button = element("button", text, "sort");
    const isOrder = order.column === text;
    button.dataset.key = `head/${text}`;
    if (isOrder) cell.setAttribute("aria-sort", order.isDescending ? "descending" : "ascending");
    button.onclick = () => {
      order.isDescending = isOrder ? !order.isDescending : text === "date";
      order.column = text;
      this.show();
    };
    cell.append(button);
    return cell;
  }

  line(run, columns) {
    const line = part("tr"), cells = columns.map(({ text, isText, of }) => {
      const cell = part("td", of?.(run), isText ? "text" : ""), shown = cell.textContent;
      cell.dataset.label = text;
      if (shown.length > MOST_LETTERS) {
        cell.classList.add("cut");
        cell.title = shown;
      }
      return cell;
    });
    cells[0].append(link(run));
    cells[1].title = new Date(1000 * run.written).toString();
    cells[2].append(element("span", run.state, `badge ${run.state}`));
    line.append(this.box(run), ...cells);
    return line;
  }

  box(run) {
    const cell = part("td"), box = element("input");
    cell.dataset.label = "compare";
    box.type = "checkbox";
    box.checked = choice.has(run.id);
    box.dataset.key = `box/${run.id}`;
    box.setAttribute("aria-label", `compare ${run.name}`);
    const dot = () => {
      cell.querySelector("i")?.remove();
      if (choice.has(run.id)) cell.append(swatch(choice.colour(run.id)));
    };
    box.onchange = () => {
      choice.toggle(run.id);
      dot();
      this.comparison.show(this.list.runs);
    };
    cell.append(box);
    dot();
    return cell;
  }
}

function link(run) {
  const made = element("a", run.name, "name");
  made.href = `#${encodeURIComponent(run.id)}`;
  made.title = run.name;
  made.dataset.key = `link/${run.id}`;
  return made;
}

// Each word that is searched for is in a run's name, model, state or values; `lr=0.1` is a value.
function matches(run, words) {
  const values = Object.entries(run.values).map(([name, value]) => `${name}=${value}`);
  const text = [run.name, run.model, run.state, ...values].join(" ").toLowerCase();
  return words.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

const sortable = (value) => (value === undefined || value === "" || Number.isNaN(Number(value)) ? value : Number(value));

// Runs without a value come last, whatever the order.
function compare(a, b, sign) {
  const [noA, noB] = [a, b].map((value) => value === null || value === undefined || value === "");
  if (noA || noB) return noA - noB;
  return sign * (typeof a === "number" && typeof b === "number" ? a - b : `${a}`.localeCompare(`${b}`, "en", { numeric: true }));
}

function counted(shown, sent, total) {
  const left = total > sent ? ` The newest ${count(sent)} of ${count(total)} runs are listed.` : "";
  return `${shown === sent ? count(sent) : `${count(shown)} of ${count(sent)}`} ${sent === 1 ? "run" : "runs"}.${left}`;
}
