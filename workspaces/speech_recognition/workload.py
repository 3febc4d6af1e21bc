"""Letters from speech, by CTC on a HuBERT."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from openfl.interface.interactive_api.experiment import DataInterface, TaskInterface
from pydantic import Field, field_validator, model_validator

from openfl_audio.protocol.plan import Direction
from openfl_audio.training.history import Record, to_frame
from openfl_audio.training.run_settings import Group, RunSettings
from openfl_audio.training.workload import Metrics, Workload, register_tasks
from shard_descriptors.librispeech import LibriSpeechShardDescriptor
from workspaces.speech_recognition import tasks
from workspaces.speech_recognition.data import Clips, SpeechData
from workspaces.speech_recognition.model import Recognizer, create_recognizer, save_recognizer

SHARD_DESCRIPTOR = "shard_descriptors.librispeech.LibriSpeechShardDescriptor"


class ModelSettings(Group):
    """Arguments of `create_recognizer`."""

    upstream: str | None = Field(
        default=None, description="trained HuBERT: a hub name or a folder, such as model/ of a run"
    )
    config: str | None = Field(default=None, description="file in configs/, or a path, for a random start")
    frozen: bool = Field(default=False, description="train the linear layer alone")

    @field_validator("upstream", "config")
    @classmethod
    def resolve(cls, path: str | None) -> str | None:
        # Tasks run in a working directory of their own.
        return str(Path(path).resolve()) if path is not None and Path(path).exists() else path


class SpeechRecognitionSettings(RunSettings):
    """Settings of a run of speech recognition."""

    model: ModelSettings = Field(description="model that is trained")
    warmup: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="share of the steps of all rounds in which the learning rate rises; then it falls to 0",
    )
    clip_grad_norm: float = Field(default=1.0, gt=0, description="largest norm of the gradients")

    @model_validator(mode="after")
    def check_model(self) -> "SpeechRecognitionSettings":
        if (self.model.upstream is None) == (self.model.config is None):
            raise ValueError("model needs either upstream or config")
        return self


def _training(settings: SpeechRecognitionSettings) -> tasks.TrainingSettings:
    return tasks.TrainingSettings(
        rounds=settings.rounds,
        learning_rate=settings.optimizer.learning_rate,
        local_epochs=settings.local_epochs,
        batch_size=settings.batch_size,
        warmup=settings.warmup,
        clip_grad_norm=settings.clip_grad_norm,
    )


class SpeechRecognition(Workload[SpeechRecognitionSettings]):
    """Letters from speech; the best model has the lowest word error rate."""

    config_class = SpeechRecognitionSettings
    corpus = LibriSpeechShardDescriptor.corpus

    def model(self, config: SpeechRecognitionSettings) -> Callable[[], Recognizer]:
        model = config.model
        return partial(create_recognizer, model.upstream, config=model.config, frozen=model.frozen, seed=config.seed)

    def tasks(self, config: SpeechRecognitionSettings) -> TaskInterface:
        return register_tasks(tasks.train_round, tasks.validate_clips, {"settings": _training(config)})

    def data(self, config: SpeechRecognitionSettings) -> DataInterface:
        return SpeechData()

    def best(self, config: SpeechRecognitionSettings) -> tuple[str, Direction]:
        return "wer", "min"

    def mean_over(self, config: SpeechRecognitionSettings) -> Mapping[str, str | None]:
        return {"wer": "words", "cer": "characters", "loss": "characters"}

    def shard(self, config: SpeechRecognitionSettings, data: Path, rank: int, world_size: int) -> dict[str, Any]:
        return {
            "template": SHARD_DESCRIPTOR,
            "params": {"data_path": str(data), "rank_worldsize": f"{rank},{world_size}"},
        }

    def natural_clients(self, config: SpeechRecognitionSettings, data: Path) -> int:
        return LibriSpeechShardDescriptor.natural_clients(data)

    def evaluate(self, model: Recognizer, config: SpeechRecognitionSettings, data: Path, device: str) -> Metrics:
        """Return metrics on the validation clips of all clients, on dev-clean and on test-clean.

        A split without transcripts has none.
        """
        descriptor = LibriSpeechShardDescriptor(data)
        splits = {split: Clips(descriptor.get_dataset(split)) for split in ("validation", "dev", "test")}
        return {split: tasks.validate_clips(model, clips, device) for split, clips in splits.items() if len(clips)}

    def save(self, model: Recognizer, config: SpeechRecognitionSettings, folder: Path) -> None:
        save_recognizer(model, folder)

    def plot(
        self,
        records: Sequence[Record],
        config: SpeechRecognitionSettings,
        data: Path,
        clients: int,
        part: str,
        out: Path,
    ) -> None:
        """Draw error_rates.png."""
        # An envoy draws nothing: it is spared the time and the memory.
        from workspaces.speech_recognition.plots import plot_error_rates

        plot_error_rates(to_frame(records), out / "error_rates.png")
