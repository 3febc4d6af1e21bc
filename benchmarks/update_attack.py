#!/usr/bin/env python3
"""Attack on an update: frames of an utterance from one step of SGD of the letter recogniser, and from secure sums.

    python benchmarks/update_attack.py                                   # a table
    python benchmarks/update_attack.py --cases plain-3 --seeds 1 --picture attack.png

The small W2V-BERT of `configs/numbers.yaml`, with random weights that the director knows, takes one step on an
utterance, by the task of the workload. Of a linear layer y = W x + b the gradients are, with g_t that of y_t,

    dW = sum_t g_t x_t',    db = sum_t g_t.

From one frame x = dW_i / db_i for any i. From T frames fewer than the layer is wide, dW has the rank T, and its rows
span what the T inputs span: the number of frames and a space that they are in, exactly, but no frame. A second layer
has the frames one by one: what the model's first layers make of a frame of the first space lies in the second layer's
space, and what they make of a mixture of frames does not, as there is a nonlinearity between. (Petrov et al., DAGER,
arXiv 2405.15586, so test words of a vocabulary.) Frames are the zeros of the distance from that space, and
Levenberg-Marquardt finds them from random starts, one after the other. A frame here is what the model reads: 40 log-mel
bands of two windows of 10 ms, without its mean and scale, which a layer norm takes away. As neighbours are
alike, their windows and their gradients, they can be put in order, save for parts that are swapped.

The director of a secure round has the words of an envoy's masked update, and the sum of all of them. It is attacked
just so.

    likeness   mean over an utterance's frames of the cosine to the most alike of the recovered frames; 1 is perfect
    found      share of an utterance's frames that were recovered with a cosine above 0.999
    linked     share of an utterance's frames that the attack puts behind the one that was before them
    unattacked the same likeness, with the frames of another speaker's utterance in place of recovered ones
"""

import argparse
import itertools
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import jacfwd, vmap

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package

from benchmarks.arguments import add_save, save, whole_number
from openfl_audio import Aggregation, Mean, SecureAggregation
from openfl_audio.privacy.aggregate import SumAggregator
from openfl_audio.privacy.fixed_point import steps
from openfl_audio.privacy.masks import Mask, add_masks
from openfl_audio.privacy.update import encode_tensors
from openfl_audio.protocol.plan import BestModel, ExperimentPlan, Task
from openfl_audio.testing.corpora.librispeech import choose_readers
from openfl_audio.testing.corpora.recordings import record
from openfl_audio.testing.corpora.sentences import DIGITS
from openfl_audio.testing.corpora.voices import SAMPLE_RATE, speak, vary, without_silence
from workspaces.speech_recognition.data import Clips
from workspaces.speech_recognition.model import Recognizer, create_recognizer
from workspaces.speech_recognition.tasks import TrainingSettings, train_round

SETTINGS = TrainingSettings(rounds=1, learning_rate=0.1, batch_size=1, warmup=0.0)
FIRST, FEED_FORWARD = "wav2vec2_bert.feature_projection.projection", "wav2vec2_bert.encoder.layers.0.ffn1"
# A frame is found where its distance from the second space is below this share of its length.
FOUND, SAME = 1e-2, 0.999
STARTS, BATCHES, STEPS = 60, 12, 25
MENDED, LONGEST_MOVED = 5, 20

Update = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """Envoys that each train one utterance of so many `words`, and what the director sees of them.

    Attributes:
        words: digits of each utterance.
        envoys: how many take part.
        seen: the first one's "update", its "masked" words, the "sum" of all words, or the "mean" of updates in floating
            point, which no director has, and which tells what of the sum's effect is that of rounding.
        value_range: the range of secure aggregation.
    """

    words: int
    envoys: int = 1
    seen: Literal["update", "masked", "sum", "mean"] = "update"
    value_range: float = 1.0


CASES = {
    "plain-1": Case(words=1),
    "plain-3": Case(words=3),
    "plain-8": Case(words=8),
    "masked-3": Case(words=3, envoys=3, seen="masked"),
    "sum-of-3-of-3": Case(words=3, envoys=3, seen="sum"),
    "sum-of-8-of-3": Case(words=3, envoys=8, seen="sum"),
    "sum-of-3-of-1": Case(words=1, envoys=3, seen="sum"),
    "fine-sum-of-3-of-1": Case(words=1, envoys=3, seen="sum", value_range=0.01),
    "mean-of-3-of-1": Case(words=1, envoys=3, seen="mean"),
    "mean-of-3-of-3": Case(words=3, envoys=3, seen="mean"),
}


class Utterance:
    """A split of a shard with one clip."""

    def __init__(self, waveform: np.ndarray, text: str) -> None:
        self.waveform, self.transcripts, self.names = waveform, [text], [text]
        self.num_samples = np.array([len(waveform)])

    def read_waveform(self, _: int) -> np.ndarray:
        """Return the clip, (samples,)."""
        return self.waveform


def make_utterances(words: int, count: int, seed: int) -> list[Utterance]:
    """Return one utterance of so many digits of each of `count` speakers."""
    generator = np.random.default_rng([seed, words])
    readers = choose_readers({"train-clean-100": count}, seed)
    texts = [" ".join(generator.choice(DIGITS, words)) for _ in readers]
    takes = [vary(reader.voice, text, generator) for reader, text in zip(readers, texts, strict=True)]
    waveforms = [
        record(without_silence(speech), reader.recording, generator, sample_rate=SAMPLE_RATE).astype(np.float32)
        for reader, speech in zip(readers, speak(takes), strict=True)
    ]
    return [Utterance(waveform, text) for waveform, text in zip(waveforms, texts, strict=True)]


def frames_of(model: Any, utterance: Utterance) -> torch.Tensor:
    """Return what the first linear layer reads, float64 (frames, 80), each frame of mean 0 and variance 1."""
    read: torch.Tensor = model.features(torch.from_numpy(utterance.waveform)[None])
    return F.layer_norm(read, read.shape[-1:]).double()


def tensors_of(model: torch.nn.Module) -> Update:
    """Return copies of the model's tensors."""
    return {name: each.detach().numpy().copy() for name, each in model.named_parameters()}


def train(model: Recognizer, utterance: Utterance) -> Update:
    """Return the tensors after one step of SGD on an utterance; the model stays as it is."""
    before = {name: each.clone() for name, each in model.state_dict().items()}
    train_round(model, Clips(utterance), torch.optim.SGD(model.parameters()), "cpu", 0, SETTINGS)
    after = tensors_of(model)
    model.load_state_dict(before)
    return after


def seen_by_director(model: Recognizer, utterances: Sequence[Utterance], case: Case) -> Update:
    """Return the change of each tensor that the director works with."""
    before, after = tensors_of(model), [train(model, each) for each in utterances]
    if case.seen == "update":
        seen = after[0]
    elif case.seen == "mean":
        seen = {name: np.stack([each[name] for each in after]).mean(0, np.float64) for name in before}
    else:
        seen = secret_sum(before, after, case)
    return {name: seen[name].astype(np.float64) - tensor for name, tensor in before.items()}


def secret_sum(before: Update, after: Sequence[Update], case: Case) -> Update:
    """Return the next global model of a secure round, or, as its director would make it, that of one masked update."""
    plan = ExperimentPlan(
        name="attacked",
        federation_uuid="attacked",
        envoys=[f"envoy_{i}" for i in range(len(after))],
        rounds=1,
        tasks=[Task(name="train", function_name="train_round", task_type="train")],
        best=BestModel(metric="loss", direction="min"),
        aggregation=Aggregation(rule=Mean(weighted=False)),
        secure_aggregation=SecureAggregation(value_range=case.value_range),
    )
    words = [
        encode_tensors(plan, before, trained, 1, 0, envoy)
        for envoy, trained in zip(plan.envoys or (), after, strict=True)
    ]
    if case.seen == "masked":
        add_masks(words[0].values, [Mask(os.urandom(32))])
        del words[1:]
    aggregator = SumAggregator({name: each.copy() for name, each in before.items()}, plan)
    aggregator.begin(0)
    for each in words:
        aggregator.add_words(each)
    aggregator.finish_round()
    return aggregator.model


def rounding_error(weight: torch.Tensor, case: Case) -> float:
    """Return about the standard deviation of the rounding error of a value in what the director sees of a layer."""
    if case.seen in ("sum", "masked"):
        return case.value_range / steps(SecureAggregation().bits) / 2 / case.envoys**0.5
    return float(weight.abs().max()) * 2.0**-26


def row_space(change: torch.Tensor, error: float) -> torch.Tensor:
    """Return an orthonormal basis (rank, inputs) of what a layer's inputs span, from its change (outputs, inputs).

    With fewer frames than outputs and inputs, the rank is the number of frames. Singular values below twice those of
    random numbers with the standard deviation `error` count as zero.
    """
    _, values, basis = torch.linalg.svd(change, full_matrices=False)
    return basis[values > 2 * error * sum(size**0.5 for size in change.shape)]


class Spaces:
    """The two spaces that an update tells of, in one of which the frames are, and their images in the other.

    Attributes:
        first: an orthonormal basis of the frames' space, (dimensions, 80).
        num_frames: the rank of the second layer's change: the number of frames, where that is less than its width.
    """

    def __init__(self, model: torch.nn.Module, change: Update, case: Case) -> None:
        tensors = {name: each.double() for name, each in model.state_dict().items()}
        self._first = tensors[f"{FIRST}.weight"], tensors[f"{FIRST}.bias"]
        self._second = (
            tensors[f"{FEED_FORWARD}.intermediate_dense.weight"],
            tensors[f"{FEED_FORWARD}.intermediate_dense.bias"],
        )
        second = f"{FEED_FORWARD}.output_dense.weight"
        self._change = torch.from_numpy(change[second])
        self.first = row_space(torch.from_numpy(change[f"{FIRST}.weight"]), rounding_error(self._first[0], case))
        images = row_space(self._change, rounding_error(tensors[second], case))
        self.num_frames = len(images)
        self._outside = torch.linalg.svd(images, full_matrices=True)[2][len(images) :]

    def frames(self, places: torch.Tensor) -> torch.Tensor:
        """Return the frames (..., 80) at `places` (..., dimensions) of the first space, with a layer norm's length."""
        return F.normalize(places @ self.first, dim=-1) * self.first.shape[1] ** 0.5

    def distances(self, places: torch.Tensor) -> torch.Tensor:
        """Return how far the images of frames are from the second space, in each direction (..., directions)."""
        return F.normalize(self._images(self.frames(places)), dim=-1) @ self._outside.T

    def signals(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the directions of the gradients that belong to recovered frames, (frames, 96), by least squares."""
        return F.normalize((self._change @ torch.linalg.pinv(self._images(frames))).T, dim=-1)

    def _images(self, frames: torch.Tensor) -> torch.Tensor:
        hidden = F.linear(frames, *self._first)
        return F.silu(F.linear(F.layer_norm(hidden, hidden.shape[-1:]), *self._second))

    def descend(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return places near zeros of the distance, by Levenberg-Marquardt, and the distances there, (places,)."""
        jacobians = vmap(jacfwd(self.distances))
        places, eye = F.normalize(places, dim=-1), torch.eye(places.shape[1], dtype=places.dtype)
        distances, damping = self.distances(places), torch.full((len(places), 1, 1), 1e-2, dtype=places.dtype)
        for _ in range(STEPS):
            jacobian = jacobians(places)
            curvature = jacobian.mT @ jacobian
            size = curvature.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
            step = torch.linalg.solve(curvature + damping * size * eye, jacobian.mT @ distances[..., None])
            tried = F.normalize(places - step[..., 0], dim=-1)
            then = self.distances(tried)
            better = then.norm(dim=-1) < distances.norm(dim=-1)
            places = torch.where(better[:, None], tried, places)
            distances = torch.where(better[:, None], then, distances)
            damping = torch.where(better[:, None, None], damping / 5, damping * 4).clamp(1e-12, 1e6)
        return places, distances.norm(dim=-1)

    def recover(self, generator: torch.Generator) -> torch.Tensor:
        """Return the frames that the update tells of, (frames, 80), no two alike; where there is none, guesses."""
        found, guesses = torch.empty(0, self.first.shape[1], dtype=torch.float64), []
        for _ in range(BATCHES):
            starts = torch.randn(STARTS, len(self.first), dtype=torch.float64, generator=generator)
            places, distances = self.descend(starts)
            order = distances.argsort()
            guesses.append(self.frames(places[order]))
            found = distinct(torch.cat([found, guesses[-1][distances[order] < FOUND]]))
            if not len(found) or len(found) >= self.num_frames:
                break
        return found if len(found) else guesses[0]


def distinct(frames: torch.Tensor) -> torch.Tensor:
    """Return those of `frames` that are like none before them."""
    kept: list[torch.Tensor] = []
    for frame in frames:
        if not kept or float(cosines(torch.stack(kept), frame[None]).max()) < SAME:
            kept.append(frame)
    return torch.stack(kept) if kept else frames


def cosines(some: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the cosine of each of `some` frames to each of the others, (some, others)."""
    return F.normalize(some, dim=-1) @ F.normalize(others, dim=-1).T


def in_order(frames: torch.Tensor, signals: torch.Tensor) -> torch.Tensor:
    """Return the frames as a path on which neighbours fit.

    A link costs how far the first window of a frame is from the second one of the frame before, and how far apart the
    directions of their `signals` are. Of the paths to nearest frames, one from each, the best are mended by moving
    parts of them.
    """
    half = frames.shape[1] // 2
    links = torch.cdist(frames[:, half:], frames[:, :half]) / half**0.5 + torch.cdist(signals, signals)

    def cost(path: Sequence[int]) -> float:
        return float(links[path[:-1], path[1:]].sum())

    nearest = sorted((_nearest(links.numpy(), first) for first in range(len(frames))), key=cost)
    return frames[min((_mended(path, links.numpy()) for path in nearest[:MENDED]), key=cost)]


def _nearest(links: np.ndarray, first: int) -> list[int]:
    path, left = [first], {*range(len(links))} - {first}
    while left:
        path.append(min(left, key=lambda frame: links[path[-1], frame]))
        left.remove(path[-1])
    return path


def _mended(path: list[int], links: np.ndarray) -> list[int]:
    """Return the path with parts of up to LONGEST_MOVED frames moved to where they fit best, until none fits better."""
    moved = True
    while moved:
        moved = False
        for length in range(1, min(LONGEST_MOVED, len(path) - 1) + 1):
            for start in range(len(path) - length + 1):
                part, rest = path[start : start + length], path[:start] + path[start + length :]
                into = links[rest[:-1], part[0]] + links[part[-1], rest[1:]] - links[rest[:-1], rest[1:]]
                costs = np.concatenate([[links[part[-1], rest[0]]], into, [links[rest[-1], part[0]]]])
                # At its own place the part costs what it costs now.
                place = int(costs.argmin())
                if costs[place] < costs[start] - 1e-9:
                    path, moved = [*rest[:place], *part, *rest[place:]], True
    return path


def stretched(frames: torch.Tensor, length: int) -> torch.Tensor:
    """Return as many frames as `length`, each the nearest one in time."""
    return frames[torch.linspace(0, len(frames) - 1, length).round().long()]


def linked(frames: torch.Tensor, path: torch.Tensor) -> float:
    """Return the share of the links between neighbouring `frames` that are in the recovered `path`."""
    alike = cosines(path, frames).max(1)
    places = [int(place) if value > SAME else -2 for value, place in zip(*alike, strict=True)]
    return sum(after == before + 1 for before, after in itertools.pairwise(places)) / (len(frames) - 1)


def likeness(frames: torch.Tensor, recovered: torch.Tensor) -> torch.Tensor:
    """Return the cosine of each frame to the most alike of the recovered ones, (frames,)."""
    return cosines(frames, recovered).max(1).values


def attack(case: Case, seed: int) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """Return the scores of one attack over its utterances, and frames (frames, 80): of the first one, and recovered."""
    model = create_recognizer(config="wav2vec2_bert_small.json", seed=seed)
    *utterances, other = make_utterances(case.words, case.envoys + 1, seed)
    spaces = Spaces(model, seen_by_director(model, utterances, case), case)
    recovered = spaces.recover(torch.Generator().manual_seed(seed))
    path = in_order(recovered, spaces.signals(recovered))
    victims = [frames_of(model, each) for each in (utterances if case.seen in ("sum", "mean") else utterances[:1])]
    alike = torch.cat([likeness(each, recovered) for each in victims])
    unattacked = torch.cat([likeness(each, frames_of(model, other)) for each in victims])
    scores = {
        "frames": len(alike),
        "rank": spaces.num_frames,
        "found": float((alike > SAME).double().mean()),
        "likeness": float(alike.mean()),
        "linked": statistics.mean(linked(each, path) for each in victims),
        "unattacked": float(unattacked.mean()),
    }
    return scores, [victims[0], path]


def summary(name: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the scores of a case: means over its attacks, with their standard deviations."""
    scores = {key: [run[key] for run in runs] for key in ("found", "likeness", "linked", "unattacked")}
    frames, ranks = ([run[key] for run in runs] for key in ("frames", "rank"))
    return {
        "case": name,
        "attacks": len(runs),
        "frames": f"{min(frames)} to {max(frames)}",
        "rank": f"{min(ranks)} to {max(ranks)}",
    } | {key: f"{np.mean(values):.2f} ± {np.std(values):.2f}" for key, values in scores.items()}


def draw(pictures: dict[str, list[torch.Tensor]], path: Path) -> None:
    """Draw for each case the spectrogram of the first utterance and the recovered one, one beside the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2 * len(pictures)), layout="constrained")
    grid = figure.subplots(len(pictures), 2, squeeze=False)
    for row, (name, spectrograms) in zip(grid, pictures.items(), strict=True):
        for axes, title, frames in zip(row, ("original", "recovered"), spectrograms, strict=True):
            bands = stretched(frames, len(spectrograms[0])).reshape(-1, frames.shape[1] // 2)
            axes.imshow(bands.T, origin="lower", aspect="auto", cmap="magma", vmin=-2.5, vmax=2.5)
            axes.set(title=f"{name}: {title}", xlabel="windows of 10 ms", ylabel="mel band")
    figure.savefig(path, dpi=70)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--seeds", type=whole_number, default=3, metavar="N", help="attacks on each case; %(default)s")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the first attack of each case")
    parser.add_argument("--json", action="store_true", help="print JSON objects")
    add_save(parser)
    options = parser.parse_args(arguments)
    results, pictures = [], {}
    for name in options.cases:
        runs = [attack(CASES[name], seed) for seed in range(options.seeds)]
        results.append(summary(name, [scores for scores, _ in runs]))
        pictures[name] = runs[0][1]
        told = "{case:<20} likeness {likeness}  found {found}  linked {linked}  unattacked {unattacked}"
        print(json.dumps(results[-1]) if options.json else told.format(**results[-1]), flush=True)
    if options.picture:
        draw(pictures, options.picture)
    save(options, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
