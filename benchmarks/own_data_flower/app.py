"""The demo of own recordings as a Flower App: the same sites, model, optimizer, rate and rounds.

What each site's recordings look like has to be known here, as a client's code is the app's. It runs in Flower's own
environment, without this project.
"""

import csv
import json
import time
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from flwr.app import (  # type: ignore[import-not-found]
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp  # type: ignore[import-not-found]
from flwr.serverapp import Grid, ServerApp  # type: ignore[import-not-found]
from flwr.serverapp.strategy import FedAvg  # type: ignore[import-not-found]
from torchaudio.functional import resample
from transformers import AutoConfig, AutoModelForAudioClassification

CLASSES = ["go", "no", "stop", "yes"]
SAMPLE_RATE, SAMPLES, BATCH = 16_000, 16_000, 16
HELD_OUT = 0.3

client = ClientApp()
server = ServerApp()


def create_model(config: str) -> torch.nn.Module:
    """Return the model from a random start."""
    torch.manual_seed(0)
    values: dict[str, Any] = json.loads(Path(config).read_text())
    names: dict[str, Any] = {
        "id2label": dict(enumerate(CLASSES)),
        "label2id": {name: i for i, name in enumerate(CLASSES)},
    }
    return AutoModelForAudioClassification.from_config(AutoConfig.for_model(**values, **names))


def read_site(folder: Path) -> list[tuple[Path, str, str, str]]:
    """Return path, word, speaker and split ("" where the site has none) of the recordings of a site."""
    if (folder / "Aufnahmen.csv").exists():
        with (folder / "Aufnahmen.csv").open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter=";"))
        return [(folder / unicodedata.normalize("NFD", row["Datei"]), row["Wort"], row["Patient"], "") for row in rows]
    if (folder / "clips.csv").exists():
        with (folder / "clips.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [
            (folder / row["path"].replace("\\", "/"), row["label"], row["speaker"], row["split"])
            for row in rows
            if not row["path"].endswith(".m4a")
        ]
    return [(path, path.parent.name, path.stem.partition("_")[0], "") for path in sorted(folder.rglob("*.ogg"))]


def load_split(folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return waveforms (clips, samples) and classes (clips,) of the split "train" or "val" of a site, or of "all"."""
    rows = read_site(folder)
    speakers = sorted({speaker for _, _, speaker, _ in rows})
    np.random.default_rng(0).shuffle(speakers)
    held_out = speakers[: round(HELD_OUT / 2 * len(speakers))], speakers[-round(HELD_OUT / 2 * len(speakers)) :]
    waveforms, labels = [], []
    for path, word, speaker, named in rows:
        own = named or ("val" if speaker in held_out[0] else "test" if speaker in held_out[1] else "train")
        if split in (own, "all"):
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
            waveform = resample(torch.from_numpy(samples.mean(axis=1)), rate, SAMPLE_RATE)[:SAMPLES]
            waveforms.append(torch.nn.functional.pad(waveform, (0, SAMPLES - len(waveform))))
            labels.append(CLASSES.index(word.strip().lower()))
    return torch.stack(waveforms), torch.tensor(labels)


def score(model: torch.nn.Module, folder: Path, split: str) -> tuple[float, int]:
    """Return the accuracy on a split of a site, and its clips."""
    waveforms, labels = load_split(folder, split)
    model.eval()
    with torch.no_grad():
        predicted = torch.cat([model(batch).logits.argmax(1) for batch in waveforms.split(32)])
    return (predicted == labels).float().mean().item(), len(labels)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train the model for an epoch of the site's clips."""
    config, number = context.run_config, int(message.content["config"]["server-round"]) - 1
    model = create_model(config["model"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    waveforms, labels = load_split(Path(context.node_config["data"]), "train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["rate"], weight_decay=0.01)
    model.train()
    torch.manual_seed(number)
    batches = torch.randperm(len(labels)).split(BATCH)
    for step, batch in enumerate(batches):
        progress = (number + (step + 0.5) / len(batches)) / config["rounds"]
        for group in optimizer.param_groups:
            group["lr"] = config["rate"] * min(progress / 0.05, (1 - progress) / 0.95)
        shift = int(torch.randint(-1600, 1601, (1,)))
        loss = torch.nn.functional.cross_entropy(model(waveforms[batch].roll(shift, 1)).logits, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    metrics = MetricRecord({"loss": loss.item(), "num-examples": len(labels)})
    return Message(
        content=RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message
    )


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the global model on the site's validation clips."""
    model = create_model(context.run_config["model"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    accuracy, clips = score(model, Path(context.node_config["data"]), "val")
    metrics = MetricRecord({"accuracy": accuracy, "num-examples": clips})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds, note the time after each, and score the last model on speakers of no site."""
    config = context.run_config
    report, rounds, nodes = Path(config["report"]), config["rounds"], config["nodes"]
    model = create_model(config["model"])

    def after_round(number: int, arrays: ArrayRecord) -> None:
        """Note the time; after the last round also the score."""
        line = {"round": number, "time": time.time()}
        if number == rounds:
            model.load_state_dict(arrays.to_torch_state_dict())
            line["accuracy"] = score(model, Path(config["unseen"]), "all")[0]
        with report.open("a") as file:
            file.write(json.dumps(line) + "\n")

    strategy = FedAvg(min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes)
    start = ArrayRecord(model.state_dict())
    strategy.start(grid, start, num_rounds=rounds, train_config=ConfigRecord({}), evaluate_fn=after_round)
