"""Results on pages: each comes from a file in benchmarks/results, and one that somebody typed is found."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.arguments import RESULTS, Result, load
from openfl_audio.experiments.comparison import spread
from scripts.documentation.markdown import code, table

FENCE = re.compile(r"^( *)(```|:::).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
NO_PROSE = re.compile(r"`[^`\n]*`|\"[^\"\n]*\"|\{\{.*?\}\}|\]\([^)]*\)")
UNIT = r"(?:s|ms|seconds|minutes|kB|MB|GB|GiB|dB|%|times)"
NUMBER = r"\d[\d,]*(?:\.\d+)?"
# A cell of a table that is a score, or a quantity with a unit.
CELL = re.compile(rf"(?:\d+\.\d+|{NUMBER} {UNIT})(?: ± {NUMBER})?|{NUMBER} to {NUMBER} {UNIT}")
# In a sentence a measurement has a fraction and a unit; a setting such as 15 s has none.
IN_PROSE = re.compile(rf"\d+\.\d+ {UNIT}(?!\w)")


def results(folder: Path = RESULTS) -> dict[str, Result]:
    """Return the results in `folder` by name. Raises ValueError for a file that is none."""
    return {path.stem: load(path) for path in sorted(folder.glob("*.json"))}


def substitutions(folder: Path = RESULTS) -> dict[str, Any]:
    """Return what `{{ result.NAME.key }}` may name: the values of each result, by the name of its file."""
    return {name.replace("-", "_"): result.values for name, result in results(folder).items()}


def benchmarks() -> str:
    """Return a section for each result: its command, date, machine and values."""
    return "\n\n".join(part for name, result in results().items() for part in _describe(name, result))


def modes(workload: str, folder: Path = RESULTS) -> str:
    """Return a table for each result of `benchmarks/modes.py` about a workload, with a link to its command.

    A row says of how many seeds it is, and that it was not run where that is none.
    """
    found = {name: result.values for name, result in results(folder).items() if name.startswith("modes-")}
    parts = [
        f"{_table_of_modes(values['runs'])}\n\n[Its command, day and machine](../design/benchmarks.md#{name})"
        for name, values in found.items()
        if values["workload"] == workload
    ]
    return "\n\n".join(parts) or "No comparison of the modes is among the results yet."


def _table_of_modes(runs: Mapping[str, Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for run in runs.values() for column in run["scores"]))
    rows = []
    for name, run in runs.items():
        scores = [spread(run["scores"][column]) if column in run["scores"] else "" for column in columns]
        ran = [run["clients"], run["rounds"], run["seeds"], *scores]
        rows.append([name, *(ran if run["seeds"] else ["", "", "not run", *scores])])
    return table(["run", "clients", "rounds", "seeds", *columns], rows)


def privacy_accuracy(folder: Path = RESULTS) -> str:
    """Return the table of `benchmarks/privacy_accuracy.py`: the mean score of a row and an epsilon, and the range.

    It says of how many seeds a score is where they are fewer than planned, and what was not run.
    """
    values = load(folder / "privacy-accuracy.json").values
    names, seeds = values["epsilons"], values["seeds"]
    rows = [
        [name, row["metric"], *(_point(row["points"].get(epsilon, {}).get("scores"), seeds) for epsilon in names)]
        for name, row in values["rows"].items()
    ]
    return table(["row", "score", *(f"epsilon {name}" for name in names)], rows)


def cohorts(folder: Path = RESULTS) -> str:
    """Return the table of `benchmarks/cohorts.py`: the mean word error rate by the size of the cohort, and the range.

    It says of how many seeds a rate is where they are fewer than planned, and what was not run.
    """
    values = load(folder / "cohorts.json").values
    sizes = sorted({row["cohort"] for row in values["rows"]})
    rates: dict[tuple[str, str, int], dict[int, list[float]]] = {}
    for row in values["rows"]:
        rates.setdefault((row["start"], row["server"], row["local_epochs"]), {})[row["cohort"]] = row["wer"]
    rows = [[*names, *(_point(of_row.get(size), values["seeds"]) for size in sizes)] for names, of_row in rates.items()]
    return table(["start", "server optimizer", "local epochs", *(f"{size} clients a round" for size in sizes)], rows)


def hubert_iterations(folder: Path = RESULTS) -> str:
    """Return the table of `benchmarks/hubert_iterations.py`: accuracies of each iteration, for keywords the means."""
    values = load(folder / "hubert-iterations.json").values
    rows = []
    for name in ("first", "second"):
        keywords = [f"{sum(each) / len(each):.3f}" for each in values[name]["keyword_accuracy"].values()]
        masked = [f"{values[name][key]:.3f}" for key in ("masked_accuracy", "most_frequent_cluster")]
        rows.append([name, *masked, *keywords])
    splits = [f"keywords, {split}" for split in values["first"]["keyword_accuracy"]]
    return table(["iteration", "masked accuracy", "most frequent cluster", *splits], rows)


def supervised_share(folder: Path = RESULTS) -> str:
    """Return the table of `benchmarks/supervised_share.py`: dB with one noise and with two, by share and clients."""
    trials = load(folder / "supervised-share.json").values["trials"]
    clients = sorted({trial["clients"] for trial in trials})
    scores: dict[float, dict[int, str]] = {}
    for trial in trials:
        both = f"{trial['si_sdri_1_noise']:.2f}, {trial['si_sdri_2_noises']:.2f}"
        scores.setdefault(trial["p_supervised"], {})[trial["clients"]] = both
    rows = [[f"{share:.0%}", *(of_share[each] for each in clients)] for share, of_share in scores.items()]
    return table(["supervised clients", *(f"of {each} clients" for each in clients)], rows)


def _point(scores: Sequence[float] | None, seeds: int) -> str:
    if not scores:
        return "not run"
    fewer = "" if len(scores) == seeds else f", {len(scores)} of {seeds} seeds"
    return f"{sum(scores) / len(scores):.3f} ({min(scores):.3f} to {max(scores):.3f}{fewer})"


def typed_results(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each number on a page that looks like a measurement and comes from no file."""
    shown = FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)
    for number, line in enumerate(shown.splitlines(), 1):
        for found in _typed(NO_PROSE.sub("", line)):
            yield number, found


def _typed(line: str) -> Iterator[str]:
    cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.lstrip().startswith("|") else []
    yield from (cell for cell in cells if CELL.fullmatch(cell))
    yield from (found for part in cells or [line] if not CELL.fullmatch(part) for found in IN_PROSE.findall(part))


def _describe(name: str, result: Result) -> Iterator[str]:
    machine = result.machine
    yield f"## {name}"
    yield f"```sh\n{result.command}\n```"
    conditions = (
        f"Measured on {result.date:%Y-%m-%d}, with commit {code(result.commit[:10])}, on {machine.cores} cores "
    )
    conditions += f"({machine.processor}), Python {machine.python}, PyTorch {machine.torch}."
    yield conditions + (f" Note: {result.note}." if result.note else "")
    yield table(["value", f"in `benchmarks/results/{name}.json`"], _rows(result.values, ""))


def _rows(values: Any, prefix: str) -> Iterator[tuple[str, object]]:
    if not isinstance(values, Mapping | list):
        yield code(prefix), values
        return
    for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
        yield from _rows(value, f"{prefix}.{key}" if prefix else str(key))
