"""Privacy of sites with a real director and real envoys."""

from pathlib import Path

import numpy as np
import pytest

from openfl_audio import Aggregation, FLExperiment, Mean, SiteLevel
from openfl_audio.cli.main import main
from openfl_audio.privacy.accounting import privacy_cost
from openfl_audio.simulation.simulation import Simulation
from openfl_audio.testing.noise import noise_that_repeats
from tests.integration.conftest import federation_of

pytestmark = pytest.mark.integration

SITES = {"a": 1, "b": 3, "c": 5}
LEVEL = SiteLevel(noise_multiplier=4.0, clip=0.5, delta=1e-3, clipping="per_layer")


def arguments() -> dict:
    from toy.experiment import PointsData, model_interface, task_interface

    return {
        "model_provider": model_interface(),
        "task_keeper": task_interface(),
        "data_loader": PointsData(),
        "rounds_to_train": 3,
        "envoys": [*SITES],
        "aggregation": Aggregation(rule=Mean(weighted=False)),
        "privacy": LEVEL,
    }


def test_a_federation_adds_the_noise_of_a_simulation_to_the_bit_and_tells_what_it_cost(
    tmp_path: Path, certificates: Path, connect
) -> None:
    import toy
    from toy.shard import PointsShardDescriptor

    with noise_that_repeats(7), federation_of(SITES, tmp_path / "federated", certificates) as processes:
        experiment = FLExperiment(connect(processes), "private", workspace=toy)
        experiment.start(**arguments())
        history = experiment.watch()
        simulation = Simulation([*SITES], lambda name: PointsShardDescriptor(n_points=SITES[name]), tmp_path / "one")
        simulation.start("private", **arguments())
        simulated = simulation.watch()
        last, expected = experiment.last_model().state_dict(), simulation.last_model().state_dict()
        records = [*experiment.federation.dir_client.read_history("private")]
    for name, tensor in last.items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name].numpy())
    assert history["slope"].tolist() == simulated["slope"].tolist()
    assert history["slope"].tolist()[1] not in (0.0, 0.5 / np.sqrt(2))
    assert [record["privacy"]["epsilon"]["b"] for record in records[:3]] == [privacy_cost(LEVEL, n) for n in (1, 2, 3)]
    assert history["epsilon"].tolist() == simulated["epsilon"].tolist()
    runs = processes.folder / "director"
    assert main(["audit", "report", "private", "--runs", str(runs), "--out", str(tmp_path / "report")]) == 0
    [report] = (tmp_path / "report").glob("*.md")
    assert f"{privacy_cost(LEVEL, 3):.6g} | 0.001 | site" in report.read_text()
