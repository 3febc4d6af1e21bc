"""A small model with adapters, and tasks that train them on the points of a shard."""

from functools import partial

import numpy as np
import torch

from openfl_audio.notebook.interactive_api import ModelInterface
from openfl_audio.training.adapters import Lora, add_adapter


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.v_proj = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.v_proj(torch.tanh(self.q_proj(x)))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = Layer(), torch.nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x.expand(-1, 6) * torch.arange(1, 7)))


def create_adapted(lora: Lora, shift: float = 0.0) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = add_adapter(Model(), lora, seed=1)
    with torch.no_grad():
        model.encoder.q_proj.get_base_layer().bias += shift
    return model


def interface(lora: Lora) -> ModelInterface:
    return ModelInterface(partial(create_adapted, lora), partial(torch.optim.SGD, lr=0.05))


def tensors_of(points) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [points[i] for i in range(len(points))]
    x, y = (torch.from_numpy(np.stack(each)) for each in zip(*pairs, strict=True))
    return x, y


def fit(model, points, device, optimizer):
    x, y = tensors_of(points)
    for _ in range(3):
        optimizer.zero_grad()
        # Points of another number are another function: updates differ.
        loss = ((model(x) - len(points) * y) ** 2).mean()
        loss.backward()
        optimizer.step()
    return {"loss": loss.item()}


def measure(model, points, device):
    x, y = tensors_of(points)
    with torch.no_grad():
        return {"accuracy": -((model(x) - y) ** 2).mean().item()}
