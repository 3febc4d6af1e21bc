"""The benchmark of private steps, on steps of two clips."""

import pytest
import torch

from benchmarks.privacy_step import CASES, KINDS, measure, step_of


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_each_kind_is_measured_where_the_model_has_it(kind):
    measured = measure("wav2vec2_lora", kind, clips=2, repeats=1)
    if kind == "at_once":
        assert measured is None, "a weight norm, of which Opacus finds no gradients of clips"
        return
    assert measured is not None
    assert measured["seconds"] > 0
    assert measured["step_mb"] >= 0


@pytest.mark.parametrize("name", ["keyword_head", "sound_events", "letters", "student"])
def test_steps_of_each_kind_that_a_model_has_train(name):
    case = CASES[name](2)
    case.model.train()
    optimizer = torch.optim.SGD(case.model.parameters(), 0.01)
    for kind in KINDS if case.at_once else KINDS[:2]:
        trained = [parameter for parameter in case.model.parameters() if parameter.requires_grad]
        before = [parameter.clone() for parameter in trained]
        step_of(case, kind, 2, optimizer)()
        moved = [not torch.equal(now, then) for now, then in zip(trained, before, strict=True)]
        # Noise moves also what a step has no use for.
        assert any(moved) if kind == "plain" else all(moved), kind
