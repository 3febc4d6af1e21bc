"""Federated learning for audio on OpenFL: the engine that director, envoys, notebooks and simulations share.

    from openfl_audio import Federation, FLExperiment, ModelInterface, Participation, TaskInterface

A public name loads its module when it is first used: director and envoys import this package without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openfl_audio.errors import OpenFLAudioError as OpenFLAudioError
    from openfl_audio.experiments.export import save_model as save_model
    from openfl_audio.files import write_result as write_result
    from openfl_audio.node.compatibility import Requirements as Requirements
    from openfl_audio.node.progress import report as report
    from openfl_audio.node.shard_data import ShardData as ShardData
    from openfl_audio.notebook.interactive_api import DataInterface as DataInterface
    from openfl_audio.notebook.interactive_api import Federation as Federation
    from openfl_audio.notebook.interactive_api import FLExperiment as FLExperiment
    from openfl_audio.notebook.interactive_api import ModelInterface as ModelInterface
    from openfl_audio.notebook.interactive_api import TaskInterface as TaskInterface
    from openfl_audio.notebook.sites import cross_validate as cross_validate
    from openfl_audio.notebook.sites import read_records as read_records
    from openfl_audio.notebook.sites import scores_alone as scores_alone
    from openfl_audio.notebook.sites import train_alone as train_alone
    from openfl_audio.privacy.accounting import privacy_cost as privacy_cost
    from openfl_audio.protocol.aggregation import Aggregation as Aggregation
    from openfl_audio.protocol.low_rank import LoraResidual as LoraResidual
    from openfl_audio.protocol.low_rank import LoraSvd as LoraSvd
    from openfl_audio.protocol.metrics import MeanOver as MeanOver
    from openfl_audio.protocol.participation import Participation as Participation
    from openfl_audio.protocol.privacy import AdaptiveClip as AdaptiveClip
    from openfl_audio.protocol.privacy import RecordLevel as RecordLevel
    from openfl_audio.protocol.privacy import SiteLevel as SiteLevel
    from openfl_audio.protocol.privacy import SpeakerLevel as SpeakerLevel
    from openfl_audio.protocol.rules import GeometricMedian as GeometricMedian
    from openfl_audio.protocol.rules import Mean as Mean
    from openfl_audio.protocol.rules import Median as Median
    from openfl_audio.protocol.rules import TrimmedMean as TrimmedMean
    from openfl_audio.protocol.secure_aggregation import SecureAggregation as SecureAggregation
    from openfl_audio.protocol.server_optimizers import FedAdagrad as FedAdagrad
    from openfl_audio.protocol.server_optimizers import FedAdam as FedAdam
    from openfl_audio.protocol.server_optimizers import FedLamb as FedLamb
    from openfl_audio.protocol.server_optimizers import FedYogi as FedYogi
    from openfl_audio.protocol.server_optimizers import OpenFLAdagrad as OpenFLAdagrad
    from openfl_audio.protocol.server_optimizers import OpenFLAdam as OpenFLAdam
    from openfl_audio.protocol.server_optimizers import OpenFLYogi as OpenFLYogi
    from openfl_audio.simulation.simulation import Simulation as Simulation
    from openfl_audio.training.adapters import Lora as Lora
    from openfl_audio.training.adapters import add_adapter as add_adapter
    from openfl_audio.training.adapters import merge_adapter as merge_adapter
    from openfl_audio.training.adapters import save_adapter as save_adapter
    from openfl_audio.training.export import extend_config as extend_config
    from openfl_audio.training.export import label_names as label_names
    from openfl_audio.training.export import write_card as write_card
    from openfl_audio.training.run_settings import RunSettings as RunSettings
    from openfl_audio.training.workload import Workload as Workload
    from openfl_audio.training.workload import register_tasks as register_tasks

_MODULES = {
    "errors": ("OpenFLAudioError",),
    "experiments.export": ("save_model",),
    "files": ("write_result",),
    "node.compatibility": ("Requirements",),
    "node.progress": ("report",),
    "node.shard_data": ("ShardData",),
    "notebook.interactive_api": ("DataInterface", "FLExperiment", "Federation", "ModelInterface", "TaskInterface"),
    "notebook.sites": ("cross_validate", "read_records", "scores_alone", "train_alone"),
    "privacy.accounting": ("privacy_cost",),
    "protocol.aggregation": ("Aggregation",),
    "protocol.low_rank": ("LoraResidual", "LoraSvd"),
    "protocol.metrics": ("MeanOver",),
    "protocol.participation": ("Participation",),
    "protocol.privacy": ("AdaptiveClip", "RecordLevel", "SiteLevel", "SpeakerLevel"),
    "protocol.rules": ("GeometricMedian", "Mean", "Median", "TrimmedMean"),
    "protocol.server_optimizers": (
        "FedAdagrad",
        "FedAdam",
        "FedLamb",
        "FedYogi",
        "OpenFLAdagrad",
        "OpenFLAdam",
        "OpenFLYogi",
    ),
    "protocol.secure_aggregation": ("SecureAggregation",),
    "simulation.simulation": ("Simulation",),
    "training.adapters": ("Lora", "add_adapter", "merge_adapter", "save_adapter"),
    "training.export": ("extend_config", "label_names", "write_card"),
    "training.run_settings": ("RunSettings",),
    "training.workload": ("Workload", "register_tasks"),
}
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
