// One experiment: its state and the open round, then curves, then a round, logs, settings and downloads.

import { get } from "/static/api.js";
import { confirmed } from "/static/confirm.js";
import { Curves } from "/static/curves.js";
import { experimentAddress, h, moment, setBar, setState, setText, show, stateCell, Table, text } from "/static/dom.js";
import { LogTail } from "/static/logs.js";
import { OneRound } from "/static/one_round.js";
import { Rounds } from "/static/rounds.js";

const ACTIONS = {
  stop: ["Stop", "Stop", "Its history and models stay, and Resume continues it.", "is stopped"],
  resume: ["Resume", "Resume", "It continues after its last whole round, when its envoys are online and free.", "resumes"],
  delete: ["Delete", "Delete", "Its models and its history are removed from the director's disk for good.", "is deleted"],
};

export function experimentPage(main, page, name) {
  const path = `/api${experimentAddress(name)}`;
  const view = new View(main, page, name, path);
  const leave = page.follow(`${path}/events`, {
    experiment: (state) => view.update(state),
    rounds: (event) => view.addRounds(event),
    end(refusal) {
      view.leave();
      page.fail(refusal);
    },
  });
  return () => {
    leave();
    view.leave();
  };
}

class View {
  constructor(main, page, name, path) {
    Object.assign(this, { page, name, path, rounds: new Rounds(), curves: new Curves() });
    this.heading = h("h1", { tabindex: -1 }, name);
    this.state = h("span", { "data-test": "state" });
    this.lead = h("p", { class: "lead", "data-test": "lead", role: "status" }, "…");
    this.facts = h("p", { class: "facts" });
    this.error = h("pre", { class: "alert", "data-test": "error", hidden: true });
    this.buttons = h("p", { class: "buttons" });
    this.now = new Table("The open round", nowColumns(), (envoy) => envoy.name, "no round is open");
    this.others = h("p", { class: "facts" });
    this.members = new Table("Members", this.memberColumns(), (member) => member.name, "no members");
    this.oneRound = new OneRound(path);
    this.sentences = h("ul", { class: "sentences", "data-test": "sentences" });
    this.log = new LogTail(path);
    this.settings = h("dl");
    this.downloads = h("p", { class: "buttons" });
    main.append(
      h("div", { class: "title" }, this.heading, this.state, this.buttons),
      this.lead,
      this.facts,
      this.error,
      h("h2", {}, "Now"),
      this.now.node,
      this.others,
      h("h2", {}, "Curves"),
      this.curves.node,
      h("h2", {}, "Round by round"),
      this.sentences,
      this.oneRound.node,
      h("h2", {}, "Members"),
      this.members.node,
      this.log.node,
      h("details", {}, h("summary", {}, "Settings"), this.settings),
      h("h2", {}, "Downloads"),
      this.downloads,
    );
  }

  update(state) {
    this.last = state;
    setState(this.state, state.status);
    setText(this.lead, this.sentence(state));
    setText(this.facts, facts(state));
    show(this.error, state.error !== "");
    setText(this.error, state.error);
    this.now.update(state.now?.envoys ?? []);
    setText(this.others, state.now?.others ? `and ${state.now.others} more` : "");
    this.members.update(members(state));
    this.updateButtons(state);
    this.log.update(state.logs ? [...state.envoys, ...Object.keys(state.departed)] : []);
    if (!this.settings.firstChild) this.settings.append(...definitions(state.settings));
    this.updateDownloads(state.models);
  }

  sentence(state) {
    if (state.waits) return `Waits. ${state.waits[0].toUpperCase()}${state.waits.slice(1)}`;
    if (state.now) return state.now.title;
    return `${state.rounds} rounds${state.ended ? `, ended ${moment(state.ended)}` : ""}`;
  }

  addRounds(event) {
    this.rounds.add(event);
    this.curves.draw(this.rounds, this.last.metric);
    this.oneRound.update(this.rounds);
    const sentences = this.rounds.sentences.slice(-10).reverse();
    this.sentences.replaceChildren(...sentences.map((sentence) => h("li", {}, sentence)));
  }

  updateButtons(state) {
    const wanted = state.actions.filter((action) => action in ACTIONS);
    if (this.buttons.dataset.actions === wanted.join()) return;
    this.buttons.dataset.actions = wanted.join();
    const hadFocus = this.buttons.contains(document.activeElement);
    this.buttons.replaceChildren(
      ...wanted.map((action) => h("button", { type: "button", onclick: () => this.act(action) }, ACTIONS[action][0])),
    );
    if (hadFocus) this.heading.focus();
  }

  async act(action) {
    const [, yes, effect, done] = ACTIONS[action];
    const question = `${yes} experiment '${this.name}'?`;
    const path = `${this.path}/${action}`;
    const made = await confirmed(this.page, { question, effect, yes, path, done: `experiment '${this.name}' ${done}` });
    if (made && action === "delete") this.page.go("/experiments");
  }

  memberColumns() {
    return [
      ["envoy", text((member) => member.name), "name"],
      ["state", stateCell((member) => member.state)],
      ["why", text((member) => member.why), "wide"],
      ["", (cell, member) => this.dropCell(cell, member)],
    ];
  }

  dropCell(cell, member) {
    if (!cell.firstChild) {
      const drop = () => this.drop(member.name);
      cell.append(h("button", { type: "button", "aria-label": `Drop envoy ${member.name}`, onclick: drop }, "Drop"));
    }
    if (!member.mayDrop && document.activeElement === cell.firstChild) this.heading.focus();
    show(cell.firstChild, member.mayDrop);
  }

  async drop(envoy) {
    await confirmed(this.page, {
      question: `Continue without envoy '${envoy}'?`,
      effect: "The experiment continues without it for good. What it has sent in this round counts.",
      yes: "Drop",
      path: `${this.path}/envoys/${encodeURIComponent(envoy)}/drop`,
      done: `experiment '${this.name}' continues without envoy '${envoy}'`,
    });
  }

  updateDownloads(models) {
    if (this.downloads.dataset.models === models.join()) return;
    this.downloads.dataset.models = models.join();
    const anchor = (address, label) => h("a", { href: address, download: true }, label);
    this.downloads.replaceChildren(
      anchor(`${this.path}/history.csv`, "History (CSV)"),
      anchor(`${this.path}/envoys.csv`, "Envoys by round (CSV)"),
      ...models.map((model) => anchor(`${this.path}/models/${encodeURIComponent(model)}`, `Model: ${model}`)),
    );
  }

  leave() {
    this.curves.leave();
    this.log.leave();
  }
}

function nowColumns() {
  return [
    ["envoy", text((envoy) => envoy.name), "name"],
    ["state", stateCell((envoy) => envoy.state)],
    ["done", shareCell, "progress"],
    ["now", text((envoy) => envoy.doing), "wide"],
    ["clips/s", text((envoy) => envoy.pace), "number"],
    ["left", text((envoy) => envoy.left), "number"],
    ["memory", text((envoy) => envoy.memory), "number"],
  ];
}

function shareCell(cell, envoy) {
  if (!cell.firstChild) cell.append(h("progress", { class: "bar", "aria-label": `share that ${envoy.name} has done` }));
  setBar(cell.firstChild, envoy.share);
}

function facts(state) {
  const parts = [
    `owner ${state.owner}`,
    state.corpus && `corpus ${state.corpus}`,
    `best by ${state.best}`,
    state.pace && `last round ${state.pace}`,
    `submitted ${moment(state.submitted)}`,
  ];
  return parts.filter(Boolean).join(" · ");
}

function members(state) {
  const mayDrop = state.actions.includes("drop");
  return [
    ...state.envoys.map((name) => ({ name, state: "member", why: "", mayDrop })),
    ...Object.entries(state.departed).map(([name, why]) => ({ name, state: "left", why, mayDrop: false })),
  ];
}

function definitions(settings) {
  return settings.map(([key, value]) => h("div", {}, h("dt", {}, key), h("dd", {}, value)));
}
