#!/usr/bin/env python3
"""Recognizers of published sizes: a training step, whole, by adapters and in plain Transformers; and a recognition.

    python benchmarks/real_sizes.py                            # all models, a JSON object
    python benchmarks/real_sizes.py --models whisper-tiny --steps 5

Weights are random, of the published configurations, and take as long as trained ones. Clips are noise of `--seconds`
with a sentence each, so Whisper hears its window of 30 s all the same. Each measurement is a process of its own, whose
first step does not count; of the others the fastest is told, as whoever else uses the machine slows down some. A step
reads its clips, makes their features, and ends with the optimizer's. "whole" and "adapter" are the task of
`workspaces/speech_recognition`, "plain" is a loop around Transformers' own class, with the same optimizer and bound on
the gradients. A recognition is greedy, with the loss that a validation computes; random weights end no text, so Whisper
writes as much as it may for clips of that length.

On a GPU steps are in bfloat16, with as many clips as its memory holds when the whole model is trained.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package

from benchmarks.arguments import add_save, save, whole_number
from benchmarks.steps import in_new_process
from openfl_audio.node.adapter import transmitted
from openfl_audio.training.adapters import Lora, add_adapter
from workspaces.speech_recognition.data import SAMPLE_RATE, Clips
from workspaces.speech_recognition.letters import encode, normalize
from workspaces.speech_recognition.model import Recognizer, create_recognizer
from workspaces.speech_recognition.tasks import TrainingSettings, recognize_all, train_round

TEXT = "it was a quiet morning"
LORA = Lora(r=8, alpha=16, targets="attention")
KINDS = ("whole", "adapter", "plain", "recognition")
MOST_CLIPS = 256  # that are tried on a GPU
RATE, NORM = 1e-4, 1.0
WHISPER_WORDS = 51_865  # tokens of the multilingual models
# Radford et al., arXiv 2212.04356, table 1: tiny has 4 layers of 384 units and 6 heads, small 12 of 768 and 12, on
# windows of 30 s and 448 tokens. Baevski et al., arXiv 2006.11477, section 4.2: base has 12 blocks of 768 units and an
# inner dimension of 3,072, behind 7 convolutions of 512 channels; 8 heads there, 12 in the model that was published.
MODELS: dict[str, dict[str, Any]] = {
    "whisper-tiny": {
        "model_type": "whisper", "d_model": 384, "encoder_layers": 4, "decoder_layers": 4,
        "encoder_attention_heads": 6, "decoder_attention_heads": 6, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536,
    },
    "whisper-small": {
        "model_type": "whisper", "d_model": 768, "encoder_layers": 12, "decoder_layers": 12,
        "encoder_attention_heads": 12, "decoder_attention_heads": 12, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072,
    },
    "wav2vec2-base": {
        "model_type": "wav2vec2", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "conv_dim": [512] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "conv_stride": [5, 2, 2, 2, 2, 2, 2], "feat_extract_norm": "group", "conv_bias": False,
        "apply_spec_augment": False,
    },
}  # fmt: skip


class Noise:
    """A split of clips of noise, with the members that one of LibriSpeech has."""

    def __init__(self, clips: int, seconds: float) -> None:
        self.transcripts = [TEXT] * clips
        self.names = [f"clip-{clip}" for clip in range(clips)]
        self.num_samples = np.full(clips, round(seconds * SAMPLE_RATE))

    def __len__(self) -> int:
        return len(self.names)

    def read_waveform(self, index: int) -> np.ndarray:
        """Return a clip, float32 (samples,)."""
        return np.random.default_rng(index).normal(scale=0.1, size=self.num_samples[index]).astype(np.float32)


@dataclass(frozen=True)
class Measurement:
    """A measurement of one model, of which `steps` count; `batch` is None where a GPU's memory decides."""

    model: str
    kind: str
    batch: int | None
    steps: int
    seconds: float
    device: str

    def run(self) -> dict[str, Any]:
        """Return what was measured, in this process."""
        if self.batch is not None:
            return self._measure(self.batch)
        from accelerate.utils import find_executable_batch_size

        # It calls with fewer clips until memory suffices.
        return find_executable_batch_size(self._measure, starting_batch_size=MOST_CLIPS)()

    def _measure(self, batch: int) -> dict[str, Any]:
        recognizer = create(self.model, LORA if self.kind == "adapter" else None)
        torch.nn.Module.to(recognizer, self.device)  # transformers has its own without types
        measured: dict[str, Any] = {"batch": batch}
        if self.kind in ("whole", "adapter"):
            measured["transmitted_mb"] = round(sum(each.nbytes for each in transmitted(recognizer).values()) / 1e6, 2)
        act = {"plain": self._plain, "recognition": self._recognition}.get(self.kind, self._task)(recognizer, batch)
        act(1)
        measured["seconds"] = round(min(self._seconds(act) for _ in range(self.steps)), 3)
        return measured | {"peak_memory_mb": round(self._peak_bytes() / 1e6)}

    def _seconds(self, act: Callable[[int], object]) -> float:
        began = time.perf_counter()
        act(1)
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def _clips(self, batches: int, batch: int) -> Clips:
        shard: Any = Noise(batches * batch, self.seconds)
        return Clips(shard)

    def _task(self, model: Recognizer, batch: int) -> Callable[[int], object]:
        settings = TrainingSettings(1, RATE, batch_size=batch, warmup=0.0, mixed_precision=self.device != "cpu")
        optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=RATE)
        return lambda steps: train_round(model, self._clips(steps, batch), optimizer, self.device, 0, settings)

    def _recognition(self, model: Recognizer, batch: int) -> Callable[[int], object]:
        return lambda steps: recognize_all(model, self._clips(steps, batch), self.device, batch)

    def _plain(self, model: Any, batch: int) -> Callable[[int], object]:
        """Return a loop of steps of Transformers' class, which gets the weights of `model`."""
        from transformers import Wav2Vec2ForCTC, WhisperForConditionalGeneration

        whisper = self.model.startswith("whisper")
        plain: Any = (WhisperForConditionalGeneration if whisper else Wav2Vec2ForCTC)(model.config)
        plain.load_state_dict(model.state_dict())
        extractor = model.extractor if whisper else model.create_extractor()
        tokens = model.tokenizer(TEXT).input_ids[1:] if whisper else encode(normalize(TEXT))
        labels = torch.tensor([tokens] * batch, device=self.device)
        plain.to(self.device).train()
        optimizer = torch.optim.AdamW(plain.parameters(), lr=RATE)

        def train(steps: int) -> None:
            noise = Noise(steps * batch, self.seconds)
            for step in range(steps):
                clips = [noise.read_waveform(step * batch + clip) for clip in range(batch)]
                inputs = extractor(clips, sampling_rate=SAMPLE_RATE, return_tensors="pt")[plain.main_input_name]
                with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.device != "cpu"):
                    loss = plain(inputs.to(self.device), labels=labels).loss
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(plain.parameters(), NORM)
                optimizer.step()

        return train

    def _peak_bytes(self) -> int:
        if self.device != "cpu":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def create(name: str, adapter: Lora | None = None) -> Recognizer:
    """Return a recognizer of a published size, with random weights; Whisper's tokens are bytes of as many words."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(MODELS[name]))
        model: Any = create_recognizer(config=config)
    if MODELS[name]["model_type"] == "whisper":
        model.resize_token_embeddings(WHISPER_WORDS, mean_resizing=False)
    return add_adapter(model, adapter, seed=0)


def measure(name: str, batch: int | None, steps: int, seconds: float, device: str) -> dict[str, Any]:
    """Return the measurements of a model by their kinds, and what follows from them."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        measurement = Measurement(name, kind, batch, steps, seconds, device)
        found[kind] = in_new_process(measurement.run)
        batch = found[kind]["batch"]
    return {
        "parameters": sum(each.numel() for each in create(name).parameters()),
        **found,
        "times_plain": round(found["whole"]["seconds"] / found["plain"]["seconds"], 2),
        "steps_per_second": {kind: round(1 / found[kind]["seconds"], 3) for kind in ("whole", "adapter", "plain")},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=tuple(MODELS), nargs="+", default=list(MODELS))
    parser.add_argument("--clips", type=whole_number, help="of a batch; 1 on a CPU, on a GPU what its memory holds")
    parser.add_argument("--steps", type=whole_number, default=3, help="of a measurement; %(default)s")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a clip; %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add_save(parser)
    options = parser.parse_args(arguments)
    batch = options.clips or (1 if options.device == "cpu" else None)
    values = {
        "device": torch.cuda.get_device_name() if options.device != "cpu" else "cpu",
        "threads": torch.get_num_threads(),
        "clip_seconds": options.seconds,
        "models": {
            name: measure(name, batch, options.steps, options.seconds, options.device) for name in options.models
        },
    }
    print(json.dumps(values, indent=2))
    save(options, values)
    return 0


if __name__ == "__main__":
    sys.exit(main())
