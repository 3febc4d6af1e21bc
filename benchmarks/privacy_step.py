#!/usr/bin/env python3
"""Seconds and memory of a private step beside those of a plain one, for the models that train privately.

    python benchmarks/privacy_step.py --save privacy-step

A step is on --clips clips of one second of noise, with SGD, in float32 on one core. `plain` takes the mean of their
losses; `one_by_one` is DP-SGD with a backward pass for each clip; `at_once` finds the gradients of all clips in one
pass by Opacus, where it can. The one that training takes on this device is named in `uses`. Each has a process of its
own; `seconds` is the least of --repeats after one that does not count, and `step_mb` the most memory that the process
held in a step beyond what it had before the first.

Ghost clipping (Li et al., arXiv 2110.05679) finds norms without the gradients of clips, and takes a second backward
pass. It is not here: Opacus 1.6 has it for linear layers and embeddings only, and holds the gradients of clips for
layers of all other kinds, as `at_once` does.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package

import torch
import torch.nn.functional as F

from benchmarks.arguments import add_save, save, whole_number
from benchmarks.steps import in_new_process, measure_steps
from openfl_audio.privacy.noise import Noise
from openfl_audio.training.adapters import Lora
from openfl_audio.training.private_round import clips_at_once
from openfl_audio.training.private_steps import Losses, PrivateSettings, PrivateSteps, each_alone
from workspaces.audio_classification.model import create_classifier, predict
from workspaces.audio_classification.targets import Targets
from workspaces.hubert.data import Batch
from workspaces.hubert.loss import FrameCounts
from workspaces.hubert.model import create_hubert, save_model
from workspaces.hubert.tasks import trial_batch
from workspaces.hubert_distillation.loss import Distillation
from workspaces.hubert_distillation.model import create_student, load_teacher
from workspaces.keyword_spotting.tasks import PRIVATE_CLIPS_PER_PASS
from workspaces.keyword_spotting.whisper import create_whisper
from workspaces.sound_events.loss import binary_cross_entropy
from workspaces.sound_events.model import create_tagger
from workspaces.sound_events.tasks import PRIVATE_PATCHES_PER_PASS
from workspaces.speech_recognition.letters import normalize
from workspaces.speech_recognition.loss import ctc_loss
from workspaces.speech_recognition.model import create_recognizer

SAMPLE_RATE, RATE = 16_000, 0.01
WORDS, TAGS = tuple("abcdefghijkl"), 41
TEXT, CLUSTERS, LAYERS = "SEVENTEEN", 100, (1, 2)
KINDS = ("plain", "one_by_one", "at_once")


class Case(NamedTuple):
    """A model, the losses of clips that it is trained by, and how many of them Opacus may take at once, if any."""

    model: torch.nn.Module
    losses: Losses
    at_once: int | None


def head(clips: int) -> Case:
    """Return the head of `keyword_spotting` on a frozen encoder, whose outputs are kept."""
    model = create_whisper(config="whisper_small.json", labels=WORDS, form="short", frozen=True)
    with torch.no_grad():
        outputs = model.encode(torch.randn(clips, *model.input_shape))
    return Case(model.head, of_words(model.head, outputs), PRIVATE_CLIPS_PER_PASS)


def whisper(clips: int) -> Case:
    """Return the encoder of `keyword_spotting`, trained whole."""
    model = create_whisper(config="whisper_small.json", labels=WORDS, form="short", frozen=False)
    return Case(model, of_words(model, torch.randn(clips, *model.input_shape)), PRIVATE_CLIPS_PER_PASS)


def wav2vec2(clips: int, adapter: Lora | None = None) -> Case:
    """Return the Wav2Vec2 of `audio_classification` and of `keyword_spotting_wav2vec2`."""
    model = create_classifier(config="wav2vec2_small.json", targets=Targets("label", WORDS), adapter=adapter)
    return Case(model, of_words(partial(predict, model), torch.randn(clips, SAMPLE_RATE)), None)


def tagger(clips: int) -> Case:
    """Return the network of `sound_events`, with GroupNorm."""
    model = create_tagger("vgg", TAGS, normalisation="group", width=0.25)
    patches, tags = torch.randn(clips, 101, 96), (torch.rand(clips, TAGS) < 0.1).float()
    return Case(model, losses_of(binary_cross_entropy, model, patches, tags), PRIVATE_PATCHES_PER_PASS)


def letters(clips: int) -> Case:
    """Return the small HuBERT of `speech_recognition`, trained whole, on a word a clip."""
    model: Any = create_recognizer(config="hubert_small.json")
    text = normalize(TEXT)
    waveforms, lengths = torch.randn(clips, SAMPLE_RATE), torch.full((clips,), SAMPLE_RATE)
    frames = model.count_frames(lengths)

    def losses(chosen: Sequence[int]) -> torch.Tensor:
        logits = model(waveforms[chosen], lengths[chosen])
        return torch.stack([ctc_loss(row[None], frames[:1], [text], [TEXT]) / len(text) for row in logits])

    return Case(model, losses, None)


def student(clips: int) -> Case:
    """Return the small student of `hubert_distillation`, with the small HuBERT for its teacher."""
    with TemporaryDirectory() as teacher:
        save_model(create_hubert("hubert_small.json", CLUSTERS, final_dim=64), Path(teacher))
        load_teacher(teacher)  # it is kept
        model = create_student("student_small.json", teacher, LAYERS)
    everything, objective = trial_batch(clips, SAMPLE_RATE, CLUSTERS), Distillation(teacher, LAYERS)

    def losses(chosen: Sequence[int]) -> torch.Tensor:
        batch = Batch(*(each[chosen] for each in vars(everything).values()))
        # Clips have as many frames each, so that the mean over all frames is that over clips.
        return objective(model, batch, FrameCounts.of([batch]))[0].expand(len(chosen))

    return Case(model, losses, None)


def of_words(model: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> Losses:
    """Return the cross-entropy of each clip, whose words are by turns those that there are."""
    return losses_of(F.cross_entropy, model, inputs, torch.arange(len(inputs)) % len(WORDS))


def losses_of(
    loss: Callable[..., torch.Tensor],
    model: Callable[[torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    labels: torch.Tensor,
) -> Losses:
    """Return the loss of each clip."""
    return lambda chosen: each_alone(loss, model(inputs[chosen]), labels[chosen])


CASES: dict[str, Callable[[int], Case]] = {
    "keyword_head": head,
    "whisper": whisper,
    "wav2vec2": wav2vec2,
    "wav2vec2_lora": partial(wav2vec2, adapter=Lora(r=4)),
    "sound_events": tagger,
    "letters": letters,
    "student": student,
}


def measure(name: str, kind: str, clips: int, repeats: int) -> dict[str, float] | None:
    """Measure steps in this process, which should be a new one. Returns None where the model has none of this kind."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = CASES[name](clips)
    if kind == "at_once" and case.at_once is None:
        return None
    case.model.train()
    optimizer = torch.optim.SGD([each for each in case.model.parameters() if each.requires_grad], RATE)
    step = step_of(case, kind, clips, optimizer)
    steps = measure_steps(step, repeats)
    return {"seconds": round(min(steps.seconds), 4), "step_mb": round(steps.step_bytes / 1e6, 1)}


def step_of(case: Case, kind: str, clips: int, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Return a function that takes a step of this kind."""
    everybody = list(range(clips))
    if kind == "plain":

        def make_gradients() -> None:
            optimizer.zero_grad()
            case.losses(everybody).mean().backward()

    else:
        settings = PrivateSettings(clip=1.0, noise_multiplier=1.0, probability=1.0)
        steps = PrivateSteps(case.model, settings, clips, Noise(), case.at_once if kind == "at_once" else None)
        make_gradients = partial(steps.make_gradients, [[clip] for clip in everybody], case.losses)

    def step() -> None:
        make_gradients()
        optimizer.step()

    return step


def compare(name: str, clips: int, repeats: int) -> dict[str, Any]:
    """Return the steps of a model, what its workload uses, and how many times as long that takes as a plain step."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        found[kind] = in_new_process(measure, name, kind, clips, repeats)
    case = CASES[name](1)
    found["uses"] = "one_by_one" if clips_at_once(case.model, case.at_once) is None else "at_once"
    found["times_plain"] = round(found[found["uses"]]["seconds"] / found["plain"]["seconds"], 2)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--clips", type=whole_number, default=32, metavar="N", help="in a step (%(default)s)")
    parser.add_argument("--repeats", type=whole_number, default=5, metavar="N", help="steps that count (%(default)s)")
    add_save(parser)
    options = parser.parse_args(arguments)
    found = {}
    for name in options.models:
        found[name] = compare(name, options.clips, options.repeats)
        print(name, json.dumps(found[name]), flush=True)
    save(options, {"clips": options.clips, "steps": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
