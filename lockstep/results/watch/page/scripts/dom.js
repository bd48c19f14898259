// Elements and tables of the document. All text stays text: nothing here makes markup of it.

export function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// Writes only what is new, so that nothing flickers and a selection stays.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function swatch(colour, isDashed = false) {
  const made = element("i", undefined, isDashed ? "dash" : "swatch");
  made.style.color = colour;
  return made;
}

// A table is also a list of cards on a phone, for which each cell says its column. Styled so, browsers forget that it is
// a table: the roles remind them.
const ROLES = { thead: "rowgroup", tbody: "rowgroup", tr: "row", td: "cell" };

export function part(name, text, className) {
  const made = element(name, text, className);
  made.setAttribute("role", ROLES[name]);
  return made;
}

export function headCell(text, scope, className) {
  const made = element("th", text, className);
  made.scope = scope;
  made.setAttribute("role", scope === "col" ? "columnheader" : "rowheader");
  return made;
}

// Fills a table with rows of texts or elements under `heads`, {text, isText}; the first of a row is its heading.
export function fillTable(table, heads, rows) {
  const shape = JSON.stringify([heads, rows.length]);
  if (table.dataset.shape !== shape) {
    table.dataset.shape = shape;
    table.setAttribute("role", "table");
    const head = part("thead"), body = part("tbody"), line = part("tr");
    line.append(...heads.map(({ text, isText }) => headCell(text, "col", isText ? "text" : "")));
    head.append(line);
    body.append(...rows.map(() => emptyRow(heads)));
    table.replaceChildren(head, body);
  }
  rows.forEach((row, index) => row.forEach((value, column) => fillCell(table.tBodies[0].rows[index].cells[column], value)));
}

function emptyRow(heads) {
  const line = part("tr");
  line.append(...heads.map(({ text, isText }, column) => {
    const className = isText ? "text" : "";
    const cell = column ? part("td", "", className) : headCell("", "row", className);
    cell.dataset.label = text;
    return cell;
  }));
  return line;
}

function fillCell(cell, value) {
  if (typeof value === "string") setText(cell, value);
  else if (!cell.firstChild?.isEqualNode?.(value)) cell.replaceChildren(value);
}
