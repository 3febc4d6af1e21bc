"""Secure rounds of a simulation, with clients lost at their stages."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openfl_audio.errors import RoundFailedError
from openfl_audio.privacy.fixed_point import Rounding
from openfl_audio.privacy.transcript import Stage
from openfl_audio.protocol.secure_aggregation import SecureAggregation
from openfl_audio.simulation.simulation import Simulation
from tests.unit import toy

CLIENTS = ["a-4", "b-9", "c-7", "d-3", "e-5"]
NAMES = ("line.bias", "line.weight")
RANGE, LARGEST, BITS = 4.0, 10, 20
SETTINGS = SecureAggregation(value_range=RANGE, largest_weight=LARGEST, bits=BITS)
STAGES = list(Stage)[:-1]


def prepare(folder: Path, clients: list[str], rounds: int = 1, **arguments: Any) -> Simulation:
    """Return a simulation that has not begun; after its last round the model is validated once more."""
    simulation = Simulation(clients, toy.Points, folder)
    simulation.start("toy", **toy.arguments(rounds) | arguments)
    return simulation


def weights_of(simulation: Simulation) -> np.ndarray:
    """Return the trained weights, flat, in the order of an update's words."""
    state = simulation.last_model().state_dict()
    return np.concatenate([state[name].numpy().ravel() for name in NAMES])


def quantised_mean(folder: Path, clients: list[str]) -> np.ndarray:
    """Return what one round of these clients makes of the weights: the formula of the page, in NumPy."""
    steps, total = 2 ** (BITS - 1) - 1, np.zeros(3, np.int64)
    for client in clients:
        alone = prepare(folder / client, [client])
        start = np.array([-0.5, 0.5, 0.25], np.float32)
        list(alone.run())
        change = weights_of(alone).astype(np.float64) - start
        weight = int(client.split("-")[1])
        draws = Rounding.of(0, 0, client).uniform(0, 3)
        total += np.floor(np.clip(change, -RANGE, RANGE) * (weight / LARGEST * steps / RANGE) + draws).astype(np.int64)
    mean = total * (RANGE / steps / (sum(int(client.split("-")[1]) for client in clients) / LARGEST))
    return (start + mean).astype(np.float32)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_lost_client_counts_if_its_update_has_come(tmp_path: Path, stage: Stage) -> None:
    simulation = prepare(tmp_path / "lost", CLIENTS, secure_aggregation=SETTINGS)
    simulation.lose("b-9", 0, stage)
    [record, _] = simulation.run()
    survivors = [client for client in CLIENTS if client != "b-9" or stage > Stage.UPDATE]
    assert record["secure"] == {"envoys": survivors, "of": 5, "threshold": 4, "attempt": 1, "approving": 0}
    assert record["missing"] == [client for client in CLIENTS if client not in survivors]
    np.testing.assert_array_equal(weights_of(simulation), quantised_mean(tmp_path, survivors))


def test_client_is_lost_in_one_round_only(tmp_path: Path) -> None:
    simulation = prepare(tmp_path, CLIENTS, rounds=3, secure_aggregation=SETTINGS)
    simulation.lose("d-3", 1, Stage.KEYS)
    assert [len(record["secure"]["envoys"]) for record in simulation.run()] == [5, 4, 5, 5]


def test_too_many_lost_clients_end_the_simulation_and_nothing_is_aggregated(tmp_path: Path) -> None:
    simulation = prepare(tmp_path, CLIENTS, secure_aggregation=SETTINGS)
    simulation.lose("b-9", 0, Stage.KEYS)
    simulation.lose("d-3", 0, Stage.UNMASKING)
    sentence = (
        "round 0: 3 of 5 envoys are there at the end, and secure aggregation takes 4: 'b-9' is lost at stage KEYS; "
        "'d-3' is lost at stage UNMASKING"
    )
    with pytest.raises(RoundFailedError, match=sentence):
        list(simulation.run())
    assert simulation.records == []
    np.testing.assert_array_equal(weights_of(simulation), np.array([-0.5, 0.5, 0.25], np.float32))


def test_of_more_clients_than_share_with_all_the_sum_is_that_of_the_survivors(tmp_path: Path) -> None:
    clients = [f"{number:02}-{3 + number % 5}" for number in range(52)]
    simulation = prepare(tmp_path / "many", clients, secure_aggregation=SETTINGS)
    simulation.lose(clients[7], 0, Stage.UPDATE)
    simulation.lose(clients[8], 0, Stage.AGREEMENT)
    [record, _] = simulation.run()
    survivors = [client for client in clients if client != clients[7]]
    assert (record["secure"]["envoys"], record["secure"]["threshold"]) == (survivors, 35)
    np.testing.assert_array_equal(weights_of(simulation), quantised_mean(tmp_path, survivors))


def test_only_clients_of_a_secure_experiment_are_lost(tmp_path: Path) -> None:
    plain = prepare(tmp_path / "plain", CLIENTS)
    with pytest.raises(ValueError, match="experiment 'toy' has no secure aggregation, and so no stage KEYS"):
        plain.lose("b-9", 0, Stage.KEYS)
    secure = prepare(tmp_path / "secure", CLIENTS, secure_aggregation=SETTINGS)
    with pytest.raises(ValueError, match="'f-1' is none of the 5 clients of experiment 'toy'"):
        secure.lose("f-1", 0, Stage.KEYS)
