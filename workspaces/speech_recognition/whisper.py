"""Whisper, which writes words from sequence to sequence."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from openfl_audio.errors import SettingsError
from openfl_audio.node.pretrained import explain_missing_weights
from openfl_audio.training.export import extend_config
from workspaces.speech_recognition.data import SAMPLE_RATE, Batch
from workspaces.speech_recognition.masks import Masks

FRAMES_PER_S = 50  # of the encoder, which reads two log-mel frames for one
IGNORED = -100  # of PyTorch's cross-entropy
# A second of speech has some four words, and a word fewer than two tokens; a model that repeats itself is cut off.
TOKENS_PER_S, FEWEST_TOKENS = 10, 20
# In the order of a published vocabulary: the tokenizer counts languages from the start of a transcript.
LANGUAGE_TOKENS = tuple(f"<|{code}|>" for code in LANGUAGES)
SPECIAL = (
    *("<|endoftext|>", "<|startoftranscript|>"), *LANGUAGE_TOKENS, *("<|translate|>", "<|transcribe|>"),
    *("<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"),
)  # fmt: skip


class WhisperRecognizer(WhisperForConditionalGeneration):
    """Whisper (Radford et al., arXiv 2212.04356) with its extractor and tokenizer, in the tongue of the tasks.

    Every clip is heard in the window of the encoder, 30 s in published models, so that its text is the same alone as
    among others. Keys more in its configuration: `frozen` keeps the encoder as it is.

    Attributes:
        extractor: makes log-mel frames of waveforms.
        tokenizer: with the forced tokens: language, task, no time stamps.
    """

    extractor: WhisperFeatureExtractor
    tokenizer: Any

    def loss_of(self, batch: Batch, device: str, masks: Masks | None = None) -> tuple[torch.Tensor, int]:
        """Return the cross-entropy of a batch in nats, summed over its tokens, and their number."""
        features = self._features(batch).to(device)
        if masks is not None:
            frames = (batch.lengths / self.extractor.hop_length).ceil().long()
            features = masks.apply(features.transpose(1, 2), frames).transpose(1, 2)
        return self._loss_of(features, batch, device)

    def recognize(self, batch: Batch, device: str) -> tuple[torch.Tensor, int, list[str]]:
        """Return loss and tokens as `loss_of`, and the texts that the model writes: the best token at each place.

        So many tokens are written at most as somebody could say in the longest of the clips.
        """
        features = self._features(batch).to(device)
        seconds = float(batch.lengths.max()) / SAMPLE_RATE
        room = self.config.max_target_positions - len(self.tokenizer.prefix_tokens)
        bound = min(room, FEWEST_TOKENS + round(TOKENS_PER_S * seconds))
        multilingual = bool(getattr(self.generation_config, "is_multilingual", False))
        forced = {"language": self.tokenizer.language, "task": self.tokenizer.task} if multilingual else {}
        written = self.generate(features, max_new_tokens=bound, num_beams=1, do_sample=False, **forced)
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return *self._loss_of(features, batch, device), texts

    def _features(self, batch: Batch) -> torch.Tensor:
        """Return log-mel frames (batch, n_mels, frames), zeros after the end of a clip."""
        longest = self.extractor.n_samples
        for name, length in zip(batch.names, batch.lengths.tolist(), strict=True):
            if length > longest:
                seconds = length / SAMPLE_RATE
                raise SettingsError(f"clip {name} has {seconds:.1f} s: Whisper hears {longest / SAMPLE_RATE:g} s")
        clips = [w[:length].numpy() for w, length in zip(batch.waveforms.cpu(), batch.lengths.tolist(), strict=True)]
        return self.extractor(clips, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features

    def _loss_of(self, features: torch.Tensor, batch: Batch, device: str) -> tuple[torch.Tensor, int]:
        inputs, labels = self._tokens(batch)
        logits = self(input_features=features, decoder_input_ids=inputs.to(device)).logits.float()
        flat = labels.reshape(-1).to(device)
        loss = F.cross_entropy(logits.reshape(len(flat), -1), flat, ignore_index=IGNORED, reduction="sum")
        return loss, int((labels != IGNORED).sum())

    def _tokens(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the decoder reads and what it should write next, (batch, tokens) both.

        Forced tokens are read, and nobody has to write them.
        """
        prefix, end = list(self.tokenizer.prefix_tokens), self.tokenizer.eos_token_id
        texts = [self.tokenizer(text, add_special_tokens=False).input_ids for text in batch.texts]
        longest = len(prefix) + max(map(len, texts))
        if longest > self.config.max_target_positions:
            name = batch.names[max(range(len(texts)), key=lambda clip: len(texts[clip]))]
            most = self.config.max_target_positions
            raise SettingsError(f"clip {name} has a text of {longest} tokens: Whisper writes at most {most}")
        inputs = torch.full((len(texts), longest), end)
        labels = torch.full((len(texts), longest), IGNORED)
        for row, tokens in enumerate(texts):
            inputs[row, : len(prefix) + len(tokens)] = torch.tensor(prefix + tokens)
            labels[row, len(prefix) - 1 : len(prefix) + len(tokens)] = torch.tensor([*tokens, end])
        return inputs, labels

    def train(self, mode: bool = True) -> "WhisperRecognizer":
        super().train(mode)
        self.freeze()
        return self

    def freeze(self) -> None:
        """Keep the frozen part as it is; positions are fixed in Whisper's encoder."""
        self.model.encoder.embed_positions.requires_grad_(False)
        if getattr(self.config, "frozen", False):
            self.model.encoder.requires_grad_(False).eval()

    def save_recognizer(self, folder: Path) -> None:
        """Write what Transformers' class, its processor and `pipeline` load from `folder`."""
        self.save_pretrained(folder)
        extend_config(folder, {"architectures": ["WhisperForConditionalGeneration"]})
        self.extractor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def create(
    upstream: str | None, values: dict[str, Any], *, frozen: bool, language: str | None, task: str
) -> WhisperRecognizer:
    """Return a recognizer with the weights of `upstream`, or at random with bytes for tokens, from torch's generator.

    Raises:
        PretrainedWeightsError: the weights cannot be had.
        SettingsError: the language is unknown.
    """
    if language is not None and language.lower() not in {*TO_LANGUAGE_CODE, *TO_LANGUAGE_CODE.values()}:
        raise SettingsError(f"language: Whisper knows no {language!r}; give a name or a code, such as german or de")
    if upstream is None:
        tokenizer = _byte_tokenizer()
        model = WhisperRecognizer(_small_config(values, tokenizer))
        model.generation_config = _generation_config(tokenizer, model.config)
        seconds = model.config.max_source_positions // FRAMES_PER_S
        model.extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins, chunk_length=seconds)
    else:
        with explain_missing_weights(upstream):
            model = WhisperRecognizer.from_pretrained(upstream, dtype=torch.float32)
            model.extractor = WhisperFeatureExtractor.from_pretrained(upstream)
            tokenizer = WhisperTokenizer.from_pretrained(upstream)
    if language is not None:
        tokenizer.set_prefix_tokens(language=language, task=task, predict_timestamps=False)
    model.tokenizer = tokenizer
    model.config.frozen = frozen
    model.freeze()
    return model


def _byte_tokenizer() -> Any:
    """Return a tokenizer of Whisper whose tokens are bytes, as there is no vocabulary without a download."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*sorted(ByteLevel.alphabet()), *SPECIAL]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], language="en", task="transcribe")
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    return tokenizer


def _small_config(values: dict[str, Any], tokenizer: Any) -> WhisperConfig:
    end, start = tokenizer.convert_tokens_to_ids([SPECIAL[0], SPECIAL[1]])
    own = {"vocab_size": len(tokenizer), "pad_token_id": end, "bos_token_id": end, "eos_token_id": end}
    return WhisperConfig(**values | own | {"decoder_start_token_id": start})


def _generation_config(tokenizer: Any, config: WhisperConfig) -> GenerationConfig:
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(list(SPECIAL)), strict=True))
    return GenerationConfig(
        is_multilingual=True,
        lang_to_id={token: ids[token] for token in LANGUAGE_TOKENS},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"],
        pad_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"],
        max_length=config.max_target_positions,
    )
