// Curves over the rounds: every envoy a thin line, all of them together a thick one.

import { h, setText } from "/static/dom.js";

const HEIGHT = 200;
const UNITS = [["GB", 1e9], ["MB", 1e6], ["kB", 1e3], ["B", 1]];
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
    if (rounds.last === undefined) return;
    const names = Object.keys(rounds.metrics);
    const isBest = (name) => name === metric || name === `${metric} (mean of sites)`;
    const rank = (name) => (isBest(name) ? 0 : name.startsWith("train ") ? 2 : 1);
    names.sort((one, other) => rank(one) - rank(other) || one.localeCompare(other));
    this.place = 0;
    for (const name of names) {
      const ofEnvoys = rounds.envoys[name.replace(" (mean of sites)", "")] ?? {};
      this.chart(name, "", anew).update(rounds, { [name]: rounds.metrics[name] }, ofEnvoys);
    }
    const { seconds, sent, received } = rounds.sizes;
    const parts = { "whole round": seconds, ...rounds.phases };
    this.chart("seconds of a round", "phases are medians of the envoys", anew).update(rounds, parts, {});
    const largest = Math.max(...sent, ...received);
    const [unit, size] = UNITS.find(([, each]) => largest >= each) ?? UNITS.at(-1);
    const inUnit = (line) => line.map((bytes) => (bytes === null ? null : bytes / size));
    const bytes = { sent: inUnit(sent), received: inUnit(received) };
    this.chart("bytes of a round", `${unit}, of all envoys together`, anew).update(rounds, bytes, {});
  }

  chart(name, unit, anew) {
    if (anew) this.charts.get(name)?.forget();
    if (!this.charts.has(name)) {
      const chart = new Chart(name);
      this.charts.set(name, chart);
      this.node.append(chart.node);
    }
    const chart = this.charts.get(name);
    chart.node.style.order = this.place++;  // a metric that comes later stands before what rounds took
    setText(chart.unit, unit);
    return chart;
  }

  leave() {
    this.theme.removeEventListener("change", this.onTheme);
    for (const chart of this.charts.values()) chart.leave();
  }
}

class Chart {
  constructor(name) {
    this.name = name;
    this.readout = h("p", { class: "readout" });
    this.place = h("div", { class: "plot", role: "img" });
    this.unit = h("span", { class: "unit" });
    const caption = h("figcaption", {}, h("span", {}, name), " ", this.unit);
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
        { ...axis, size: 28, gap: 2, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] },
        { ...axis, size: 52 },
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
    if (at < 0) return;
    const envoys = columns.slice(0, this.envoys.length).map((line) => line[at]).filter((value) => value !== null);
    const range = envoys.length ? `envoys ${number(Math.min(...envoys))} to ${number(Math.max(...envoys))}` : "";
    const parts = thick.map((line, each) => {
      const name = thick.length > 1 ? `${this.names[each]} ` : "";
      return h("span", {}, h("i", { class: `swatch swatch-${each}` }), `${name}${number(line[at])}`);
    });
    this.readout.replaceChildren(`round ${rounds[at]}: `, ...parts, range);
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
