import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from openfl_audio.config import load_settings
from openfl_audio.errors import SettingsError
from openfl_audio.protocol.participation import Participation
from openfl_audio.simulation.simulation import Simulation
from workspaces.speech_enhancement import plots, workload
from workspaces.speech_enhancement.data import Sources
from workspaces.speech_enhancement.quality import find_measures, quality_over_clips
from workspaces.speech_enhancement.settings import SudoRmRfSettings
from workspaces.speech_enhancement.workload import SpeechEnhancement, SpeechEnhancementSettings, count_supervised

pytestmark = pytest.mark.training

WORKLOAD = SpeechEnhancement()
SETTINGS = SpeechEnhancementSettings.model_construct()

CONFIGS = Path(workload.__file__).parent / "configs"


def settings_of(config: str, **changes) -> SpeechEnhancementSettings:
    return load_settings(CONFIGS / config, SpeechEnhancementSettings, changes)


@pytest.fixture
def tiny(tiny_model):
    """Settings on top of small.yaml for half a second of audio."""

    def of(**changes) -> SpeechEnhancementSettings:
        sizes = {f"model.{name}": value for name, value in tiny_model.model_dump().items()}
        defaults = sizes | {"audio_seconds": 0.5, "optimizer.learning_rate": 0.003}
        return settings_of("small.yaml", **defaults | changes)

    return of


def simulate(
    settings: SpeechEnhancementSettings, clients: list[str], open_shard, folder: Path, rounds: int
) -> list[dict]:
    """Simulate with an evaluator that has the validation clips; the clients take part in every round."""
    simulation = Simulation([*clients, "evaluation"], open_shard, folder)
    simulation.start(
        "enhancement",
        **WORKLOAD.start_arguments(settings),
        rounds_to_train=rounds,
        opt_treatment=settings.opt_treatment,
        aggregation=settings.aggregation,
        participation=Participation(evaluators=["evaluation"]),
    )
    return list(simulation.run())


def test_supervised_and_unsupervised_clients_train_one_model_each_with_its_own_loss(tiny, open_shard, tmp_path):
    records = simulate(tiny(), ["supervised-0", "unsupervised-0"], open_shard, tmp_path / "run", rounds=4)
    envoys = records[0]["envoys"]
    assert set(envoys["supervised-0"]["train"]) == {"size", "supervised_loss"}
    assert set(envoys["unsupervised-0"]["train"]) == {"size", "mixit_loss"}
    assert set(records[0]["metrics"]["train"]) == {"supervised_loss", "mixit_loss"}
    scores = [record["metrics"]["aggregated_model_validate"] for record in records]
    assert set(scores[0]) == {"si_sdri_1_noise", "si_sdri_2_noises"}
    assert scores[-1]["si_sdri_2_noises"] > scores[0]["si_sdri_2_noises"] + 3


def test_files_to_listen_to_are_written_every_few_rounds(tiny, open_shard, tmp_path):
    listening = {"listening": {"folder": str(tmp_path / "audio"), "every": 2, "clips": 1}, "local_epochs": 0.1}
    simulate(tiny(**listening), ["unsupervised-0"], open_shard, tmp_path / "run", rounds=3)
    folders = ["round-00000", "round-00002", "tensorboard"]
    assert sorted(path.name for path in (tmp_path / "audio").iterdir()) == folders
    events = EventAccumulator(str(tmp_path / "audio" / "tensorboard")).Reload()
    assert [event.step for event in events.Audio("0000_2_noises_estimate")] == [0, 2]
    [image, _] = events.Images("0000_1_noise_mixture_spectrogram")
    assert (image.height, image.width) == (257, 1 + 8_000 // 128)
    first, later = (
        soundfile.read(tmp_path / "audio" / folder / "0000_1_noise_estimate.wav")[0]
        for folder in ("round-00000", "round-00002")
    )
    assert first.shape == later.shape == (8_000,)
    assert abs(first - later).max() > 1e-3


def test_a_model_of_more_sources_learns_from_both_kinds_of_clients(tiny, open_shard, tmp_path):
    settings = tiny(**{"model.num_sources": 4, "local_epochs": 0.25})
    records = simulate(settings, ["supervised-0", "unsupervised-0"], open_shard, tmp_path / "run", rounds=1)
    losses = records[0]["metrics"]["train"]
    assert losses.keys() == {"supervised_loss", "mixit_loss"}
    assert all(np.isfinite(loss) for loss in losses.values())


def test_lengths_and_rates_go_to_the_shard_the_crops_and_the_exported_model(tmp_path):
    changes = {"data.clip_seconds": 8.0, "data.sample_rate": 8_000, "data.normalize_audio": True, "audio_seconds": 6}
    settings = settings_of("small.yaml", **changes, patience=0)
    params = WORKLOAD.shard(settings, Path("corpus"), 1, 2)["params"]
    assert (params["clip_seconds"], params["sample_rate"], params["normalize_audio"]) == (8.0, 8_000, True)
    [training] = WORKLOAD.tasks(settings).task_settings["train_round"].values()
    assert training.num_samples == 48_000
    WORKLOAD.save(WORKLOAD.model(settings)(), settings, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["sample_rate"] == 8_000


@pytest.mark.skipif(not find_measures(16_000), reason="neither pystoi nor pesq is installed")
def test_speech_itself_is_understood_better_than_with_noise(open_shard, tiny_model):
    class Voices(type(open_shard("supervised").get_dataset("validation"))):
        """Speech that comes and goes, as measures of speech wait for pauses."""

        def __getitem__(self, index):
            time = np.arange(self.num_samples) / 16_000
            loudness = np.clip(np.sin(2 * np.pi * 3 * time), 0, 1)
            return tuple(
                (loudness * signal if i == 0 else signal) for i, signal in enumerate(super().__getitem__(index))
            )

    class Copy(torch.nn.Module):
        def separate(self, mixture):
            return mixture[:, None]

    clips = Sources(Voices(2, True, False, num_samples=32_000))
    scores = quality_over_clips(Copy(), clips, "cpu")
    for name in find_measures(16_000):
        for noises in ("1_noise", "2_noises"):
            assert scores[f"{name}_{noises}"] == scores[f"{name}_{noises}_mixture"]
            assert scores[f"{name}_{noises}_clips"] == 2
        assert scores[f"{name}_2_noises"] < scores[f"{name}_1_noise"]


def test_the_first_clients_are_the_supervised_ones():
    settings = settings_of("fedenhance.yaml", p_supervised=0.25)
    shards = [WORKLOAD.shard(settings, Path("corpus"), rank, 10)["params"] for rank in range(1, 11)]
    assert [each["supervised"] for each in shards] == [True] * 2 + [False] * 8
    assert shards[4]["rank_worldsize"] == "5,10"
    assert shards[4]["available_speech_percentage"] == 0.5
    assert count_supervised(1.0, 1) == 1
    assert count_supervised(0.29, 100) == 29  # 28.999999999999996 as a product


def test_fedenhance_yaml_is_the_published_experiment():
    settings = settings_of("fedenhance.yaml")
    assert settings.model == SudoRmRfSettings()
    assert (settings.clients, settings.fraction, settings.batch_size, settings.audio_seconds) == (256, 0.25, 6, 4.0)
    assert settings.optimizer.name == "adam"
    assert settings.optimizer.learning_rate == 0.001
    assert (settings.opt_treatment, settings.clip_grad_norm, settings.p_supervised) == ("RESET", 5.0, 0.0)
    assert not settings.aggregation.rule.weighted
    assert WORKLOAD.start_arguments(settings)["best"] == ("si_sdri_2_noises", "max")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"p_supervised": 1.5}, "'p_supervised' is 1.5"),
        ({"local_epochs": 0}, "'local_epochs' is 0"),
        ({"audio_seconds": 5}, "'audio_seconds' is 5: clips have data.clip_seconds, 4 s: it should be no more"),
        ({"model.num_sources": 1}, "'model.num_sources' is 1"),
        ({"model.num_sources": 2, "p_supervised": 0.5}, "model.num_sources is 2 and p_supervised 0.5: a model of two"),
        ({"model.num_groups": 5}, "'model.num_groups' is 5: .*it should divide"),
    ],
)
def test_wrong_settings_are_named(changes, sentence):
    with pytest.raises(SettingsError, match=sentence):
        settings_of("small.yaml", **changes)


def test_local_epochs_may_be_a_fraction():
    assert settings_of("small.yaml", local_epochs=0.5).local_epochs == 0.5


def test_bars_are_drawn_of_a_search_over_the_share_of_supervised_clients_alone(tmp_path):
    metrics = [f"{split} si_sdri_{noises}" for split in ("validation", "test") for noises in ("1_noise", "2_noises")]
    scores = {"rounds": [9, 9]} | {metric: [1.0, 2.0] for metric in metrics}
    for axes in ({"fraction": [0.1, 0.2]}, {"p_supervised": [0, 1], "fraction": [0.1, 0.1]}):
        WORKLOAD.plot_search(pd.DataFrame(axes | scores), tmp_path)
    assert not list(tmp_path.iterdir())
    WORKLOAD.plot_search(pd.DataFrame({"p_supervised": [0, 1]} | scores), tmp_path)
    assert (tmp_path / "supervised_share.png").stat().st_size > 1000


def test_the_best_of_the_centralized_run_is_the_bound_of_the_others(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "plot_si_sdri", lambda curves, path, bound, title: drawn.update(curves, bound=bound))
    record = {"envoys": {}, "seconds": 1.0, "bytes_up": 0, "bytes_down": 0}
    rounds = [
        record | {"round": number, "metrics": {"aggregated_model_validate": {"si_sdri_1_noise": value}}}
        for number, value in enumerate((1.0, 3.0, 2.0))
    ]
    WORKLOAD.plot_comparison({"centralized": rounds, "federated": rounds[:2]}, SETTINGS, tmp_path / "comparison.png")
    assert (drawn.keys(), drawn["bound"]) == ({"federated", "bound"}, 3)
    assert drawn["federated"].to_dict() == {0: 1, 1: 3}


def test_a_comparison_has_a_curve_for_each_run_and_centralized_alone_is_one(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "plot_si_sdri", lambda curves, path, bound, title: drawn.update({path: (curves, bound)}))
    scores = {"si_sdri_1_noise": 2.0, "si_sdri_2_noises": 3.0}
    metrics = {"aggregated_model_validate": scores}
    records = [{"round": 0, "best": True, "metrics": metrics, "seconds": 1.0, "bytes_up": 0}]
    WORKLOAD.plot_comparison({"centralized": records, "federated": records}, SETTINGS, tmp_path / "both")
    WORKLOAD.plot_comparison({"centralized": records}, SETTINGS, tmp_path / "one")
    assert {path.name: ([*curves], bound) for path, (curves, bound) in drawn.items()} == {
        "both": (["federated"], 2.0), "one": (["centralized"], None),
    }  # fmt: skip
