import json
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import HubertModel

mpl.use("Agg")

from openfl_audio.config import load_settings
from openfl_audio.envoy.settings import ShardDescriptorSettings, build_shard_descriptor
from openfl_audio.errors import SettingsError
from openfl_audio.experiments.run import run
from shard_descriptors.librispeech import LibriSpeechShardDescriptor
from shard_descriptors.librispeech.preparation import prepare_librispeech
from tests.unit.shard_descriptors.librispeech_corpus import make_corpus
from tests.unit.workspaces.hubert.tones import TINY
from workspaces.hubert.model import load_model
from workspaces.hubert.plots import plot_masked_accuracy
from workspaces.hubert.workload import HubertTraining, HubertTrainingSettings
from workspaces.hubert_codebooks.features import Mfcc
from workspaces.hubert_codebooks.targets import make_targets

pytestmark = pytest.mark.training

WORKLOAD = HubertTraining()

CONFIGS = Path(__file__).parents[4] / "workspaces" / "hubert" / "configs"
CLUSTERS = 12


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """For two clients, with one codebook for all."""
    folder = tmp_path_factory.mktemp("librispeech")
    corpus = make_corpus(folder / "LibriSpeech")
    prepare_librispeech(corpus.root, folder / "two", clients=2)
    for codebook in ("central", "client"):
        make_targets(folder / "two", codebook, CLUSTERS, Mfcc(13), name=codebook)
    return folder / "two"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "tiny.json"
    path.write_text(json.dumps(TINY))
    return str(path)


def load(config: str = "small.yaml", **changes) -> HubertTrainingSettings:
    return load_settings(CONFIGS / config, HubertTrainingSettings, {"rounds": 2, "local_epochs": 1} | changes)


def pretraining(tiny, **changes) -> HubertTrainingSettings:
    return load(**{"model.config": tiny, "model.clusters": CLUSTERS, "data.targets": "central"} | changes)


def test_runs_are_drawn_above_what_the_most_frequent_cluster_would_give(tmp_path):
    histories = {
        name: pd.DataFrame(
            {
                "round": [0, 1, 2],
                "masked_accuracy": [0.01, None, accuracy],
                "most_frequent_accuracy": [0.02, None, 0.04],
            }
        )
        for name, accuracy in {"centralized": 0.09, "federated": 0.08}.items()
    }
    axes = plot_masked_accuracy(histories, tmp_path / "comparison.png").axes[0]
    assert [line.get_label() for line in axes.lines] == ["centralized", "federated", "most frequent cluster"]
    assert axes.lines[1].get_xydata().tolist() == [[0, 0.01], [2, 0.08]]
    assert axes.lines[2].get_ydata() == pytest.approx([0.03, 0.03])


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_is_valid(path):
    settings = load_settings(path, HubertTrainingSettings, {})
    assert (CONFIGS / settings.model.config).exists()
    assert settings.optimizer.recipe()([torch.nn.Parameter(torch.zeros(1))]).defaults["betas"] == (0.9, 0.98)


def test_base_is_the_recipe_with_fedadam_on_the_director():
    settings = load_settings(CONFIGS / "base.yaml", HubertTrainingSettings, {})
    optimizer = settings.aggregation.server_optimizer
    assert (optimizer.optimizer, optimizer.betas, optimizer.epsilon) == ("adam", (0.9, 0.99), 1e-9)
    assert settings.mask.length == 10
    assert settings.mask.probability == 0.8
    assert settings.keep == 2


def test_wrong_settings_are_named():
    with pytest.raises(SettingsError, match=r"'data\.targets' is None"):
        load(**{"data.targets": None})
    with pytest.raises(SettingsError, match="unknown key 'distillation'"):
        load(**{"distillation.teacher": "model"})
    with pytest.raises(SettingsError, match="max_samples_per_batch is 1000: should have room for one clip"):
        load(max_samples_per_batch=1000)
    with pytest.raises(SettingsError, match=r"'mask\.length' is 0"):
        load(**{"mask.length": 0})


def test_the_best_model_is_chosen_by_masked_accuracy():
    assert WORKLOAD.start_arguments(load())["best"] == ("masked_accuracy", "max")


@pytest.mark.parametrize("mode", ["centralized", "individual", "simulated"])
def test_a_run_leaves_a_model_with_its_scores_and_pictures(mode, prepared, tiny, tmp_path):
    settings = pretraining(tiny)
    assert WORKLOAD.natural_clients(settings, prepared) == 2
    result = run(WORKLOAD, settings, mode, prepared, tmp_path)
    scores = {"loss", "perplexity", "masked_accuracy", "unmasked_accuracy", "most_frequent_accuracy", "cluster_usage"}
    for model in ("best", "last"):
        assert result["metrics"][model].keys() == {"validation", "dev", "test"}
        assert all(set(metrics) == scores for metrics in result["metrics"][model].values())
    records = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert result["metrics"]["last"]["validation"] == records[-1]["metrics"]["aggregated_model_validate"]
    trained = [
        record["envoys"][name]["train"] for record in records for name in record["envoys"] if name != "evaluation"
    ]
    assert len(trained) == (4 if mode == "simulated" else 2)
    wanted = {"loss", "masked_accuracy", "unmasked_accuracy", "perplexity", "learning_rate", "gradient_norm"}
    wanted |= {"cluster_usage", "masked_share", "samples_per_second", "rss_bytes", "seconds", "skipped_steps", "size"}
    wanted |= {"flops_per_second", "cpu_percent", "peak_rss_bytes"}
    assert all(set(metrics) == wanted for metrics in trained)
    assert load_model(tmp_path / "model").config.clusters == CLUSTERS
    assert HubertModel.from_pretrained(tmp_path / "model")(torch.zeros(1, 720)).last_hidden_state.shape == (1, 2, 32)
    pictures = {"progress.png"} | ({"per_client.png"} if mode != "individual" else set())
    pictures |= {"hours_per_client.png"} if mode == "simulated" else set()
    assert {path.name for path in tmp_path.glob("*.png")} == pictures


def test_tensorboard_shows_the_rounds_and_every_client(prepared, tiny, tmp_path):
    run(WORKLOAD, pretraining(tiny), "simulated", prepared, tmp_path)
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = curves.Tags()["scalars"]
    for tag in ("aggregated_model_validate/masked_accuracy", "train/loss", "envoys/client-1/train/gradient_norm"):
        assert tag in tags
    records = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [event.step for event in curves.Scalars("round/participants")] == [0, 1, 2]
    assert [event.value for event in curves.Scalars("round/participants")] == [3, 3, 1]  # with the evaluator
    seconds = [event.value for event in curves.Scalars("round/seconds")]
    assert seconds == pytest.approx([record["seconds"] for record in records], rel=1e-4)


def test_a_run_can_begin_with_the_model_of_another(prepared, tiny, tmp_path):
    teacher = run(WORKLOAD, pretraining(tiny), "centralized", prepared, tmp_path / "teacher")
    more = pretraining(tiny, init=tmp_path / "teacher")
    again = run(WORKLOAD, more, "centralized", prepared, tmp_path / "more")
    first = json.loads((tmp_path / "more" / "history.jsonl").read_text().splitlines()[0])
    assert first["metrics"]["aggregated_model_validate"] == teacher["metrics"]["best"]["validation"]
    assert again["rounds"] == 2


def test_codebooks_of_each_client_are_not_scored_on_clips_that_are_nobody_s(prepared, tiny, tmp_path):
    result = run(WORKLOAD, pretraining(tiny, **{"data.targets": "client"}), "simulated", prepared, tmp_path)
    assert result["metrics"]["best"].keys() == {"validation"}


def test_a_seed_gives_the_same_model_in_a_second_run(prepared, tiny, tmp_path):
    for name in ("first", "second"):
        run(WORKLOAD, pretraining(tiny, rounds=1), "simulated", prepared, tmp_path / name)
    first, second = (load_model(tmp_path / name / "model").state_dict() for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_shard_of_a_rank_is_that_of_the_descriptor(prepared, tiny):
    described = ShardDescriptorSettings(**WORKLOAD.shard(pretraining(tiny), prepared, 2, 2))
    built = build_shard_descriptor(described, Path.cwd())
    assert isinstance(built, LibriSpeechShardDescriptor)
    assert built.get_dataset("train").targets_info["clusters"] == CLUSTERS
    assert len(built.get_dataset("train")) == LibriSpeechShardDescriptor.clips_per_client(prepared)[1]


@pytest.mark.parametrize(("probability", "share", "level"), [(0.8, "57 %", "INFO"), (0.08, "8 %", "WARNING")])
def test_the_share_that_masks_hide_is_told_and_a_small_one_is_warned_of(probability, share, level, caplog, tmp_path):
    settings = load_settings(CONFIGS / "small.yaml", HubertTrainingSettings, {"mask.probability": probability})
    with caplog.at_level("INFO"):
        assert HubertTraining().complete(settings, tmp_path) == settings
    [record] = caplog.records
    assert record.levelname == level
    assert f"masks hide {share} of the frames" in record.getMessage()


def test_sizes_of_the_settings_take_the_place_of_the_files():
    changes = {"model.hidden_size": 48, "model.num_hidden_layers": 1, "model.num_attention_heads": 3}
    model = HubertTraining().model(load_settings(CONFIGS / "small.yaml", HubertTrainingSettings, changes))()
    assert (model.config.hidden_size, len(model.encoder.layers), model.config.num_attention_heads) == (48, 1, 3)
