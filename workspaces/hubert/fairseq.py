"""A HuBERT as a checkpoint of fairseq, and as one of s3prl, whose upstream `hubert_local` reads it without fairseq.

Names are those of fairseq's HubertModel (github.com/facebookresearch/fairseq, fairseq/models/hubert/hubert.py), which
s3prl's copy of it has too (github.com/s3prl/s3prl, s3prl/upstream/hubert/convert.py).
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import HubertConfig

from openfl_audio.errors import SettingsError
from openfl_audio.files import replacing
from workspaces.hubert.model import HOP_LENGTH, LOGIT_TEMPERATURE, SAMPLE_RATE, Hubert

# fairseq's dictionary of clusters begins with these four, which no frame has.
SPECIAL_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")
# Patterns of names here, and what fairseq calls them.
NAMES = (
    (r"feature_extractor\.conv_layers\.(\d+)\.conv\.(weight|bias)", r"feature_extractor.conv_layers.\1.0.\2"),
    (r"feature_projection\.layer_norm\.(weight|bias)", r"layer_norm.\1"),
    (r"feature_projection\.projection\.(weight|bias)", r"post_extract_proj.\1"),
    (r"encoder\.pos_conv_embed\.conv\.bias", r"encoder.pos_conv.0.bias"),
    (
        r"encoder\.pos_conv_embed\.conv\.(?:parametrizations\.weight\.original0|weight_g)",
        r"encoder.pos_conv.0.weight_g",
    ),
    (
        r"encoder\.pos_conv_embed\.conv\.(?:parametrizations\.weight\.original1|weight_v)",
        r"encoder.pos_conv.0.weight_v",
    ),
    (r"encoder\.layers\.(\d+)\.attention\.(\w+)\.(weight|bias)", r"encoder.layers.\1.self_attn.\2.\3"),
    (r"encoder\.layers\.(\d+)\.layer_norm\.(weight|bias)", r"encoder.layers.\1.self_attn_layer_norm.\2"),
    (r"encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense\.(weight|bias)", r"encoder.layers.\1.fc1.\2"),
    (r"encoder\.layers\.(\d+)\.feed_forward\.output_dense\.(weight|bias)", r"encoder.layers.\1.fc2.\2"),
    (r"encoder\.layers\.(\d+)\.final_layer_norm\.(weight|bias)", r"encoder.layers.\1.final_layer_norm.\2"),
    (r"encoder\.layer_norm\.(weight|bias)", r"encoder.layer_norm.\1"),
    (r"masked_spec_embed", r"mask_emb"),
    (r"label_embeddings", r"label_embs_concat"),
    (r"final_proj\.(weight|bias)", r"final_proj.\1"),
)


def write_fairseq(model: Hubert, path: Path) -> None:
    """Write `model` as a checkpoint of fairseq.

    Raises SettingsError as `check_fairseq` does.
    """
    config = model.config
    check_fairseq(config)
    with _pickled_as_fairseqs():
        checkpoint = {
            "args": None,
            "cfg": {"_name": None, "model": _model_config(model), "task": _task_config(model)},
            "model": fairseq_weights(model),
            "task_state": {"dictionaries": [_Dictionary(_symbols(config))]},
            "criterion": None,
            "extra_state": {"epoch": 1, "train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
            "optimizer_history": [{"optimizer_type": "none", "lr_scheduler_state": {}, "num_updates": 0}],
        }
        with replacing(path, durable=False) as temporary:
            torch.save(checkpoint, temporary)


def write_s3prl(model: Hubert, path: Path) -> None:
    """Write `model` as the checkpoint that s3prl makes of one of fairseq; it has no class of fairseq in it.

    Raises SettingsError as `check_fairseq` does.
    """
    check_fairseq(model.config)
    checkpoint = {
        "task_cfg": _task_config(model),
        "model_cfg": _model_config(model),
        "model_weight": fairseq_weights(model),
        "dictionaries_symbols": [_symbols(model.config)],
    }
    with replacing(path, durable=False) as temporary:
        torch.save(checkpoint, temporary)


def check_fairseq(config: HubertConfig) -> None:
    """Raise SettingsError for a model that fairseq has not.

    That is one without the head that predicts clusters, or whose convolutions are as wide as its transformer, between
    which fairseq then has no projection.
    """
    if not config.clusters:
        raise SettingsError("the model predicts no clusters: fairseq's HuBERT does")
    if config.conv_dim[-1] == config.hidden_size:
        raise SettingsError(
            f"fairseq: model.hidden_size is {config.hidden_size}, as wide as the convolutions, and fairseq's HuBERT "
            "has no projection then: choose another width"
        )


def fairseq_weights(model: Hubert) -> dict[str, torch.Tensor]:
    """Return the weights of `model` by the names that fairseq gives them."""
    weights = {}
    for name, tensor in model.state_dict().items():
        weights[_fairseq_name(name, model)] = tensor.detach().cpu().clone()
    embeddings = weights["label_embs_concat"]
    weights["label_embs_concat"] = torch.cat(
        [embeddings.new_zeros(len(SPECIAL_SYMBOLS), embeddings.shape[1]), embeddings]
    )
    return weights


def _symbols(config: HubertConfig) -> list[str]:
    return [*SPECIAL_SYMBOLS, *map(str, range(config.clusters))]


def _fairseq_name(name: str, model: Hubert) -> str:
    # A normalisation over time is a module there, and one over channels is between two that transpose.
    place = "2.1" if model.config.feat_extract_norm == "layer" else "2"
    norm = re.fullmatch(r"feature_extractor\.conv_layers\.(\d+)\.layer_norm\.(weight|bias)", name)
    if norm:
        return f"feature_extractor.conv_layers.{norm[1]}.{place}.{norm[2]}"
    for pattern, theirs in NAMES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, theirs, name)
    raise SettingsError(f"fairseq's HuBERT has no tensor like '{name}'")


def _model_config(model: Hubert) -> dict[str, Any]:
    config = model.config
    layers = list(zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True))
    return {
        "_name": "hubert",
        "label_rate": SAMPLE_RATE / HOP_LENGTH,
        "extractor_mode": "layer_norm" if config.feat_extract_norm == "layer" else "default",
        "encoder_layers": config.num_hidden_layers,
        "encoder_embed_dim": config.hidden_size,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "encoder_attention_heads": config.num_attention_heads,
        "activation_fn": "gelu",
        "dropout": config.hidden_dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "encoder_layerdrop": config.layerdrop,
        "dropout_input": config.feat_proj_dropout,
        "final_dim": config.final_dim,
        "untie_final_proj": False,
        "layer_norm_first": config.do_stable_layer_norm,
        "conv_feature_layers": str(layers),
        "conv_bias": config.conv_bias,
        "logit_temp": LOGIT_TEMPERATURE,
        "conv_pos": config.num_conv_pos_embeddings,
        "conv_pos_groups": config.num_conv_pos_embedding_groups,
    }


def _task_config(model: Hubert) -> dict[str, Any]:
    return {
        "_name": "hubert_pretraining",
        "data": "",
        "labels": ["km"],
        "label_rate": SAMPLE_RATE / HOP_LENGTH,
        "sample_rate": SAMPLE_RATE,
        "normalize": model.normalize,
        "fine_tuning": False,
    }


class _Dictionary:
    """The fields of fairseq's Dictionary: a checkpoint has one by the name of its class and its fields."""

    def __init__(self, symbols: list[str]) -> None:
        self.bos_word, self.pad_word, self.eos_word, self.unk_word = SPECIAL_SYMBOLS
        self.symbols, self.count = symbols, [1] * len(symbols)
        self.indices = {symbol: index for index, symbol in enumerate(symbols)}
        self.bos_index, self.pad_index, self.eos_index, self.unk_index = range(len(SPECIAL_SYMBOLS))
        self.nspecial = len(SPECIAL_SYMBOLS)


@contextmanager
def _pickled_as_fairseqs() -> Iterator[None]:
    """Let `_Dictionary` be pickled under the name of fairseq's class, whether that is installed or not."""
    names = ("fairseq", "fairseq.data", "fairseq.data.dictionary")
    before = {name: sys.modules.get(name) for name in names}
    modules = {name: ModuleType(name) for name in names}
    vars(modules[names[-1]])["Dictionary"] = _Dictionary
    module, name = _Dictionary.__module__, _Dictionary.__qualname__
    _Dictionary.__module__, _Dictionary.__qualname__ = names[-1], "Dictionary"
    sys.modules.update(modules)
    try:
        yield
    finally:
        _Dictionary.__module__, _Dictionary.__qualname__ = module, name
        for name, earlier in before.items():
            if earlier is None:
                del sys.modules[name]
            else:
                sys.modules[name] = earlier
