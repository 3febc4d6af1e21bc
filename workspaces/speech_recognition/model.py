"""HuBERT with a linear layer to letters, from pretrained weights or from a random start."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    HubertConfig,
    HubertForCTC,
    HubertModel,
    PreTrainedConfig,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
)

from openfl_audio.errors import SettingsError
from openfl_audio.node.pretrained import explain_missing_weights
from openfl_audio.training.export import extend_config
from openfl_audio.training.half_precision import guard_grouped_convolutions
from workspaces.speech_recognition.letters import BLANK, CLASSES, LETTERS

SAMPLE_RATE = 16_000
CONFIGS = Path(__file__).parent / "configs"


class Recognizer(HubertForCTC):
    """HuBERT for CTC (Hsu et al., arXiv 2106.07447, section IV-C) over `letters.LETTERS`, 50 frames a second.

    Weights are those of Transformers' HubertForCTC, and so are the outputs for one clip. Where clips of several lengths
    share a batch, the outputs of each are those it has alone; in Transformers a group norm would see the padding.

    Two keys more in its configuration: `frozen` keeps HuBERT as it is, without gradients or dropout; otherwise
    its convolutions stay as they are if they were pretrained. `normalize`: bring each clip to mean 0 and variance 1.
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__(config)
        guard_grouped_convolutions(self)
        self.freeze()

    def forward(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, frames, CLASSES) of `waveforms` (batch, samples); `lengths` (batch,) are in samples."""
        clips = [waveform[None, :length] for waveform, length in zip(waveforms, lengths.tolist(), strict=True)]
        if self.config.normalize:
            clips = [_standardize(clip) for clip in clips]
        features = [self.hubert.feature_extractor(clip)[0].T for clip in clips]  # (frames, channels) each
        frames = torch.tensor([len(clip) for clip in features], device=waveforms.device)
        hidden = self.hubert.feature_projection(pad_sequence(features, batch_first=True))
        # SpecAugment is off: its masks would be drawn from a generator that is not seeded.
        real = torch.arange(hidden.shape[1], device=hidden.device) < frames[:, None]
        return self.lm_head(self.dropout(self.hubert.encoder(hidden, attention_mask=real).last_hidden_state))

    def count_frames(self, num_samples: Any) -> Any:
        """Return the frames of clips with `num_samples`: a number, or a tensor of them."""
        return self._get_feat_extract_output_lengths(num_samples)

    def train(self, mode: bool = True) -> "Recognizer":
        super().train(mode)
        # Here too, as from_pretrained makes everything trainable. The last that it does is to call this.
        self.freeze()
        return self

    def freeze(self) -> None:
        if self.config.frozen:
            self.hubert.requires_grad_(False).eval()
        elif self.config.fixed_convolutions:
            self.freeze_feature_encoder()


def create_recognizer(
    upstream: str | None = None, *, config: str | Path | None = None, frozen: bool = False, seed: int = 0
) -> Recognizer:
    """Return a recognizer of letters.

    Args:
        upstream: HuBERT as a hub name or as a folder, such as model/ of a run that pretrained one. Its convolutions
            stay as they are, as in the paper's fine-tuning.
        config: a JSON file of HubertConfig, in `configs/` or elsewhere, for a random start. One of the two is given.
        frozen: train the linear layer alone.
        seed: of all weights that are not pretrained.

    Raises:
        PretrainedWeightsError: the weights cannot be had.
        SettingsError: the model is none of HuBERT.
    """
    if (upstream is None) == (config is None):
        raise ValueError("give either upstream (a hub name or a folder) or config (a JSON file, for a random start)")
    normalize, weights = False, None
    if config is not None:
        values = json.loads((CONFIGS / config).read_text(encoding="utf-8"))
    else:
        with explain_missing_weights(upstream):
            values = PreTrainedConfig.get_config_dict(str(upstream))[0]
            _check_kind(values, upstream)
            normalize = Wav2Vec2FeatureExtractor.from_pretrained(str(upstream)).do_normalize
            weights = HubertModel.from_pretrained(str(upstream), dtype=torch.float32).state_dict()
    values |= {"vocab_size": CLASSES, "pad_token_id": BLANK, "layerdrop": 0.0, "final_dropout": 0.0}
    values |= {"frozen": frozen, "normalize": normalize, "fixed_convolutions": weights is not None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Recognizer(HubertConfig(**values))
    if weights is not None:
        model.hubert.load_state_dict(weights)
    return model


def save_recognizer(model: Recognizer, folder: Path) -> None:
    """Write what Transformers' HubertForCTC and its Wav2Vec2Processor load from `folder`."""
    model.save_pretrained(folder)
    extend_config(folder, {"architectures": ["HubertForCTC"]})
    Wav2Vec2FeatureExtractor(
        sampling_rate=SAMPLE_RATE, do_normalize=model.config.normalize, return_attention_mask=True
    ).save_pretrained(folder)
    tokens = {"<pad>": BLANK} | {letter.replace(" ", "|"): i for i, letter in enumerate(LETTERS, start=1)}
    with tempfile.TemporaryDirectory() as temporary:
        vocabulary = Path(temporary) / "vocab.json"
        vocabulary.write_text(json.dumps(tokens), encoding="utf-8")
        Wav2Vec2CTCTokenizer(str(vocabulary), unk_token="<pad>", bos_token=None, eos_token=None).save_pretrained(folder)


def _check_kind(values: dict, upstream: str | None) -> None:
    if values.get("model_type") != "hubert":
        raise SettingsError(f"'{upstream}' is a model of type {values.get('model_type')!r}: it should be hubert")


def _standardize(waveforms: torch.Tensor) -> torch.Tensor:
    # As Wav2Vec2FeatureExtractor does it.
    variance, mean = torch.var_mean(waveforms, dim=-1, correction=0, keepdim=True)
    return (waveforms - mean) / torch.sqrt(variance + 1e-7)
