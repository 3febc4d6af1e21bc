// The rounds of an experiment as they came: columns that events add to.

export class Rounds {
  constructor() {
    this.clear();
  }

  clear() {
    this.rounds = [];
    this.metrics = {};
    this.phases = {};
    this.sizes = {};
    this.envoyRounds = [];
    this.envoys = {};
    this.sentences = [];
  }

  add(event) {
    if (event.first === 0) this.clear();
    const before = this.rounds.length;
    this.rounds.push(...event.rounds);
    for (const group of ["metrics", "phases", "sizes"]) extend(this[group], event[group], before, this.rounds.length);
    const ofEnvoys = this.envoyRounds.length;
    this.envoyRounds.push(...event.envoyRounds);
    for (const [name, series] of Object.entries(event.envoys)) {
      this.envoys[name] ??= {};
      extend(this.envoys[name], series, ofEnvoys, this.envoyRounds.length);
    }
    this.sentences = event.sentences;
  }

  get last() {
    return this.rounds.at(-1);
  }

  // Columns as uPlot takes them: rounds, the line of all envoys, and a line for each envoy.
  aligned(lines, ofEnvoys = {}) {
    const at = new Map();
    const every = [...new Set([...this.rounds, ...this.envoyRounds])].sort((one, other) => one - other);
    every.forEach((round, place) => at.set(round, place));
    const place = (rounds, values) => {
      const line = new Array(every.length).fill(null);
      rounds.forEach((round, number) => (line[at.get(round)] = values[number] ?? null));
      return line;
    };
    return [
      every,
      ...Object.values(ofEnvoys).map((values) => place(this.envoyRounds, values)),
      ...lines.map((values) => place(this.rounds, values)),
    ];
  }
}

function extend(series, added, before, after) {
  for (const [name, values] of Object.entries(added)) {
    series[name] ??= new Array(before).fill(null);
    series[name].push(...values);
  }
  for (const values of Object.values(series)) while (values.length < after) values.push(null);
}
