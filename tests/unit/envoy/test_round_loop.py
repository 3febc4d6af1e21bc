from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openfl.interface.interactive_api.experiment import DataInterface, TaskInterface
from openfl.protocols.aggregator_pb2 import Task
from openfl.utilities.optimizers.torch import FedProxOptimizer

from openfl_audio.envoy.round_loop import RoundCollaborator
from openfl_audio.errors import DirectorRefusedError
from openfl_audio.node.adapter import FrameworkAdapterPlugin
from openfl_audio.node.local_state import ClientStates
from openfl_audio.node.task_runner import TaskRunner
from openfl_audio.notebook.interactive_api import ModelInterface
from openfl_audio.protocol.messages import GlobalModel, TaskResult
from openfl_audio.protocol.tensors import Tensors

VALIDATE = Task(name="aggregated_model_validate", function_name="score", task_type="validate")
TRAIN = Task(name="train", function_name="fit", task_type="train")
LOCAL = Task(name="locally_tuned_model_validate", function_name="score", task_type="validate", apply_local=True)
STEPS = 3
PLAIN = partial(torch.optim.SGD, lr=0.1)


def create_model() -> torch.nn.Module:
    """y = last(body(x)), all weights 0.5 at the start; the last one's bias is frozen."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    model[1].bias.requires_grad_(False)
    return model


X, Y = torch.tensor([[1.0, 2.0], [-1.0, 0.5]]), torch.tensor([[1.0], [-2.0]])


def backward(model: torch.nn.Module) -> float:
    loss = ((model(X) - Y) ** 2).mean()
    loss.backward()
    return loss.item()


class Data(DataInterface):
    def __init__(self, n_train: int = 5, n_valid: int = 4) -> None:
        super().__init__()
        self.n_train, self.n_valid = n_train, n_valid

    def get_train_loader(self, **kwargs: Any) -> str:
        return "train loader"

    def get_valid_loader(self, **kwargs: Any) -> str:
        return "valid loader"

    def get_train_data_size(self) -> int:
        return self.n_train

    def get_valid_data_size(self) -> int:
        return self.n_valid


class FakeClient:
    """A director with one envoy: what that sends is the next global model."""

    def __init__(self, model: Tensors, rounds: int, tasks: Sequence[Task] = (VALIDATE, TRAIN)) -> None:
        self.models, self.rounds, self.tasks = [model], rounds, tasks
        self.updates: list[tuple[int, dict[str, TaskResult], Tensors]] = []
        self.calls: list[str] = []

    def get_tasks(self, collaborator_name: str) -> tuple[Sequence[Task], int, int, bool]:
        self.calls.append("tasks")
        round_number = len(self.updates)
        done = round_number >= self.rounds
        return ([] if done else self.tasks), round_number, 0, done

    def get_model(self) -> tuple[Tensors, GlobalModel]:
        self.calls.append("model")
        return {name: tensor.copy() for name, tensor in self.models[-1].items()}, GlobalModel(round=len(self.updates))

    def send_update(self, round_number: int, results: dict[str, TaskResult], tensors: Tensors) -> None:
        self.calls.append("update")
        self.updates.append((round_number, results, tensors))
        self.models.append({name: tensor.copy() for name, tensor in tensors.items()} or self.models[-1])


def make_collaborator(
    client: FakeClient | None = None,
    rounds: int = 2,
    treatment: str = "RESET",
    optimizer: Callable = PLAIN,
    local_tensors: Sequence[str] = (),
    state: Path | None = None,
    data: Data | None = None,
    tasks: Sequence[Task] = (VALIDATE, TRAIN),
    federation_uuid: str = "uuid",
    fit: Callable | None = None,
) -> RoundCollaborator:
    """Make a collaborator as a worker does, with `client` in place of the connection to a director."""
    registered = TaskInterface()

    def plain_fit(model, loader, device, optimizer):
        assert loader == "train loader"
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = backward(model)
            optimizer.step()
        return {"loss": loss}

    def score(model, loader, device):
        assert loader == "valid loader"
        with torch.no_grad():
            return {"output": model(X).sum().item()}

    train = fit or plain_fit
    train.__name__ = "fit"
    registered.register_fl_task(model="model", data_loader="loader", device="device", optimizer="optimizer")(train)
    registered.register_fl_task(model="model", data_loader="loader", device="device")(score)
    provider = ModelInterface(create_model, optimizer, local_tensors=local_tensors)
    if client is None:
        client = FakeClient(provider.initial_tensors(treatment == "CONTINUE_GLOBAL"), rounds, tasks)
    # A worker unpickles the interface: the model is built anew.
    provider = ModelInterface(create_model, optimizer, local_tensors=local_tensors)
    runner = TaskRunner()
    runner.set_optimizer_treatment(treatment)
    runner.set_data_loader(data or Data())
    runner.set_model_provider(provider)
    runner.set_framework_adapter(FrameworkAdapterPlugin())
    runner.set_task_provider(registered)
    collaborator = RoundCollaborator(
        "a", "aggregator", federation_uuid, client, runner, {}, treatment, device_assignment_policy="CPU_ONLY"
    )
    if state is not None:
        runner.states = ClientStates(state, local_tensors, treatment == "CONTINUE_LOCAL", federation_uuid)
    return collaborator


def trained_plainly(make_optimizer: Callable, rounds: int, reset: bool) -> dict[str, np.ndarray]:
    """The same steps in a plain loop, with one optimizer or a new one each round."""
    model = create_model()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(parameters)
    for _ in range(rounds):
        if reset:
            optimizer = make_optimizer(parameters)
        for _ in range(STEPS):
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters() if parameter.requires_grad}


def assert_close(found: Tensors, expected: Tensors) -> None:
    assert expected.keys() <= found.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, rtol=1e-6, atol=1e-7, err_msg=name)


def test_one_round_is_one_model_and_one_update_with_the_results_of_both_tasks():
    collaborator = make_collaborator(rounds=1)
    collaborator.run()
    client = collaborator.client
    assert client.calls == ["tasks", "model", "update", "tasks"]
    ((round_number, results, tensors),) = client.updates
    assert round_number == 0
    assert list(results) == ["aggregated_model_validate", "train"]
    with torch.no_grad():
        output = create_model()(X).sum().item()
    assert results["aggregated_model_validate"] == TaskResult(size=4, metrics={"output": output})
    assert results["train"].size == 5
    assert tensors.keys() == {"0.weight", "0.bias", "1.weight"}
    assert_close(tensors, trained_plainly(PLAIN, 1, reset=True))


OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, lr=0.05),
    "momentum": partial(torch.optim.SGD, lr=0.02, momentum=0.9),
    "adagrad": partial(torch.optim.Adagrad, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("treatment", ["RESET", "CONTINUE_LOCAL", "CONTINUE_GLOBAL"])
def test_the_optimizer_begins_anew_or_goes_on_as_the_experiment_says(name, treatment):
    collaborator = make_collaborator(rounds=3, treatment=treatment, optimizer=OPTIMIZERS[name])
    collaborator.run()
    expected = trained_plainly(OPTIMIZERS[name], 3, reset=treatment == "RESET")
    assert_close(collaborator.client.models[-1], expected)
    other = trained_plainly(OPTIMIZERS[name], 3, reset=treatment != "RESET")
    assert np.abs(other["0.weight"] - expected["0.weight"]).max() > 1e-3, "one could not tell"


def test_a_global_optimizer_goes_on_from_what_the_director_sends_not_from_what_is_here():
    first = make_collaborator(rounds=1, treatment="CONTINUE_GLOBAL", optimizer=OPTIMIZERS["adam"])
    first.run()
    sent = first.client.models[-1]
    assert "optimizer.exp_avg.0.weight" in sent
    second = make_collaborator(FakeClient(sent, 1), treatment="CONTINUE_GLOBAL", optimizer=OPTIMIZERS["adam"])
    second.run()
    assert_close(second.client.models[-1], trained_plainly(OPTIMIZERS["adam"], 2, reset=False))


def test_only_a_global_optimizer_travels():
    for treatment in ("RESET", "CONTINUE_LOCAL"):
        collaborator = make_collaborator(rounds=1, treatment=treatment, optimizer=OPTIMIZERS["adam"])
        collaborator.run()
        assert not [name for name in collaborator.client.models[-1] if name.startswith("optimizer.")]


def test_a_validation_of_the_trained_model_sees_what_training_left():
    collaborator = make_collaborator(rounds=1, tasks=[VALIDATE, TRAIN, LOCAL])
    collaborator.run()
    _, results, tensors = collaborator.client.updates[0]
    before, after = results["aggregated_model_validate"].metrics, results["locally_tuned_model_validate"].metrics
    model = create_model()
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, strict=False)
    with torch.no_grad():
        assert after["output"] == pytest.approx(model(X).sum().item())
    assert before["output"] != pytest.approx(after["output"])


def test_a_round_that_only_validates_sends_no_tensor():
    collaborator = make_collaborator(rounds=1, tasks=[VALIDATE])
    collaborator.run()
    assert collaborator.client.updates[0][2] == {}


def test_an_envoy_without_validation_clips_has_no_say():
    collaborator = make_collaborator(rounds=1, data=Data(n_valid=0))
    collaborator.run()
    _, results, _ = collaborator.client.updates[0]
    assert results["aggregated_model_validate"] == TaskResult(size=0, metrics={})
    assert results["train"].size == 5


def test_a_round_that_ended_meanwhile_is_left_alone():
    class Overtaken(FakeClient):
        def get_model(self) -> tuple[Tensors, GlobalModel]:
            model, about = super().get_model()
            if self.calls.count("model") == 1:
                self.updates.append((about.round, {}, {}))  # it closed without this envoy
                return model, GlobalModel(round=about.round + 1)
            return model, about

    client = Overtaken(make_collaborator(rounds=1).client.models[0], rounds=2)
    make_collaborator(client).run()
    assert client.calls == ["tasks", "model", "tasks", "model", "update", "tasks"]
    assert [round_number for round_number, _, _ in client.updates] == [0, 1]


def test_the_rate_is_multiplied_by_what_comes_with_the_model():
    class Halving(FakeClient):
        def get_model(self) -> tuple[Tensors, GlobalModel]:
            model, about = super().get_model()
            return model, GlobalModel(round=about.round, rate_factor=0.5**about.round)

    rates = []

    def note_rate(model, loader, device, optimizer):
        rates.append(optimizer.param_groups[0]["lr"])
        return {}

    client = Halving(make_collaborator(rounds=1).client.models[0], rounds=3)
    make_collaborator(client, fit=note_rate).run()
    assert rates == [rates[0], rates[0] / 2, rates[0] / 4]


def test_an_update_that_is_refused_does_not_end_the_envoy(caplog):
    class Refusing(FakeClient):
        def send_update(self, round_number: int, results: dict[str, TaskResult], tensors: Tensors) -> None:
            super().send_update(round_number, results, tensors)
            if round_number == 0:
                raise DirectorRefusedError("the director refused: tensor 'x' holds NaN")

    client = Refusing(make_collaborator(rounds=1).client.models[0], rounds=2)
    make_collaborator(client).run()
    assert len(client.updates) == 2
    assert "round 0: the director refused: tensor 'x' holds NaN" in caplog.text


def test_an_exception_of_a_task_ends_the_envoys_experiment():
    def fit(model, loader, device, optimizer):
        raise ValueError("no such clip")

    with pytest.raises(ValueError, match="no such clip"):
        make_collaborator(rounds=1, fit=fit).run()


def add_one(model, loader, device, optimizer):
    """Training whose result can be told without a computer."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    return {"loss": 0.0}


def test_tensors_that_match_a_pattern_never_leave_and_go_on_from_round_to_round(tmp_path):
    path = tmp_path / "state"
    collaborator = make_collaborator(rounds=3, local_tensors=["1.*"], state=path, fit=add_one)
    client = collaborator.client
    assert client.models[0].keys() == {"0.weight", "0.bias"}
    client.models[0] = {name: tensor * 0 + 10 for name, tensor in client.models[0].items()}
    collaborator.run()
    for _, _, tensors in client.updates:
        assert tensors.keys() == {"0.weight", "0.bias"}
    # The global part began at 10, the local one at 0.5, where the model does.
    assert (client.models[-1]["0.weight"] == 13).all()
    assert local_weight(path) == [[3.5, 3.5]]


def local_weight(path: Path) -> list[list[float]]:
    return kept_at(path)["1.weight"].tolist()


def kept_at(path: Path) -> Tensors:
    last = max((path / "a").glob("*.pt"), key=lambda file: file.stat().st_mtime_ns)
    return {name: tensor.numpy() for name, tensor in torch.load(last)["local"].items()}


def test_local_tensors_outlive_the_process_and_are_those_of_their_experiment(tmp_path):
    path = tmp_path / "state"
    settings = {"local_tensors": ["1.weight"], "state": path, "fit": add_one}
    make_collaborator(**settings, rounds=2).run()
    for uuid, first_round, expected in (("uuid", 2, 4.5), ("other", 0, 2.5)):
        collaborator = make_collaborator(**settings, rounds=first_round + 2, federation_uuid=uuid)
        collaborator.client.updates = [(number, {}, {}) for number in range(first_round)]
        collaborator.run()
        assert local_weight(path) == [[expected, expected]]


class Killed(BaseException):
    """The end of a process."""


class Unplugged(FakeClient):
    """The plug is pulled before the update for round 1 has counted."""

    def send_update(self, round_number: int, results: dict[str, TaskResult], tensors: Tensors) -> None:
        if round_number == 1:
            raise Killed
        super().send_update(round_number, results, tensors)


@pytest.mark.parametrize("times", [1, 2])
def test_a_round_that_is_asked_for_again_trains_local_tensors_once(tmp_path, times):
    path = tmp_path / "state"
    settings: dict[str, Any] = {"local_tensors": ["1.*"], "state": path, "fit": add_one}
    client = Unplugged(make_collaborator(**settings).client.models[0], rounds=2)
    for _ in range(times):
        with pytest.raises(Killed):
            make_collaborator(client, **settings).run()
    client.send_update = partial(FakeClient.send_update, client)
    make_collaborator(client, **settings).run()
    assert [round_number for round_number, _, _ in client.updates] == [0, 1]
    assert local_weight(path) == [[2.5, 2.5]]


class Careful(FakeClient):
    def send_update(self, round_number: int, results: dict[str, TaskResult], tensors: Tensors) -> None:
        finite = all(np.isfinite(tensor).all() for tensor in tensors.values())
        super().send_update(round_number, results, tensors if finite else {})
        if not finite:
            raise DirectorRefusedError("it holds NaN")


@pytest.mark.parametrize("name", ["momentum", "adam"])
@pytest.mark.parametrize("cut", [False, True])
def test_an_optimizer_that_continues_locally_outlives_the_process(tmp_path, name, cut):
    """A worker a round, killed before or after its second update counted, comes to the bits of one worker for all."""
    settings: dict[str, Any] = {"treatment": "CONTINUE_LOCAL", "optimizer": OPTIMIZERS[name]}
    whole = make_collaborator(rounds=3, **settings)
    whole.run()
    client: FakeClient = FakeClient(whole.client.models[0], rounds=1)
    if cut:
        client = Unplugged(whole.client.models[0], rounds=2)
        with pytest.raises(Killed):
            make_collaborator(client, state=tmp_path, **settings).run()
        client.send_update = partial(FakeClient.send_update, client)
    for rounds in (1, 2, 3):
        client.rounds = rounds
        make_collaborator(client, state=tmp_path, **settings).run()
    for key, tensor in whole.client.models[-1].items():
        np.testing.assert_array_equal(client.models[-1][key], tensor, err_msg=key)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["1.pt", "2.pt"]


def test_an_optimizer_is_not_that_of_an_experiment_of_the_same_name(tmp_path):
    settings: dict[str, Any] = {"treatment": "CONTINUE_LOCAL", "optimizer": OPTIMIZERS["adam"], "state": tmp_path}
    make_collaborator(rounds=3, **settings).run()
    found = []
    for state in (tmp_path, tmp_path / "other"):
        collaborator = make_collaborator(rounds=2, **settings | {"state": state}, federation_uuid="other")
        collaborator.run()
        found.append(collaborator.client.models[-1])
    assert_close(*found)


@pytest.mark.parametrize("spoilt", ["0.weight", "1.weight"])
def test_a_round_that_ends_in_nan_leaves_local_tensors_as_they_were(tmp_path, spoilt):
    def fit(model, loader, device, optimizer):
        result = add_one(model, loader, device, optimizer)
        if len(client.updates) == 1:
            with torch.no_grad():
                model.get_parameter(spoilt)[0, 0] = torch.nan
        return result

    path = tmp_path / "state"
    settings: dict[str, Any] = {"local_tensors": ["1.*"], "state": path, "fit": fit}
    client = Careful(make_collaborator(**settings).client.models[0], rounds=3)
    make_collaborator(client, **settings).run()
    assert local_weight(path) == [[2.5, 2.5]], "rounds 0 and 2 count"


def test_a_validation_sees_the_global_and_the_local_tensors_together(tmp_path):
    collaborator = make_collaborator(rounds=2, local_tensors=["0.*"], state=tmp_path / "state", fit=add_one)
    collaborator.run()
    model = create_model()
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.fill_(1.5)
        model[1].weight.fill_(1.5)
        model[1].bias.fill_(1.5)  # frozen: it stays here anyway, as it is in this model
        expected = model(X).sum().item()
    assert collaborator.client.updates[1][1]["aggregated_model_validate"].metrics["output"] == pytest.approx(expected)


@pytest.mark.parametrize("pattern", ["1.*", "*bias", "*weight"])
def test_local_tensors_go_together_with_a_global_optimizer(tmp_path, pattern):
    collaborator = make_collaborator(
        rounds=2,
        treatment="CONTINUE_GLOBAL",
        optimizer=OPTIMIZERS["adam"],
        local_tensors=[pattern],
        state=tmp_path / "state",
    )
    collaborator.run()
    found = collaborator.client.models[-1] | kept_at(tmp_path / "state")
    assert_close(found, trained_plainly(OPTIMIZERS["adam"], 2, reset=False))


@pytest.mark.parametrize("treatment", ["RESET", "CONTINUE_LOCAL"])
def test_fedprox_of_openfl_pulls_towards_the_weights_that_the_round_began_with(treatment):
    rate, mu, rounds = 0.05, 2.0, 2
    optimizer = partial(FedProxOptimizer, lr=rate, mu=mu)
    collaborator = make_collaborator(rounds=rounds, treatment=treatment, optimizer=optimizer)
    start = {name: tensor + 0.25 for name, tensor in collaborator.client.models[0].items()}
    collaborator.client.models[0] = start
    collaborator.run()

    model = create_model()
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in start.items()}, strict=False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for _ in range(rounds):
        began = [parameter.detach().clone() for parameter in trained]
        for _ in range(STEPS):
            model.zero_grad()
            backward(model)
            with torch.no_grad():
                for parameter, old in zip(trained, began, strict=True):
                    parameter -= rate * (parameter.grad + mu * (parameter - old))
    expected = {name: p.detach().numpy() for name, p in model.named_parameters() if p.requires_grad}
    assert_close(collaborator.client.models[-1], expected)
