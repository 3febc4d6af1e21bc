"""Adapters of low rank (LoRA) in a model of Transformers, by the library peft: only they and the head are trained.

    model = add_adapter(model, Lora(r=8, alpha=16, targets="attention"), seed=0)

A layer that has one computes (W + alpha / r * B A) x, where W stays as it was pretrained: Hu et al. 2021, arXiv
2106.09685, equation 3. A starts at random and B at zero, so the model starts as it was.
"""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch.nn.utils import parametrize

from openfl_audio.errors import SettingsError
from openfl_audio.protocol.low_rank import LoraResidual
from openfl_audio.training.run_settings import Group, RunSettings

if TYPE_CHECKING:
    from peft import LoraConfig

# Query and value projections of self- and cross-attention, which Hu et al. adapt (section 7.1), by the names that they
# have in Wav2Vec2, HuBERT and Whisper, in W2V-BERT, and in the Audio Spectrogram Transformer.
ATTENTION = ("q_proj", "v_proj", "linear_q", "linear_v", "query", "value")
# These models hand the weights of the projections to a function of torch, which passes an adapter by.
PASSING_BY = ("wavlm",)
ADAPTER = "default"
Model = TypeVar("Model", bound=torch.nn.Module)


class Lora(Group):
    """Adapters of low rank.

    With `freeze_a` the factor A stays as the seed makes it, the same at all nodes, so that the mean of B is exact
    (FFA-LoRA, Sun et al. 2024, arXiv 2403.12313). With `residual` each layer also has what the aggregation rule
    "lora_residual" adds to it.
    """

    r: int = Field(default=8, ge=1, description="rank of the adapters")
    alpha: float = Field(default=16.0, gt=0, description="weight of the adapters: their product counts alpha / r")
    targets: Literal["attention"] | tuple[str, ...] = Field(
        default="attention", description="layers that get one: query and value projections, or ends of their names"
    )
    freeze_a: bool = Field(default=False, description="train the factor B alone, with one A for all nodes (FFA-LoRA)")
    residual: bool = Field(default=False, description="give each layer the residual of the rule lora_residual")


class AdapterSettings(RunSettings):
    """Settings of a run whose model may be trained by adapters."""

    adapter: Lora | None = Field(
        default=None, description="train adapters of low rank, and the head, instead of the whole model"
    )

    @model_validator(mode="before")
    @classmethod
    def complete_adapter(cls, values: Any) -> Any:
        """Give the adapters of the rule lora_residual their residual."""
        if isinstance(values, dict) and isinstance(values.get("adapter"), dict):
            rule = (values.get("aggregation") or {}).get("rule") or {}
            if rule.get("rule") == LoraResidual().rule:
                return values | {"adapter": values["adapter"] | {"residual": True}}
        return values


def refuse_frozen(frozen: bool, adapter: Lora | None, setting: str = "frozen") -> None:
    """Raise SettingsError for adapters in an encoder that stays as it is; `setting` is the name of what says so."""
    if frozen and adapter is not None:
        raise SettingsError(f"a frozen encoder has no adapters: set {setting} to false, or leave out adapter")


def add_adapter(model: Model, lora: Lora | None, seed: int) -> Model:
    """Give `model`, of Transformers, adapters in place, and return it; without `lora` it stays as it is.

    Only adapters and what lies behind the encoder (its head) are trained from then on. What is drawn depends on `seed`.

    Raises:
        SettingsError: the model has no layer of the name, or one narrower than the rank, or passes adapters by.
    """
    if lora is None:
        return model
    from peft import inject_adapter_in_model

    targets = _find_targets(model, lora)
    heads = head_names(model)
    trained = [parameter for name in heads for parameter in model.get_submodule(name).parameters()]
    trained = [parameter for parameter in trained if parameter.requires_grad]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(_peft_config(lora, targets), model, ADAPTER)
    # Not before: peft would put a copy beside each, under another name.
    _config_of(model).modules_to_save = heads or None
    for parameter in trained:
        parameter.requires_grad_(True)
    for layer in _adapted_layers(model).values():
        layer.lora_A[ADAPTER].weight.requires_grad_(not lora.freeze_a)
        if lora.residual:
            base = layer.get_base_layer()
            parametrize.register_parametrization(base, "weight", _Residual(base.weight, lora.alpha / lora.r))
            base.parametrizations.weight.original.requires_grad_(False)
    return model


class _Residual(torch.nn.Module):
    """Adds a residual (outputs, inputs), times the weight of the adapters, to the weight of a layer."""

    lora_residual: torch.Tensor

    def __init__(self, weight: torch.Tensor, scaling: float) -> None:
        super().__init__()
        self.scaling = scaling
        self.register_buffer("lora_residual", torch.zeros_like(weight, requires_grad=False))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.scaling * self.lora_residual


def head_names(model: torch.nn.Module) -> list[str]:
    """Return the modules of a model of Transformers that lie behind its encoder, such as a layer to classes.

    A layer to words whose weights are those of the embedding (Whisper's) is none of them.
    """
    prefix = getattr(model, "base_model_prefix", "")
    base = getattr(model, prefix, None) if prefix else None
    if base is None or base is model:
        base = getattr(model, "encoder", None)
    if base is None:
        raise SettingsError(f"{type(model).__name__} has neither an encoder nor the base model of Transformers")
    shared = {id(parameter) for parameter in base.parameters()}  # one on the device meta has no address
    return [
        name
        for name, module in model.named_children()
        if module is not base and any(id(parameter) not in shared for parameter in module.parameters())
    ]


def has_adapter(model: torch.nn.Module) -> bool:
    """Tell whether `model` has adapters."""
    return hasattr(model, "peft_config")


def has_residual(model: torch.nn.Module) -> bool:
    """Tell whether adapters of `model` have residuals, which belong to its base."""
    return any(parametrize.is_parametrized(layer.get_base_layer()) for layer in _adapted_layers(model).values())


def merge_adapter(model: Model) -> Model:
    """Return a copy of `model` without adapters: their products, and residuals, are added to the layers' weights."""
    merged = copy.deepcopy(model)
    for name, layer in _adapted_layers(merged).items():
        parent, _, child = name.rpartition(".")
        setattr(merged.get_submodule(parent), child, _merged_layer(layer))
    del merged.peft_config
    return merged


def _merged_layer(layer: Any) -> torch.nn.Linear:
    base = layer.get_base_layer()
    plain = torch.nn.Linear(base.in_features, base.out_features, bias=base.bias is not None)
    plain.to(base.weight)  # its device and type
    with torch.no_grad():
        plain.weight.copy_(base.weight + layer.get_delta_weight(ADAPTER))
        if base.bias is not None:
            plain.bias.copy_(base.bias)
    return plain


def save_adapter(model: torch.nn.Module, folder: Path) -> None:
    """Write what peft's `PeftModel.from_pretrained(base, folder)` loads: the adapters and the head of `model`.

    Raises SettingsError where adapters have residuals, as these belong to the base.
    """
    config = _config_of(model)
    layers = _adapted_layers(model)
    if has_residual(model):
        raise SettingsError("adapters with residuals belong to a base of their own: save the merged model")
    kept = (*(f"{name}.lora_" for name in layers), *(f"{name}." for name in config.modules_to_save or ()))
    state = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": tensor.detach().cpu().contiguous().clone()
        for name, tensor in model.state_dict().items()
        if name.startswith(kept)
    }
    folder.mkdir(parents=True, exist_ok=True)
    saved = copy.copy(config)
    saved.base_model_name_or_path = getattr(model, "name_or_path", "") or None
    saved.inference_mode = True
    saved.save_pretrained(str(folder))
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _peft_config(lora: Lora, targets: list[str]) -> "LoraConfig":
    from peft import LoraConfig

    # Without a task_type: with one, peft would call Whisper with input_ids, which it does not take (peft issue 1988).
    return LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=targets)  # type: ignore[arg-type]


def _config_of(model: torch.nn.Module) -> Any:
    configs: Any = model.peft_config
    return configs[ADAPTER]


def _find_targets(model: torch.nn.Module, lora: Lora) -> list[str]:
    """Return the full names of the layers that get adapters."""
    kind = getattr(getattr(model, "config", None), "model_type", "")
    if kind in PASSING_BY:
        raise SettingsError(f"a model of type {kind} passes adapters by: train it whole")
    endings = ATTENTION if lora.targets == "attention" else lora.targets
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and any(name == end or name.endswith(f".{end}") for end in endings)
    }
    if not found:
        raise SettingsError(f"{type(model).__name__} has no linear layer called {' or '.join(endings)}")
    for name, module in found.items():
        if lora.r > min(module.in_features, module.out_features):
            shape = f"{module.in_features} inputs and {module.out_features} outputs"
            raise SettingsError(f"adapters of rank {lora.r} are no smaller than '{name}', which has {shape}")
    return sorted(found)


def _adapted_layers(model: torch.nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
