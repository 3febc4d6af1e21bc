"""Training of a round by two processes of a node, on the CPU, beside one process."""

import pickle
from functools import partial

import pytest
import torch

from openfl_audio.errors import OpenFLAudioError, SettingsError
from openfl_audio.node.model_interface import ModelInterface
from openfl_audio.node.progress import begin_task, current
from openfl_audio.training.together import Share, State, train_together
from tests.unit.workspaces.audio_classification.recordings import Tones, create_cnn
from workspaces.audio_classification.data import Clips
from workspaces.audio_classification.model import create_classifier
from workspaces.audio_classification.targets import Targets
from workspaces.audio_classification.tasks import TrainingSettings, train_round, validate_clips

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

WORDS = Targets("label", ("low", "high"))


def create_wav2vec2() -> torch.nn.Module:
    """Return a model that cannot be pickled, for its weight norm, without dropout, which each process draws anew."""
    model = create_classifier(config="wav2vec2_small.json", targets=WORDS)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("create", [create_wav2vec2, pytest.param(partial(create_cnn, 2), marks=pytest.mark.slow)])
def test_two_processes_come_to_the_weights_of_one(create):
    """Nine clips in batches of at most four: a batch has a process with two clips and one with one."""
    clips = Clips(Tones(["low", "high", "low"] * 3), WORDS, 0.1)
    initial = create().state_dict()
    ran = {}
    for processes in (1, 2):
        recipes = ModelInterface(create, partial(torch.optim.SGD, lr=0.01, momentum=0.9))
        trained, optimizer = recipes.provide_model(), recipes.provide_optimizer()
        # Other weights than those of the recipe, and hooks of Transformers.
        trained.load_state_dict({name: 1.1 * value for name, value in initial.items()})
        validate_clips(trained, clips, "cpu")
        begin_task("train", 0)
        settings = TrainingSettings(1, local_epochs=2, batch_size=4, clip_norm=1.0, processes=processes)
        torch.manual_seed(5)
        metrics = train_round(trained, clips, optimizer, "cpu", 0, settings)
        ran[processes] = metrics, trained.state_dict(), optimizer.state_dict()["state"], current().step
    (loss, weights, moments, steps), (loss_of_two, weights_of_two, moments_of_two, steps_of_two) = ran[1], ran[2]
    assert loss_of_two == pytest.approx(loss, rel=1e-4)
    assert steps_of_two == steps == 6
    assert any(not torch.equal(weights[name], before) for name, before in initial.items())
    for name, value in weights.items():
        torch.testing.assert_close(weights_of_two[name], value, rtol=1e-3, atol=1e-4)
    for number, state in moments.items():
        of_two = moments_of_two[number]["momentum_buffer"]
        torch.testing.assert_close(of_two, state["momentum_buffer"], rtol=1e-3, atol=1e-4)


def fail(share, model, optimizer, device):
    if share.number == 1:
        raise ValueError("clip 7 cannot be read")
    share.sum(1.0)  # waits for the other


@pytest.mark.slow
def test_what_fails_in_one_process_is_told_and_ends_the_others():
    recipes = ModelInterface(partial(torch.nn.Linear, 1, 1), partial(torch.optim.SGD, lr=0.1))
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="clip 7 cannot be read"):
        train_together(2, fail, recipes.provide_model(), recipes.provide_optimizer())


def test_shares_of_a_batch_weigh_as_the_batch_does():
    """Also where a process has no clip: it takes part with a weight of 0."""
    batch = [5, 6, 7]
    shares = [Share(None, number, 4).of(batch) for number in range(4)]
    assert [own for own, _ in shares] == [[5], [6], [7], [5]]
    assert [scale for _, scale in shares] == [pytest.approx(4 / 3)] * 3 + [0]
    assert Share().of(batch) == (batch, 1.0)


def test_privacy_is_for_one_process(monkeypatch):
    monkeypatch.setattr("workspaces.audio_classification.tasks.is_private", lambda: True)
    clips, model = Clips(Tones(["low"]), WORDS, 0.1), create_cnn(2)
    with pytest.raises(OpenFLAudioError, match="set it to 1"):
        train_round(model, clips, torch.optim.SGD(model.parameters(), 0.1), "cpu", 0, TrainingSettings(1, processes=2))


def test_what_cannot_be_sent_to_other_processes_is_refused():
    recipes = ModelInterface(partial(torch.nn.Linear, 1, 1), partial(torch.optim.SGD, lr=0.1))
    given = recipes.provide_model(), recipes.provide_optimizer()
    with pytest.raises(SettingsError, match="lambda.*set processes to 1"):
        train_together(2, fail, *given, lambda: None)
    with pytest.raises(SettingsError, match="Linear was built by no ModelInterface"):
        train_together(2, fail, torch.nn.Linear(1, 1), given[1])


class Remembering(torch.optim.SGD):
    """An optimizer that is given the weights of a round's beginning, as OpenFL's FedProx is."""

    def set_old_weights(self, weights):
        raise NotImplementedError


def test_each_process_begins_with_the_values_of_the_first():
    """Weights, frozen or not, buffers that no state_dict has, momentum, rates, and the weights that FedProx needs."""
    recipes = ModelInterface(create_with_buffer, partial(Remembering, lr=0.1, momentum=0.9))
    model, optimizer = recipes.provide_model(), recipes.provide_optimizer()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.05
    model.window.fill_(7.0)
    sent = pickle.loads(pickle.dumps((recipes, State.of(model, optimizer))))
    own, of_own = sent[1].build(sent[0], torch.device("cpu"))
    assert own is not model
    torch.testing.assert_close(own.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert own.window.tolist() == [7.0, 7.0]
    assert of_own.param_groups[0]["lr"] == 0.05
    assert torch.equal(of_own.state[own.weight]["momentum_buffer"], torch.ones(1, 2))
    assert torch.equal(of_own.param_groups[0]["w_old"][0], model.weight)


def create_with_buffer() -> torch.nn.Module:
    model = torch.nn.Linear(2, 1)
    model.register_buffer("window", torch.zeros(2), persistent=False)
    return model
