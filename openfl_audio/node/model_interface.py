"""A model and its optimizer as recipes, which a notebook sends and a node builds."""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from openfl.federated import Plan
from openfl.interface.interactive_api import experiment as openfl_experiment

from openfl_audio.errors import DefinitionError, PretrainedWeightsError, SettingsError
from openfl_audio.node.adapter import all_names, remember_weights
from openfl_audio.node.pretrained import hash_frozen, read_weights, weights_of
from openfl_audio.protocol.tensors import Tensors

# The interfaces of the models of this process, as long as there are such models.
_BUILT_BY: "WeakKeyDictionary[torch.nn.Module, ModelInterface]" = WeakKeyDictionary()


class ModelInterface(openfl_experiment.ModelInterface):
    """A model and its optimizer, as recipes: they are built on every node, and only named tensors are transmitted.

    OpenFL pickles the model object, which models with parametrized (weight-normed) layers refuse.
    """

    def __init__(
        self,
        model: Callable[[], torch.nn.Module],
        optimizer: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer],
        framework_plugin: str = "openfl_audio.node.adapter.FrameworkAdapterPlugin",
        local_tensors: Sequence[str] = (),
    ) -> None:
        """Take the recipes `model()` and `optimizer(parameters)`: functools.partial makes both.

        Tensors whose names match one of the patterns in `local_tensors` ("*.norm.*", "head.*") never leave a node: each
        keeps its own, from round to round.
        """
        if isinstance(model, torch.nn.Module):
            raise TypeError(
                f"model is a {type(model).__name__}: give a recipe, e.g. functools.partial(create_model, ...)"
            )
        if isinstance(local_tensors, str):
            raise TypeError(f"local_tensors is {local_tensors!r}: give a list of patterns")
        super().__init__(model, optimizer, framework_plugin)
        self.local_tensors = tuple(local_tensors)
        self.base_sha256 = ""
        self._built: torch.nn.Module | None = None
        self._weights: Path | torch.nn.Module | None = None

    def start_from(self, weights: str | Path | torch.nn.Module) -> None:
        """Let experiments begin with the weights of a model, of a safetensors file, or of a `save_pretrained` folder.

        They are read where the experiment is started, and nowhere else. Frozen weights are not transmitted, so they
        stay as the recipe builds them.
        """
        self._weights = weights if isinstance(weights, torch.nn.Module) else Path(weights)

    def provide_model(self) -> torch.nn.Module:
        """Return the model of this process, built at the first call."""
        if self._built is None:
            self._built = self.model()
            _BUILT_BY[self._built] = self
        return self._built

    def provide_optimizer(self) -> torch.optim.Optimizer:
        """Return a new optimizer over the model's trained parameters."""
        parameters = [parameter for parameter in self.provide_model().parameters() if parameter.requires_grad]
        optimizer = self.optimizer(parameters)
        if hasattr(optimizer, "set_old_weights"):
            # OpenFL's FedProx takes no step before it knows its first weights.
            remember_weights(optimizer)
        return optimizer

    def initial_tensors(self, with_optimizer: bool) -> Tensors:
        """Return the transmitted tensors of the model as it is built, and with `with_optimizer` of its optimizer.

        Raises DefinitionError, naming the pattern, if one of `local_tensors` matches nothing, or only some of the names
        of one memory; WeightsError, naming the tensor, if what `start_from` names does not fit.
        """
        adapter = Plan.build(self.framework_plugin, {})
        if _has_adapter(self.provide_model()):
            self.base_sha256 = hash_frozen(self.provide_model())
        optimizer = self.provide_optimizer() if with_optimizer else None
        tensors = adapter.get_tensor_dict(self.provide_model(), optimizer)
        if self._weights is not None:
            model = self.provide_model()
            if isinstance(self._weights, Path):
                tensors |= read_weights(self._weights, model)
            else:
                tensors |= weights_of(self._weights, model)
        local = self._local_names(tensors)
        return {name: tensor for name, tensor in tensors.items() if name not in local}

    def check_base(self) -> None:
        """Raise PretrainedWeightsError unless adapters are on the weights that the experiment was started with."""
        if not self.base_sha256:
            return
        own = hash_frozen(self.provide_model())
        if own != self.base_sha256:
            raise PretrainedWeightsError(
                f"the adapters' base is another here: its SHA-256 is {own}, and {self.base_sha256} where the "
                "experiment was started. Put the same pretrained weights into the cache or the folder of this node"
            )

    def _local_names(self, tensors: Tensors) -> set[str]:
        """Return those of `tensors` that a pattern of `local_tensors` matches, under all names of their memory."""
        names = {name: [name] for name in tensors} | all_names(self.provide_model())
        matched = set()
        for pattern in self.local_tensors:
            matching = {each for others in names.values() for each in others if fnmatchcase(each, pattern)}
            if not matching:
                raise DefinitionError(
                    f"local_tensors: '{pattern}' matches no trained tensor, e.g. {sorted(tensors)[:3]}"
                )
            matched |= matching
        for others in names.values():
            local = matched.intersection(others)
            if local and len(local) < len(others):
                raise DefinitionError(
                    f"local_tensors: '{min(local)}' is one memory with {sorted(set(others) - local)}, which no pattern "
                    "matches: it stays on the node under all of its names or under none"
                )
        return matched

    def model_with(self, tensors: Tensors) -> torch.nn.Module:
        """Return a new model with these weights. Tensors that stay on the nodes are as the recipe builds them."""
        model = self.model()
        adapter = Plan.build(self.framework_plugin, {})
        own = adapter.get_tensor_dict(model)
        # An optimizer's state belongs to no model.
        adapter.set_tensor_dict(model, own | {name: tensor for name, tensor in tensors.items() if name in own})
        return model

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_built": None, "_weights": None}


def built_by(model: torch.nn.Module) -> ModelInterface:
    """Return the recipes by which a model of this process was built. Raises SettingsError if none were used."""
    if model not in _BUILT_BY:
        raise SettingsError(
            f"this {type(model).__name__} was built by no ModelInterface: another process cannot build it"
        )
    return _BUILT_BY[model]


def _has_adapter(model: torch.nn.Module) -> bool:
    # The library peft leaves its configuration there.
    return hasattr(model, "peft_config")
