"""Secure rounds of real envoys over TLS of which some are lost, at any stage: the exact sum of the others, or none."""

import signal
from collections.abc import Callable, Iterator, Mapping
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pytest

from openfl_audio import FLExperiment, Participation, SecureAggregation
from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.privacy.transcript import Stage
from openfl_audio.protocol.authority import write_certificates
from openfl_audio.protocol.record import RECORD, entry_of, read_record
from openfl_audio.simulation.simulation import Simulation
from tests.integration.conftest import READY_SECONDS, USER, points, wait_for
from tests.integration.lost_envoy import LATE, LOST, name_of

pytestmark = [pytest.mark.integration, pytest.mark.slow]

EIGHT = {name: number for number, name in enumerate("abcdefgh", start=1)}
FIVE = {name: EIGHT[name] for name in "abcde"}
STAGES = list(Stage)[:-1]
# Long enough for all envoys' keys on a busy machine: those of one that is lost are awaited until then.
DEADLINE_SECONDS = 45
STAGE_SECONDS = 6
# Each experiment is another plan: an envoy unmasks no other sum for a plan of which it has unmasked one.
ranges = count(16)


class LosingFederation(LocalFederation):
    """A federation of envoys that are lost where the name of an experiment says so."""

    def run(self, name: str, command: list[str], cwd: Path, env: Mapping[str, str]) -> None:
        """Run `lost_envoy`, which lies beside this file, as an envoy."""
        if name != "director":
            command = ["lost_envoy" if word == "openfl_audio.cli" else word for word in command]
        super().run(name, command, cwd, env)

    def lost(self, names: Mapping[str, Stage]) -> None:
        """Wait until these envoys have been killed."""
        for name in names:
            assert self.wait_for_exit(name, READY_SECONDS) == -signal.SIGKILL

    def begin(self, names: Mapping[str, object]) -> None:
        """Start these envoys, and wait for them."""
        for name in names:
            self.start_envoy(name, points(EIGHT[name]))
        self.wait_until_ready(names, READY_SECONDS)

    def unmasked(self, experiment: str, round_number: int) -> dict[str, list[list[str]]]:
        """Return the survivors that each envoy has unmasked in a round, as its record has them; others are left out."""
        found: dict[str, list[list[str]]] = {}
        for path in (self.folder / "envoys").rglob(RECORD):
            entries = [entry for line in read_record(path) if (entry := entry_of(line))]
            unmasked = [entry for entry in entries if entry["event"] == "unmasked"]
            mine = [
                each["envoys"] for each in unmasked if (each["experiment"], each["round"]) == (experiment, round_number)
            ]
            (name,) = {*path.parts} & {*EIGHT}
            found |= {name: mine} if mine else {}
        return found


@pytest.fixture(scope="module")
def certificates_of_eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of eight envoys."""
    folder = tmp_path_factory.mktemp("certificates")
    write_certificates(folder, director_hosts=["127.0.0.1"], envoys=[*EIGHT], users=[USER])
    return folder


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory, certificates_of_eight: Path) -> Iterator[LosingFederation]:
    """A director and five envoys, of which a sum needs four."""
    with LosingFederation(tmp_path_factory.mktemp("five"), certificates_of_eight, USER) as processes:
        processes.start_director()
        processes.begin(FIVE)
        yield processes


@pytest.fixture(scope="module")
def eight(five: LosingFederation) -> LosingFederation:
    """Three envoys more, of which a sum needs six."""
    five.begin({name: n for name, n in EIGHT.items() if name not in FIVE})
    return five


@pytest.fixture
def connect(certificates_of_eight: Path) -> Callable:
    """Connect a notebook."""

    def connect(processes: LocalFederation):
        from openfl_audio.notebook.interactive_api import Federation

        files = {"cert_chain": "ca.crt", "api_cert": f"{USER}.crt", "api_private_key": f"{USER}.key"}
        paths = {key: certificates_of_eight / file for key, file in files.items()}
        return Federation(USER, "127.0.0.1", processes.port, tls=True, **paths)

    return connect


def arguments(sites: Mapping[str, int], rounds: int = 1, deadline: float | None = None) -> dict:
    from toy.experiment import PointsData, model_interface, task_interface

    secure = SecureAggregation(value_range=next(ranges), largest_weight=8, stage_seconds=STAGE_SECONDS)
    return {
        "model_provider": model_interface(),
        "task_keeper": task_interface(),
        "data_loader": PointsData(),
        "rounds_to_train": rounds,
        "envoys": [*sites],
        "participation": Participation(deadline_seconds=deadline),
        "secure_aggregation": secure,
    }


def start(processes: LocalFederation, connect: Callable, name: str, given: dict) -> FLExperiment:
    """Start an experiment."""
    import toy

    experiment = FLExperiment(connect(processes), name, workspace=toy)
    experiment.start(**given)
    return experiment


def records_of(experiment: FLExperiment) -> list[dict]:
    """Return the records of the rounds so far."""
    return [*experiment.federation.dir_client.read_history(experiment.experiment_name)]


def simulated(folder: Path, sites: Mapping[str, int], lost: Mapping[str, Stage], given: dict) -> Simulation:
    """Return a simulation that has lost the same clients at the same stages of its first round."""
    from toy.shard import PointsShardDescriptor

    simulation = Simulation([*sites], lambda name: PointsShardDescriptor(n_points=sites[name]), folder)
    simulation.start("simulated", **given)
    for client, stage in lost.items():
        simulation.lose(client, 0, stage)
    list(simulation.run())
    return simulation


def assert_same_weights(experiment: FLExperiment, simulation: Simulation) -> None:
    """Compare the final weights, to the bit."""
    found, expected = experiment.last_model().state_dict(), simulation.last_model().state_dict()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name].numpy(), tensor.numpy())


def assert_same_bits(experiment: FLExperiment, simulation: Simulation, rounds: int) -> None:
    """Compare the final weights, and what is said of the first rounds."""
    assert_same_weights(experiment, simulation)
    for record, other in zip(records_of(experiment)[:rounds], simulation.records[:rounds], strict=True):
        for key in ("metrics", "secure", "missing"):
            assert record[key] == other[key]


def run_with_losses(
    processes: LosingFederation, connect: Callable, folder: Path, sites: Mapping[str, int], lost: Mapping[str, Stage]
) -> None:
    """Lose envoys in the first round, and compare it with the simulation that loses them, and with the plain mean."""
    # Nobody waits for the keys of one that is gone after the deadline; at later stages an attempt goes on by itself.
    given = arguments(sites, deadline=DEADLINE_SECONDS if Stage.KEYS in lost.values() else None)
    name = name_of(LOST, dict(lost))
    experiment = start(processes, connect, name, given)
    processes.lost(lost)
    wait_for(lambda: records_of(experiment))
    processes.begin(lost)
    experiment.watch()
    # The last round only validates; where there is a deadline, it does not wait for who is not back yet.
    assert_same_bits(experiment, simulated(folder, sites, lost, given), rounds=1)
    survivors = [envoy for envoy in sites if lost.get(envoy, Stage.DONE) > Stage.UPDATE]
    assert records_of(experiment)[0]["secure"]["envoys"] == survivors
    counts = [sites[envoy] for envoy in survivors]
    slope = experiment.last_model().state_dict()["0.weight"].item()
    # Each site adds its number of points; the error is that of the page: n R / S W / sum(w).
    bound = len(counts) * given["secure_aggregation"].value_range / (2**19 - 1) * 8 / sum(counts)
    assert abs(slope - sum(n * n for n in counts) / sum(counts)) < bound
    assert {tuple(each) for sets in processes.unmasked(name, 0).values() for each in sets} == {tuple(survivors)}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_one_of_five_is_lost(five: LosingFederation, connect: Callable, tmp_path: Path, stage: Stage) -> None:
    run_with_losses(five, connect, tmp_path, FIVE, {"b": stage})


@pytest.mark.parametrize(("first", "second"), [*pairwise(STAGES[1:]), (Stage.UNMASKING, Stage.UNMASKING)])
def test_two_of_five_are_too_many_and_no_sum_is_known_until_they_are_back(
    five: LosingFederation, connect: Callable, tmp_path: Path, first: Stage, second: Stage
) -> None:
    given, lost = arguments(FIVE), {"b": first, "d": second}
    name = name_of(LOST, lost)
    experiment = start(five, connect, name, given)
    five.lost(lost)
    sentence = (
        f"attempt 1: 3 of 5 envoys are there at stage {second.name}, and secure aggregation takes 4: without b, d"
    )
    wait_for(lambda: sentence in five.log("director").read_text())
    assert records_of(experiment) == []
    # Three give shares in the last stage, of which four are needed.
    unmasking = {*"ace"} if second is Stage.UNMASKING else set()
    assert {*five.unmasked(name, 0)} == unmasking
    five.begin(lost)
    experiment.watch()
    assert [record["secure"]["envoys"] for record in records_of(experiment)] == [[*FIVE], [*FIVE]]
    assert [record["secure"]["attempt"] for record in records_of(experiment)] == [2, 1]
    assert_same_weights(experiment, simulated(tmp_path, FIVE, {}, given))


def test_envoy_that_comes_late_is_not_in_the_sum_and_takes_part_in_the_next_round(
    five: LosingFederation, connect: Callable, tmp_path: Path
) -> None:
    lost, given = {"b": Stage.UPDATE}, arguments(FIVE, rounds=2)
    experiment = start(five, connect, name_of(LATE, lost), given)
    wait_for(lambda: records_of(experiment))
    (five.folder / LATE).touch()
    experiment.watch()
    assert [record["secure"]["envoys"] for record in records_of(experiment)] == [[*"acde"], [*FIVE], [*FIVE]]
    assert_same_bits(experiment, simulated(tmp_path, FIVE, lost, given), rounds=3)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_one_of_eight_is_lost(eight: LosingFederation, connect: Callable, tmp_path: Path, stage: Stage) -> None:
    run_with_losses(eight, connect, tmp_path, EIGHT, {"f": stage})


@pytest.mark.parametrize(("first", "second"), [*pairwise(STAGES[1:]), (Stage.SHARES, Stage.UNMASKING)])
def test_two_of_eight_are_lost_at_different_stages(
    eight: LosingFederation, connect: Callable, tmp_path: Path, first: Stage, second: Stage
) -> None:
    run_with_losses(eight, connect, tmp_path, EIGHT, {"b": first, "f": second})
