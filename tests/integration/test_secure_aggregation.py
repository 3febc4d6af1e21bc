"""Secure aggregation with a real director, real envoys and TLS."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from openfl_audio import SecureAggregation
from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.simulation.simulation import Simulation
from tests.integration.conftest import federation_of

pytestmark = pytest.mark.integration

SITES = {"a": 1, "b": 3, "c": 5}


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[LocalFederation]:
    """A director and three envoys."""
    with federation_of(SITES, tmp_path_factory.mktemp("secure"), certificates) as processes:
        yield processes


def arguments(**changes: object) -> dict:
    from toy.experiment import PointsData, model_interface, task_interface

    settings = SecureAggregation(value_range=16.0, largest_weight=8, stage_seconds=20)
    given = {"model_provider": model_interface(), "task_keeper": task_interface(), "data_loader": PointsData()}
    return given | {"rounds_to_train": 3, "envoys": [*SITES], "secure_aggregation": settings} | changes


@pytest.fixture(scope="module")
def finished(secure: LocalFederation, connect: Callable) -> tuple:
    """An experiment of three rounds, and its history."""
    import toy

    from openfl_audio import FLExperiment

    experiment = FLExperiment(connect(secure), "secure", workspace=toy)
    experiment.start(**arguments())
    return experiment, experiment.watch()


def test_director_learns_the_mean_and_no_site(secure: LocalFederation, finished: tuple) -> None:
    experiment, history = finished
    # (1 * 1 + 3 * 3 + 5 * 5) / 9 a round, to a millionth of the range.
    assert history["slope"].tolist() == pytest.approx([0, 35 / 9, 70 / 9, 105 / 9], abs=1e-3)
    assert history["train loss"].tolist()[:3] == pytest.approx([35 / 9] * 3, abs=1e-5)
    records = [*experiment.federation.dir_client.read_history("secure")]
    for record in records:
        assert record["secure"] == {"envoys": ["a", "b", "c"], "of": 3, "threshold": 3, "attempt": 1, "approving": 0}
        assert record["envoys"] == {"a": {}, "b": {}, "c": {}}


def test_simulation_gives_the_same_bits(finished: tuple, tmp_path: Path) -> None:
    from toy.shard import PointsShardDescriptor

    experiment, history = finished
    simulation = Simulation([*SITES], lambda name: PointsShardDescriptor(n_points=SITES[name]), tmp_path)
    simulation.start("secure", **arguments())
    simulated = simulation.watch()
    last, expected = experiment.last_model().state_dict(), simulation.last_model().state_dict()
    for name, tensor in last.items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name].numpy())
    for column in ("slope", "train loss"):
        assert history[column].dropna().tolist() == simulated[column].dropna().tolist()
