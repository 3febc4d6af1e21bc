"""Two private rounds of every workload in simulation, or the sentence in which its privacy is refused."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openfl.interface.interactive_api.experiment import DataInterface
from openfl.interface.interactive_api.shard_descriptor import ShardDescriptor

from openfl_audio import ModelInterface, Simulation
from openfl_audio.errors import DefinitionError
from openfl_audio.privacy.accounting import privacy_cost
from openfl_audio.protocol.privacy import RecordLevel
from openfl_audio.training.workload import register_tasks
from tests.unit.workspaces.audio_classification.recordings import SAMPLE_RATE, create_cnn
from tests.unit.workspaces.audio_classification.recordings import Tones as Recordings
from tests.unit.workspaces.hubert.tones import CLUSTERS, TINY, tiny_hubert
from tests.unit.workspaces.hubert.tones import Tones as Utterances
from tests.unit.workspaces.shipped import WORKLOADS
from tests.unit.workspaces.sound_events.made_clips import MadeClips
from tests.unit.workspaces.speech_recognition.speech import Spoken
from tests.unit.workspaces.test_private_training import LABELS, WORDS, Seconds
from tests.unit.workspaces.test_private_training import Tones as Words
from workspaces.audio_classification import tasks as own_tasks
from workspaces.audio_classification.data import RecordingsData
from workspaces.hubert import tasks as hubert_tasks
from workspaces.hubert.data import HubertData
from workspaces.hubert.loss import MaskedPrediction
from workspaces.hubert.masking import MaskSettings
from workspaces.hubert.model import create_hubert, save_model
from workspaces.hubert_distillation import tasks as student_tasks
from workspaces.hubert_distillation.loss import Distillation
from workspaces.hubert_distillation.model import create_student
from workspaces.keyword_spotting import tasks as keyword_tasks
from workspaces.keyword_spotting.data import EncoderData
from workspaces.keyword_spotting.ssl_features import create_upstream
from workspaces.keyword_spotting_wav2vec2 import tasks as wav2vec2_tasks
from workspaces.keyword_spotting_wav2vec2.data import KeywordData
from workspaces.keyword_spotting_wav2vec2.model import create_wav2vec2
from workspaces.sound_events import tasks as sound_tasks
from workspaces.sound_events.data import SoundEventData
from workspaces.sound_events.model import create_tagger
from workspaces.speech_enhancement import tasks as enhancement_tasks
from workspaces.speech_enhancement.data import EnhancementData
from workspaces.speech_enhancement.model import create_sudormrf
from workspaces.speech_enhancement.settings import SudoRmRfSettings
from workspaces.speech_recognition import tasks as speech_tasks
from workspaces.speech_recognition.data import SpeechData
from workspaces.speech_recognition.model import create_recognizer

pytestmark = pytest.mark.training

LEVEL = RecordLevel(noise_multiplier=1.0, clip=1.0, delta=1e-3, probability=0.5, steps=2)
ROUNDS = 2


class Shard(ShardDescriptor):
    """A shard whose splits are all the same dataset."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def get_dataset(self, dataset_type: str) -> Any:
        return self.dataset

    def __len__(self) -> int:
        return len(self.dataset)


@dataclass(frozen=True)
class Case:
    """A workload's model, data and tasks with their settings, and the clips of each client."""

    model: Callable[[], torch.nn.Module]
    data: DataInterface
    train: Callable[..., Any]
    validate: Callable[..., Any]
    clips: Any
    settings: Mapping[str, Any]
    more: Mapping[str, Any] = field(default_factory=dict)


def keyword_spotting(folder: Path) -> Case:
    settings = {"settings": keyword_tasks.TrainingSettings(ROUNDS)}
    model = partial(create_upstream, "log_mel", labels=LABELS)
    return Case(model, EncoderData(), keyword_tasks.train_round, keyword_tasks.validate_clips, Words(), settings)


def keyword_spotting_wav2vec2(folder: Path) -> Case:
    settings = {"settings": wav2vec2_tasks.TrainingSettings(ROUNDS)}
    model = partial(create_wav2vec2, config="wav2vec2_small.json", labels=LABELS)
    return Case(model, KeywordData(), wav2vec2_tasks.train_round, wav2vec2_tasks.validate_clips, Seconds(), settings)


def sound_events(folder: Path) -> Case:
    settings = {"settings": sound_tasks.TrainingSettings()}
    model = partial(create_tagger, "vgg", 4, width=0.25)
    return Case(model, SoundEventData(4), sound_tasks.train_round, sound_tasks.validate_clips, MadeClips(5), settings)


def audio_classification(folder: Path) -> Case:
    settings = {"settings": own_tasks.TrainingSettings(ROUNDS)}
    clips, data = Recordings(["low", "high", "high", "low"]), RecordingsData(WORDS, 800 / SAMPLE_RATE)
    return Case(partial(create_cnn, 2), data, own_tasks.train_round, own_tasks.validate_clips, clips, settings)


def speech_recognition(folder: Path) -> Case:
    settings = {"settings": speech_tasks.TrainingSettings(ROUNDS, learning_rate=0.01)}
    path = folder / "letters.json"
    path.write_text(json.dumps(TINY))
    model = partial(create_recognizer, config=path, seed=0)
    clips = Spoken(["A", "ABAC", "CAB", "DAB"])
    return Case(model, SpeechData(), speech_tasks.train_round, speech_tasks.validate_clips, clips, settings)


def hubert_distillation(folder: Path) -> Case:
    save_model(tiny_hubert(folder), folder / "teacher")
    path = folder / "student.json"
    path.write_text(json.dumps(TINY | {"hidden_size": 16, "num_hidden_layers": 1}))
    teacher = str(folder / "teacher")
    more = {"objective": Distillation(teacher, (1, 2))}
    settings = {"settings": hubert_tasks.TrainingSettings(ROUNDS, learning_rate=0.01)}
    model = partial(create_student, path, teacher, (1, 2))
    return Case(
        model, HubertData(None, None), student_tasks.train_round, hubert_tasks.validate_objective,
        Utterances([8_000, 6_000, 4_000]), settings, more,
    )  # fmt: skip


def hubert(folder: Path) -> Case:
    path = folder / "hubert.json"
    path.write_text(json.dumps(TINY))
    settings = {
        "settings": hubert_tasks.TrainingSettings(ROUNDS, learning_rate=0.01),
        "objective": MaskedPrediction(),
    }
    model = partial(create_hubert, path, CLUSTERS, 16, 0)
    data = HubertData(MaskSettings(), CLUSTERS)
    clips = Utterances([8_000, 6_000])
    return Case(model, data, hubert_tasks.train_round, hubert_tasks.validate_clips, clips, settings)


def speech_enhancement(folder: Path) -> Case:
    sizes = SudoRmRfSettings(
        out_channels=16, in_channels=32, num_blocks=1, upsampling_depth=2, num_bases=24, num_groups=2
    )
    settings = {"settings": enhancement_tasks.TrainingSettings(learning_rate=0.01)}
    model, data = partial(create_sudormrf, sizes), EnhancementData()
    return Case(model, data, enhancement_tasks.train_round, enhancement_tasks.validate_clips, None, settings)


RUN = (
    keyword_spotting, keyword_spotting_wav2vec2, sound_events, audio_classification, speech_recognition,
    hubert_distillation,
)  # fmt: skip
REFUSED = {
    hubert: "'workspaces.hubert.tasks.train_round' has no private steps, so that privacy of each record cannot be had "
    "with it: the clusters that it predicts are of codebooks, which were fitted to the clips without noise",
    speech_enhancement: "'workspaces.speech_enhancement.tasks.train_round' has no private steps, so that privacy of "
    "each record cannot be had with it: a recording is a part of several mixtures, so that it would be in several",
}


def start(case: Case, folder: Path) -> Simulation:
    simulation = Simulation(["a", "b"], lambda name: Shard(case.clips), folder / "run")
    simulation.start(
        "private",
        model_provider=ModelInterface(case.model, partial(torch.optim.SGD, lr=0.01)),
        task_keeper=register_tasks(case.train, case.validate, {**case.settings, **case.more}, case.more),
        data_loader=case.data,
        rounds_to_train=ROUNDS,
        best=("loss", "min"),
        privacy=LEVEL,
    )
    return simulation


# Their parts are tested one by one in `test_private_training`.
FAST = (audio_classification, hubert_distillation)


@pytest.mark.parametrize(
    "make",
    [pytest.param(make, id=make.__name__, marks=() if make in FAST else pytest.mark.slow) for make in RUN],
)
def test_a_workload_trains_privately_and_tells_what_that_has_cost(make, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENFL_AUDIO_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    simulation = start(make(tmp_path), tmp_path)
    simulation.watch()
    last = simulation.records[-1]
    spent = privacy_cost(LEVEL, ROUNDS)
    assert last["privacy"]["epsilon"] == pytest.approx({"a": spent, "b": spent})
    trained = [each["train"] for record in simulation.records for each in record["envoys"].values() if "train" in each]
    assert len(trained) == 2 * ROUNDS
    assert all(each.keys() == {"size"} for each in trained), "no loss of the clips is told"
    losses = [record["metrics"]["aggregated_model_validate"]["loss"] for record in simulation.records]
    assert np.isfinite(losses).all()
    assert len({*losses}) == ROUNDS + 1, "each round changes the model"


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_a_workload_that_cannot_is_refused_with_its_reason(make, tmp_path):
    with pytest.raises(DefinitionError, match=REFUSED[make]):
        start(make(tmp_path), tmp_path)


def test_no_workload_is_left_out():
    assert {make.__name__ for make in (*RUN, *REFUSED)} == WORKLOADS
