import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dp_accounting
import numpy as np
import pytest
import torch

from openfl_audio.errors import SimulationError, TooFewUpdatesError, UnknownMetricError
from openfl_audio.notebook import live_view as progress
from openfl_audio.privacy.accounting import ADJACENCY, ADJACENCY_OF_SUMS
from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.participation import Participation
from openfl_audio.protocol.privacy import AdaptiveClip, RecordLevel, SiteLevel
from openfl_audio.protocol.rules import Mean, TrimmedMean
from openfl_audio.protocol.secure_aggregation import SecureAggregation
from openfl_audio.protocol.server_optimizers import FedAdam
from openfl_audio.protocol.tensors import TensorFile, Tensors
from openfl_audio.simulation import checkpoint
from openfl_audio.simulation.simulation import Simulation
from openfl_audio.testing.noise import noise_that_repeats
from openfl_audio.training.private_round import train_privately, trains_privately
from tests.unit import toy

CLIENTS = ["a-4", "b-2", "c-7"]


def weights_of(simulation: Simulation) -> Tensors:
    return {name: tensor.numpy() for name, tensor in simulation.last_model().state_dict().items()}


def train_with_numpy(clients: Sequence[str], rounds: int, precision: str = "f4") -> tuple[np.ndarray, np.ndarray]:
    """FedAvg over gradient descent on the mean squared error of x w + b. What travels is rounded to `precision`."""
    w, b = np.array([[0.5], [0.25]]), -0.5
    shards = [toy.Points(client) for client in clients]
    for _ in range(rounds):
        updates = []
        for shard in shards:
            own_w, own_b = w.astype("f4").astype(precision).astype(float), float(np.float32(b).astype(precision))
            for _ in range(toy.STEPS):
                error = shard.x.astype(float) @ own_w + own_b - shard.y  # (clips, 1)
                own_w = own_w - toy.RATE * 2 * shard.x.T.astype(float) @ error / len(error)
                own_b = own_b - toy.RATE * 2 * error.mean()
            updates.append((own_w.astype("f4").astype(precision), np.float32(own_b).astype(precision)))
        clips = [len(shard.x) for shard in shards]
        w = np.average([w.astype(float) for w, _ in updates], axis=0, weights=clips)
        b = np.average([float(b) for _, b in updates], weights=clips)
    return w.T, np.array([b])


def assert_weights(simulation: Simulation, expected: tuple[np.ndarray, np.ndarray], tolerance: float = 1e-5) -> None:
    """`tolerance`: torch computes in float32, what is expected is in float64."""
    found = weights_of(simulation)
    np.testing.assert_allclose(found["line.weight"], expected[0], rtol=tolerance)
    np.testing.assert_allclose(found["line.bias"], expected[1], rtol=tolerance)


def test_the_result_is_fedavg_in_numpy_over_clients_of_unequal_size(tmp_path):
    simulation = toy.simulate(tmp_path, CLIENTS, rounds=5)
    assert_weights(simulation, train_with_numpy(CLIENTS, 5))
    assert weights_of(simulation)["seen"] == 1 + 5 * toy.STEPS - 1, "a counter takes the maximum"
    assert not np.allclose(train_with_numpy(CLIENTS, 4)[0], train_with_numpy(CLIENTS, 5)[0], rtol=1e-3)


def test_one_client_that_has_everything_is_training_without_a_federation(tmp_path):
    simulation = toy.simulate(tmp_path, ["all-20"], rounds=4)
    assert_weights(simulation, train_with_numpy(["all-20"], 4))


def test_records_say_what_each_client_did_and_are_in_the_history_file(tmp_path):
    simulation = toy.simulate(tmp_path, CLIENTS, rounds=2)
    records = simulation.records
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    assert [record["round"] for record in records] == [0, 1, 2]
    sizes = {
        client: {task: said["size"] for task, said in tasks.items()} for client, tasks in records[0]["envoys"].items()
    }
    assert sizes == {
        f"{n}": {"aggregated_model_validate": k, "train": k} for n, k in zip(CLIENTS, (4, 2, 7), strict=True)
    }
    with torch.no_grad():
        losses = [toy.loss_of(toy.Line(), toy.Points(client)).item() for client in CLIENTS]
    mean = np.average(losses, weights=[4, 2, 7])
    assert records[0]["metrics"]["aggregated_model_validate"]["accuracy"] == pytest.approx(-mean, rel=1e-6)
    assert records[2]["metrics"].keys() == {"aggregated_model_validate"}, "the last round says how good the model is"
    frame = simulation.history
    assert list(frame["round"]) == [0, 1, 2]
    assert frame["accuracy"].tolist() == [r["metrics"]["aggregated_model_validate"]["accuracy"] for r in records]


def test_bytes_are_those_of_models_down_to_all_and_up_from_those_that_train(tmp_path):
    tensor_bytes = 2 * 4 + 4 + 8  # weight, bias, counter
    records = toy.simulate(tmp_path, [*CLIENTS, "d-0"], rounds=1).records
    header = records[0]["bytes_down"] / 4 - tensor_bytes
    assert 0 < header < 400
    assert records[0]["bytes_up"] == 3 * (tensor_bytes + header)
    assert (records[1]["bytes_up"], records[1]["bytes_down"]) == (0, 4 * (tensor_bytes + header))


def test_watch_prints_a_line_a_round_and_gives_the_history(tmp_path, capsys):
    simulation = Simulation(CLIENTS, toy.Points, tmp_path)
    simulation.start("toy", **toy.arguments(rounds=2))
    history = simulation.watch()
    assert list(history["round"]) == [0, 1, 2]
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert simulation.watch().equals(history), "there is nothing left to run"


def test_watch_shows_a_display_in_a_notebook(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(progress, "_is_kernel", lambda: True)
    monkeypatch.setattr(progress.LiveDisplay, "_content", lambda self, records: shown.append(len(records)) or {})
    simulation = Simulation(CLIENTS, toy.Points, tmp_path)
    simulation.start("toy", **toy.arguments(rounds=2))
    with patch("IPython.display.display"):
        assert len(simulation.watch()) == 3
    assert (shown[0], shown[-1]) == (0, 3)


class Boaster(toy.Data):
    """Says that it has a thousand times the clips of its shard."""

    def get_train_data_size(self) -> int:
        return 1000 * super().get_train_data_size()

    get_valid_data_size = get_train_data_size


class Counted(toy.Points):
    def __len__(self) -> int:
        return len(self.x)


def test_clients_weigh_no_more_than_their_shards_and_are_named(tmp_path):
    simulation = Simulation(CLIENTS, lambda c: Counted(c) if c == "b-2" else toy.Points(c), tmp_path)
    simulation.start("toy", **toy.arguments(rounds=1) | {"data_loader": Boaster()})
    notes = next(simulation.run())["notes"]
    said = "claims 2000 clips for task '{}', and registered 2: it weighs those"
    assert notes == {"b-2": [said.format("aggregated_model_validate"), said.format("train")]}
    honest = toy.simulate(tmp_path / "honest", ["a-4", "c-7"], rounds=1)
    assert_weights(simulation, tuple(weights_of(honest)[name] for name in ("line.weight", "line.bias")), 1e-2)


def test_only_those_run_whose_turn_it_is(tmp_path):
    participation = Participation(count=2, seed=3)
    clients = [f"{letter}-3" for letter in "abcdefgh"]
    opened = []

    def open_shard(client: str) -> toy.Points:
        opened.append(client)
        return toy.Points(client)

    simulation = toy.simulate(tmp_path, clients, open_shard, rounds=3, participation=participation)
    asked = [participation.trainers(number, clients) for number in range(4)]
    assert [list(record["envoys"]) for record in simulation.records] == asked
    assert len({client for each in asked for client in each}) < len(clients), "one could not tell"
    assert sorted(opened) == sorted({client for each in asked for client in each}), "nobody else, and each once"


def test_evaluators_alone_validate(tmp_path):
    participation = Participation(evaluators=["c-7"])
    simulation = toy.simulate(tmp_path, CLIENTS, rounds=2, participation=participation)
    validate, train = "aggregated_model_validate", "train"
    tasks = [{client: list(said) for client, said in record["envoys"].items()} for record in simulation.records]
    assert tasks == [{"a-4": [train], "b-2": [train], "c-7": [validate]}] * 2 + [{"c-7": [validate]}]
    assert_weights(simulation, train_with_numpy(["a-4", "b-2"], 2))


def test_the_experiment_may_take_some_of_the_clients(tmp_path):
    simulation = toy.simulate(tmp_path, CLIENTS, rounds=2, envoys=["c-7", "a-4"])
    assert_weights(simulation, train_with_numpy(["a-4", "c-7"], 2))


def test_a_client_without_clips_is_left_out(tmp_path):
    simulation = toy.simulate(tmp_path, [*CLIENTS, "d-0"], rounds=3)
    assert_weights(simulation, train_with_numpy(CLIENTS, 3))
    empty = {"aggregated_model_validate": {"size": 0}, "train": {"size": 0}}
    assert simulation.records[0]["envoys"]["d-0"] == empty
    assert simulation.records[0]["missing"] == []


def fit_badly(model, points, device, optimizer, round_number):
    """One client's weights are NaN in one round."""
    metrics = toy.fit(model, points, device, optimizer, round_number)
    if (points.client, round_number) == ("b-2", 1):
        torch.nn.init.constant_(model.line.bias, np.nan)
    return metrics


def test_an_update_with_nan_is_refused_and_the_round_goes_on(tmp_path):
    simulation = toy.simulate(tmp_path, CLIENTS, rounds=2, train=fit_badly)
    record = simulation.records[1]
    assert record["refused"] == {"b-2": "tensor 'line.bias' holds NaN or infinity"}
    assert list(record["envoys"]) == ["a-4", "c-7"]
    assert [simulation.records[number]["refused"] for number in (0, 2)] == [{}, {}]
    updates = [toy.Points(client) for client in ("a-4", "c-7")]
    model = torch.nn.Linear(2, 1)
    w, b = train_with_numpy(CLIENTS, 1)
    trained = []
    for points in updates:
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(w))
            model.bias.copy_(torch.from_numpy(b))
        optimizer = toy.PLAIN(model.parameters())
        for _ in range(toy.STEPS):
            optimizer.zero_grad()
            toy.loss_of(model, points).backward()
            optimizer.step()
        trained.append((model.weight.detach().numpy().copy(), model.bias.detach().numpy().copy()))
    expected = tuple(np.average(part, axis=0, weights=[4, 7]) for part in zip(*trained, strict=True))
    assert_weights(simulation, expected)


def test_many_clients_of_which_some_do_not_count(tmp_path):
    # Without clips, refused, or validating only: here and there among those that train.
    sizes = [3, 0, 5, 2, 7, 0, 0, 4, 1, 6, 2, 8, 3, 0, 5, 9, 2, 0, 4, 3, 6, 0, 1, 2, 7]
    clients = [f"c{number:02d}-{size}" for number, size in enumerate(sizes)]
    refused, evaluators = [clients[4], clients[11]], [clients[8], clients[16]]

    def fit(model, points, device, optimizer, round_number):
        metrics = toy.fit(model, points, device, optimizer, round_number)
        if points.client in refused:
            torch.nn.init.constant_(model.line.bias, np.nan)
        return metrics

    participation = Participation(evaluators=evaluators)
    simulation = toy.simulate(tmp_path, clients, rounds=2, train=fit, participation=participation)
    assert list(simulation.records[0]["refused"]) == refused
    counted = [client for client in clients if not client.endswith("-0") and client not in refused + evaluators]
    assert_weights(simulation, train_with_numpy(counted, 2))


@pytest.mark.parametrize("undefined", [np.nan, None])
def test_a_metric_that_is_undefined_on_one_client_is_said_and_its_training_counts(tmp_path, capsys, undefined):
    def measure(model, points, device):
        return {"accuracy": undefined if points.client == "b-2" else 1.0}

    simulation = Simulation(CLIENTS, toy.Points, tmp_path)
    simulation.start("toy", **toy.arguments(rounds=1, validate=measure))
    history = simulation.watch()
    sentence = "metric 'accuracy' of task 'aggregated_model_validate' is nan: undefined, and left out of the mean"
    assert simulation.records[0]["notes"] == {"b-2": [sentence]}
    assert simulation.records[0]["refused"] == {}
    assert history["left out"].tolist() == [f"b-2: {sentence}"] * 2
    assert history["accuracy"].tolist() == [1.0, 1.0]
    assert capsys.readouterr().out.count(f"b-2: {sentence}\n") == 2
    assert_weights(simulation, train_with_numpy(CLIENTS, 1))


def test_a_best_metric_that_no_client_reports_is_an_error_with_the_names_there_are(tmp_path):
    with pytest.raises(UnknownMetricError, match=r"'hits'.*reports \['accuracy'\]"):
        toy.simulate(tmp_path, CLIENTS, rounds=8, best=("hits", "max"), patience=2)


def test_a_trim_of_nobody_is_refused_before_anybody_trains(tmp_path):
    simulation = Simulation(CLIENTS, toy.Points, tmp_path)
    with pytest.raises(ValueError, match="cuts nothing off 3 updates"):
        simulation.start("toy", **toy.arguments(aggregation=Aggregation(rule=TrimmedMean(share=0.1))))


def test_an_exception_of_a_task_names_client_and_round(tmp_path):
    def fit(model, points, device, optimizer, round_number):
        if (points.client, round_number) == ("b-2", 1):
            raise KeyError("no such clip")
        return toy.fit(model, points, device, optimizer, round_number)

    with pytest.raises(SimulationError, match=r"^client 'b-2' in round 1: KeyError: 'no such clip'$"):
        toy.simulate(tmp_path, CLIENTS, train=fit)


def test_a_task_that_cannot_open_a_file_names_the_file(tmp_path):
    def fit(model, points, device, optimizer, round_number):
        (tmp_path / "clip_17.wav").open()

    with pytest.raises(SimulationError, match=r"FileNotFoundError: \[Errno 2\] .*/clip_17\.wav'$"):
        toy.simulate(tmp_path, CLIENTS, train=fit)


def test_a_shard_that_cannot_be_opened_names_the_client(tmp_path):
    with pytest.raises(SimulationError, match=r"^client 'many' in round 0: IndexError"):
        toy.simulate(tmp_path, ["many"])


def test_a_round_in_which_nobody_trained_ends_it_and_names_the_reasons(tmp_path):
    with pytest.raises(
        TooFewUpdatesError, match=r"round 0: 0 updates .*: envoy 'a-0' trained on no clips; envoy 'b-0'"
    ):
        toy.simulate(tmp_path, ["a-0", "b-0"])

    def fit(model, points, device, optimizer, round_number):
        torch.nn.init.constant_(model.line.weight, np.inf)
        return {}

    with pytest.raises(TooFewUpdatesError, match="tensor 'line.weight' holds NaN or infinity"):
        toy.simulate(tmp_path / "other", ["a-4"], train=fit)


def scores(*values: float) -> Callable:
    """A validation that says these one after the other."""
    left = list(values)
    return lambda model, points, device: {"accuracy": left.pop(0)}


def named(function: Callable) -> Callable:
    function.__name__ = "measure"
    return function


def test_patience_ends_it_early_and_the_best_model_is_that_of_the_best_score(tmp_path):
    validate = named(scores(0.1, 0.5, 0.9, 0.9, 0.3, 0.4, 1.0))
    simulation = toy.simulate(tmp_path, ["all-9"], rounds=9, validate=validate, patience=3)
    assert [record["best"] for record in simulation.records] == [True, True, True, False, False, False]
    best = simulation.best_model()
    expected = train_with_numpy(["all-9"], 2)
    np.testing.assert_allclose(best.line.weight.detach(), expected[0], rtol=1e-5)
    assert_weights(simulation, train_with_numpy(["all-9"], 6))


def test_the_rate_of_a_simulation_is_halved_after_so_many_validations_without_a_better_one(tmp_path):
    rates = []

    def note_rate(model, points, device, optimizer, round_number):
        rates.append(optimizer.param_groups[0]["lr"] / toy.RATE)
        return {}

    validate = named(scores(0.1, 0.5, 0.4, 0.3, 0.9, 0.2))
    toy.simulate(tmp_path, ["all-9"], rounds=5, train=note_rate, validate=validate, halve_rate_after=1)
    assert rates == [1, 1, 1, 0.5, 0.25]


def test_models_of_the_beginning_the_best_and_the_last_round(tmp_path):
    simulation = Simulation(CLIENTS, toy.Points, tmp_path)
    arguments = toy.arguments(rounds=3, validate=named(scores(*[0.2] * 3, *[0.8] * 3, *[0.1] * 6)))
    simulation.start("toy", **arguments)
    with pytest.raises(SimulationError, match="experiment 'toy' has no best model yet"):
        simulation.best_model()
    assert_weights(simulation, train_with_numpy(CLIENTS, 0))
    for _ in simulation.run():
        continue
    models = {0: simulation.initial_model(), 1: simulation.best_model(), 3: simulation.last_model()}
    for rounds, model in models.items():
        np.testing.assert_allclose(model.line.weight.detach(), train_with_numpy(CLIENTS, rounds)[0], rtol=1e-5)
        assert model.scale == 1, "what is frozen is there as well"


def test_the_best_model_by_another_metric_is_kept_also_by_a_simulation_that_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("openfl_audio.simulation.checkpoint.SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    losses = [3.0, 1.0, 2.0, 5.0]

    def measure(model, points, device):
        loss = losses.pop(0)
        return {"accuracy": loss, "loss": loss}

    arguments = toy.arguments(rounds=3, validate=measure, also_best={"loss": "min"})
    simulation = Simulation(["all-9"], toy.Points, tmp_path)
    simulation.start("toy", **arguments)
    running = simulation.run()
    for _ in range(3):
        next(running)
    running.close()
    simulation = Simulation(["all-9"], toy.Points, tmp_path)
    simulation.start("toy", **arguments)
    for _ in simulation.run():
        continue
    for rounds, model in {1: simulation.best_model("loss"), 3: simulation.best_model()}.items():
        expected = train_with_numpy(["all-9"], rounds)[0]
        np.testing.assert_allclose(model.line.weight.detach(), expected, rtol=1e-5)
    with pytest.raises(SimulationError, match="experiment 'toy' has no best-recall model yet"):
        simulation.best_model("recall")


def test_the_models_of_the_last_rounds_are_kept(tmp_path):
    simulation = toy.simulate(tmp_path, CLIENTS, rounds=4, keep=2)
    # The round after the last training only validates: it led to the same model.
    assert sorted(path.name for path in tmp_path.glob("round-*")) == ["round-3.safetensors", "round-4.safetensors"]
    for name in ("round-3", "round-4"):
        with TensorFile(tmp_path / f"{name}.safetensors") as file:
            kept = file.load()
        for tensor in kept:
            np.testing.assert_array_equal(kept[tensor], weights_of(simulation)[tensor])


def test_the_model_of_each_kept_round_is_the_one_that_it_led_to(tmp_path):
    toy.simulate(tmp_path, CLIENTS, rounds=2, keep=9)
    for number, rounds in ((0, 1), (1, 2), (2, 2)):
        with TensorFile(tmp_path / f"round-{number}.safetensors") as file:
            np.testing.assert_allclose(file.load()["line.weight"], train_with_numpy(CLIENTS, rounds)[0], rtol=1e-5)


def test_float16_rounds_what_travels_both_ways_and_the_model_stays_float32(tmp_path):
    simulation = toy.simulate(tmp_path, CLIENTS, rounds=5, precision="float16")
    # float32 arithmetic may fall on the other side of a float16: a step is 2**-11 of the value.
    assert_weights(simulation, train_with_numpy(CLIENTS, 5, "f2"), 1e-5)
    assert weights_of(simulation)["line.weight"].dtype == np.float32
    assert not np.allclose(train_with_numpy(CLIENTS, 5)[0], train_with_numpy(CLIENTS, 5, "f2")[0], rtol=3e-5)


def test_a_server_optimizer_steps_towards_the_mean(tmp_path):
    optimizer = FedAdam(learning_rate=0.1, betas=(0.5, 0.9), epsilon=1e-3)
    simulation = toy.simulate(tmp_path, CLIENTS, rounds=1, aggregation=Aggregation(server_optimizer=optimizer))
    start, mean = (train_with_numpy(CLIENTS, rounds)[0] for rounds in (0, 1))
    # The first step: the first moment starts at 0, the second at epsilon squared.
    expected = start + 0.1 * 0.5 * (mean - start) / (np.sqrt(0.9e-6 + 0.1 * (mean - start) ** 2) + 1e-3)
    np.testing.assert_allclose(weights_of(simulation)["line.weight"], expected, rtol=1e-4)


def plainly(clients: Sequence[str], rounds: int, make_optimizer: Callable, treatment: str) -> dict[str, np.ndarray]:
    """FedAvg as a plain loop: a model and an optimizer for every client."""
    shards = [toy.Points(client) for client in clients]
    share = [len(shard.x) / sum(len(shard.x) for shard in shards) for shard in shards]
    models = [toy.Line() for _ in clients]
    parameters = [[model.line.weight, model.line.bias] for model in models]
    optimizers = [make_optimizer(each) for each in parameters]
    weights = [parameter.detach().clone() for parameter in parameters[0]]
    states: list[dict[str, torch.Tensor]] = []
    for _ in range(rounds):
        for index, shard in enumerate(shards):
            with torch.no_grad():
                for parameter, value in zip(parameters[index], weights, strict=True):
                    parameter.copy_(value)
            if treatment != "CONTINUE_LOCAL":
                optimizers[index] = make_optimizer(parameters[index])
            if treatment == "CONTINUE_GLOBAL" and states:
                for parameter, state in zip(parameters[index], states, strict=True):
                    optimizers[index].state[parameter] = {key: value.clone() for key, value in state.items()}
            for _ in range(toy.STEPS):
                optimizers[index].zero_grad()
                toy.loss_of(models[index], shard).backward()
                optimizers[index].step()

        def mean(values: Sequence[torch.Tensor]) -> torch.Tensor:
            return sum(part * value.detach().double() for part, value in zip(share, values, strict=True)).float()

        weights = [mean(values) for values in zip(*parameters, strict=True)]
        states = []
        for position in range(2):
            own = [optimizers[index].state[parameters[index][position]] for index in range(len(clients))]
            states.append({key: mean([state[key] for state in own]) for key in own[0]})
    return {"line.weight": weights[0].numpy(), "line.bias": weights[1].numpy()}


@pytest.mark.parametrize("optimizer", [toy.MOMENTUM, toy.ADAM])
@pytest.mark.parametrize("treatment", ["RESET", "CONTINUE_LOCAL", "CONTINUE_GLOBAL"])
def test_optimizers_begin_anew_or_go_on_as_in_a_plain_loop(tmp_path, optimizer, treatment):
    simulation = toy.simulate(tmp_path, CLIENTS, rounds=4, optimizer=optimizer, opt_treatment=treatment)
    found = weights_of(simulation)
    for name, tensor in plainly(CLIENTS, 4, optimizer, treatment).items():
        np.testing.assert_allclose(found[name], tensor, rtol=1e-5, err_msg=name)
    for other in {"RESET", "CONTINUE_LOCAL", "CONTINUE_GLOBAL"} - {treatment}:
        apart = plainly(CLIENTS, 4, optimizer, other)["line.weight"] - found["line.weight"]
        assert np.abs(apart).max() > 1e-3, "one could not tell"


def test_two_experiments_on_one_model_interface_begin_with_the_same_weights(tmp_path):
    arguments = toy.arguments()
    weights = []
    for name in ("first", "second"):
        simulation = Simulation(CLIENTS, toy.Points, tmp_path / name)
        simulation.start("toy", **arguments)
        for _ in simulation.run():
            continue
        weights.append(weights_of(simulation))
    for name, tensor in weights[0].items():
        np.testing.assert_array_equal(weights[1][name], tensor)


def test_one_is_told_of_every_client_that_has_answered(tmp_path):
    simulation = Simulation([*CLIENTS, "d-0"], toy.Points, tmp_path)
    simulation.start("toy", **toy.arguments(rounds=1))
    told: list[str] = []
    rounds = simulation.run(told.append)
    next(rounds)
    assert told == [*CLIENTS, "d-0"]
    next(rounds)
    assert told == 2 * [*CLIENTS, "d-0"]


BAD_CLIENTS = {
    "none": ([], "clients need names, and each its own: there are none"),
    "a name that leads elsewhere": (["a", "../b"], r"each its own: \['../b'\]"),
    "an empty name": (["a", ""], r"each its own: \[''\]"),
    "a name twice": (["a", "b", "c", "d", "d"], r"each its own: \['d'\]"),
}


@pytest.mark.parametrize("fault", BAD_CLIENTS)
def test_clients_without_a_name_of_their_own_are_refused(tmp_path, fault):
    clients, sentence = BAD_CLIENTS[fault]
    with pytest.raises(ValueError, match=sentence):
        Simulation(clients, toy.Points, tmp_path)


def test_no_worker_is_too_few(tmp_path):
    with pytest.raises(ValueError, match="workers is 0: at least one process runs the clients"):
        Simulation(CLIENTS, toy.Points, tmp_path, workers=0)


@pytest.mark.parametrize("others", [{"envoys": ["a-4", "z-1"]}, {"participation": Participation(evaluators=["z-1"])}])
def test_whom_nobody_knows_is_refused(tmp_path, others: dict[str, Any]):
    simulation = Simulation(CLIENTS, toy.Points, tmp_path)
    with pytest.raises(ValueError, match=r"\['z-1'\] are not among the 3 clients"):
        simulation.start("toy", **toy.arguments(**others))
    assert list(tmp_path.iterdir()) == []


def test_what_needs_an_experiment_says_so(tmp_path: Path):
    with pytest.raises(SimulationError, match=r"there is no experiment yet: call start\(\)"):
        Simulation(CLIENTS, toy.Points, tmp_path).watch()


@trains_privately
def fit_privately(model, points, device, optimizer, round_number):
    def losses(clips):
        return ((model(torch.from_numpy(points.x[clips])) - torch.from_numpy(points.y[clips])) ** 2).flatten()

    return train_privately(model, optimizer, [""] * len(points.x), losses)


PRIVACY = RecordLevel(noise_multiplier=1.5, clip=1.0, delta=1e-4, probability=0.5, steps=4)


@pytest.mark.training
def test_a_private_experiment_tells_what_each_client_has_spent_and_no_loss(tmp_path):
    share = Participation(count=1, seed=3)
    history = toy.simulate(tmp_path, ["a-4", "b-9"], train=fit_privately, privacy=PRIVACY, participation=share)
    accountant = dp_accounting.rdp.RdpAccountant()
    event = dp_accounting.PoissonSampledDpEvent(0.5, dp_accounting.GaussianDpEvent(1.5))
    taken, told = {}, []
    for record in history.records:
        for client in record["envoys"]:
            if "train" in record["envoys"][client]:
                assert record["envoys"][client]["train"].keys() == {"size"}
                taken[client] = taken.get(client, 0) + 1
        expected = {
            client: accountant.__class__().compose(event, 4 * rounds).get_epsilon(1e-4)
            for client, rounds in sorted(taken.items())
        }
        about = {"unit": "record", "delta": 1e-4, "adjacency": ADJACENCY, "trust": "nobody: each site adds its noise"}
        assert record["privacy"] == about | {"epsilon": pytest.approx(expected)}
        told.append(max(expected.values(), default=0.0))
    assert len(taken) == 2
    assert history.history["epsilon"].tolist() == pytest.approx(told)
    plain = toy.simulate(tmp_path / "plain", ["a-4"])
    assert "epsilon" not in plain.history
    assert plain.records[0]["privacy"] is None


def test_a_private_run_that_an_earlier_build_has_begun_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    given = toy.arguments(train=fit_privately, privacy=PRIVACY, rounds=3)
    first = Simulation(["a-4", "b-9"], toy.Points, tmp_path)
    first.start("toy", **given)
    rounds = first.run()
    assert [next(rounds)["round"] for _ in range(2)] == [0, 1]
    rounds.close()
    path = tmp_path / "history.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        del record["privacy"]["adjacency"], record["privacy"]["trust"]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    again = Simulation(["a-4", "b-9"], toy.Points, tmp_path)
    again.start("toy", **given)
    assert len(again.records) == len(records) > 0
    assert again.watch()["epsilon"].notna().all()


def test_private_updates_can_be_summed_in_secret(tmp_path):
    three = ["a-4", "b-9", "c-7"]
    secure = SecureAggregation(value_range=100.0)
    simulation = toy.simulate(tmp_path, three, train=fit_privately, privacy=PRIVACY, secure_aggregation=secure)
    assert simulation.records[-1]["privacy"]["epsilon"].keys() == {*three}
    assert all(record["secure"] for record in simulation.records)


@pytest.mark.training
def test_private_rounds_repeat_with_noise_for_tests_alone(tmp_path):
    def weights(name: str) -> list[float]:
        simulation = toy.simulate(tmp_path / name, ["a-4", "b-9"], train=fit_privately, privacy=PRIVACY)
        return simulation.last_model().line.weight.flatten().tolist()

    assert weights("first") != weights("second")
    with noise_that_repeats(1):
        assert weights("third") == weights("fourth")


def site_level(**changes):
    level = {"noise_multiplier": 2.0, "clip": 0.1, "delta": 1e-3} | changes
    return {"privacy": SiteLevel(**level), "aggregation": Aggregation(rule=Mean(weighted=False))}


def test_privacy_of_sites_costs_a_release_a_round_and_its_noise_follows_from_no_seed(tmp_path):
    clients = ["a-4", "b-9"]
    simulation = toy.simulate(tmp_path / "first", clients, **site_level())
    accountant = dp_accounting.rdp.RdpAccountant()
    trained = [record for record in simulation.records if "train" in record["metrics"]]
    assert len(trained) > 1
    for record in trained:
        expected = accountant.compose(dp_accounting.GaussianDpEvent(2.0)).get_epsilon(1e-3)
        assert record["privacy"]["unit"] == "site"
        assert record["privacy"]["epsilon"] == pytest.approx(dict.fromkeys(clients, expected))
    other = toy.simulate(tmp_path / "second", clients, **site_level())
    assert simulation.last_model().line.weight.tolist() != other.last_model().line.weight.tolist()


def test_without_a_trusted_director_the_same_is_spent_and_other_noise_is_added(tmp_path):
    clients = ["a-4", "b-9", "c-7"]
    trusted = toy.simulate(tmp_path / "trusted", clients, **site_level())
    secret = site_level() | {"secure_aggregation": SecureAggregation()}
    simulation = toy.simulate(tmp_path / "secret", clients, **secret)
    for record, other in zip(simulation.records, trusted.records, strict=True):
        assert record["privacy"]["epsilon"] == other["privacy"]["epsilon"]
        assert other["privacy"]["trust"] == "the director, which adds the noise"
        assert record["privacy"]["trust"].startswith("no director, but 2 honest sites of the 3 or more in a round")
        assert record["privacy"]["adjacency"] == ADJACENCY_OF_SUMS
        assert record["secure"]["envoys"] == clients
        assert "left out" not in str(record["notes"]), "nothing is said of what was clipped"
    weights = [
        toy.simulate(tmp_path / str(number), clients, **secret).last_model().line.weight.tolist() for number in (1, 2)
    ]
    assert weights[0] != weights[1], "noise follows from no seed"


def test_a_bound_that_adapts_is_kept_over_a_kill(tmp_path, monkeypatch):
    adaptive = site_level(adaptive=AdaptiveClip(count_noise=2.0))
    with noise_that_repeats(1):
        whole = toy.simulate(tmp_path / "whole", ["a-4", "b-9"], rounds=4, **adaptive)
        monkeypatch.setattr("openfl_audio.simulation.checkpoint.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
        first = Simulation(["a-4", "b-9"], toy.Points, tmp_path / "cut")
        first.start("toy", **toy.arguments(rounds=4, **adaptive))
        rounds = first.run()
        for _ in range(2):
            next(rounds)
        rounds.close()
        again = toy.simulate(tmp_path / "cut", ["a-4", "b-9"], rounds=4, **adaptive)
        fixed = toy.simulate(tmp_path / "fixed", ["a-4", "b-9"], rounds=4, **site_level())
    bounds = [each._checkpoint.progress.clip for each in (whole, again, fixed)]
    assert bounds[0] == bounds[1] != bounds[2] == 0.1
    weights = [each.last_model().line.weight.tolist() for each in (whole, again, fixed)]
    assert weights[0] == weights[1] != weights[2]
