"""HuBERT: pretraining on targets of k-means."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from openfl.interface.interactive_api.experiment import DataInterface, TaskInterface
from pydantic import Field

from openfl_audio.protocol.plan import Direction
from openfl_audio.training.history import Record, to_frame
from openfl_audio.training.run_settings import Group
from openfl_audio.training.workload import Metrics, register_tasks
from shard_descriptors.librispeech import LibriSpeechShardDescriptor
from workspaces.hubert import tasks
from workspaces.hubert.data import Clips, HubertData
from workspaces.hubert.fairseq import check_fairseq, write_fairseq, write_s3prl
from workspaces.hubert.librispeech import HubertSettings, HubertWorkload, ModelSettings
from workspaces.hubert.loss import MaskedPrediction
from workspaces.hubert.masking import MaskSettings, expected_share
from workspaces.hubert.model import Hubert, create_hubert

logger = logging.getLogger(__name__)

LONG_CLIP_FRAMES = 750  # 15 s
SMALL_SHARE = 0.3  # of masked frames; with less there is little to predict


class PretrainingModelSettings(ModelSettings):
    """Settings of a model that predicts clusters."""

    clusters: int = Field(default=504, ge=2, description="number of clusters that are predicted")
    final_dim: int = Field(default=256, ge=1, description="width in which clusters are predicted")


class DataSettings(Group):
    """The targets that are learned."""

    targets: str = Field(description="name of the targets that openfl-audio data prepare hubert-targets wrote")


class HubertTrainingSettings(HubertSettings):
    """Settings of pretraining."""

    model: PretrainingModelSettings = Field(description="model that is trained")
    data: DataSettings = Field(description="targets that are learned")
    mask: MaskSettings = Field(default=MaskSettings(), description="frames that are hidden from the model")
    unmasked_weight: float = Field(
        default=0.0, ge=0, description="weight of frames that are not masked, 0 in the paper"
    )
    fairseq: bool = Field(
        default=False,
        description="write model/fairseq.pt as well, which fairseq reads, and model/s3prl.pt for s3prl's hubert_local",
    )
    feature_penalty: float = Field(
        default=10.0, ge=0, description="weight of the mean square of the convolutions' outputs"
    )


class HubertTraining(HubertWorkload[HubertTrainingSettings]):
    """Pretraining of HuBERT; the best model predicts most masked frames."""

    config_class = HubertTrainingSettings

    def model(self, config: HubertTrainingSettings) -> Callable[[], Hubert]:
        model = config.model
        return partial(create_hubert, model.config, model.clusters, model.final_dim, config.seed, **model.sizes)

    def save(self, model: Hubert, config: HubertTrainingSettings, folder: str | Path) -> None:
        super().save(model, config, folder)
        if config.fairseq:
            write_fairseq(model, Path(folder, "fairseq.pt"))
            write_s3prl(model, Path(folder, "s3prl.pt"))

    def complete(self, config: HubertTrainingSettings, data: Path) -> HubertTrainingSettings:
        """Return the settings as they are, and say how much of a long clip the masks hide.

        Raises SettingsError for a model that could not be written as the settings say.
        """
        if config.fairseq:
            check_fairseq(self.model(config)().config)
        share = expected_share(LONG_CLIP_FRAMES, config.mask)
        logger.log(
            logging.WARNING if share < SMALL_SHARE else logging.INFO,
            "masks hide %.0f %% of the frames: %.3g of them begin a span of %d; HuBERT hides 57 %% "
            "(mask.probability 0.8, or mask.start_probability 0.08)",
            100 * share,
            config.mask.starts,
            config.mask.length,
        )
        return config

    def tasks(self, config: HubertTrainingSettings) -> TaskInterface:
        objective = MaskedPrediction(config.unmasked_weight, config.feature_penalty)
        arguments = {"settings": config.training, "objective": objective}
        return register_tasks(tasks.train_round, tasks.validate_clips, arguments)

    def data(self, config: HubertTrainingSettings) -> DataInterface:
        return HubertData(config.mask, config.model.clusters)

    def best(self, config: HubertTrainingSettings) -> tuple[str, Direction]:
        return "masked_accuracy", "max"

    def metric_bounds(self, config: HubertTrainingSettings) -> Mapping[str, tuple[float, float]]:
        return {"masked_accuracy": (0, 1)}

    def mean_over(self, config: HubertTrainingSettings) -> Mapping[str, str | None]:
        return tasks.MEAN_OVER

    def shard_parameters(self, config: HubertTrainingSettings) -> Mapping[str, Any]:
        return config.data.model_dump()

    def evaluate(self, model: Hubert, config: HubertTrainingSettings, data: Path, device: str) -> Metrics:
        """Return metrics on the validation clips of all clients, on dev-clean and on test-clean.

        A split that is not there, or has no targets, has none.
        """
        descriptor = LibriSpeechShardDescriptor(data, **config.data.model_dump())
        metrics = {}
        for split in ("validation", "dev", "test"):
            dataset = descriptor.get_dataset(split)
            # With a codebook per client, clips without a client have no targets.
            if len(dataset) and dataset.targets_info is not None:
                metrics[split] = tasks.validate_clips(model, Clips(dataset, config.mask, config.model.clusters), device)
        return metrics

    def plot_comparison(
        self, histories: Mapping[str, Sequence[Record]], config: HubertTrainingSettings, path: Path
    ) -> None:
        """Draw the masked accuracy of several runs by round."""
        from workspaces.hubert.plots import plot_masked_accuracy

        plot_masked_accuracy({name: to_frame(records) for name, records in histories.items()}, path)
