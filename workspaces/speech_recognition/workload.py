"""Letters or words from speech, by CTC or by Whisper."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from openfl.interface.interactive_api.experiment import DataInterface, TaskInterface
from openfl.interface.interactive_api.shard_descriptor import ShardDataset, ShardDescriptor
from pydantic import Field, field_validator, model_validator

from openfl_audio.config import load_settings
from openfl_audio.errors import SettingsError
from openfl_audio.protocol.plan import Direction
from openfl_audio.training.adapters import AdapterSettings, refuse_frozen
from openfl_audio.training.history import Record, to_frame
from openfl_audio.training.run_settings import Group
from openfl_audio.training.sites import summarize_scores
from openfl_audio.training.workload import Metrics, Workload, register_tasks
from shard_descriptors.kinds import kind_of
from shard_descriptors.librispeech import LibriSpeechShardDescriptor
from shard_descriptors.librispeech.store import REPORT
from workspaces.speech_recognition import tasks
from workspaces.speech_recognition.data import Clips, SpeechData
from workspaces.speech_recognition.letters import LETTERS, agree, comparable
from workspaces.speech_recognition.masks import Masks
from workspaces.speech_recognition.model import CONFIGS, Recognizer, create_recognizer, model_kind, save_recognizer

LIBRISPEECH = "shard_descriptors.librispeech.LibriSpeechShardDescriptor"
# An evaluator of LibriSpeech has dev-clean besides.
SPLITS = ("validation", "dev", "test")


class ModelSettings(Group):
    """Arguments of `create_recognizer`."""

    upstream: str | None = Field(
        default=None,
        description="HuBERT, Wav2Vec2, W2V-BERT or Whisper: a hub name or a folder, such as model/ of a run",
    )
    config: str | None = Field(default=None, description="file in configs/, or a path, for a random start")
    frozen: bool = Field(default=False, description="keep the encoder as it is")
    letters: str | None = Field(
        default=LETTERS, description="letters that CTC writes in; null: a space, an apostrophe and those of the corpus"
    )
    language: str | None = Field(default=None, description="language that Whisper hears, such as german or de")
    task: Literal["transcribe", "translate"] = Field(default="transcribe", description="task of Whisper")

    @field_validator("upstream", "config")
    @classmethod
    def resolve(cls, path: str | None) -> str | None:
        # Tasks run in a working directory of their own.
        return str(Path(path).resolve()) if path is not None and Path(path).exists() else path

    @field_validator("letters")
    @classmethod
    def check_letters(cls, letters: str | None) -> str | None:
        """Raise ValueError unless there is a space and every letter is there once."""
        if letters is None:
            return None
        if " " not in letters or len(set(letters)) < len(letters) or letters != letters.lower():
            raise ValueError("they should be a space and small letters, each of them once")
        return letters


class MaskSettings(Group):
    """Settings of SpecAugment."""

    time: float = Field(default=0.0, ge=0, lt=1, description="share of a clip's frames that stripes of time cover")
    time_frames: int = Field(default=10, ge=1, description="length of a stripe of time, in frames")
    features: float = Field(default=0.0, ge=0, lt=1, description="widest stripe of channels, as a share of them")


class SpeechRecognitionSettings(AdapterSettings):
    """Settings of a run of speech recognition."""

    model: ModelSettings = Field(description="model that is trained")
    corpus: dict[str, Any] = Field(
        default_factory=dict,
        description="parameters of the shard descriptor of recordings, such as columns, besides the path and the rank",
    )
    normalizer: Literal["letters", "basic", "english"] = Field(
        default="letters", description="form in which texts are compared: letters alone, or as Whisper's normalizers do"
    )
    batch_s: float | None = Field(
        default=None, gt=0, description="seconds of audio in a batch at most, with the padding; without it no bound"
    )
    masks: MaskSettings = Field(default=MaskSettings(), description="SpecAugment: stripes that are masked in training")
    warmup: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="share of the steps of all rounds in which the learning rate rises; then it falls to 0",
    )
    clip_grad_norm: float = Field(default=1.0, gt=0, description="largest norm of the gradients")
    mixed_precision: bool = Field(default=False, description="bfloat16 where that is exact enough")

    @model_validator(mode="after")
    def check_model(self) -> "SpeechRecognitionSettings":
        if (self.model.upstream is None) == (self.model.config is None):
            raise ValueError("model needs either upstream or config")
        refuse_frozen(self.model.frozen, self.adapter, "model.frozen")
        return self

    @property
    def form(self) -> dict[str, str]:
        """Return the form in which texts are compared: arguments of `Clips` and `validate_clips`."""
        if self.model.letters is None:
            raise SettingsError("model.letters is null: name the letters that `agree_with` has settled with the sites")
        return {"normalizer": self.normalizer, "letters": self.model.letters}


def _training(settings: SpeechRecognitionSettings) -> tasks.TrainingSettings:
    return tasks.TrainingSettings(
        rounds=settings.rounds,
        learning_rate=settings.optimizer.learning_rate,
        local_epochs=settings.local_epochs,
        batch_size=settings.batch_size,
        batch_s=settings.batch_s,
        warmup=settings.warmup,
        clip_grad_norm=settings.clip_grad_norm,
        masks=Masks(**settings.masks.model_dump()),
        mixed_precision=settings.mixed_precision,
    )


class SpeechRecognition(Workload[SpeechRecognitionSettings]):
    """Letters or words from speech; the best model has the lowest word error rate.

    The corpus is LibriSpeech as it was prepared, or recordings with texts: a table, or a dataset, also of the hub.
    """

    config_class = SpeechRecognitionSettings

    def model(self, config: SpeechRecognitionSettings) -> Callable[[], Recognizer]:
        model = config.model.model_dump(exclude={"upstream"}) | {"letters": config.form["letters"]}
        return partial(create_recognizer, config.model.upstream, **model, adapter=config.adapter, seed=config.seed)

    def complete(self, config: SpeechRecognitionSettings, data: Path) -> SpeechRecognitionSettings:
        """Fill in the letters of the corpus. Raises SettingsError for some that a model of CTC does not write."""
        if config.model.letters is not None and model_kind(config.model.upstream, config.model.config) == "whisper":
            return config
        shard: Any = self.open(config, data, 1, 1)
        letters = agree({str(data): shard.letters}, config.model.letters).letters
        return config.model_copy(update={"model": config.model.model_copy(update={"letters": letters})})

    def tasks(self, config: SpeechRecognitionSettings) -> TaskInterface:
        return register_tasks(tasks.train_round, tasks.validate_clips, {"settings": _training(config)}, config.form)

    def data(self, config: SpeechRecognitionSettings) -> DataInterface:
        return SpeechData(**config.form)

    def best(self, config: SpeechRecognitionSettings) -> tuple[str, Direction]:
        return "wer", "min"

    def mean_over(self, config: SpeechRecognitionSettings) -> Mapping[str, str | None]:
        return dict.fromkeys(tasks.OF_WORDS, "words") | {"cer": "characters", "loss": "letters or tokens"}

    def shard(self, config: SpeechRecognitionSettings, data: Path, rank: int, world_size: int) -> dict[str, Any]:
        params = {"data_path": str(data), "rank_worldsize": f"{rank},{world_size}"}
        if _is_librispeech(data):
            return {"template": LIBRISPEECH, "params": params}
        kind = kind_of(data)
        template = f"{kind.__module__.rpartition('.')[0]}.{kind.__name__}"
        return {"template": template, "params": {**config.corpus, **params, "seed": config.seed}}

    def open(self, config: SpeechRecognitionSettings, data: Path, rank: int, world_size: int) -> ShardDescriptor:
        """Return a shard of the corpus."""
        kind: Any = LibriSpeechShardDescriptor if _is_librispeech(data) else kind_of(data)
        return kind(**self.shard(config, data, rank, world_size)["params"])

    def natural_clients(self, config: SpeechRecognitionSettings, data: Path) -> int:
        if _is_librispeech(data):
            return LibriSpeechShardDescriptor.natural_clients(data)
        dataset: Any = self.open(config, data, 1, 1).get_dataset("train")
        return len(set(dataset.groups) - {""}) or 1

    def evaluate(self, model: Recognizer, config: SpeechRecognitionSettings, data: Path, device: str) -> Metrics:
        """Return metrics on the clips of each split, and how far its speakers are apart: see `summarize_scores`.

        The validation clips are those of all clients. A split without transcripts has none.
        """
        shard = self.open(config, data, 1, 1)
        splits = SPLITS if _is_librispeech(data) else ("validation", "test")
        metrics: Metrics = {}
        for split in splits:
            metrics |= self.score(model, config, shard.get_dataset(split), split, device)
        return metrics

    def score(
        self,
        model: Recognizer,
        config: SpeechRecognitionSettings,
        dataset: ShardDataset,
        split: str,
        device: str = "cpu",
    ) -> Metrics:
        """Return the metrics of a model on all clips of a split, by its name, and those of its speakers."""
        clips = Clips(dataset, **config.form)
        if not len(clips):
            return {}
        recognized, total, units = tasks.recognize_all(model, clips, device)
        texts = [comparable(text, **config.form) for text in recognized]
        metrics = {split: {"loss": total / units, **tasks.error_rates(texts, clips.texts)}}
        speakers = summarize_scores(tasks.rates_by_speaker(texts, clips), "min")
        return metrics | ({f"{split} speakers": speakers} if speakers else {})

    def save(self, model: Recognizer, config: SpeechRecognitionSettings, folder: str | Path) -> None:
        save_recognizer(model, Path(folder))

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


def read_settings(name: str | Path, changes: Mapping[str, Any] | None = None) -> SpeechRecognitionSettings:
    """Return the settings of a file in `configs/`, or of a path, with changes such as {"adapter.r": 16}."""
    return load_settings(CONFIGS / name, SpeechRecognitionSettings, dict(changes or {}))


def _is_librispeech(data: Path) -> bool:
    return (data / REPORT).is_file()
