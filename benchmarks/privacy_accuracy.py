#!/usr/bin/env python3
"""Accuracy against epsilon: what DP-SGD leaves of what models for audio learn, for each recording of a client.

    python benchmarks/privacy_accuracy.py --out runs/privacy_accuracy --save privacy-accuracy
    python benchmarks/privacy_accuracy.py --rows head --seeds 1

Each row is a model, a number of clients and a way to clip. It is trained in simulation with four epsilons and three
seeds, by the same steps: the accountant computes the noise multiplier from epsilon, delta, the probability of a
recording to be drawn and the number of steps, and `inf` has next to no noise with the same clipping. Noise and draws
come from the operating system, so a run that is repeated differs.

Recordings are made: words spoken by synthetic voices, and synthetic sound events. There is no speech model to start
from without a download. So a small Wav2Vec2 is trained first on speakers who are nobody's clients, on the same twelve
words, as public data; heads are trained on it from a random start, and it is fine-tuned whole and by adapters.

Each run is kept in --out as it ends: the same command goes on. No run starts after --hours; --save keeps what there is.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package

import numpy as np
import torch

from benchmarks.arguments import add_save, save, whole_number
from openfl_audio.config import load_settings
from openfl_audio.experiments.run import run
from openfl_audio.experiments.workloads import find_file, find_workload
from openfl_audio.privacy.accounting import noise_for
from openfl_audio.testing.corpora.fsd50k import make_fsd50k
from openfl_audio.testing.corpora.output import make_folder
from openfl_audio.testing.corpora.speech_commands import make_speech_commands
from openfl_audio.testing.encoder import train_encoder
from shard_descriptors.fsd50k.layout import read_layout
from shard_descriptors.fsd50k.preparation import prepare_store

EPSILONS, SEEDS, DELTA = (1.0, 3.0, 8.0, math.inf), 3, 1e-5
NEXT_TO_NONE = 1e-6  # noise multiplier in place of the 0 that a plan cannot have
# The public corpus is of seed 0, the clients' of the two others.
PUBLIC_SPEAKERS, PUBLIC_ROUNDS = 40, 14
CLIENT_SPEAKERS, CLIENT_CORPORA = 64, (1, 2)
SOUND_CLIPS, TEST_SOUND_CLIPS = 1200, 150


@dataclass(frozen=True)
class Row:
    """A model with its clients, and the steps that it is trained by: `rounds` times `steps` at each client.

    `start` is the setting that gets the folder of the public encoder. `score` is the metric, on test data, of the last
    model: the choice of the best one by validation would not be private.
    """

    workload: str
    config: str
    data: str
    score: str
    rounds: int
    steps: int
    probability: float
    clip: float
    rate: float
    clients: int = 5
    clipping: str = "flat"
    start: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)


def head(clients: int = 5, clipping: str = "flat") -> Row:
    """Return the row of a keyword head, SUPERB's, on the frozen public encoder."""
    changes = {"model.config": None, "data.silence_share": None, "warmup": 0.0, "opt_treatment": "RESET"}
    return Row(
        "keyword_spotting", "upstream.yaml", "words", "accuracy", rounds=20, steps=5, probability=0.1, clip=1.0,
        rate=2.0, clients=clients, clipping=clipping, start="model.upstream", changes=changes,
    )  # fmt: skip


def wav2vec2(rate: float, **changes: Any) -> Row:
    """Return a row of the public Wav2Vec2, fine-tuned with a new head."""
    changes |= {"model.config": None, "opt_treatment": "RESET", "warmup": 0.0}
    return Row(
        "keyword_spotting_wav2vec2", "small.yaml", "words", "accuracy", rounds=10, steps=5, probability=0.05, clip=1.0,
        rate=rate, start="model.pretrained", changes=changes,
    )  # fmt: skip


ROWS: dict[str, Row] = {
    "head": head(),
    "head, 40 clients": head(clients=40),
    "head, 400 clients": head(clients=400),
    "head, per layer": head(clipping="per_layer"),
    "LoRA": wav2vec2(1.0, adapter={"r": 4, "alpha": 8.0}),
    "Wav2Vec2": wav2vec2(0.5),
    "sound events": Row(
        "sound_events", "small.yaml", "sounds", "pr_auc", rounds=10, steps=5, probability=0.1, clip=1.0, rate=0.5
    ),
}


@dataclass(frozen=True)
class Cell:
    """One run: a row with an epsilon and a seed."""

    row: str
    epsilon: float
    seed: int

    @property
    def name(self) -> str:
        """Return the name of the folder of the run."""
        return f"{self.row.replace(', ', '-').replace(' ', '-')}-epsilon-{self.epsilon:g}-seed-{self.seed}"


@cache
def noise_multiplier(epsilon: float, probability: float, steps: int) -> float:
    """Return the least noise with which all steps of a run cost `epsilon` at most, by RDP; for `inf` next to none."""
    return NEXT_TO_NONE if math.isinf(epsilon) else noise_for(epsilon, DELTA, probability, steps)


def cells(rows: Sequence[str] = tuple(ROWS), seeds: int = SEEDS) -> Iterator[Cell]:
    """Yield the runs of `rows` in their order: of a row with a seed, one for each epsilon."""
    for row in rows:
        for seed in range(seeds):
            yield from (Cell(row, epsilon, seed) for epsilon in EPSILONS)


def settings_of(cell: Cell, encoder: Path) -> Any:
    """Return the settings of a run of `openfl-audio train`; `encoder` is the folder of the public model."""
    row = ROWS[cell.row]
    workload = find_workload(row.workload)
    level = {
        "unit": "record",
        "noise_multiplier": noise_multiplier(cell.epsilon, row.probability, row.rounds * row.steps),
        "clip": row.clip,
        "delta": DELTA,
        "probability": row.probability,
        "steps": row.steps,
        "clipping": row.clipping,
    }
    given = {
        "clients": row.clients,
        "rounds": row.rounds,
        "seed": cell.seed,
        "optimizer": {"name": "sgd", "learning_rate": row.rate},
        "validate_every": row.rounds,
        "privacy": level,
        **({"data.partition": "clips"} if row.data == "words" else {}),
        **({row.start: str(encoder)} if row.start else {}),
        **row.changes,
    }
    return load_settings(find_file(workload, row.config), workload.config_class, given)


def result_of(cell: Cell, folder: Path) -> Path:
    """Return the file that a run writes as it ends."""
    return folder / "runs" / cell.name / "result.json"


def train(cell: Cell, folder: Path) -> None:
    """Run a cell in `folder`, or go on with it."""
    row = ROWS[cell.row]
    settings = settings_of(cell, folder / "encoder")
    run(find_workload(row.workload), settings, "simulated", folder / row.data, result_of(cell, folder).parent)


def read(cell: Cell, folder: Path) -> dict[str, Any]:
    """Return what is told of a run that has ended: `spent` is epsilon as the run itself has added it up."""
    row, result = ROWS[cell.row], json.loads(result_of(cell, folder).read_text())
    score = result["metrics"]["last"]["test"][row.score]
    spent = max(result["privacy"]["epsilon"].values())
    level = result["settings"]["privacy"]
    return {
        "row": cell.row,
        "epsilon": f"{cell.epsilon:g}",
        "seed": cell.seed,
        "spent": None if math.isinf(cell.epsilon) else round(spent, 3),
        "noise_multiplier": round(level["noise_multiplier"], 3),
        "score": round(score, 4),
        "seconds": result["seconds"],
    }


def prepare(folder: Path, data: str) -> None:
    """Make what rows with `data` need in `folder`, unless it is there."""
    if data == "sounds":
        prepare_sounds(folder / data)
    else:
        prepare_words(folder / data)
        train_encoder(folder / "encoder", PUBLIC_SPEAKERS, PUBLIC_ROUNDS, seed=0)


def prepare_words(folder: Path) -> None:
    """Make the words of the clients: corpora of several seeds in one folder, each with speakers of its own."""

    def merge(out: Path) -> None:
        for seed in CLIENT_CORPORA:
            part = folder.with_name(f"{folder.name}-{seed}")
            make_speech_commands(part, n_speakers=CLIENT_SPEAKERS, seed=seed)
            for path in part.rglob("*.wav"):
                word = path.parent.name
                (out / word).mkdir(exist_ok=True)
                # Noises have the same names in all corpora, and speakers have not.
                os.link(path, out / word / (f"{seed}_{path.name}" if word.startswith("_") else path.name))
            for name in ("testing_list.txt", "validation_list.txt"):
                with (out / name).open("a") as listing:
                    listing.write((part / name).read_text())

    parameters = {"n_speakers": CLIENT_SPEAKERS, "seeds": list(CLIENT_CORPORA)}
    make_folder(folder, parameters, f"{CLIENT_SPEAKERS} speakers of each of two seeds", merge)


def prepare_sounds(folder: Path) -> None:
    """Make sound events, and the store that the tagger reads."""
    corpus = folder.with_name("fsd50k")
    make_fsd50k(corpus, n_dev_clips=SOUND_CLIPS, n_eval_clips=TEST_SOUND_CLIPS)
    prepare_store(read_layout(corpus), folder, workers=1)


def by_row(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the metric of each row, and for each epsilon that ran its noise, what was spent, and the seeds' scores."""
    found: dict[str, dict[str, Any]] = {name: {"metric": row.score, "points": {}} for name, row in ROWS.items()}
    for each in runs:
        point = {"noise_multiplier": each["noise_multiplier"], "spent": each["spent"], "scores": []}
        found[each["row"]]["points"].setdefault(each["epsilon"], point)["scores"].append(each["score"])
    return found


def draw(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw what `by_row` returns: means by epsilon, with bars from the least to the largest score of the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [f"{epsilon:g}" for epsilon in EPSILONS]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, row in rows.items():
        if not row["points"]:
            continue
        scores = [point["scores"] for point in row["points"].values()]
        means = np.array([np.mean(each) for each in scores])
        bars = [means - [min(each) for each in scores], [max(each) for each in scores] - means]
        places = [names.index(epsilon) for epsilon in row["points"]]
        axes.errorbar(places, means, np.maximum(bars, 0), marker="o", capsize=3, label=f"{name} ({row['metric']})")
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel=f"epsilon of each recording, at a delta of {DELTA:g}", ylabel="score on test data", ylim=(0, 1))
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/privacy_accuracy"), help="%(default)s")
    parser.add_argument("--rows", choices=ROWS, nargs="+", default=list(ROWS))
    parser.add_argument("--seeds", type=whole_number, default=SEEDS, metavar="N", help="of each row; %(default)s")
    parser.add_argument("--hours", type=float, default=3.0, help="no run starts after them; %(default)s")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the scores, as PNG or SVG")
    add_save(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the models are small
    end, folder = time.monotonic() + 3600 * options.hours, options.out.resolve()
    runs = []
    for cell in cells(options.rows, options.seeds):
        ended = result_of(cell, folder).exists()
        if not ended and time.monotonic() > end:
            continue
        if not ended:
            prepare(folder, ROWS[cell.row].data)
            train(cell, folder)
        runs.append(read(cell, folder))
        print(json.dumps(runs[-1]), flush=True)
    rows = by_row(runs)
    if options.figure:
        draw(rows, options.figure)
    names = [f"{epsilon:g}" for epsilon in EPSILONS]
    save(options, {"planned": len(list(cells())), "ran": len(runs), "seeds": SEEDS, "epsilons": names, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
