"""An envoy of OpenFL 1.7.1, started by its own command, beside one of this project."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from openfl import interface

from openfl_audio.experiments.local_federation import LocalFederation
from tests.integration.conftest import READY_SECONDS, USER, points

pytestmark = pytest.mark.integration


def start_stock_envoy(processes: LocalFederation, name: str, n_points: int, certificates: Path) -> None:
    folder = processes.folder / name
    folder.mkdir()
    settings = {"params": {"install_requirements": False}, "shard_descriptor": points(n_points)}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, str(Path(sys.executable).with_name("fx")), "envoy", "start", "-n", name]
    command += ["-dh", "localhost", "-dp", str(processes.port), "-ec", "settings.yaml"]
    command += ["-rc", str(certificates / "ca.crt"), "-pk", str(certificates / f"{name}.key")]
    command += ["-oc", str(certificates / f"{name}.crt")]
    # `fx` imports its commands as modules `director`, `envoy` and so on, and would find this project's `director`.
    path = os.pathsep.join((str(Path(interface.__file__).parent), os.environ["PYTHONPATH"]))
    processes.run(name, command, cwd=folder, env=os.environ | {"PYTHONPATH": path})


def test_a_stock_envoy_takes_part_beside_one_of_ours(tmp_path: Path, certificates: Path, connect: Callable):
    import toy
    from toy.experiment import PointsData, model_interface, task_interface

    from openfl_audio.notebook.interactive_api import FLExperiment

    with LocalFederation(tmp_path, certificates, USER) as processes:
        processes.start_director()
        processes.start_envoy("a", points(1))
        start_stock_envoy(processes, "c", 3, certificates)
        processes.wait_until_ready(["a", "c"], READY_SECONDS)
        experiment = FLExperiment(connect(processes), "mixed", toy)
        experiment.start(
            model_provider=model_interface(),
            task_keeper=task_interface(),
            data_loader=PointsData(),
            rounds_to_train=3,
            envoys=["a", "c"],
        )
        history = experiment.watch()
        records = list(experiment.federation.dir_client.read_history("mixed"))
        last = experiment.last_model()
        assert processes.is_alive("c")
    # As with two of ours: they add 1 and 3, and weigh as much.
    assert history["slope"].tolist() == [0, 2.5, 5, 7.5]
    assert [sorted(record["envoys"]) for record in records] == [["a", "c"]] * 4
    assert records[0]["envoys"]["c"]["train"] == {"size": 3, "loss": 3.0}
    assert last[0].bias.item() == 7.5
