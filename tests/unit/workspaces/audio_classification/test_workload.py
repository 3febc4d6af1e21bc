"""Small models of Transformers of several kinds, and the workload from a table to a model that a pipeline loads."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from transformers import pipeline

from openfl_audio.config import load_settings
from openfl_audio.errors import SettingsError
from openfl_audio.experiments.run import run
from tests.unit.workspaces.audio_classification.recordings import create_cnn
from tests.unit.workspaces.shipped import TINY_SPECTROGRAM_TRANSFORMER, TINY_WAV2VEC2
from workspaces.audio_classification.data import Clips
from workspaces.audio_classification.model import CONFIGS, create_classifier, create_extractor, predict
from workspaces.audio_classification.targets import Targets
from workspaces.audio_classification.workload import AudioClassification, AudioClassificationSettings, read_settings

WORDS = Targets("label", ("high", "low"))
TINY = {
    **dict.fromkeys(("wav2vec2", "hubert", "wavlm", "sew"), TINY_WAV2VEC2),
    "data2vec-audio": TINY_WAV2VEC2 | {"conv_pos_kernel_size": 3},
    "wav2vec2-bert": TINY_SPECTROGRAM_TRANSFORMER | {"classifier_proj_size": 8},
    "audio-spectrogram-transformer": TINY_SPECTROGRAM_TRANSFORMER,
    "whisper": {
        "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_layers": 1,
        "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "classifier_proj_size": 8, "vocab_size": 20,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    },
}  # fmt: skip


def write_config(folder: Path, model_type: str) -> str:
    (folder / "tiny.json").write_text(json.dumps({"model_type": model_type, **TINY[model_type]}))
    return str(folder / "tiny.json")


@pytest.mark.parametrize("model_type", TINY)
def test_models_of_several_kinds_hear_clips_through_their_own_extractor(model_type, tmp_path):
    config = write_config(tmp_path, model_type)
    model, extractor = create_classifier(config=config, targets=WORDS), create_extractor(config=config)
    waveforms = np.random.default_rng(0).standard_normal((2, 16_000)).astype(np.float32)

    class Shard:
        sample_rate, targets = 16_000, ("high", "low")

        def __getitem__(self, index):
            return waveforms[index], self.targets[index]

    inputs, _ = Clips(Shard(), WORDS, 1.0, extractor).batch([0, 1])
    assert predict(model.eval(), inputs).shape == (2, 2)
    model.save_pretrained(tmp_path / "model")
    extractor.save_pretrained(tmp_path / "model")
    heard = pipeline("audio-classification", model=str(tmp_path / "model"))(waveforms[0])
    assert {each["label"] for each in heard} == {"high", "low"}


@pytest.mark.parametrize(
    ("targets", "problem_type", "outputs"),
    [
        (WORDS, "single_label_classification", 2),
        (Targets("labels", ("a", "b", "c")), "multi_label_classification", 3),
        (Targets("number"), "regression", 1),
    ],
)
def test_the_exported_configuration_says_what_the_problem_is(tmp_path, targets, problem_type, outputs):
    create_classifier(config=write_config(tmp_path, "wav2vec2"), targets=targets).save_pretrained(tmp_path / "model")
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert written["problem_type"] == problem_type
    assert len(written["id2label"]) == outputs
    if targets.classes:
        assert list(written["id2label"].values()) == list(targets.classes)


def test_a_pretrained_model_gets_a_head_for_other_classes_and_keeps_its_encoder(tmp_path):
    first = create_classifier(config=write_config(tmp_path, "wav2vec2"), targets=WORDS, seed=1)
    first.save_pretrained(tmp_path / "model")
    other = create_classifier(str(tmp_path / "model"), targets=Targets("label", ("a", "b", "c")))
    assert other.classifier.out_features == 3
    assert other.config.id2label == {0: "a", 1: "b", 2: "c"}
    torch.testing.assert_close(other.projector.weight, first.projector.weight)
    assert not any(p.requires_grad for p in other.wav2vec2.feature_extractor.parameters())


@pytest.mark.training
def test_a_compiled_model_has_the_same_names_and_values(tmp_path, monkeypatch):
    config = write_config(tmp_path, "wav2vec2")
    plain, compiled = (create_classifier(config=config, targets=WORDS, compile=each).eval() for each in (False, True))
    assert compiled._compiled_call_impl is not None
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    inputs = torch.randn(2, 4_000)
    with torch.compiler.set_stance("force_eager"), torch.no_grad():  # compiling takes long
        torch.testing.assert_close(compiled(inputs).logits, plain(inputs).logits)
    chosen = settings(tmp_path, compile=True, **{"targets.classes": ["high", "low"]})
    assert AudioClassification().model(chosen).keywords["compile"]
    monkeypatch.setenv("CXX", "no-such-g++")
    with pytest.raises(SettingsError, match=r"there is no 'no-such-g\+\+': install g\+\+"):
        create_classifier(config=config, targets=WORDS, compile=True)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="either pretrained .* or config"):
        create_classifier(targets=WORDS)
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(SettingsError, match="none.json has no model_type"):
        create_classifier(config=tmp_path / "none.json", targets=WORDS)
    (tmp_path / "odd.json").write_text('{"model_type": "wav9"}')
    with pytest.raises(SettingsError, match=r"odd.json: .*wav9"):
        create_classifier(config=tmp_path / "odd.json", targets=WORDS)


@pytest.fixture
def table(tmp_path) -> Path:
    """Eight speakers, who say high and low four times each, one of them with a capital."""
    rows = ["file;word;speaker"]
    (tmp_path / "data").mkdir()
    generator = np.random.default_rng(0)
    for speaker in "abcdefgh":
        for i in range(8):
            word = "low" if i % 2 else ("High" if speaker == "h" else "high")
            hz = (400 if i % 2 else 1_600) * generator.uniform(0.9, 1.1)
            name = f"{speaker}{i}.wav"
            tone = 0.3 * np.sin(2 * np.pi * hz * np.arange(4_000) / 16_000) + 0.01 * generator.standard_normal(4_000)
            soundfile.write(tmp_path / "data" / name, tone, 16_000)
            rows.append(f"{name};{word};{speaker}")
    (tmp_path / "data" / "clips.csv").write_text("\n".join(rows))
    return tmp_path / "data" / "clips.csv"


def settings(tmp_path, **changes) -> AudioClassificationSettings:
    return load_settings(CONFIGS / "small.yaml", AudioClassificationSettings, {
        "model.config": write_config(tmp_path, "wav2vec2"), "clip_s": 0.25, "rounds": 2, "batch_size": 4, "clients": 2,
        "corpus": {"columns": {"path": "file", "label": "word", "group": "speaker"}}, "augmentation.shift_s": 0.0,
        "targets.mapping": {"High": "high"}, **changes,
    })  # fmt: skip


@pytest.mark.training
def test_a_run_from_a_table_judges_sites_and_its_model_loads_in_a_pipeline(table, tmp_path):
    result = run(AudioClassification(), settings(tmp_path), "simulated", table, tmp_path / "out")
    best = result["metrics"]["best"]
    assert set(best) == {"validation", "test", "sites"}
    # Of one speaker there is no interval.
    assert set(best["test"]) == {"loss", "accuracy", "macro_f1", "auroc", "mAP"}
    assert best["sites"]["clients"] >= 1
    assert best["sites"]["worst"] <= best["sites"]["mean"]
    assert {"confusions.png", "classes_by_client.png", "per_client.png"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    history = [json.loads(line) for line in (tmp_path / "out" / "history.jsonl").read_text().splitlines()]
    shares = history[0]["metrics"]["aggregated_model_validate"]
    assert shares["true/0"] + shares["true/1"] == pytest.approx(1)
    heard = pipeline("audio-classification", model=str(tmp_path / "out" / "model"))(np.zeros(4_000, np.float32))
    assert {each["label"] for each in heard} == {"high", "low"}


def test_labels_that_do_not_agree_stop_a_run_before_it_starts(table, tmp_path):
    with pytest.raises(SettingsError, match="differ in case or white space only"):
        run(AudioClassification(), settings(tmp_path, **{"targets.mapping": {}}), "simulated", table, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_that_yaml_takes_for_true_and_false_are_refused(tmp_path):
    for changes in ({"targets.mapping": {True: "yes"}}, {"targets.classes": [True, False]}):
        with pytest.raises(
            SettingsError, match="write labels in quotes, as yes, no, on and off are true and false in YAML"
        ):
            settings(tmp_path, **changes)


def test_clients_are_speakers_by_nature(table, tmp_path):
    workload, config = AudioClassification(), settings(tmp_path)
    train = workload.open(config, table, 1, 1).get_dataset("train")
    assert workload.natural_clients(config, table) == len(set(train.groups)) == 6


def test_what_reads_the_data_is_told_by_what_is_there(tmp_path):
    folders = {
        "classes": "yes/a.wav",
        "named": "metadata.parquet",
        "rows": "train-0.parquet",
        "saved": "dataset_dict.json",
    }
    for folder, file in folders.items():
        (tmp_path / folder / file).parent.mkdir(parents=True)
        (tmp_path / folder / file).touch()
    (tmp_path / "clips.data").touch()
    read_by = {
        place: AudioClassification().shard(settings(tmp_path), Path(place), 1, 2)["template"].rpartition(".")[2]
        for place in [
            *(str(tmp_path / name) for name in folders),
            str(tmp_path / "clips.data"),
            "no.csv",
            "PolyAI/minds14",
        ]
    }
    folder, hub, table = (f"{kind}ShardDescriptor" for kind in ("Folder", "Hub", "Table"))
    assert list(read_by.values()) == [folder, folder, hub, hub, table, table, hub]


def test_a_notebook_reads_settings_for_the_targets_that_sites_agreed_on():
    targets = Targets("label", ("a", "b"), (("B", "b"), ("hum", None)))
    config = read_settings("small.yaml", targets, {"rounds": 3, "optimizer.learning_rate": 0.5})
    assert (config.rounds, config.optimizer.learning_rate, config.clip_s) == (3, 0.5, 1.0)
    assert AudioClassification().targets(config) == targets
    assert AudioClassification().targets(read_settings("small.yaml", Targets("number"))) == Targets("number")


class OwnModule(AudioClassification):
    """A workload with a module of one's own, which hears waveforms."""

    def model(self, config):
        return partial(create_cnn, self.targets(config).num_outputs, config.seed)

    def extractor(self, config):
        return None


@pytest.mark.training
@pytest.mark.parametrize("kind", ["labels", "number"])
def test_a_module_of_ones_own_is_trained_in_a_run_on_several_labels_and_on_a_number(table, tmp_path, kind):
    rows = [row.split(";") for row in table.read_text().splitlines()[1:]]
    cells = {
        "labels": {"low": "low|loud", "high": "high", "High": ""},
        "number": {"low": "0,4", "high": "1,6", "High": "1,6"},
    }
    content = [f"{name};{cells[kind][word]};{speaker}" for name, word, speaker in rows]
    table.write_text("\n".join(["file;target;speaker", *content]))
    columns = {"path": "file", kind: "target", "group": "speaker"}
    config = settings(tmp_path, **{"corpus": {"columns": columns}, "targets.mapping": {}})
    result = run(OwnModule(), config, "simulated", table, tmp_path / "out")
    expected = {"labels": {"loss", "macro_f1", "auroc", "mAP"}, "number": {"loss", "absolute_error"}}[kind]
    assert set(result["metrics"]["best"]["validation"]) == expected
    assert result["settings"]["targets"]["kind"] == kind
    assert result["settings"]["targets"]["classes"] == {"labels": ["high", "loud", "low"], "number": None}[kind]
    weights = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in weights.items()} == {
        name: tensor.shape for name, tensor in create_cnn({"labels": 3, "number": 1}[kind]).state_dict().items()
    }
