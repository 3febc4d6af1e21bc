"""Training of a round by two processes of a node, on the CPU, beside one process."""

import copy
import pickle
from io import BytesIO

import pytest
import torch

from openfl_audio.errors import OpenFLAudioError
from openfl_audio.node.progress import begin_task, current
from openfl_audio.training.together import Share, _Pickler, train_together
from tests.unit.workspaces.audio_classification.recordings import Tones, create_cnn
from workspaces.audio_classification.data import Clips
from workspaces.audio_classification.model import create_classifier
from workspaces.audio_classification.targets import Targets
from workspaces.audio_classification.tasks import TrainingSettings, train_round

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

WORDS = Targets("label", ("low", "high"))


def create_weight_normed() -> torch.nn.Module:
    """Return a model one of whose weights is parametrized, as that of Wav2Vec2's positional convolution is."""
    model = create_cnn(2)
    torch.nn.utils.parametrizations.weight_norm(model[1], dim=2)
    return model


@pytest.mark.parametrize("create", [lambda: create_cnn(2), create_weight_normed])
def test_two_processes_come_to_the_weights_of_one(create):
    """Nine clips in batches of at most four: a batch has a process with two clips and one with one."""
    clips = Clips(Tones(["low", "high", "low"] * 3), WORDS, 0.1)
    model = create()
    ran = {}
    for processes in (1, 2):
        trained = copy.deepcopy(model)
        optimizer = torch.optim.Adam(trained.parameters(), 0.01)
        begin_task("train", 0)
        settings = TrainingSettings(1, local_epochs=2, batch_size=4, clip_norm=1.0, processes=processes)
        torch.manual_seed(5)
        metrics = train_round(trained, clips, optimizer, "cpu", 0, settings)
        ran[processes] = metrics, trained.state_dict(), optimizer.state_dict()["state"], current().step
    (loss, weights, moments, steps), (loss_of_two, weights_of_two, moments_of_two, steps_of_two) = ran[1], ran[2]
    assert loss_of_two == pytest.approx(loss, rel=1e-5)
    assert steps_of_two == steps == 6
    assert any(not torch.equal(weights[name], before) for name, before in model.state_dict().items())
    for name, value in weights.items():
        torch.testing.assert_close(weights_of_two[name], value, rtol=1e-4, atol=1e-5)
    for number, state in moments.items():
        torch.testing.assert_close(moments_of_two[number]["exp_avg"], state["exp_avg"], rtol=1e-4, atol=1e-5)


def fail(share, model, optimizer, device):
    if share.number == 1:
        raise ValueError("clip 7 cannot be read")
    share.sum(1.0)  # waits for the other


@pytest.mark.slow
def test_what_fails_in_one_process_is_told_and_ends_the_others():
    model = torch.nn.Linear(1, 1)
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="clip 7 cannot be read"):
        train_together(2, fail, model, torch.optim.SGD(model.parameters(), 0.1))


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
    model = torch.nn.Linear(1, 1)
    model.register_forward_hook(lambda *_: None)
    with pytest.raises(OpenFLAudioError, match="lambda.*set processes to 1"):
        train_together(2, fail, model, torch.optim.SGD(model.parameters(), 0.1))


def test_parametrized_weights_are_sent_with_the_parameters_that_the_optimizer_has():
    """Wav2Vec2's weight norm, and the convolution that holds itself to be right in half precision."""
    model = create_classifier(config="wav2vec2_small.json", targets=WORDS).eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    file = BytesIO()
    _Pickler(file).dump((model, optimizer))
    sent, of_sent = pickle.loads(file.getvalue())
    assert [*map(id, sent.parameters())] == [*map(id, of_sent.param_groups[0]["params"])]
    waveforms = torch.randn(2, 4_000)
    outputs = model(waveforms).logits
    torch.testing.assert_close(sent(waveforms).logits, outputs)
    sent(waveforms).logits.sum().backward()
    of_sent.step()
    assert not torch.equal(sent(waveforms).logits, outputs)
    assert sent.state_dict().keys() == model.state_dict().keys()
