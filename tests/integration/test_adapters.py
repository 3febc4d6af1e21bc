"""Adapters over a real director and real envoys: each way to aggregate them comes to the bits of a simulation."""

import numpy as np
import pytest

from openfl_audio.notebook.interactive_api import ExperimentFailedError
from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.low_rank import LoraResidual, LoraSvd, is_given
from openfl_audio.protocol.rules import Mean
from openfl_audio.simulation.simulation import Simulation
from openfl_audio.training.adapters import Lora
from tests.integration.conftest import ENVOYS

pytestmark = pytest.mark.integration

LORA = Lora(r=2, alpha=4)
WAYS = {
    "mean": (LORA, Mean()),
    "frozen-a": (LORA.model_copy(update={"freeze_a": True}), Mean()),
    "residual": (LORA.model_copy(update={"residual": True}), LoraResidual()),
    "svd": (LORA, LoraSvd()),
}


@pytest.fixture(scope="module")
def start(running, connect):
    import toy
    from toy.adapted import fit, measure
    from toy.experiment import PointsData, task_interface

    from openfl_audio.notebook.interactive_api import FLExperiment

    def arguments(provider, rule):
        return {
            "model_provider": provider, "task_keeper": task_interface(fit, measure), "data_loader": PointsData(),
            "rounds_to_train": 3, "aggregation": Aggregation(rule=rule), "envoys": list(ENVOYS),
        }  # fmt: skip

    def start(name, provider, rule):
        experiment = FLExperiment(connect(running), name, workspace=toy)
        experiment.start(**arguments(provider, rule))
        return experiment

    start.arguments = arguments
    return start


# Each takes as long as workers need to load peft; unit/protocol/test_low_rank.py compares the bits of all ways cheaply.
@pytest.mark.parametrize(
    "way", [name if name == "residual" else pytest.param(name, marks=pytest.mark.slow) for name in WAYS]
)
def test_a_federation_comes_to_the_bits_of_a_simulation(way, start, tmp_path):
    from toy.adapted import interface
    from toy.shard import PointsShardDescriptor

    lora, rule = WAYS[way]
    simulation = Simulation(list(ENVOYS), lambda name: PointsShardDescriptor(ENVOYS[name]), tmp_path)
    simulation.start(way, **start.arguments(interface(lora), rule))
    expected = simulation.watch()
    experiment = start(way, interface(lora), rule)
    found = experiment.watch()
    columns = ["round", "loss" if "loss" in found else "accuracy", "train loss"]
    assert found[columns].equals(expected[columns])
    assert ("adapter error" in found) == (way in ("residual", "svd"))
    if "adapter error" in found:
        assert found["adapter error"].tolist()[:3] == expected["adapter error"].tolist()[:3]
        errors = found["adapter error"].to_numpy()[:3]
        # Two updates of rank 2 have a mean of rank 4; what lies beyond 2 is lost, and nothing with a residual.
        assert errors.max() > 0.001 if way == "svd" else (errors == 0).all()
    models = [each.last_model().state_dict() for each in (simulation, experiment)]
    assert models[0].keys() == models[1].keys()
    for name, tensor in models[0].items():
        np.testing.assert_array_equal(tensor.numpy(), models[1][name].numpy(), err_msg=name)
    changed = [tensor.abs().max().item() for name, tensor in models[1].items() if is_given(name)]
    assert len(changed) == (2 if way == "residual" else 0)
    assert all(largest > 1e-6 for largest in changed)
    sent = [record["bytes_up"] for record in experiment_records(experiment)]
    received = [record["bytes_down"] for record in experiment_records(experiment)]
    if way == "residual":  # 2 layers of 6 x 6 in float32 come down for 2 nodes, and are not sent back
        assert received[0] - sent[0] > 2 * 2 * 36 * 4 - 200


def experiment_records(experiment):
    return experiment.federation.dir_client.read_history(experiment.experiment_name)


@pytest.mark.slow
def test_a_node_whose_base_is_another_is_named_with_both_hashes(start, monkeypatch):
    from toy.adapted import interface

    provider = interface(LORA)
    provider.initial_tensors(with_optimizer=False)
    monkeypatch.setattr(type(provider), "initial_tensors", _with_another_hash(type(provider).initial_tensors))
    experiment = start("another-base", provider, Mean())
    sentence = r"SHA-256 is [0-9a-f]{64}, and 0{64} where the experiment was started"
    with pytest.raises(ExperimentFailedError, match=sentence):
        experiment.watch()


def _with_another_hash(initial_tensors):
    def replaced(self, with_optimizer):
        tensors = initial_tensors(self, with_optimizer)
        self.base_sha256 = "0" * 64
        return tensors

    return replaced
