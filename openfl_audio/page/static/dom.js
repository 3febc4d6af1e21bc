// Elements of the page. Texts come from envoys and users: they become text nodes, never markup.

export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function show(node, isShown) {
  if (node.hidden === isShown) node.hidden = !isShown;
}

// A table whose rows stay where they are while their cells change. A column is [name, how a cell is filled, class].
// On a narrow screen rows become cards, and roles say that they are still a table.
export class Table {
  constructor(label, columns, key, empty = "none") {
    this.columns = columns;
    this.key = key;
    this.empty = empty;
    this.rows = new Map();
    const heads = columns.map(([name, , kind]) => h("th", { role: "columnheader", scope: "col", class: kind }, name));
    this.body = h("tbody", { role: "rowgroup" });
    this.node = h(
      "table",
      { role: "table", "aria-label": label },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ...heads)),
      this.body,
    );
    this.update([]);
  }

  update(items) {
    const wanted = items.length ? items : [null];
    const kept = new Map();
    wanted.forEach((item, place) => {
      const key = item === null ? "" : `=${this.key(item)}`;
      const row = this.rows.get(key) ?? this.create(item);
      kept.set(key, row);
      if (item !== null) this.columns.forEach(([, fill], number) => fill(row.cells[number], item, row));
      if (this.body.children[place] !== row) this.body.insertBefore(row, this.body.children[place] ?? null);
    });
    for (const [key, row] of this.rows) if (kept.get(key) !== row) row.remove();
    this.rows = kept;
  }

  create(item) {
    if (item === null) {
      const cell = h("td", { role: "cell", class: "empty", colspan: this.columns.length }, this.empty);
      return h("tr", { role: "row" }, cell);
    }
    const cells = this.columns.map(([name, , kind]) => h("td", { role: "cell", "data-label": name, class: kind }));
    return h("tr", { role: "row" }, ...cells);
  }
}

export function text(pick) {
  return (cell, item) => setText(cell, pick(item) || "–");
}

// A word of state with a colour beside it; the word alone says it all.
export function setState(node, state) {
  setText(node, state.replaceAll("_", " "));
  node.className = `state state-${state.replaceAll(/[^a-z]+/g, "-")}`;
}

export function stateCell(pick) {
  return (cell, item) => {
    if (!cell.firstChild) cell.append(h("span"));
    setState(cell.firstChild, pick(item));
  };
}

// A bar of a share from 0 to 1, or an empty one where the share is not known.
export function setBar(node, share) {
  node.max = 1;
  node.value = share ?? 0;
  node.classList.toggle("unknown", share === null);
}

export function moment(seconds) {
  if (!seconds) return "";
  const two = (number) => String(number).padStart(2, "0");
  const at = new Date(seconds * 1000);
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return `${day} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

export function link(cell, address, name) {
  if (!cell.firstChild || cell.firstChild.nodeName !== "A") cell.replaceChildren(h("a"));
  const anchor = cell.firstChild;
  if (anchor.getAttribute("href") !== address) anchor.setAttribute("href", address);
  setText(anchor, name);
}

export function experimentAddress(name) {
  return `/experiments/${encodeURIComponent(name)}`;
}
