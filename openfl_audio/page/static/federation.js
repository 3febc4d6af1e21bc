// The federation: what there is, then every envoy and what it does.

import { experimentAddress, h, link, moment, setBar, setText, stateCell, Table, text } from "/static/dom.js";

export function federationPage(main, page) {
  const state = h("p", { class: "lead", "data-test": "lead" }, "…");
  const running = new Table(
    "Experiments that run or wait",
    [
      ["experiment", (cell, each) => link(cell, experimentAddress(each.name), each.name)],
      ["state", stateCell((each) => each.status)],
      ["rounds", text((each) => each.rounds), "number"],
      ["waits", text((each) => each.waits), "wide"],
      ["owner", text((each) => each.owner)],
    ],
    (each) => each.name,
    "no experiment runs or waits",
  );
  const envoys = new Table("Envoys", envoyColumns(), (envoy) => envoy.name, "no envoy has registered so far");
  main.append(
    h("h1", { tabindex: -1 }, "Federation"),
    state,
    h("h2", {}, "Now"),
    running.node,
    h("h2", {}, "Envoys"),
    envoys.node,
  );
  return page.follow("/api/federation", {
    federation(content) {
      const online = content.envoys.filter((envoy) => envoy.state !== "offline").length;
      const active = content.experiments.filter((each) => ["in_progress", "pending"].includes(each.status));
      const runs = active.filter((each) => each.status === "in_progress").length;
      setText(
        state,
        `${online} of ${content.envoys.length} envoys online. ` +
          `Experiments: ${runs} in progress, ${active.length - runs} pending, ` +
          `${content.experiments.length - active.length} ended.`,
      );
      running.update(active);
      envoys.update(content.envoys);
    },
  });
}

function envoyColumns() {
  return [
    ["envoy", text((envoy) => envoy.name), "name"],
    ["state", stateCell((envoy) => envoy.state)],
    ["now", nowCell, "wide"],
    ["experiment", experimentCell],
    ["corpus", text((envoy) => envoy.corpus)],
    ["clips", text((envoy) => envoy.clips), "some"],
    ["certificate until", expiryCell, "number"],
    ["more", moreCell, "some"],
  ];
}

function nowCell(cell, envoy) {
  if (!cell.firstChild) {
    cell.append(h("progress", { class: "bar", "aria-label": `share that ${envoy.name} has done` }), h("span"));
  }
  const [bar, words] = cell.children;
  bar.hidden = envoy.now === null || envoy.now.share === null;
  setBar(bar, envoy.now?.share ?? null);
  const pace = envoy.now?.pace ? ` at ${envoy.now.pace} clips/s` : "";
  const left = envoy.now?.left ? `, ${envoy.now.left} left` : "";
  setText(words, envoy.now ? envoy.now.doing + pace + left : "–");
}

function experimentCell(cell, envoy) {
  if (envoy.experiment) link(cell, experimentAddress(envoy.experiment), envoy.experiment);
  else setText(cell, "–");
}

function expiryCell(cell, envoy) {
  setText(cell, envoy.expires ? moment(envoy.expires).slice(0, 10) + (envoy.expiresSoon ? " (soon)" : "") : "–");
  cell.classList.toggle("warn", envoy.expiresSoon);
}

// The last error is no detail: it stands open.
function moreCell(cell, envoy) {
  if (!cell.firstChild) {
    cell.append(h("span", { class: "alert" }), h("details", {}, h("summary", {}, "versions"), h("span")));
  }
  const [error, more] = cell.children;
  setText(error, envoy.lastError);
  const since = `${envoy.state === "offline" ? "offline" : "online"} since ${moment(envoy.since)}`;
  const memory = envoy.now?.memory ? `memory ${envoy.now.memory}` : "";
  setText(more.lastChild, [...envoy.versions, memory, since].filter(Boolean).join("\n"));
}
