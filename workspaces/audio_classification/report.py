"""The global model at every site, after an experiment: scores, counts of classes, and a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from openfl_audio.notebook.interactive_api import FLExperiment
from openfl_audio.protocol.plan import VALIDATE, Direction
from openfl_audio.training.history import Record, scores_by_round
from openfl_audio.training.sites import judge_sites, scores_by_site


def read_records(experiment: FLExperiment) -> list[Record]:
    """Return the records of an experiment's rounds, with the metrics of each envoy."""
    messages = experiment.federation.dir_client.stream_history(experiment.experiment_name)
    return [message for message in messages if isinstance(message, dict)]


def report_sites(records: Sequence[Record], best: tuple[str, Direction]) -> dict[str, Any]:
    """Return the scores of each site in the round of the best model, and `judge_sites` of them."""
    metric, direction = best
    scores = scores_by_site(records, metric, best_round(records, best))
    return {"by_site": {site: round(score, 3) for site, score in scores.items()}, **judge_sites(scores, direction)}


def best_round(records: Sequence[Record], best: tuple[str, Direction]) -> int:
    """Return the first round whose global model has the best validation score."""
    scores = scores_by_round(records, best[0])
    choose = max if best[1] == "max" else min
    return choose(scores, key=lambda round_number: scores[round_number])


def recalls_by_site(record: Record) -> dict[str, list[float]]:
    """Return the share of each class's clips that were recognised, by site; NaN where a site has none of a class."""
    recalls = {}
    for site, tasks in sorted(record["envoys"].items()):
        metrics: Mapping[str, float] = tasks.get(VALIDATE, {})
        number = sum(name.startswith("true/") for name in metrics)
        pairs = [(metrics[f"hit/{i}"], metrics[f"true/{i}"]) for i in range(number)]
        if pairs:
            recalls[site] = [hit / true if true else float("nan") for hit, true in pairs]
    return recalls


def plot_sites(records: Sequence[Record], best: tuple[str, Direction], classes: Sequence[str]) -> Figure:
    """Draw the score of each site by round, and the recall of each class at each site with the best model."""
    metric = best[0]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    rounds = list(scores_by_round(records, metric))
    by_round = {number: scores_by_site(records, metric, number) for number in rounds}
    for site in sorted({site for scores in by_round.values() for site in scores}):
        left.plot(rounds, [by_round[number].get(site, np.nan) for number in rounds], label=site)
    left.axvline(best_round(records, best), color="grey", linestyle=":")
    left.set(xlabel="round", ylabel=f"validation {metric}")
    left.legend()
    record = next(record for record in records if record["round"] == best_round(records, best))
    recalls = recalls_by_site(record)
    if recalls:
        image = right.imshow(np.array(list(recalls.values())), vmin=0, vmax=1, cmap="viridis", aspect="auto")
        right.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
        right.set_yticks(range(len(recalls)), list(recalls))
        figure.colorbar(image, ax=right, label="recall of the best model")
    plt.close(figure)
    return figure
