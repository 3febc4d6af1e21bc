"""Distillation of HuBERT: a small student learns from a trained teacher, which stays as it is and is never sent."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

from openfl.interface.interactive_api.experiment import DataInterface, TaskInterface
from pydantic import Field, field_validator

from openfl_audio.protocol.plan import Direction
from openfl_audio.training.run_settings import Group
from openfl_audio.training.workload import Metrics, register_tasks
from shard_descriptors.librispeech import LibriSpeechShardDescriptor
from workspaces.hubert import tasks
from workspaces.hubert.data import Clips, HubertData
from workspaces.hubert.librispeech import HubertSettings, HubertWorkload
from workspaces.hubert.model import Hubert
from workspaces.hubert_distillation.loss import Distillation
from workspaces.hubert_distillation.model import Student, compare_size_and_speed, create_student, load_teacher
from workspaces.hubert_distillation.tasks import train_round


class DistillationSettings(Group):
    """Settings of `Distillation`."""

    teacher: str = Field(description="folder of the teacher, such as model/ of a run, or a hub name")
    layers: tuple[int, ...] = Field(description="layers of the teacher that the student predicts, from 1")
    temperature: float = Field(default=2.0, gt=0, description="temperature of the softmax over clusters")
    alpha: float = Field(
        default=0.5, ge=0, description="weight of the divergence between clusters; above 0 the teacher needs a head"
    )
    beta: float = Field(default=1.0, ge=0, description="weight of the difference between layers")

    @field_validator("teacher")
    @classmethod
    def resolve(cls, teacher: str) -> str:
        # Tasks run in a working directory of their own.
        return str(Path(teacher).resolve()) if Path(teacher).is_dir() else teacher


class HubertDistillationSettings(HubertSettings):
    """Settings of distillation; a student has as many clusters as its teacher."""

    distillation: DistillationSettings = Field(description="settings of what the student learns from its teacher")


class HubertDistillation(HubertWorkload[HubertDistillationSettings]):
    """Distillation of HuBERT; the best student has the lowest loss."""

    config_class = HubertDistillationSettings
    builds_on: ClassVar[tuple[str, ...]] = ("workspaces.hubert",)

    def model(self, config: HubertDistillationSettings) -> Callable[[], Student]:
        distillation = config.distillation
        student, sizes = config.model.config, config.model.sizes
        return partial(create_student, student, distillation.teacher, distillation.layers, config.seed, **sizes)

    def tasks(self, config: HubertDistillationSettings) -> TaskInterface:
        objective = {"objective": _objective(config)}
        train_arguments = {"settings": config.training, **objective}
        return register_tasks(train_round, tasks.validate_objective, train_arguments, objective)

    def data(self, config: HubertDistillationSettings) -> DataInterface:
        return HubertData(None, None)

    def best(self, config: HubertDistillationSettings) -> tuple[str, Direction]:
        return "loss", "min"

    def evaluate(self, model: Hubert, config: HubertDistillationSettings, data: Path, device: str) -> Metrics:
        """Return metrics on the validation clips of all clients, on dev-clean and on test-clean, where they are there.

        `size_and_speed` says how the student compares with its teacher.
        """
        descriptor, objective = LibriSpeechShardDescriptor(data), _objective(config)
        datasets = {split: descriptor.get_dataset(split) for split in ("validation", "dev", "test")}
        metrics = {
            split: tasks.validate_objective(model, Clips(dataset, None, None), device, objective)
            for split, dataset in datasets.items()
            if len(dataset)
        }
        teacher = load_teacher(config.distillation.teacher)
        return metrics | {"size_and_speed": compare_size_and_speed(model, teacher, device)}


def _objective(config: HubertDistillationSettings) -> Distillation:
    return Distillation(**config.distillation.model_dump())
