// One round: who was asked, what counted and what did not, and why; by default the last one that is over.

import { get } from "/static/api.js";
import { h, setState, setText } from "/static/dom.js";

export class OneRound {
  constructor(path) {
    this.path = path;
    this.wanted = null;
    this.shown = null;
    this.number = h("input", { id: "round", type: "number", min: 0, step: 1, inputmode: "numeric" });
    this.latest = h("button", { type: "button" }, "Latest");
    this.summary = h("p", { class: "facts", "data-test": "round" });
    this.sentences = h("ul", { class: "sentences" });
    this.table = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Envoys of the round" });
    this.classes = h("div", { class: "classes" });
    this.number.addEventListener("change", () => this.choose(this.number.valueAsNumber));
    this.latest.addEventListener("click", () => this.choose(null));
    this.node = h(
      "section",
      { "aria-label": "One round", class: "one-round" },
      h("p", { class: "filters" }, h("label", { for: "round" }, "Round"), this.number, this.latest),
      this.summary,
      this.sentences,
      this.table,
      this.classes,
    );
  }

  choose(number) {
    this.wanted = Number.isNaN(number) ? null : number;
    this.load();
  }

  update(rounds) {
    this.last = rounds.last;
    this.load();
  }

  async load() {
    const number = this.wanted ?? this.last;
    if (number === undefined) return setText(this.summary, "no round is over so far");
    if (number === this.shown) return undefined;
    this.shown = number;
    try {
      const round = await get(`${this.path}/rounds/${number}`);
      if (number === this.shown) this.draw(round);
    } catch (refusal) {
      setText(this.summary, refusal.message);
    }
    return undefined;
  }

  draw(round) {
    if (document.activeElement !== this.number) this.number.value = round.round;
    setText(this.summary, round.summary);
    this.sentences.replaceChildren(...round.sentences.map((sentence) => h("li", {}, sentence)));
    const head = h("tr", {}, ...round.columns.map((name) => h("th", { scope: "col" }, name)));
    const at = round.columns.indexOf("state");
    const rows = round.envoys.map((cells) =>
      h("tr", {}, ...cells.map((cell, place) => h("td", {}, place === at ? stateOf(cell) : cell || "–"))),
    );
    const table = h("table", { class: "plain" }, h("thead", {}, head), h("tbody", {}, ...rows));
    this.table.replaceChildren(table);
    this.classes.replaceChildren(...round.classes.map(classTable));
  }
}

function stateOf(word) {
  const node = h("span");
  setState(node, word);
  return node;
}

function classTable({ metric, rows }) {
  const largest = Math.max(...rows.map(([, , value]) => Math.abs(value)), 1);
  const lines = rows.map(([name, shown, value]) => {
    const bar = h("progress", { class: "bar", max: largest, value: Math.max(0, value), "aria-label": `${metric} of ${name}` });
    return h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, bar), h("td", { class: "number" }, shown));
  });
  return h(
    "details",
    {},
    h("summary", {}, `${metric} by class (${rows.length})`),
    h("table", { class: "plain", "aria-label": `${metric} by class` }, h("tbody", {}, ...lines)),
  );
}
