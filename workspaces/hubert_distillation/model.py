"""A student of a HuBERT, and its teacher."""

import statistics
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from transformers import HubertConfig

from openfl_audio.errors import SettingsError
from workspaces.hubert.model import SAMPLE_RATE, Hubert, load_config, load_model, read_config

CONFIGS = Path(__file__).parent / "configs"


@lru_cache(maxsize=1)
def load_teacher(name: str) -> Hubert:
    """Load a frozen model. Every node reads it for itself, once a process; it is never sent."""
    return load_model(name).requires_grad_(False)


class Student(Hubert):
    """A HuBERT with a linear predictor for each of some layers of its teacher, from its own last output.

    Predictors as in DistilHuBERT (Chang et al., arXiv 2110.01900). They are of use in training only.
    """

    def __init__(self, config: HubertConfig, layers: int, teacher_width: int) -> None:
        super().__init__(config)
        self.predictors = torch.nn.ModuleList(torch.nn.Linear(config.hidden_size, teacher_width) for _ in range(layers))


def create_student(config: str | Path, teacher: str, layers: Sequence[int], seed: int = 0, **sizes: int) -> Student:
    """Return a student from a random start, for the `layers` of `teacher`, counted from 1.

    `config` is a JSON file in `configs/`, or a path, and `sizes` take the place of its values. The student has as many
    clusters as its teacher, none if that has no head. Raises PretrainedWeightsError if the teacher cannot be had,
    SettingsError if it does not have the layers.
    """
    wise = load_config(teacher)
    if not layers or not all(1 <= layer <= wise.num_hidden_layers for layer in layers):
        raise SettingsError(
            f"distillation.layers is {list(layers)}: the teacher '{teacher}' has layers 1 to {wise.num_hidden_layers}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        values = read_config(CONFIGS / config, clusters=wise.clusters, final_dim=wise.final_dim, **sizes)
        return Student(values, len(layers), wise.hidden_size)


def compare_size_and_speed(
    student: Hubert, teacher: Hubert, device: str, seconds: float = 10.0, repeats: int = 3
) -> dict[str, float]:
    """Return the exported parameters of both, and the seconds to hear a clip of `seconds`: the median of `repeats`."""
    waveform = 0.1 * torch.randn(1, round(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(0))
    result: dict[str, float] = {}
    for name, model in (("student", student), ("teacher", teacher)):
        model.to(device).eval()
        result[f"{name}_parameters"] = sum(
            tensor.numel() for key, tensor in model.named_parameters() if not key.startswith("predictors.")
        )
        result[f"{name}_seconds"] = statistics.median(_seconds(model, waveform.to(device)) for _ in range(repeats))
    result["times_smaller"] = result["teacher_parameters"] / result["student_parameters"]
    result["times_faster"] = result["teacher_seconds"] / result["student_seconds"]
    return result


def _seconds(model: Hubert, waveform: torch.Tensor) -> float:
    began = time.perf_counter()
    with torch.inference_mode():
        model(waveform).sum().item()  # waits for a GPU
    return time.perf_counter() - began
