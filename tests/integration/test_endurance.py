"""Many envoys and many rounds: nothing grows, nothing slows down."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.rounds_peers import shard, workloads
from benchmarks.rounds_peers.measure import REPOSITORY
from openfl_audio.envoy.limits import memory_of
from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.protocol.messages import LiveRound
from tests.integration.conftest import READY_SECONDS

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

ENVOYS = [f"envoy_{number}" for number in range(12)]
ROUNDS = 200
# A tenth of an update, which is 3.1 MB. What a round leaves for good, the history's record, is a few kilobytes, but of
# the updates that it receives the allocator keeps three more or less from one run to the next.
MB_PER_ROUND = 0.3


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalFederation]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))  # `benchmarks` is no installed package
    with LocalFederation(tmp_path, None, "scientist") as processes:
        processes.start_director()
        for name in ENVOYS:
            processes.start_envoy(name, {"template": shard.TEMPLATE})
        processes.wait_until_ready(ENVOYS, 2 * READY_SECONDS)
        yield processes


def test_twelve_envoys_and_200_rounds_of_a_real_head_run_without_an_error_growth_or_slowing(federation):
    from openfl_audio.notebook.interactive_api import Federation, FLExperiment, ModelInterface, TaskInterface

    tasks = TaskInterface()
    register = tasks.register_fl_task(model="model", data_loader="items", device="device", optimizer="optimizer")
    register(workloads.add_step)
    connection = Federation("scientist", "127.0.0.1", federation.port, tls=False)
    experiment = FLExperiment(connection, "endurance")
    recipe = ModelInterface(partial(workloads.create_model, "head"), partial(torch.optim.SGD, lr=0.1))
    experiment.start(
        model_provider=recipe, task_keeper=tasks, data_loader=workloads.FewItemsData(), rounds_to_train=ROUNDS
    )

    director = federation.pid("director")
    messages, megabytes = [], []
    for message in experiment.federation.dir_client.stream_history("endurance"):
        if isinstance(message, LiveRound):
            continue
        messages.append(message)
        megabytes.append(memory_of(director) / 1e6)
    *records, end = messages
    # The most of each half, as the allocator gives memory back at any time.
    early_mb, late_mb = max(megabytes[: ROUNDS // 2]), max(megabytes[ROUNDS // 2 :])

    assert (len(records), end.status) == (ROUNDS, "finished")
    assert all(list(record["envoys"]) == sorted(ENVOYS) and not record["refused"] for record in records)
    workloads.check(workloads.create_model("head"), experiment.last_model(), ROUNDS)
    grown = (late_mb - early_mb) / (ROUNDS // 2)
    assert grown < MB_PER_ROUND, f"the director grew from {early_mb:.0f} to {late_mb:.0f} MB"
    # The first round has the workers' start in it.
    seconds = [record["seconds"] for record in records[1:]]
    # Twice, as the machine may have something else to do for a while; what grows with rounds grows more in 150 of them.
    assert sum(seconds[-50:]) < 2 * sum(seconds[:50])
    log = federation.log("director").read_text()
    assert "ERROR" not in log
    assert "Traceback" not in log
    print(f"director {late_mb:.0f} MB, {grown:.4f} MB a round; {sum(seconds) / len(seconds):.3f} s a round")
