"""DP-SGD with every model of the project: gradients of clips, found at once, are those found one by one.

A workload's own loss is that of every clip alone. Where Opacus cannot find a model's gradients of clips at once, it is
refused by name, and they are computed one by one, which is right for all models.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import workspaces
from openfl_audio.errors import PrivacyError
from openfl_audio.privacy.noise import repeatable_noise
from openfl_audio.training.adapters import Lora
from openfl_audio.training.private_steps import Losses, PrivateSettings, PrivateSteps, each_alone
from tests.unit.workspaces.hubert.tones import TINY, batch_of, clips_of, tiny_hubert
from tests.unit.workspaces.shipped import WORKLOADS
from tests.unit.workspaces.speech_recognition.speech import LETTER_SAMPLES, tiny_recognizer
from tests.unit.workspaces.test_clips_alone import WHISPER, save_upstream
from workspaces.audio_classification.model import create_classifier, predict
from workspaces.audio_classification.targets import Targets
from workspaces.audio_classification.tasks import loss_of
from workspaces.hubert.loss import FrameCounts, MaskedPrediction, Objective
from workspaces.hubert.model import Hubert, save_model
from workspaces.hubert_distillation.loss import Distillation
from workspaces.hubert_distillation.model import create_student
from workspaces.keyword_spotting.ssl_features import create_upstream
from workspaces.keyword_spotting.whisper import create_whisper
from workspaces.keyword_spotting_wav2vec2.model import create_wav2vec2
from workspaces.sound_events.loss import binary_cross_entropy
from workspaces.sound_events.model import Architecture, create_tagger
from workspaces.speech_enhancement.loss import mixit_loss, speech_assignments, supervised_loss
from workspaces.speech_enhancement.model import create_sudormrf
from workspaces.speech_enhancement.settings import SudoRmRfSettings
from workspaces.speech_recognition.letters import normalize
from workspaces.speech_recognition.loss import ctc_loss

CLIPS = 4
LABELS = ("low", "high", "_silence_")
UNITS = [[0, 3], [1], [2]]
# Of the largest gradient; and of a model or a loss that is in float32 whatever its inputs are.
TOLERANCE, TOLERANCE_FLOAT32 = 1e-7, 5e-6


SETTINGS = PrivateSettings(clip=0.01, noise_multiplier=1.0, probability=0.5, clips_per_unit=2)


@dataclass(frozen=True)
class Case:
    """A model with the losses of clips; `refused` says why Opacus does not find its gradients, where it does not."""

    model: nn.Module
    losses: Losses
    refused: str | None = None
    tolerance: float = TOLERANCE


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(model: nn.Module) -> nn.Module:
    """Return the model in float64, in training, and without dropout, of which no two passes are alike.

    The embedding that SpecAugment would put in is none of what is trained, as SpecAugment is off.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("masked_spec_embed") and not isinstance(model, Hubert):
            parameter.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.double().train()


def classifier(model: nn.Module, inputs: torch.Tensor, loss: Callable) -> Case:
    exact(model)
    labels = torch.arange(len(inputs)) % len(LABELS)
    return Case(model, lambda clips: each_alone(loss, predict(model, inputs[clips]), labels[clips]))


# Sound events


def tagger(architecture: str) -> Case:
    model = exact(create_tagger(architecture, 4, width=0.25))
    patches, labels = noise(CLIPS, 101, 96), (noise(CLIPS, 4, seed=1) > 0).double()
    recurrent = "gru is a GRU" if architecture.startswith("crnn") else None
    return Case(model, lambda clips: each_alone(binary_cross_entropy, model(patches[clips]), labels[clips]), recurrent)


# Speech enhancement


def enhancement(kind: str) -> Case:
    sizes = SudoRmRfSettings(
        out_channels=16, in_channels=32, num_blocks=1, upsampling_depth=2, num_bases=24, num_groups=2
    )
    model = exact(create_sudormrf(sizes))
    sources = 0.1 * noise(CLIPS, 3, 800)

    def losses(clips: Sequence[int]) -> torch.Tensor:
        chosen = sources[clips]
        estimate = model.separate(chosen.sum(1))
        if kind == "supervised":
            return supervised_loss(estimate=estimate, reference=chosen)
        mixtures = torch.stack([chosen[:, :2].sum(1), chosen[:, 2]], 1)
        return mixit_loss(estimate=estimate, mixtures=mixtures, assignments=speech_assignments(2, estimate.shape[1]))

    return Case(model, losses, "transform.0.weight is used outside")


# Keyword spotting, and classification of a site's own recordings


def whisper(folder: Path, frozen: bool) -> Case:
    path = folder / "whisper.json"
    path.write_text(json.dumps(WHISPER | {"max_source_positions": 50}))
    model = create_whisper(config=path, labels=LABELS, form="short", frozen=frozen)
    return on_encoder(model, noise(CLIPS, *model.input_shape))


def upstream(folder: Path, kind: str, frozen: bool) -> Case:
    name = "log_mel" if kind == "log_mel" else save_upstream(folder, kind, normalize=True)
    model = create_upstream(name, labels=LABELS, frozen=frozen)
    return on_encoder(model, noise(CLIPS, *model.input_shape))


def on_encoder(model: nn.Module, inputs: torch.Tensor) -> Case:
    return classifier(model, inputs, partial(F.cross_entropy, label_smoothing=0.1))


def wav2vec2(adapter: Lora | None = None) -> Case:
    model = create_wav2vec2(config="wav2vec2_small.json", labels=LABELS, adapter=adapter)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)  # with B at zero, as it starts, A has no gradient
    return classifier(model, noise(CLIPS, 1_600), F.cross_entropy)


def own_recordings(kind: str) -> Case:
    targets = Targets("label", LABELS) if kind == "label" else Targets(kind, LABELS if kind == "labels" else ())
    model = exact(create_classifier(config="wav2vec2_small.json", targets=targets))
    inputs = noise(CLIPS, 1_600)
    wanted = torch.arange(CLIPS) % 3
    labels = {"label": wanted, "labels": F.one_hot(wanted).double(), "number": wanted.double()}[kind]
    loss = partial(loss_of, kind)
    return Case(model, lambda clips: each_alone(loss, predict(model, inputs[clips]), labels[clips]))


# HuBERT, its student, and letters


def hubert_losses(model: nn.Module, objective: Objective) -> Losses:
    batch = batch_of([1_600, 2_400, 1_000, 2_000])
    precision = next(model.parameters()).dtype
    batches = [replace(each, waveforms=each.waveforms.to(precision)) for each in clips_of(batch)]

    def losses(clips: Sequence[int]) -> torch.Tensor:
        return torch.stack([objective(model, batches[i], FrameCounts.of([batches[i]]))[0] for i in clips])

    return losses


def hubert(folder: Path, norm: str) -> Case:
    model = exact(tiny_hubert(folder, feat_extract_norm=norm))
    objective = MaskedPrediction(unmasked_weight=0.5)
    return Case(model, hubert_losses(model, objective), "masked_spec_embed is used outside")


def student(folder: Path, norm: str) -> Case:
    save_model(tiny_hubert(folder, feat_extract_norm=norm, seed=5), folder / "teacher")
    path = folder / "student.json"
    path.write_text(json.dumps(TINY | {"feat_extract_norm": norm, "hidden_size": 16, "num_hidden_layers": 1}))
    teacher = str(folder / "teacher")
    model = create_student(path, teacher, (1, 2)).train()  # in float32, as its teacher is
    return Case(
        model, hubert_losses(model, Distillation(teacher, (1, 2))), "called random operation", TOLERANCE_FLOAT32
    )


def recognizer(folder: Path, norm: str, frozen: bool) -> Case:
    model = exact(tiny_recognizer(folder, feat_extract_norm=norm, frozen=frozen))
    texts = [normalize(text) for text in ("A", "BAD", "CAB", "DA")]
    lengths = torch.tensor([LETTER_SAMPLES * (len(text) + 1) for text in texts])
    waveforms = noise(CLIPS, int(lengths.max()))

    def losses(clips: Sequence[int]) -> torch.Tensor:
        longest = int(lengths[clips].max())
        logits = model(waveforms[clips, :longest], lengths[clips])
        frames = model.count_frames(lengths)
        return torch.stack(
            [
                ctc_loss(row[None], frames[i : i + 1], [texts[i]], [str(i)]) / len(texts[i])
                for i, row in zip(clips, logits, strict=True)
            ]
        )

    return Case(model, losses, None if frozen else "being modified inplace", TOLERANCE_FLOAT32)


CASES: dict[str, Callable[[Path], Case]] = {
    **{f"tagger {name}": lambda _, name=name: tagger(name) for name in get_args(Architecture)},
    "enhancement, supervised": lambda _: enhancement("supervised"),
    "enhancement, mixit": lambda _: enhancement("mixit"),
    "whisper": lambda folder: whisper(folder, frozen=False),
    "whisper, frozen": lambda folder: whisper(folder, frozen=True),
    "upstream log-mel": lambda folder: upstream(folder, "log_mel", frozen=True),
    "upstream hubert": lambda folder: upstream(folder, "hubert", frozen=False),
    "upstream hubert, frozen": lambda folder: upstream(folder, "hubert", frozen=True),
    "upstream wav2vec2": lambda folder: upstream(folder, "wav2vec2", frozen=False),
    "wav2vec2": lambda _: wav2vec2(),
    "wav2vec2, adapters": lambda _: wav2vec2(Lora(r=2)),
    "wav2vec2, adapters with one A": lambda _: wav2vec2(Lora(r=2, freeze_a=True)),
    "own recordings, label": lambda _: own_recordings("label"),
    "own recordings, labels": lambda _: own_recordings("labels"),
    "own recordings, number": lambda _: own_recordings("number"),
    "hubert, layer": lambda folder: hubert(folder, "layer"),
    "hubert, group": lambda folder: hubert(folder, "group"),
    "student, layer": lambda folder: student(folder, "layer"),
    "student, group": lambda folder: student(folder, "group"),
    "letters, layer": lambda folder: recognizer(folder, "layer", frozen=False),
    "letters, group": lambda folder: recognizer(folder, "group", frozen=False),
    "letters, frozen": lambda folder: recognizer(folder, "layer", frozen=True),
}


# Their layers are those of the others, at a second or two of convolutions each.
SLOW = ("tagger vgg_code", "tagger crnn_joined")


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CASES]
)
def case(request, tmp_path_factory) -> Case:
    return CASES[request.param](tmp_path_factory.mktemp("model"))


def clipped(case: Case, units: Sequence[Sequence[int]], clips_per_pass: int | None = None) -> dict[str, torch.Tensor]:
    steps = PrivateSteps(case.model, SETTINGS, 4, repeatable_noise(0, "site", 0), clips_per_pass)
    return steps.clipped_gradients(units, case.losses)


def largest(gradients: dict[str, torch.Tensor]) -> float:
    return max(float(each.abs().max()) for each in gradients.values())


def check_same(case: Case, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert largest({name: found[name] - expected[name] for name in found}) <= case.tolerance * largest(expected) > 0


def clipped_by_hand(case: Case, unit: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return what a unit adds to a step, (1, ...) by the parameter's name, from plain passes over its clips."""
    case.model.zero_grad()
    for clip in unit:
        (case.losses([clip]).sum() / SETTINGS.clips_per_unit).backward()
    gradients = {
        name: torch.zeros_like(each) if each.grad is None else each.grad.clone()
        for name, each in case.model.named_parameters()
        if each.requires_grad
    }
    case.model.zero_grad()
    norm = torch.cat([each.flatten() for each in gradients.values()]).norm()
    return {name: each[None] * min(1.0, SETTINGS.clip / float(norm)) for name, each in gradients.items()}


def test_gradients_of_units_are_those_of_plain_passes(case):
    by_hand = [clipped_by_hand(case, unit) for unit in UNITS]
    check_same(case, clipped(case, UNITS), {name: torch.cat([each[name] for each in by_hand]) for name in by_hand[0]})


def test_gradients_found_at_once_are_those_found_one_by_one_or_refused_by_name(case):
    if case.refused:
        with pytest.raises(PrivacyError, match=f"clips of {type(case.model).__name__} .*{case.refused}"):
            clipped(case, UNITS, clips_per_pass=8)
        return
    check_same(case, clipped(case, UNITS, clips_per_pass=8), clipped(case, UNITS))


def test_another_unit_leaves_the_gradients_of_the_others_as_they_are(case):
    clips_per_pass = None if case.refused else 8
    others = clipped(case, UNITS[:2], clips_per_pass)
    check_same(case, {name: each[:2] for name, each in clipped(case, UNITS, clips_per_pass).items()}, others)


@pytest.mark.parametrize("architecture", get_args(Architecture))
@pytest.mark.parametrize("normalisation", ["evaluation_batch", "fedbn"])
def test_a_tagger_that_normalises_over_the_batch_is_refused(architecture, normalisation):
    model = create_tagger(architecture, 4, normalisation, width=0.25)
    with pytest.raises(PrivacyError, match=r"BatchNorm2d convolutions\.0\.norm.* take the variant with GroupNorm"):
        PrivateSteps(model, SETTINGS, 4, repeatable_noise(0, "site", 0))


def test_no_model_is_left_out():
    """A new workload has to be in CASES, and in this list."""
    folder = Path(workspaces.__file__).parent
    assert {path.parent.name for path in folder.glob("*/workload.py")} == WORKLOADS
