"""The common part of keyword models that are a head on an encoder of speech, which may be frozen."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

SAMPLE_RATE = 16_000
CONFIGS = Path(__file__).parent / "configs"


class EncoderModel(torch.nn.Module):
    """The first base of a PreTrainedModel with the modules `encoder` and `head`, and `frozen` in its configuration.

    A frozen encoder stays as it is: no gradients, and no dropout in training.
    """

    config: Any
    encoder: Any
    head: Any

    @property
    @abstractmethod
    def inputs_name(self) -> str:
        """Name of what the encoder reads, and of what `encode` gives of its outputs."""

    @property
    @abstractmethod
    def frames(self) -> int:
        """Number of frames that the encoder makes of a clip."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a clip's inputs, without the batch."""

    @property
    @abstractmethod
    def output_shape(self) -> tuple[int, int]:
        """Shape of what `encode` makes of a clip."""

    @property
    def frozen(self) -> bool:
        return self.config.frozen

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, labels) of `inputs` (batch, *input_shape)."""
        return self.head(self.encode(inputs))

    @abstractmethod
    def make_inputs(self, waveforms: Sequence[np.ndarray], device: str = "cpu") -> torch.Tensor:
        """Make inputs (batch, *input_shape), on the CPU, of `waveforms`, each float32 (samples,) at 16 kHz.

        All clips are brought to one length: shorter ones are filled up with silence, longer ones cut. A clip's inputs,
        and so its scores, do not depend on the other clips.
        """

    @abstractmethod
    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what `head` reads, (batch, *output_shape), of `inputs`."""

    @abstractmethod
    def vary(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return inputs as other speakers in other places might have said the clips, to train a whole model."""

    @abstractmethod
    def encoder_values(self) -> dict[str, Any]:
        """Return what of the configuration the encoder's outputs depend on."""

    def train(self, mode: bool = True) -> "EncoderModel":
        super().train(mode)
        # Here too, as from_pretrained makes everything trainable. The last that it does is to call this.
        self.freeze()
        return self

    def freeze(self) -> None:
        if self.frozen:
            self.encoder.requires_grad_(False).eval()

    def encoder_key(self) -> str:
        """Return a hash of all that the encoder's outputs depend on, besides its input; kept until a weight changes."""
        tensors = self.encoder.state_dict(keep_vars=True)
        state = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors.values())
        if getattr(self, "_key_state", None) != state:
            self._key_state, self._key = state, _hash_encoder(self.encoder_values(), tensors)
        return self._key


def _hash_encoder(values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def read_config(config: str | Path) -> dict[str, Any]:
    """Return the content of a JSON file: by a name in `configs/`, which travels with the experiment, or by its path."""
    return json.loads((CONFIGS / config).read_text())


def check_source(pretrained: str | None, config: str | Path | None) -> None:
    """Raise ValueError unless a model's weights come from exactly one place."""
    if (pretrained is None) == (config is None):
        raise ValueError("give either pretrained (a hub name or a folder) or config (a JSON file, for a random start)")
