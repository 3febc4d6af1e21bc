"""Metrics of two clients make the value over the clips of both, as the director and a simulation merge it."""

from typing import Any

import numpy as np
import pytest

from openfl_audio.protocol.messages import TaskResult, UpdateMessage
from openfl_audio.protocol.metrics import MeanOver
from openfl_audio.protocol.plan import VALIDATE, BestModel, ExperimentPlan, Task
from openfl_audio.protocol.rounds import Progress, Rounds
from tests.unit.workspaces.hubert.tones import CLUSTERS, Tones, tiny_hubert
from tests.unit.workspaces.sound_events.made_clips import MadeClips
from tests.unit.workspaces.speech_recognition.speech import Spoken, draw_texts, tiny_recognizer
from workspaces.hubert import tasks as hubert
from workspaces.hubert.data import Clips as HubertClips
from workspaces.hubert.masking import MaskSettings
from workspaces.sound_events import tasks as sound_events
from workspaces.sound_events.data import Patches
from workspaces.sound_events.model import create_tagger
from workspaces.speech_recognition import tasks as speech_recognition
from workspaces.speech_recognition.data import Clips, SpeechData
from workspaces.speech_recognition.workload import SpeechRecognition


def merge(mean_over: dict[str, str | None], unit: str, parts: list[tuple[int, dict[str, float]]]) -> dict[str, Any]:
    """Return the record of a round in which clients report these sizes and metrics."""
    names = [f"client-{number}" for number in range(len(parts))]
    plan = ExperimentPlan(
        name="merged",
        federation_uuid="uuid",
        envoys=names,
        rounds=1,
        tasks=[Task(name=VALIDATE, function_name="validate", task_type="validate")],
        best=BestModel(metric="loss", direction="min"),
        units={"validate": unit},
        mean_over=mean_over,
    )
    rounds = Rounds(plan, Progress())
    rounds.open(names)
    for name, (size, metrics) in zip(names, parts, strict=True):
        counts = {metric: value.count for metric, value in metrics.items() if isinstance(value, MeanOver)}
        result = TaskResult(size=size, metrics=metrics, counts=counts)
        rounds.count(UpdateMessage(experiment="merged", envoy=name, round=0, results={VALIDATE: result}))
    assert not rounds.notes()
    return rounds.record()


def check(record: dict[str, Any], whole: dict[str, float]) -> None:
    """Every metric either is the value over all clips, or is named as a mean of sites."""
    means_of_sites = record["means_of_sites"].get(VALIDATE, [])
    merged = record["metrics"][VALIDATE]
    exact = {name: value for name, value in merged.items() if name not in means_of_sites}
    assert exact == pytest.approx({name: whole[name] for name in exact}, rel=1e-5)
    assert merged.keys() == whole.keys()
    for name in means_of_sites:
        assert merged[name] != pytest.approx(whole[name], rel=1e-5), f"{name} is a mean after all"


class Part:
    """The first or the last of MadeClips."""

    def __init__(self, clips: Any, chosen: slice) -> None:
        numbers = np.arange(len(clips.clip_labels))[chosen]
        items = np.flatnonzero(np.isin(clips.clip, numbers))
        self.clip, self.clip_labels = clips.clip[items] - numbers[0], clips.clip_labels[numbers]
        self.patches = lambda indices: clips.patches(items[indices])


def test_sound_events():
    clips = MadeClips(40)
    clips.clip_labels[:10, 1:3] = 1  # the first client has clips with more labels
    model = create_tagger("vgg", 4, width=0.25)
    parts = [Patches(Part(clips, chosen)) for chosen in (slice(0, 10), slice(10, None))]
    results = [(len(part), sound_events.validate_clips(model, part, "cpu")) for part in parts]
    whole = sound_events.validate_clips(model, Patches(clips), "cpu")
    check(record := merge(sound_events.MEAN_OVER, "clips", results), whole)
    assert record["means_of_sites"] == {VALIDATE: ["d_prime", "d_prime_mean", "mAP", "pr_auc", "pr_auc_macro"]}


def test_speech_recognition(tmp_path):
    texts = [*draw_texts(3, seed=0), "ABCD", "A B C D"]
    model = tiny_recognizer(tmp_path)

    def validate(texts):
        data = SpeechData()
        data._validation = Clips(Spoken(texts))
        return data.get_valid_data_size(), speech_recognition.validate_clips(model, data.get_valid_loader(), "cpu")

    # A clip's sound is a function of its number: the same clips in one shard and in two.
    first, second = validate(texts[:4]), validate(["", "", "", "", texts[4]])
    _, whole = validate(texts)
    mean_over = dict(SpeechRecognition().mean_over(None))
    check(record := merge(mean_over, SpeechData.units["validate"], [first, second]), whole)
    assert record["means_of_sites"] == {}


def test_hubert(tmp_path):
    model, mask = tiny_hubert(tmp_path), MaskSettings(length=5, probability=0.5)

    class Shard(Tones):
        def __init__(self, first: int, lengths: list[int]) -> None:
            super().__init__(lengths)
            self.first, self.names = first, [f"clip-{first + i}" for i in range(len(lengths))]

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            whole = Tones([0] * self.first + self.num_samples.tolist())
            return whole[self.first + index]

    def validate(first, lengths):
        clips = HubertClips(Shard(first, lengths), mask, CLUSTERS)
        return clips.masked_frames, hubert.validate_clips(model, clips, "cpu")

    lengths = [20_000, 50_000, 30_000, 16_000, 50_000]  # the fifth has another most frequent tone than the others
    parts = [validate(0, lengths[:4]), validate(4, lengths[4:])]
    _, whole = validate(0, lengths)
    check(record := merge(hubert.MEAN_OVER, "frames", parts), whole)
    assert record["means_of_sites"] == {VALIDATE: ["cluster_usage", "most_frequent_accuracy", "perplexity"]}
