"""HuBERT, Wav2Vec2 and W2V-BERT with a linear layer to letters."""

import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    HubertForCTC,
    PreTrainedModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertForCTC,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
)

from openfl_audio.node.pretrained import explain_missing_weights
from openfl_audio.training.export import extend_config
from workspaces.speech_recognition.data import SAMPLE_RATE, Batch
from workspaces.speech_recognition.letters import BLANK, LETTERS, decode, normalize
from workspaces.speech_recognition.loss import ctc_loss
from workspaces.speech_recognition.masks import Masks


class CtcRecognizer(PreTrainedModel):
    """A model of Transformers for CTC over letters, in the tongue that the tasks speak; 50 frames a second.

    Weights are those of Transformers' class, and so are the outputs for one clip. Where clips of several lengths share
    a batch, the outputs of each are those it has alone; in Transformers a group norm would see the padding.

    Keys more in its configuration: `frozen` keeps the encoder as it is, without gradients or dropout; otherwise
    convolutions on waveforms stay as they are if they were pretrained. `normalize`: bring each clip to mean 0 and
    variance 1. `letters`: class i + 1 is letters[i].
    """

    architecture: ClassVar[str]
    dropout: Any
    lm_head: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.freeze()

    @property
    def encoder_model(self) -> Any:
        """Return the model without its layer to letters."""
        return getattr(self, self.base_model_prefix)

    @property
    def letters(self) -> str:
        """Return the letters that the model writes in."""
        return getattr(self.config, "letters", LETTERS)

    def forward(self, waveforms: torch.Tensor, lengths: torch.Tensor, masks: Masks | None = None) -> torch.Tensor:
        """Return logits (batch, frames, 1 + letters) of `waveforms` (batch, samples); `lengths` are in samples."""
        clips = [waveform[None, :length] for waveform, length in zip(waveforms, lengths.tolist(), strict=True)]
        features = [self.features(clip) for clip in clips]  # (frames, channels) each
        frames = torch.tensor([len(clip) for clip in features], device=waveforms.device)
        projected = self.encoder_model.feature_projection(pad_sequence(features, batch_first=True))
        hidden = projected[0] if isinstance(projected, tuple) else projected
        if masks is not None:
            hidden = masks.apply(hidden, frames)
        real = torch.arange(hidden.shape[1], device=hidden.device) < frames[:, None]
        encoded = self.encoder_model.encoder(hidden, attention_mask=real).last_hidden_state
        return self.lm_head(self.dropout(encoded))

    def features(self, clip: torch.Tensor) -> torch.Tensor:
        """Return what the encoder reads, (frames, channels), of a clip (1, samples)."""
        if self.config.normalize:
            clip = _standardize(clip)
        return self.encoder_model.feature_extractor(clip)[0].T

    def count_frames(self, num_samples: Any) -> Any:
        """Return the frames of clips with `num_samples`: a number, or a tensor of them."""
        own: Any = self
        return own._get_feat_extract_output_lengths(num_samples)

    def loss_of(self, batch: Batch, device: str, masks: Masks | None = None) -> tuple[torch.Tensor, int]:
        """Return the loss of a batch in nats, summed over its letters, and their number."""
        logits = self(batch.waveforms.to(device), batch.lengths, masks)
        return self._loss_of(logits, batch)

    def recognize(self, batch: Batch, device: str) -> tuple[torch.Tensor, int, list[str]]:
        """Return loss and letters as `loss_of`, and the text of the best class of each frame."""
        logits = self(batch.waveforms.to(device), batch.lengths)
        best, frames = logits.argmax(-1).cpu(), self.count_frames(batch.lengths).tolist()
        texts = [decode(clip[:n], self.letters) for clip, n in zip(best, frames, strict=True)]
        return *self._loss_of(logits, batch), texts

    def _loss_of(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, int]:
        texts = [normalize(text, self.letters) for text in batch.texts]
        frames = self.count_frames(batch.lengths)
        return ctc_loss(logits, frames, texts, batch.names, self.letters), sum(map(len, texts))

    def train(self, mode: bool = True) -> "CtcRecognizer":
        super().train(mode)
        # Here too, as from_pretrained makes everything trainable. The last that it does is to call this.
        self.freeze()
        return self

    def freeze(self) -> None:
        """Keep the frozen part as it is."""
        if self.config.frozen:
            self.encoder_model.requires_grad_(False).eval()
        elif self.config.fixed_convolutions:
            self.encoder_model.feature_extractor.requires_grad_(False)

    def create_extractor(self) -> Any:
        """Return the feature extractor that belongs to the model."""
        return Wav2Vec2FeatureExtractor(
            sampling_rate=SAMPLE_RATE, do_normalize=self.config.normalize, return_attention_mask=True
        )

    def save_recognizer(self, folder: Path) -> None:
        """Write what Transformers' class for CTC, its processor and `pipeline` load from `folder`."""
        self.save_pretrained(folder)
        extend_config(folder, {"architectures": [self.architecture]})
        self.create_extractor().save_pretrained(folder)
        tokens = {"<pad>": BLANK} | {letter.replace(" ", "|"): i for i, letter in enumerate(self.letters, start=1)}
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "vocab.json"
            path.write_text(json.dumps(tokens), encoding="utf-8")
            Wav2Vec2CTCTokenizer(str(path), unk_token="<pad>", bos_token=None, eos_token=None).save_pretrained(folder)


class HubertRecognizer(CtcRecognizer, HubertForCTC):
    """HuBERT for CTC (Hsu et al., arXiv 2106.07447, section IV-C)."""

    architecture = "HubertForCTC"


class Wav2Vec2Recognizer(CtcRecognizer, Wav2Vec2ForCTC):
    """Wav2Vec2 for CTC (Baevski et al., arXiv 2006.11477, section 3.3)."""

    architecture = "Wav2Vec2ForCTC"


class Wav2Vec2BertRecognizer(CtcRecognizer, Wav2Vec2BertForCTC):
    """W2V-BERT for CTC (Barrault et al., arXiv 2312.05187), which reads two log-mel frames of 10 ms at a time."""

    architecture = "Wav2Vec2BertForCTC"

    def features(self, clip: torch.Tensor) -> torch.Tensor:
        """Return log-mel frames in pairs, (frames, 2 * n_mels), each band brought to mean 0 and variance 1."""
        extractor = self.create_extractor()
        waveform = clip[0].cpu().numpy()
        values = extractor(waveform, sampling_rate=SAMPLE_RATE, return_tensors="pt", padding=False).input_features[0]
        return values.to(clip.device)

    def count_frames(self, num_samples: Any) -> Any:
        """Return the frames of clips with `num_samples`: windows of 25 ms every 10 ms, in pairs."""
        return ((num_samples - 400) // 160 + 1) // 2

    def create_extractor(self) -> Any:
        """Return the feature extractor that belongs to the model."""
        return _log_mel(self.config.feature_projection_input_dim // 2)


@lru_cache  # its filters take longer to make than a clip's features
def _log_mel(bands: int) -> SeamlessM4TFeatureExtractor:
    return SeamlessM4TFeatureExtractor(feature_size=bands, num_mel_bins=bands, sampling_rate=SAMPLE_RATE, stride=2)


KINDS: dict[str, type[CtcRecognizer]] = {
    "hubert": HubertRecognizer,
    "wav2vec2": Wav2Vec2Recognizer,
    "wav2vec2-bert": Wav2Vec2BertRecognizer,
}


def create(upstream: str | None, values: dict[str, Any], kind: str, *, frozen: bool, letters: str) -> CtcRecognizer:
    """Return a recognizer with the weights of `upstream`, or at random; the layer to letters is always new.

    Weights are drawn from torch's generator. Raises PretrainedWeightsError where the weights cannot be had.
    """
    own: dict[str, Any] = {
        "vocab_size": 1 + len(letters),
        "pad_token_id": BLANK,
        "layerdrop": 0.0,
        "final_dropout": 0.0,
    }
    own |= {"frozen": frozen, "letters": letters, "normalize": False, "fixed_convolutions": False}
    if upstream is None:
        return KINDS[kind](AutoConfig.for_model(kind, **values | own))
    with explain_missing_weights(upstream):
        extractor = AutoFeatureExtractor.from_pretrained(upstream)
        weights = AutoModel.from_pretrained(upstream, dtype=torch.float32).state_dict()
    waveforms = kind != "wav2vec2-bert"
    own |= {"normalize": waveforms and bool(extractor.do_normalize), "fixed_convolutions": waveforms}
    values = {name: value for name, value in values.items() if name not in ("architectures", "auto_map", "model_type")}
    model = KINDS[kind](AutoConfig.for_model(kind, **values | own))
    model.encoder_model.load_state_dict(weights)
    return model


def _standardize(waveforms: torch.Tensor) -> torch.Tensor:
    # As Wav2Vec2FeatureExtractor does it.
    variance, mean = torch.var_mean(waveforms, dim=-1, correction=0, keepdim=True)
    return (waveforms - mean) / torch.sqrt(variance + 1e-7)
