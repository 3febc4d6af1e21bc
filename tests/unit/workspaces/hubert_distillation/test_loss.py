import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import HubertConfig, HubertModel

from openfl_audio.errors import PretrainedWeightsError, SettingsError
from openfl_audio.node.adapter import FrameworkAdapterPlugin
from tests.unit.workspaces.hubert.tones import CLUSTERS, TINY, Tones, batch_of, clips_of, tiny_hubert
from workspaces.hubert.data import Clips
from workspaces.hubert.loss import FrameCounts
from workspaces.hubert.model import load_model, save_model
from workspaces.hubert.tasks import TrainingSettings, add_sums, train_round, validate_objective
from workspaces.hubert_distillation.loss import Distillation
from workspaces.hubert_distillation.model import compare_size_and_speed, create_student, load_teacher

SMALLER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "conv_dim": [8, 12, 16]}
LENGTHS = [16_000, 11_111, 6_400]


@pytest.fixture
def student_config(tmp_path):
    path = tmp_path / "student.json"
    path.write_text(json.dumps(TINY | SMALLER))
    return path


@pytest.fixture
def teacher(tmp_path):
    """The folder of a teacher with a head."""
    save_model(tiny_hubert(tmp_path, seed=5), tmp_path / "teacher")
    return str(tmp_path / "teacher")


@pytest.fixture
def teacher_without_head(tmp_path):
    torch.manual_seed(0)
    HubertModel(HubertConfig(**TINY)).save_pretrained(tmp_path / "published")
    (tmp_path / "published" / "preprocessor_config.json").write_text('{"do_normalize": false}')
    return str(tmp_path / "published")


def test_a_padded_batch_has_the_loss_and_the_sums_of_its_clips(teacher, student_config):
    student = create_student(student_config, teacher, (1, 2))
    objective = Distillation(teacher, (1, 2))
    batch = batch_of(LENGTHS)
    counts = FrameCounts.of([batch])
    loss, sums = objective(student, batch, counts)
    parts = [objective(student, clip, counts) for clip in clips_of(batch)]
    together: dict = {}
    for _, seen in parts:
        add_sums(together, seen)
    assert loss.item() == pytest.approx(sum(part[0].item() for part in parts), rel=1e-5)
    assert objective.metrics(sums) == pytest.approx(objective.metrics(together), rel=1e-5)
    assert objective.metrics(sums)["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_the_loss_is_that_of_its_formula(teacher, student_config):
    student = create_student(student_config, teacher, (1, 2)).eval()
    batch = batch_of([16_000])
    loss, sums = Distillation(teacher, (1, 2), temperature=3.0, alpha=0.7, beta=0.2)(
        student, batch, FrameCounts.of([batch])
    )
    wise = load_model(teacher)
    with torch.no_grad():
        known = wise.extract_features(batch.waveforms)[0]
        output = student.extract_features(batch.waveforms)[0][-1]
        p = (wise.logits(known[-1])[0] / 3).softmax(-1).double()
        q = (student.logits(output)[0] / 3).softmax(-1).double()
        expected = 0.7 * 9 * (p * (p / q).log()).sum(-1).mean()
        for layer in (0, 1):
            predicted = student.predictors[layer](output)[0]
            similarity = F.cosine_similarity(predicted, known[layer][0], dim=-1)
            distance = (predicted - known[layer][0]).abs().mean()
            expected += 0.2 * 0.5 * (distance + torch.log(1 + torch.exp(-similarity)).mean())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    agreement = Distillation(teacher, (1, 2)).metrics(sums)["agreement"]
    assert agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())


@pytest.mark.training
def test_a_student_learns_from_its_teacher_which_stays_as_it_is(teacher, student_config):
    clips = Clips(Tones([24_000] * 12), None, None)
    student = create_student(student_config, teacher, (1, 2))
    objective = Distillation(teacher, (1, 2))
    before = validate_objective(student, clips, "cpu", objective)
    weights = {name: tensor.clone() for name, tensor in load_teacher(teacher).state_dict().items()}
    settings = TrainingSettings(
        rounds=1,
        learning_rate=3e-3,
        local_epochs=10,
        max_samples=100_000,
        max_clip_samples=64_000,
        feature_grad_mult=1.0,
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    metrics = train_round(student, clips, optimizer, "cpu", 0, settings, objective)
    after = validate_objective(student, clips, "cpu", objective)
    assert after["loss"] < 0.7 * before["loss"]
    assert after["cosine_similarity"] > before["cosine_similarity"] + 0.2
    assert after["divergence"] < before["divergence"]
    assert after["loss"] < metrics["loss"] < before["loss"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_teacher(teacher).state_dict().items())
    assert all(parameter.grad is None for parameter in load_teacher(teacher).parameters())


def test_nothing_of_the_teacher_travels(teacher, student_config):
    student = create_student(student_config, teacher, (1, 2))
    batch = batch_of([6_400])
    Distillation(teacher, (1, 2))(student, batch, FrameCounts.of([batch]))
    travelling = FrameworkAdapterPlugin.get_tensor_dict(student)
    assert sum(array.size for array in travelling.values()) == sum(p.numel() for p in student.parameters())
    assert travelling.keys() == create_student(student_config, teacher, (1, 2)).state_dict().keys()


def test_a_saved_student_loads_as_any_model(teacher, student_config, tmp_path):
    student = create_student(student_config, teacher, (1, 2)).eval()
    save_model(student, tmp_path / "student")
    waveform = batch_of([8_000]).waveforms
    with torch.no_grad():
        expected = student(waveform)
        torch.testing.assert_close(load_model(tmp_path / "student")(waveform), expected)
        theirs = HubertModel.from_pretrained(tmp_path / "student").eval()
        torch.testing.assert_close(theirs(waveform).last_hidden_state, expected, rtol=0, atol=1e-4)


def test_a_teacher_without_head_teaches_its_layers(teacher_without_head, student_config):
    student = create_student(student_config, teacher_without_head, (2,))
    assert not student.has_head
    batch = batch_of([6_400])
    objective = Distillation(teacher_without_head, (2,), alpha=0.0)
    loss, sums = objective(student, batch, FrameCounts.of([batch]))
    assert objective.metrics(sums).keys() == {"loss", "l1", "cosine_similarity"}
    assert math.isfinite(loss.item())
    with pytest.raises(SettingsError, match=r"predicts no clusters: set distillation\.alpha=0"):
        Distillation(teacher_without_head, (2,), alpha=0.5)(student, batch, FrameCounts.of([batch]))


@pytest.mark.parametrize("layers", [(), (0, 1), (3,)])
def test_layers_that_the_teacher_has_not_are_refused(teacher, student_config, layers):
    with pytest.raises(SettingsError, match=r"distillation\.layers is .* has layers 1 to 2"):
        create_student(student_config, teacher, layers)


def test_a_teacher_that_cannot_be_had_says_how_to_get_it(student_config, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PretrainedWeightsError, match="hf download nobody/nothing-at-all"):
        create_student(student_config, "nobody/nothing-at-all", (1,))


def test_size_and_speed_are_those_of_the_models(teacher, student_config):
    student = create_student(student_config, teacher, (1, 2))
    result = compare_size_and_speed(student, load_teacher(teacher), "cpu", seconds=1.0)
    assert result["teacher_parameters"] == sum(p.numel() for p in tiny_sizes(teacher))
    predictors = 2 * (16 * 32 + 32)
    assert result["student_parameters"] == sum(p.numel() for p in student.parameters()) - predictors
    assert result["times_smaller"] == pytest.approx(result["teacher_parameters"] / result["student_parameters"])
    assert result["times_smaller"] > 2
    assert min(result["student_seconds"], result["teacher_seconds"]) > 0
    assert result["times_faster"] == pytest.approx(result["teacher_seconds"] / result["student_seconds"])


def test_students_are_256_or_384_wide_and_begin_from_the_seed(teacher):
    for config, width, layers in (("student_256x4.json", 256, 4), ("student_384x6.json", 384, 6)):
        student = create_student(config, teacher, (1, 2), seed=1)
        assert student.config.hidden_size == width
        assert len(student.encoder.layers) == layers
        assert student.config.clusters == CLUSTERS
    again = create_student(config, teacher, (1, 2), seed=1)
    np.testing.assert_array_equal(again.predictors[0].weight.detach(), student.predictors[0].weight.detach())


def tiny_sizes(teacher):
    return list(load_model(teacher).parameters())
