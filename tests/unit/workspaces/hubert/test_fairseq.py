import pickle
import zipfile
from io import BytesIO

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchaudio.models.wav2vec2.utils.import_fairseq import _convert_state_dict
from transformers import HubertModel

from openfl_audio.config import load_settings
from openfl_audio.errors import SettingsError
from workspaces.hubert.fairseq import fairseq_weights, write_fairseq, write_s3prl
from workspaces.hubert.model import CONFIGS, create_hubert, save_model, training_flops
from workspaces.hubert.workload import HubertTraining, HubertTrainingSettings

CLUSTERS = 20


def names_of_fairseq(layers: int, convolutions: int, mode: str, bias: bool) -> set[str]:
    """Return the names of fairseq's HubertModel, spelled out from its modules."""
    names = {"mask_emb", "label_embs_concat", "encoder.pos_conv.0.bias"}
    names |= {"encoder.pos_conv.0.weight_g", "encoder.pos_conv.0.weight_v"}
    pairs = ["layer_norm", "post_extract_proj", "final_proj", "encoder.layer_norm"]
    for i in range(layers):
        parts = [f"self_attn.{each}_proj" for each in ("q", "k", "v", "out")]
        pairs += [
            f"encoder.layers.{i}.{part}" for part in (*parts, "self_attn_layer_norm", "fc1", "fc2", "final_layer_norm")
        ]
    for i in range(convolutions):
        names.add(f"feature_extractor.conv_layers.{i}.0.weight")
        if bias:
            names.add(f"feature_extractor.conv_layers.{i}.0.bias")
        if mode == "layer_norm":
            pairs.append(f"feature_extractor.conv_layers.{i}.2.1")
        elif i == 0:
            pairs.append("feature_extractor.conv_layers.0.2")
    return names | {f"{pair}.{kind}" for pair in pairs for kind in ("weight", "bias")}


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_weights_have_the_names_of_fairseq_and_come_back_under_those_of_torchaudio(norm):
    model = create_hubert("hubert_small.json", CLUSTERS, feat_extract_norm=norm)
    config = model.config
    weights = fairseq_weights(model)
    mode = "layer_norm" if norm == "layer" else "default"
    assert weights.keys() == names_of_fairseq(
        config.num_hidden_layers, len(config.conv_dim), mode, bias=config.conv_bias
    )
    # Four symbols that no frame has come first in fairseq's dictionary.
    assert torch.equal(weights["label_embs_concat"][4:], model.label_embeddings)
    assert weights["label_embs_concat"].shape == (CLUSTERS + 4, config.final_dim)
    # torchaudio reads checkpoints of fairseq by names of its own.
    read = _convert_state_dict(weights)
    own = model.state_dict()
    for name, tensor in read.items():
        name = name.removeprefix("encoder.transformer.").replace("encoder.feature_projection", "feature_projection")
        matching = [each for each in own if each.removeprefix("encoder.") == name.removeprefix("encoder.")]
        if "pos_conv_embed" not in name and matching:
            assert torch.equal(own[matching[0]], tensor), name
    assert sum("layers" in name for name in read) > 16


def test_a_checkpoint_has_the_parts_that_fairseq_and_s3prl_ask_for(tmp_path):
    model = create_hubert("hubert_small.json", CLUSTERS, hidden_size=64)
    write_fairseq(model, tmp_path / "fairseq.pt")
    with zipfile.ZipFile(tmp_path / "fairseq.pt") as archive:
        content = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert b"fairseq.data.dictionary" in content

    class Found(pickle.Unpickler):
        def find_class(self, module, name):
            if module == "fairseq.data.dictionary":
                return type(name, (), {})
            return super().find_class(module, name)

        def persistent_load(self, pid):
            return torch.UntypedStorage(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._utils, "_rebuild_tensor_v2", lambda *arguments: None)
        state = Found(BytesIO(content)).load()
    assert {"cfg", "model", "task_state", "optimizer_history", "extra_state"} <= state.keys()
    [dictionary] = state["task_state"]["dictionaries"]
    assert dictionary.symbols == ["<s>", "<pad>", "</s>", "<unk>", *map(str, range(CLUSTERS))]
    assert state["cfg"]["task"]["sample_rate"] == 16_000
    sizes = state["cfg"]["model"]
    assert sizes["encoder_embed_dim"] == model.config.hidden_size
    assert sizes["label_rate"] == 50
    assert eval(sizes["conv_feature_layers"])[0] == (64, 32, 16)


def test_a_checkpoint_for_s3prl_has_its_four_parts_and_no_class_of_anybody(tmp_path):
    model = create_hubert("hubert_small.json", CLUSTERS, hidden_size=64)
    write_s3prl(model, tmp_path / "s3prl.pt")
    state = torch.load(tmp_path / "s3prl.pt", weights_only=True)
    assert state.keys() == {"task_cfg", "model_cfg", "model_weight", "dictionaries_symbols"}
    weights = fairseq_weights(model)
    assert state["model_weight"].keys() == weights.keys()
    assert all(torch.equal(state["model_weight"][name], weights[name]) for name in weights)
    assert state["dictionaries_symbols"] == [["<s>", "<pad>", "</s>", "<unk>", *map(str, range(CLUSTERS))]]
    assert (state["model_cfg"]["encoder_embed_dim"], state["task_cfg"]["label_rate"]) == (64, 50)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_s3prl_has_the_hidden_states_of_transformers(tmp_path, norm):
    hubconf = pytest.importorskip("s3prl.upstream.hubert.hubconf")
    model = create_hubert("hubert_small.json", CLUSTERS, hidden_size=64, feat_extract_norm=norm)
    write_s3prl(model, tmp_path / "s3prl.pt")
    save_model(model, tmp_path)
    waveform = torch.randn(16_000)
    upstream = hubconf.hubert_local(str(tmp_path / "s3prl.pt")).eval()
    ours = HubertModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        theirs = upstream([waveform])["hidden_states"]
        own = torch.nn.functional.layer_norm(waveform, waveform.shape) if model.normalize else waveform
        expected = ours(own[None], output_hidden_states=True).hidden_states
    assert len(theirs) == len(expected)
    for one, other in zip(theirs, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_run_that_is_asked_for_them_exports_both(tmp_path):
    config = load_settings(CONFIGS / "small.yaml", HubertTrainingSettings, {"fairseq": True, "model.hidden_size": 64})
    workload = HubertTraining()
    workload.save(workload.model(config)(), config, tmp_path)
    assert {"fairseq.pt", "s3prl.pt", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}


def test_models_that_fairseq_has_not_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="predicts no clusters"):
        write_fairseq(create_hubert("hubert_small.json", 0), tmp_path / "fairseq.pt")
    width = create_hubert("hubert_small.json", 2).config.conv_dim[-1]
    model = create_hubert("hubert_small.json", 2, hidden_size=width, num_attention_heads=1)
    with pytest.raises(SettingsError, match=f"fairseq: model.hidden_size is {width}, as wide as"):
        write_fairseq(model, tmp_path / "fairseq.pt")


def test_operations_are_counted_as_pytorch_counts_them():
    model = create_hubert("hubert_small.json", 0).eval()
    waveforms = torch.randn(1, 32_000)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(waveforms)
    # The positional convolution is left out of ours, and attention of PyTorch's on a CPU.
    config = model.config
    attention = 2 * 2 * 99**2 * config.hidden_size * config.num_hidden_layers
    groups, kernel = config.num_conv_pos_embedding_groups, config.num_conv_pos_embeddings
    positions = 2 * (99 + kernel % 2) * kernel * config.hidden_size**2 / groups
    assert training_flops(config, 32_000) / 3 == pytest.approx(
        counter.get_total_flops() - positions + attention, rel=1e-3
    )
