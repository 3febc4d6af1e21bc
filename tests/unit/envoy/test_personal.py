"""Test the model that a site makes its own with the tensors that stayed there."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from openfl_audio.cli.main import main
from openfl_audio.envoy.personal import write_personal
from openfl_audio.errors import TensorFormatError
from openfl_audio.node.local_state import ClientStates

HEAD = "classifier.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return the folder of an exported model."""
    config = Wav2Vec2Config(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        conv_dim=(4,),
        conv_kernel=(10,),
        conv_stride=(5,),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=4,
        num_labels=2,
    )
    Wav2Vec2ForSequenceClassification(config).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("# words\n")
    return tmp_path / "model"


def keep(envoy: Path, values: np.ndarray, round_number: int = 3, name: str = HEAD) -> None:
    """Let `values` be what stayed at an envoy after a round of the experiment 'words'."""
    states = ClientStates(envoy / "words" / "state", ["classifier.*"], keeps_optimizer=False)
    states.save(envoy.name, round_number, {name: values}, None)


def test_copy_has_the_site_s_tensors_and_the_common_ones(tmp_path: Path, model: Path) -> None:
    """The model loads in Transformers, with the head of the last round here and everything else as it came."""
    envoy = tmp_path / "envoys" / "clinic"
    keep(envoy, np.zeros((2, 4), np.float32), 2)
    keep(envoy, np.full((2, 4), 7, np.float32), 3)
    settings = tmp_path / "clinic.yaml"
    shard = {"template": "shard_descriptors.table.TableShardDescriptor", "params": {}}
    params = {"director_host": "localhost", "director_port": 50051, "work_dir": str(envoy.parent)}
    settings.write_text(yaml.safe_dump({"params": params, "shard_descriptor": shard}))

    arguments = ["words", "-n", "clinic", "-c", str(settings), "--model", str(model), "--out", str(tmp_path / "ours")]
    assert main(["personal", *arguments]) == 0

    common, own = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "ours"))
    assert own.keys() == common.keys()
    assert torch.equal(own[HEAD], torch.full((2, 4), 7.0))
    assert all(torch.equal(own[name], common[name]) for name in common if name != HEAD)
    assert Wav2Vec2ForSequenceClassification.from_pretrained(tmp_path / "ours").classifier.weight[0, 0] == 7
    card = (tmp_path / "ours" / "README.md").read_text()
    assert card.startswith("# words\n")
    assert "round 3 of experiment 'words'" in card
    assert f"- `{HEAD}`" in card


def test_experiment_that_left_nothing_is_named_with_those_that_did(tmp_path: Path, model: Path) -> None:
    """A wrong name is answered with the right ones."""
    keep(tmp_path / "clinic", np.zeros((2, 4), np.float32))
    with pytest.raises(FileNotFoundError, match=r"experiment 'wrods' stayed at envoy 'clinic' .*\['words'\]"):
        write_personal(model, tmp_path / "clinic", "wrods", tmp_path / "ours")


@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        ("head.weight", np.zeros((2, 4), np.float32), "no tensor 'head.weight'"),
        (HEAD, np.zeros((3, 4), np.float32), r"shape \(2, 4\), and \(3, 4\) stayed here"),
    ],
)
def test_model_of_another_experiment_is_refused(
    tmp_path: Path, model: Path, name: str, values: np.ndarray, sentence: str
) -> None:
    """Nothing is written for tensors that do not fit."""
    keep(tmp_path / "clinic", values, name=name)
    with pytest.raises(TensorFormatError, match=sentence):
        write_personal(model, tmp_path / "clinic", "words", tmp_path / "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clinic", "model"]


def test_folder_that_is_there_is_kept(tmp_path: Path, model: Path) -> None:
    """An earlier model is not written over."""
    keep(tmp_path / "clinic", np.zeros((2, 4), np.float32))
    with pytest.raises(FileExistsError, match="give another folder"):
        write_personal(model, tmp_path / "clinic", "words", model)
