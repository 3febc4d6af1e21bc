// All experiments: those that run or wait first, and a filter by name, owner and state.

import { experimentAddress, h, link, moment, setBar, setText, stateCell, Table, text } from "/static/dom.js";

const STATES = ["pending", "in_progress", "finished", "failed", "stopped"];

export function experimentsPage(main, page) {
  let all = [];
  const name = h("input", { id: "by-name", type: "search", autocomplete: "off" });
  const owner = h("input", { id: "by-owner", type: "search", autocomplete: "off" });
  const state = h("select", { id: "by-state" }, h("option", { value: "" }, "all"));
  state.append(...STATES.map((value) => h("option", { value }, value.replaceAll("_", " "))));
  const count = h("p", { class: "lead", role: "status" }, "…");
  const table = new Table(
    "Experiments",
    [
      ["experiment", (cell, each) => link(cell, experimentAddress(each.name), each.name), "name"],
      ["state", stateCell((each) => each.status)],
      ["rounds", roundsCell],
      ["waits for", text((each) => each.waits || each.waitingFor), "wide"],
      ["owner", text((each) => each.owner), "owner"],
      ["corpus", text((each) => each.corpus)],
      ["a round", text((each) => each.pace), "number"],
      ["submitted", text((each) => moment(each.submitted)), "when"],
      ["ended", text((each) => moment(each.ended)), "when"],
      ["error", text((each) => each.error), "wide"],
    ],
    (each) => each.name,
    "no experiment",
  );
  const filter = () => {
    const contains = (value, field) => value.toLowerCase().includes(field.value.trim().toLowerCase());
    const chosen = all.filter(
      (each) =>
        contains(each.name, name) && contains(each.owner, owner) && (!state.value || each.status === state.value),
    );
    table.update(chosen);
    setText(count, `${chosen.length} of ${all.length} experiments`);
  };
  for (const field of [name, owner, state]) field.addEventListener("input", filter);
  const field = (label, control) => h("div", {}, h("label", { for: control.id }, label), control);
  main.append(
    h("h1", { tabindex: -1 }, "Experiments"),
    h("form", { class: "filters", role: "search" }, field("Name", name), field("Owner", owner), field("State", state)),
    count,
    table.node,
  );
  main.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  return page.follow("/api/federation", {
    federation(content) {
      all = content.experiments;
      filter();
    },
  });
}

function roundsCell(cell, each) {
  if (!cell.firstChild) {
    cell.append(h("progress", { class: "bar", "aria-label": `rounds of ${each.name} that are done` }), h("span"));
  }
  setBar(cell.children[0], each.share);
  setText(cell.children[1], each.rounds);
}
