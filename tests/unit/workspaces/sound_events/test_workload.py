import json
import shlex
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

mpl.use("Agg")

from openfl_audio.cli.main import parse
from openfl_audio.config import load_settings
from openfl_audio.errors import SettingsError
from openfl_audio.experiments.modes import choose_clients, start_arguments
from openfl_audio.experiments.run import run
from openfl_audio.protocol.participation import Participation
from openfl_audio.simulation.simulation import Simulation
from shard_descriptors.fsd50k.layout import read_layout
from shard_descriptors.fsd50k.preparation import prepare_store
from workspaces.sound_events.data import Patches
from workspaces.sound_events.export import load_model
from workspaces.sound_events.loss import binary_cross_entropy
from workspaces.sound_events.tasks import MEAN_OVER, validate_clips
from workspaces.sound_events.workload import SoundEvents, SoundEventsSettings

pytestmark = pytest.mark.training

WORKLOAD = SoundEvents()

CONFIGS = Path(__file__).parents[4] / "workspaces" / "sound_events" / "configs"
CLASSES = ("Bell", "Dog", "Rain")


def load(**changes) -> SoundEventsSettings:
    """The small configuration, for the classes of these tests."""
    changes = {"model.classes": 4, "batch_size": 8, "rounds": 2} | changes
    return load_settings(CONFIGS / "small.yaml", SoundEventsSettings, changes)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_is_valid(path):
    assert load_settings(path, SoundEventsSettings, {}).optimizer.name == "adam"


def test_a_wrong_setting_is_named():
    with pytest.raises(SettingsError, match=r"'model.width' is 0.3"):
        load(**{"model.width": 0.3})
    with pytest.raises(SettingsError, match=r"'data.split' is 'random'"):
        load(**{"data.split": "random"})
    with pytest.raises(
        SettingsError, match=r"'loss' is 'focal': there is no loss 'focal' .*: it should be binary_cross"
    ):
        load(loss="focal")
    with pytest.raises(SettingsError, match=r"'data.transforms' is 'numpy.pi': 'numpy.pi' is no function"):
        load(**{"data.transforms": "numpy.pi"})


def test_the_loss_is_that_of_the_settings():
    name = "torch.nn.functional.multilabel_soft_margin_loss"
    [settings] = WORKLOAD.tasks(load(loss=name)).task_settings["train_round"].values()
    assert settings.loss is torch.nn.functional.multilabel_soft_margin_loss
    [settings] = WORKLOAD.tasks(load()).task_settings["train_round"].values()
    assert settings.loss is binary_cross_entropy


def simulate(settings: SoundEventsSettings, shards: dict, folder: Path) -> Simulation:
    """Everybody but the evaluator trains."""
    simulation = Simulation(list(shards), shards.__getitem__, folder)
    participation = Participation(evaluators=["evaluation"])
    simulation.start(
        "test", **WORKLOAD.start_arguments(settings), rounds_to_train=settings.rounds, participation=participation
    )
    list(simulation.run())
    return simulation


@pytest.fixture
def shards(make_shard):
    """Two unequal clients, and an evaluator who has other clips."""
    return {"a": make_shard(train=6, seed=1), "b": make_shard(train=20, seed=2), "evaluation": make_shard()}


def test_the_score_of_a_round_is_that_of_the_global_model_on_all_clips_of_the_evaluator(shards, tmp_path):
    simulation = simulate(load(), shards, tmp_path)
    scores = [record["metrics"]["aggregated_model_validate"] for record in simulation.records]
    everything = Patches(shards["evaluation"].get_dataset("validation"))
    assert scores[0] == pytest.approx(validate_clips(simulation.initial_model(), everything, "cpu"))
    assert scores[-1] == pytest.approx(validate_clips(simulation.last_model(), everything, "cpu"))
    assert scores[0] != scores[-1]


def test_with_fedbn_scale_and_shift_stay_with_their_client(shards, tmp_path):
    simulation = simulate(load(**{"model.normalisation": "fedbn"}), shards, tmp_path)
    last = dict(simulation.last_model().named_parameters())
    normalisation = {name for name in last if ".norm." in name}
    assert len(normalisation) == 2 * 6
    assert not normalisation & simulation.definition.tensors.keys()
    assert all(torch.all(last[name] == float(name.endswith("weight"))) for name in normalisation)
    first = dict(simulation.initial_model().named_parameters())
    assert not any(torch.equal(last[name], first[name]) for name in last if name not in normalisation)
    (a, b) = (torch.load(next((tmp_path / "clients" / name).glob("1.pt")))["local"] for name in "ab")
    assert a.keys() == b.keys() == normalisation
    assert not torch.equal(a["convolutions.0.norm.weight"], b["convolutions.0.norm.weight"])


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A store of 18 dev clips by three uploaders, of which three validate, and 6 test clips.

    Each has a tone of its own, around that of its class; every second clip is twice as long.
    """
    corpus = tmp_path_factory.mktemp("fsd50k")
    (corpus / "FSD50K.ground_truth").mkdir()
    (corpus / "FSD50K.metadata").mkdir()
    rows = [f"{i},{name},/m/{i}" for i, name in enumerate(CLASSES)]
    (corpus / "FSD50K.ground_truth" / "vocabulary.csv").write_text("\n".join(rows) + "\n")
    for part, numbers in (("dev", range(18)), ("eval", range(18, 24))):
        (corpus / f"FSD50K.{part}_audio").mkdir()
        lines = ["fname,labels,mids" + (",split" if part == "dev" else "")]
        for number in numbers:
            label = number % 3
            time = np.arange(22_050 * (1 + number % 2)) / 22_050
            wave = 0.1 * np.sin(2 * np.pi * (500 + 1_500 * label + 20 * number) * time)
            soundfile.write(corpus / f"FSD50K.{part}_audio" / f"{number}.wav", wave, 22_050)
            split = "" if part == "eval" else ",val" if number >= 15 else ",train"
            lines.append(f"{number},{CLASSES[label]},/m/{label}{split}")
        (corpus / "FSD50K.ground_truth" / f"{part}.csv").write_text("\n".join(lines) + "\n")
        info = {str(number): {"uploader": f"uploader {number % 5 % 3}"} for number in numbers}
        (corpus / "FSD50K.metadata" / f"{part}_clips_info_FSD50K.json").write_text(json.dumps(info))
    prepare_store(read_layout(corpus), corpus / "store")
    return corpus / "store"


@pytest.mark.parametrize("mode", ["centralized", "individual", "simulated"])
def test_a_run_leaves_a_model_with_its_scores_and_pictures(mode, store, tmp_path):
    settings = load(**{"model.classes": None, "data.uploader_min": 4})
    assert WORKLOAD.natural_clients(settings, store) == 2
    result = run(WORKLOAD, settings, mode, store, tmp_path)
    assert result["settings"]["model"]["classes"] == 3  # those of the store
    for model in ("best", "last"):
        for split in ("validation", "test"):
            assert set(result["metrics"][model][split]) == {"loss", *MEAN_OVER}
    records = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert result["metrics"]["last"]["validation"] == records[-1]["metrics"]["aggregated_model_validate"]
    best = max(record["metrics"]["aggregated_model_validate"]["pr_auc"] for record in records)
    assert result["metrics"]["best"]["validation"]["pr_auc"] == best
    assert load_model(tmp_path / "model")(torch.zeros(1, 101, 96)).shape == (1, 3)
    assert json.loads((tmp_path / "model-last" / "config.json").read_text())["id2label"] == dict(
        zip("012", sorted(CLASSES), strict=True)
    )
    check_card(tmp_path, result, mode)
    pictures = {"scores.png", "clips_per_class.png", "clips_per_uploader.png", "class_by_uploader.png"}
    if mode != "individual":
        pictures |= {"per_client.png"}
        spread = result["per_client"]["pr_auc"]
        assert 0 <= spread["worst_tenth"] <= spread["mean"] <= 1
    assert {path.name for path in tmp_path.glob("*.png")} == pictures


def check_card(out, result, mode):
    """The card of the last model has its scores, and a command whose settings are those of the run."""
    card = (out / "model-last" / "README.md").read_text()
    assert f"| validation | {result['metrics']['last']['validation']['loss']:.4g} |" in card
    clients = {"centralized": "1", "individual": "number 0 of 2, from 0", "simulated": "2"}[mode]
    assert f"| clients | {clients} |" in card
    [line] = [line for line in card.replace("\\\n", "").splitlines() if line.startswith("openfl-audio train")]
    train, _ = parse(shlex.split(line)[1:])
    assert (train.mode, train.client_ids) == (mode, [0])
    assert (
        load_settings(out / train.config, SoundEventsSettings, train.changes()).model_dump(mode="json")
        == result["settings"]
    )


def test_named_uploaders_train_with_a_rate_that_is_halved_and_the_models_asked_for_are_there(store, tmp_path):
    names = ["uploader 2", "uploader 0"]
    settings = load(
        **{
            "model.classes": None,
            "data.uploader_name": names,
            "data.transforms": "numpy.flipud",
            "halve_rate_after": 3,
            "also_best": ["mAP", "loss"],
            "best_epoch_path": "weights/best.pt",
            "keep": 2,
            "rounds": 3,
        }
    )
    arguments = WORKLOAD.start_arguments(settings)
    assert (arguments["halve_rate_after"], arguments["also_best"]) == (3, {"mAP": "max", "loss": "min"})
    assert WORKLOAD.natural_clients(settings, store) == 2
    assert WORKLOAD.shard(settings, store, 1, 2)["params"]["transforms"] == "numpy.flipud"
    result = run(WORKLOAD, settings, "simulated", store, tmp_path)
    assert result["clients"] == 2
    assert set(result["metrics"]) == {"best", "best-mAP", "best-loss", "last"}
    least = min(record["metrics"]["aggregated_model_validate"]["loss"] for record in read_records(tmp_path))
    assert result["metrics"]["best-loss"]["validation"]["loss"] == pytest.approx(least)
    assert (tmp_path / "model-best-mAP" / "model.safetensors").exists()
    state = torch.load(tmp_path / "weights" / "best.pt", weights_only=True)
    best = load_model(tmp_path / "model").state_dict()
    assert state.keys() == best.keys()
    assert all(torch.equal(state[name], best[name]) for name in best)
    # Round R is validated in round R + 1, and the models of the last two are kept.
    scores = {r["round"]: r["metrics"]["aggregated_model_validate"]["pr_auc"] for r in read_records(tmp_path)}
    kept = [path.name for path in sorted((tmp_path / "checkpoints").iterdir(), key=lambda path: path.name[-13:])]
    assert kept == [f"pr_auc_{scores[3]:.4f}_round-2.safetensors"]
    assert load_file(tmp_path / "checkpoints" / kept[0]).keys() == best.keys()
    # A run begins with what another one left there.
    model_provider = start_arguments_of(load(**{"model.classes": 3, "init": tmp_path / "weights" / "best.pt"}), store)
    assert np.array_equal(model_provider.initial_tensors(False)["output.bias"], best["output.bias"].numpy())


def read_records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def start_arguments_of(settings, data):
    [clients] = choose_clients(WORKLOAD, settings, data, "centralized", [0])
    return start_arguments(clients)["model_provider"]
