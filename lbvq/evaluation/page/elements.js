"use strict";
// Elements, numbers and tables. Texts become text nodes, never markup.

const DATA = JSON.parse(document.getElementById("data").textContent);

/** An element with attributes, listeners ("onclick": function) and children (elements or texts). */
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** The same for SVG. */
function makeSvg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Three digits, as the command prints them; a dash where there was nothing to measure. */
function number(value, digits = 3) {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}

function signed(value) {
  return value === null || value === undefined ? "–" : (value >= 0 ? "+" : "−") + Math.abs(value).toFixed(3);
}

/** "low – high" of an interval, or nothing. */
function range(interval) {
  return interval && interval[0] !== null ? `${number(interval[0])} – ${number(interval[1])}` : "";
}

/** A button that looks like text and leads to videos. */
function link(text, action, title = "Show the videos") {
  return make("button", { type: "button", class: "link", title, onclick: action }, text);
}

/** A bar of a share in [0, 1] behind a cell's content. */
function bar(content, share, color = "var(--bar)") {
  const node = make("div", { class: "bar" }, make("i"), make("span", {}, content));
  node.firstChild.style.width = `${Math.max(0, Math.min(1, share || 0)) * 100}%`;
  node.firstChild.style.background = color;
  return node;
}

/**
 * A table whose columns sort on a click.
 * columns: {title, value: row => what is sorted by, cell: row => content (default: the value), text: left-aligned}
 */
function table(columns, rows, attributes = {}) {
  const body = make("tbody");
  const fill = (ordered) =>
    body.replaceChildren(
      ...ordered.map((row) =>
        make("tr", {}, ...columns.map((each) => make("td", { class: each.text ? "text" : "number" }, (each.cell || each.value)(row)))),
      ),
    );
  let last = null;
  const sort = (column) => {
    const down = last !== column ? !column.text : null;
    const ordered = rows.map((row) => [column.value(row), row]);
    ordered.sort(([a], [b]) => (a === null) - (b === null) || (a < b ? -1 : a > b ? 1 : 0));
    if (down === null ? column.text : down) ordered.reverse();
    last = last === column ? null : column;
    fill(ordered.map(([, row]) => row));
  };
  const head = columns.map((each) =>
    make("th", { class: each.text ? "text" : "number", title: each.help || "Sort" },
      make("button", { type: "button", onclick: () => sort(each) }, each.title)),
  );
  fill(rows);
  return make("div", { class: "scroll" }, make("table", attributes, make("thead", {}, make("tr", {}, ...head)), body));
}

function count(items, key) {
  const counts = new Map();
  for (const item of items) counts.set(key(item), (counts.get(key(item)) || 0) + 1);
  return counts;
}
