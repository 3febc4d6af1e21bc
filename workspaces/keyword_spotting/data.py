"""Clips of a shard as an EncoderModel reads them: outputs of its frozen encoder, or the inputs of one that learns."""

import hashlib
import logging
import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from openfl.interface.interactive_api.shard_descriptor import ShardDataset

from openfl_audio.node.shard_data import ShardData
from workspaces.keyword_spotting.model import EncoderModel
from workspaces.keyword_spotting.output_cache import NOT_KEPT, OutputStore, clip_key, open_store

logger = logging.getLogger(__name__)

FRAMES_AT_ONCE = 3_000  # of the encoder: 2 clips of 30 s, 60 of one second; more take memory, no less time
MAX_INPUTS_BYTES = 2_000_000_000
REPORT_EVERY_S = 30.0
# A tenth of a second either way, as in TensorFlow's recipe for Speech Commands (Warden, arXiv 1804.03209).
MAX_SHIFT_SAMPLES = 1_600


class EncoderClips:
    """A split of a shard, in batches of inputs for the model. Ready after `prepare`.

    With `repeat_rare`, silence comes as often as the median label does: each time as another second, cut out of one of
    the few long noise recordings that SUPERB counts as a clip. Cuts are the same in every epoch, as is everything
    here: what is random about training is drawn by the task.

    Attributes:
        labels: int64 (items,)
        num_clips: those of the shard, without repetitions
        speakers: who says each clip of the shard, (num_clips,); "" where that is not known
    """

    def __init__(self, shard_dataset: ShardDataset, repeat_rare: bool = False) -> None:
        labels = np.asarray(shard_dataset.labels, dtype=np.int64)
        self.num_clips = len(labels)
        self.speakers = [*getattr(shard_dataset, "speakers", [""] * len(labels))]
        self.indices = repeat_rare_labels(labels) if repeat_rare else np.arange(len(labels))
        self.labels = labels[self.indices]
        self._repetitions = _count_before(self.indices)
        self._shard_dataset = shard_dataset
        self._prepared_for: tuple | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def first_items(self) -> np.ndarray:
        """Return for each clip of the shard the item that is its first: (num_clips,)."""
        return np.unique(self.indices, return_index=True)[1]

    def prepare(self, model: EncoderModel, device: str) -> None:
        """Move `model` to the device, and encode for it what the node's cache lacks, or make its inputs once."""
        self._model, self._device = model, device
        torch.nn.Module.to(model, device)  # transformers has its own without types
        key = (model.encoder_key(), device) if model.frozen else model.input_shape
        if key == self._prepared_for:
            return
        if model.frozen:
            self._store, self._slots = open_output_store(model), np.full(len(self), NOT_KEPT)
            self._fill_store()
        else:
            self._inputs = self._make_all_inputs()
        self._prepared_for = key

    def batch(self, items: Sequence[int] | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and labels (batch,) of some items, on the device.

        The inputs are float32: (batch, *output_shape) for `model.head` if the encoder is frozen, otherwise
        (batch, *input_shape) for the model.
        """
        items = np.asarray(items)
        labels = torch.from_numpy(self.labels[items]).to(self._device)
        if self._model.frozen:
            return torch.from_numpy(self._outputs(items)).to(self._device).float(), labels
        inputs = self._make_inputs(items) if self._inputs is None else self._inputs[items]
        return inputs.to(self._device), labels

    def _outputs(self, items: np.ndarray) -> np.ndarray:
        slots = self._slots[items]
        kept = slots != NOT_KEPT
        if kept.all():
            return self._store.read(slots)
        outputs = np.empty((len(items), *self._store.shape), np.float16)
        outputs[kept] = self._store.read(slots[kept])
        outputs[~kept] = encode(self._model, [self._waveform(item) for item in items[~kept]], self._device)
        return outputs

    def _fill_store(self) -> None:
        size = max(1, FRAMES_AT_ONCE // self._model.frames)
        waiting: dict[int, tuple[bytes, np.ndarray]] = {}
        for item in _with_progress("encoder outputs", range(len(self))):
            waveform = self._waveform(item)
            key = clip_key(waveform)
            [self._slots[item]] = self._store.find([key])
            if self._slots[item] == NOT_KEPT:
                waiting[item] = key, waveform
            if len(waiting) == size or (waiting and item == len(self) - 1):
                self._encode_waiting(waiting)
                waiting = {}

    def _encode_waiting(self, waiting: dict[int, tuple[bytes, np.ndarray]]) -> None:
        keys, waveforms = zip(*waiting.values(), strict=True)
        self._slots[list(waiting)] = self._store.add(keys, encode(self._model, waveforms, self._device))

    def _make_all_inputs(self) -> torch.Tensor | None:
        if len(self) * math.prod(self._model.input_shape) * 4 > MAX_INPUTS_BYTES:
            return None
        size = max(1, FRAMES_AT_ONCE // self._model.frames)
        starts = _with_progress("inputs", range(0, len(self), size))
        batches = [self._make_inputs(np.arange(start, min(start + size, len(self)))) for start in starts]
        return torch.cat(batches) if batches else None

    def _make_inputs(self, items: np.ndarray) -> torch.Tensor:
        return self._model.make_inputs([self._waveform(item) for item in items], self._device)

    def _waveform(self, item: int) -> np.ndarray:
        # An epoch of its own for each repetition: its cut of noise does not depend on what was read before.
        self._shard_dataset.set_epoch(int(self._repetitions[item]))
        return self._shard_dataset[int(self.indices[item])][0]


def encode(model: EncoderModel, waveforms: Sequence[np.ndarray], device: str) -> np.ndarray:
    """Return the encoder's outputs, float16 (clips, *output_shape), of `waveforms`, each float32 (samples,) at 16 kHz.

    As precise as the cache, so that a result does not depend on what the cache held.
    """
    with torch.inference_mode():
        return model.encode(model.make_inputs(waveforms, device).to(device)).half().cpu().numpy()


def open_output_store(model: EncoderModel) -> OutputStore:
    """Open the store of the encoder's outputs: it depends on the encoder's weights, sizes and inputs."""
    name = hashlib.sha256(f"{model.inputs_name}, {model.encoder_key()}, float16".encode()).hexdigest()
    return open_store(name, model.output_shape)


def repeat_rare_labels(labels: np.ndarray) -> np.ndarray:
    """Return indices into `labels` (items,), each at least once: no label has fewer than the median label.

    >>> repeat_rare_labels(np.array([0, 0, 0, 1, 2, 2])).tolist()
    [0, 1, 2, 3, 3, 4, 5]
    """
    _, counts = np.unique(labels, return_counts=True)
    wanted = int(np.median(counts)) if len(counts) else 0
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.concatenate([np.resize(group, max(len(group), wanted)) for group in groups] or [labels.astype(int)])


class EncoderData(ShardData):
    """Gives the tasks their clips: those of the node's shard. A clip that is repeated weighs no more in the mean."""

    def make_train(self, dataset: ShardDataset) -> EncoderClips:
        return EncoderClips(dataset, repeat_rare=True)

    def make_validation(self, dataset: ShardDataset) -> EncoderClips:
        return EncoderClips(dataset)

    def get_train_data_size(self) -> int:
        return self._train.num_clips


def _with_progress(what: str, items: range) -> Iterator[int]:
    """Yield `items`, with a line in the log now and then: the work on them may take hours."""
    reported_s = time.monotonic()
    for item in items:
        if time.monotonic() - reported_s >= REPORT_EVERY_S:
            logger.info("%s: %d of %d clips", what, item, items.stop)
            reported_s = time.monotonic()
        yield item


def _count_before(indices: np.ndarray) -> np.ndarray:
    """Return how often each index came before.

    >>> _count_before(np.array([3, 5, 3, 3])).tolist()
    [0, 0, 1, 2]
    """
    seen: dict[int, int] = {}
    counts = np.zeros(len(indices), dtype=np.int64)
    for i, index in enumerate(indices.tolist()):
        counts[i] = seen.get(index, 0)
        seen[index] = counts[i] + 1
    return counts
