"""Models of the sizes that federations for audio send around, and a "training" that costs next to nothing."""

import torch
from openfl.interface.interactive_api.experiment import DataInterface
from openfl.interface.interactive_api.shard_descriptor import ShardDescriptor
from torch import nn

STEP = 1e-3
"""What a round adds to every weight."""
TOLERANCE = 1e-4


class WrongResultError(RuntimeError):
    """The final model is not what the rounds should have made of it."""


def many_small_layers() -> nn.Module:
    """400 tensors, 0.21 M parameters: what every tensor costs, whatever its size."""
    return nn.ModuleList(nn.Linear(32, 32) for _ in range(200))


def keyword_head() -> nn.Module:
    """4 tensors, 781,964 parameters: the head for 12 keywords over the 1500 frames of a frozen Whisper-tiny encoder."""
    return nn.Sequential(nn.Conv1d(1500, 128, kernel_size=1), nn.ReLU(), nn.Flatten(1), nn.Linear(128 * 384, 12))


def wav2vec2_base() -> nn.Module:
    """215 tensors, 94.6 M parameters: all of Wav2Vec2-base, with a classifier of 12 keywords."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    config = Wav2Vec2Config()
    config.num_labels = 12
    return Wav2Vec2ForSequenceClassification(config)


MODELS = {
    "many": many_small_layers,
    "head": keyword_head,
    "base": wav2vec2_base,
    "adam": wav2vec2_base,  # with its optimizer's state
}


def create_model(workload: str) -> nn.Module:
    """The same weights at every call."""
    torch.manual_seed(0)
    return MODELS[workload]()


class FewItemsData(DataInterface):
    """The items of a shard as they are, without batches."""

    @property
    def shard_descriptor(self) -> ShardDescriptor:
        """Return the shard of the node; setting it takes its items."""
        return self._shard_descriptor

    @shard_descriptor.setter
    def shard_descriptor(self, shard_descriptor: ShardDescriptor) -> None:
        self._shard_descriptor = shard_descriptor
        self.items = shard_descriptor.get_dataset("train")

    def get_train_loader(self, **kwargs):
        """Return the items."""
        return self.items

    get_valid_loader = get_train_loader

    def get_train_data_size(self) -> int:
        """Return the number of items."""
        return len(self.items)

    get_valid_data_size = get_train_data_size


def add_step(model, items, device, optimizer) -> dict[str, float]:
    """The train task: every weight grows by STEP, so that the result can be told beforehand."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if isinstance(optimizer, torch.optim.Adam) and not optimizer.state:
        _first_step_of_adam(optimizer, parameters)
    else:
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(STEP)
    return {"loss": 0.0}


def validate_nothing(model, items, device) -> dict[str, float]:
    """For an engine that wants a validation task."""
    return {}


def _first_step_of_adam(optimizer: torch.optim.Adam, parameters: list[nn.Parameter]) -> None:
    """Moves every weight by exactly the learning rate, whatever the gradient, and leaves Adam with its moments."""
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, -1.0)
    optimizer.step()
    optimizer.zero_grad()


def check(start: nn.Module, trained: nn.Module, rounds: int, float16: bool = False) -> None:
    """Raises WrongResultError unless every weight grew by `rounds` times STEP.

    `float16` is for weights that travelled so. Each way rounds a weight by up to 2**-11 of its size, and always to the
    same side as STEP meets the same grid: the errors of the rounds add up, and no mean removes them.
    """
    weights = dict(start.named_parameters())
    with torch.no_grad():
        before = torch.cat([weights[name].flatten() for name, _ in trained.named_parameters()])
        after = torch.cat([weight.flatten() for _, weight in trained.named_parameters()])
    off = (after - before - rounds * STEP).abs()
    allowed = torch.full_like(off, TOLERANCE)
    if float16:
        allowed += rounds * 2 * 2**-11 * (before.abs() + rounds * STEP)
    # "not <=" because a NaN must fail, too.
    if not bool((off <= allowed).all()):
        raise WrongResultError(f"after {rounds} rounds a weight is {off.max().item():.2g} away from what it has to be")
