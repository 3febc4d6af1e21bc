"""Privacy of sites with a real director and real envoys."""

from pathlib import Path

import numpy as np
import pytest

from openfl_audio import Aggregation, FLExperiment, Mean, SecureAggregation, SiteLevel
from openfl_audio.cli.main import main
from openfl_audio.privacy.accounting import privacy_cost
from openfl_audio.simulation.simulation import Simulation
from openfl_audio.testing.noise import noise_that_repeats
from tests.integration.conftest import federation_of

pytestmark = pytest.mark.integration

SITES = {"a": 1, "b": 3, "c": 5}
LEVEL = SiteLevel(noise_multiplier=4.0, clip=0.5, delta=1e-3, clipping="per_layer")


def arguments(is_secret: bool) -> dict:
    from toy.experiment import PointsData, model_interface, task_interface

    return {
        "model_provider": model_interface(),
        "task_keeper": task_interface(),
        "data_loader": PointsData(),
        "rounds_to_train": 3,
        "envoys": [*SITES],
        "aggregation": Aggregation(rule=Mean(weighted=False)),
        "privacy": LEVEL.model_copy(update={"clipping": "flat"}) if is_secret else LEVEL,
        "secure_aggregation": SecureAggregation(stage_seconds=20) if is_secret else None,
    }


@pytest.mark.parametrize(
    "is_secret",
    [pytest.param(False, id="trusted director"), pytest.param(True, id="secure aggregation", marks=pytest.mark.slow)],
)
def test_a_federation_adds_the_noise_of_a_simulation_to_the_bit_and_tells_what_it_cost(
    tmp_path: Path, certificates: Path, connect, is_secret: bool
) -> None:
    import toy
    from toy.shard import PointsShardDescriptor

    with noise_that_repeats(7), federation_of(SITES, tmp_path / "federated", certificates) as processes:
        experiment = FLExperiment(connect(processes), "private", workspace=toy)
        experiment.start(**arguments(is_secret))
        history = experiment.watch()
        simulation = Simulation([*SITES], lambda name: PointsShardDescriptor(n_points=SITES[name]), tmp_path / "one")
        simulation.start("private", **arguments(is_secret))
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
    told = report.read_text()
    assert f"{privacy_cost(LEVEL, 3):.6g} | 0.001 | site" in told
    trusts = "no director, but 2 honest sites of the 3 or more in a round" if is_secret else "the director, which adds"
    assert trusts in told
    assert [record["secure"] is not None for record in records] == [is_secret] * len(records)
