// Curves over the rounds: every envoy a thin line, all of them together a thick one.

import { h, setText } from "/static/dom.js";

const HEIGHT = 200;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const number = (value) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(4))));

export class Curves {
  constructor() {
    this.node = h("div", { class: "curves" });
    this.charts = new Map();
    this.theme = matchMedia("(prefers-color-scheme: dark)");
    this.onTheme = () => this.rounds && this.draw(this.rounds, this.metric, true);
    this.theme.addEventListener("change", this.onTheme);
  }

  // The metric that chooses the best model first, then other metrics, then what rounds took.
  draw(rounds, metric, anew = false) {
    this.rounds = rounds;
    this.metric = metric;
    const names = Object.keys(rounds.metrics);
    const isBest = (name) => name === metric || name === `${metric} (mean of sites)`;
    const rank = (name) => (isBest(name) ? 0 : name.startsWith("train ") ? 2 : 1);
    names.sort((one, other) => rank(one) - rank(other) || one.localeCompare(other));
    for (const name of names) {
      const ofEnvoys = rounds.envoys[name.replace(" (mean of sites)", "")] ?? {};
      this.chart(name, "", anew).update(rounds, { [name]: rounds.metrics[name] }, ofEnvoys);
    }
    const { seconds, sent, received } = rounds.sizes;
    if (seconds) {
      const parts = { "whole round": seconds, ...rounds.phases };
      this.chart("seconds of a round", "s, median of the envoys by phase", anew).update(rounds, parts, {});
      const megabytes = (line) => line.map((bytes) => (bytes === null ? null : bytes / 1e6));
      const bytes = { sent: megabytes(sent), received: megabytes(received) };
      this.chart("bytes of a round", "MB, all envoys together", anew).update(rounds, bytes, {});
    }
  }

  chart(name, unit, anew) {
    if (anew) this.charts.get(name)?.forget();
    if (!this.charts.has(name)) {
      const chart = new Chart(name, unit);
      this.charts.set(name, chart);
      this.node.append(chart.node);
    }
    return this.charts.get(name);
  }

  leave() {
    this.theme.removeEventListener("change", this.onTheme);
    for (const chart of this.charts.values()) chart.leave();
  }
}

class Chart {
  constructor(name, unit) {
    this.name = name;
    this.readout = h("p", { class: "readout" });
    this.place = h("div", { class: "plot", role: "img" });
    const caption = h("figcaption", {}, name, unit ? h("span", { class: "unit" }, ` ${unit}`) : "");
    this.node = h("figure", { "data-test": `curve ${name}` }, caption, this.place, this.readout);
    this.size = new ResizeObserver(() => this.plot?.setSize({ width: this.place.clientWidth, height: HEIGHT }));
    this.size.observe(this.place);
  }

  update(rounds, lines, ofEnvoys) {
    this.names = Object.keys(lines);
    this.envoys = Object.keys(ofEnvoys);
    const data = rounds.aligned(Object.values(lines), ofEnvoys);
    const shape = `${this.names} ${this.envoys}`;
    if (this.plot && this.shape === shape) this.plot.setData(data);
    else {
      this.forget();
      this.shape = shape;
      this.plot = new uPlot(this.options(), data, this.place);
    }
    this.read(null);
    this.place.setAttribute("aria-label", `${this.name} by round: ${this.readout.textContent}`);
  }

  options() {
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    const thin = () => ({ stroke: colour("--thin"), width: 1, spanGaps: true, points: { show: false } });
    const strokes = ["--accent", "--second", "--third", "--fourth"];
    const thick = (name, place) => ({ label: name, stroke: colour(strokes[place]), width: 2.5, spanGaps: true });
    return {
      width: Math.max(200, this.place.clientWidth),
      height: HEIGHT,
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, points: { show: false } },
      scales: { x: { time: false } },
      axes: [
        { ...axis, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] },
        { ...axis, size: 60 },
      ],
      series: [{ label: "round" }, ...this.envoys.map(thin), ...this.names.map(thick)],
      hooks: { setCursor: [(plot) => this.read(plot.cursor.idx)] },
    };
  }

  // What the curves say at a round, or in the last one.
  read(place) {
    if (!this.plot) return;
    const [rounds, ...columns] = this.plot.data;
    const thick = columns.slice(this.envoys.length);
    const last = rounds.findLastIndex((_, at) => thick.some((line) => line[at] !== null));
    const at = place ?? last;
    if (at < 0) return setText(this.readout, "no round is over so far");
    const values = thick.map((line, each) => (thick.length > 1 ? `${this.names[each]} ` : "") + number(line[at]));
    const envoys = columns.slice(0, this.envoys.length).map((line) => line[at]).filter((value) => value !== null);
    const range = envoys.length ? `; envoys ${number(Math.min(...envoys))} to ${number(Math.max(...envoys))}` : "";
    setText(this.readout, `round ${rounds[at]}: ${values.join(", ")}${range}`);
  }

  forget() {
    this.plot?.destroy();
    this.plot = null;
  }

  leave() {
    this.size.disconnect();
    this.forget();
  }
}
