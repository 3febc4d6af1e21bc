"""Pretrained weights: those that a node should have, and those that an experiment starts from."""

import hashlib
import json
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from openfl_audio.errors import PretrainedWeightsError, WeightsError
from openfl_audio.node.adapter import all_names, to_array, transmitted
from openfl_audio.protocol.tensors import Tensors

ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Where a checkpoint has the state dict of its model.
STATE_KEYS = ("state_dict", "model_state_dict", "model")


@contextmanager
def explain_missing_weights(pretrained: str | Path | None) -> Iterator[None]:
    """Raise PretrainedWeightsError when transformers does not find `pretrained`."""
    try:
        yield
    except OSError as error:
        cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
        raise PretrainedWeightsError(
            f"no weights for '{pretrained}': it is no folder, not in the cache ({cache}), and the hub did not "
            f"answer. On a connected machine run `hf download {pretrained}` and copy the cache, or give a folder "
            "written by save_pretrained"
        ) from error


def read_weights(source: Path, model: torch.nn.Module) -> Tensors:
    """Return the tensors of `model` to transmit, read from a file or a folder of `save_pretrained`.

    A file is one of safetensors, or a state dict of PyTorch (.pt), alone or within a checkpoint; of that nothing but
    tensors is read. A model whose published code names its tensors otherwise has a method `read_published`, which gets
    such a state dict and returns its own.
    Shards are read by their index, a tied weight under any of its names, and other floats are converted to the model's.
    Where `source` lacks a tensor of a model of Transformers under its own names (an older folder, or a
    `pytorch_model.bin`), it is read by the model's `from_pretrained`. Raises WeightsError if a tensor is not there or
    has another shape or type.
    """
    names = all_names(model)
    wanted = {name for others in names.values() for name in others}
    try:
        found = _read_state(source, model) if zipfile.is_zipfile(source) else _read_files(source, wanted)
        return {name: _fitting(source, name, own, names[name], found) for name, own in transmitted(model).items()}
    except WeightsError:
        others = _read_by_transformers(source, model)
        if others is None:
            raise
    return {name: _fitting(source, name, own, names[name], others) for name, own in transmitted(model).items()}


def weights_of(source: torch.nn.Module, model: torch.nn.Module) -> Tensors:
    """Return the tensors of `model` to transmit, with the values that `source` has.

    Raises WeightsError if a tensor is not there or has another shape or type.
    """
    names, found = all_names(model), source.state_dict()
    return {
        name: _fitting(type(source).__name__, name, own, names[name], found) for name, own in transmitted(model).items()
    }


def hash_frozen(model: torch.nn.Module) -> str:
    """Return the SHA-256 of the names, types and values of all tensors of `model` that are not transmitted."""
    sent = {name for names in all_names(model).values() for name in names}
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name not in sent and isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_state(source: Path, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a file of PyTorch, by the names that they have in `model`."""
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"the weights to start from cannot be read: {source}: {reason:.200}") from None
    for key in STATE_KEYS:
        state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
    if not isinstance(state, dict):
        raise WeightsError(f"the weights to start from cannot be read: {source} holds no state dict")
    tensors = {str(n).removeprefix("module."): each for n, each in state.items() if isinstance(each, torch.Tensor)}
    read_published = getattr(model, "read_published", None)
    return tensors if read_published is None else read_published(tensors)


def _read_files(source: Path, wanted: Collection[str]) -> dict[str, torch.Tensor]:
    """Return those of the `wanted` tensors that are in the files of `source`."""
    found: dict[str, torch.Tensor] = {}
    for path in _weight_files(source):
        try:
            with safe_open(path, framework="pt") as file:
                named = {_name_in_model(name): name for name in file.keys()}  # noqa: SIM118
                found |= {own: file.get_tensor(name) for own, name in named.items() if own in wanted}
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"the weights to start from cannot be read: {path}: {error}") from None
    return found


def _name_in_model(name: str) -> str:
    """Return the name that a tensor of a file has in a model: the library peft saves adapters under other names.

    >>> _name_in_model("base_model.model.layer.lora_A.weight"), _name_in_model("layer.weight")
    ('layer.lora_A.default.weight', 'layer.weight')
    """
    own = name.removeprefix("base_model.model.")
    return re.sub(r"\.(lora_[AB])\.weight$", r".\1.default.weight", own)


def _weight_files(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    if whole := [source / name for name in (WEIGHTS, ADAPTER_WEIGHTS) if (source / name).exists()]:
        return whole[:1]
    if not (source / INDEX).exists():
        there = sorted(path.name for path in source.iterdir())[:5]
        raise WeightsError(f"no weights to start from: {source} has neither {WEIGHTS} nor {INDEX}, but {there}")
    try:
        shards = set(json.loads((source / INDEX).read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"the weights to start from cannot be read: {source / INDEX}: {error!r:.200}") from None
    return [source / shard for shard in sorted(shards)]


def _read_by_transformers(source: Path, model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """Return what `from_pretrained` finds.

    The result is None if `model` is none of Transformers, or it cannot read `source` either.
    """
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(model, transformers.PreTrainedModel) or not source.is_dir():
        return None
    try:
        loaded, faults = type(model).from_pretrained(
            source, config=model.config, local_files_only=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, ValueError, TypeError, RuntimeError, ImportError):
        return None
    made_up = {*faults["missing_keys"], *(name for name, *_ in faults["mismatched_keys"])}
    return {name: tensor for name, tensor in loaded.state_dict().items() if name not in made_up}


def _fitting(
    source: Path | str, name: str, own: torch.Tensor, names: list[str], found: dict[str, torch.Tensor]
) -> np.ndarray:
    """Return the tensor of `found` under one of `names`, in the type of `own`."""
    own = torch.view_as_real(own) if own.is_complex() else own
    value = next((found[each] for each in names if each in found), None)
    if value is not None and value.is_complex():
        value = torch.view_as_real(value)
    convertible = value is not None and (
        value.dtype == own.dtype or (value.is_floating_point() and own.is_floating_point())
    )
    if value is None or not convertible or value.shape != own.shape:
        described = "not there" if value is None else _described(value)
        raise WeightsError(f"{source} does not fit: '{name}' should be {_described(own)}, and is {described}")
    return to_array(name, value.to(own.dtype))


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{tuple(tensor.shape)}"
