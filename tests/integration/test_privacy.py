"""Differential privacy with a budget that sites keep: a real director, real envoys and TLS."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import dp_accounting
import numpy as np
import pytest

from openfl_audio import FLExperiment, Participation, RecordLevel, Simulation
from openfl_audio.cli.main import main
from openfl_audio.errors import ExperimentFailedError
from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.privacy.accounting import Release, epsilon
from openfl_audio.protocol.record import RECORD
from openfl_audio.testing.noise import noise_that_repeats
from tests.integration.conftest import READY_SECONDS, USER, federation_of, points, status_of, wait_for

pytestmark = pytest.mark.integration

LEVEL = RecordLevel(noise_multiplier=2.0, clip=1.0, delta=1e-5, probability=0.25, steps=5)
SITES = {"a": 8, "b": 12, "c": 20}
# Site b can pay for rounds 0 to 6, and not for round 7.
LAST_ROUND = 7
METRICS_NOISE = 100.0
BUDGET = epsilon([Release(2.0, 0.25, 5 * LAST_ROUND)], 1e-5) + 1e-6


def cost(rounds: int) -> float:
    """Return epsilon of so many rounds by dp-accounting alone."""
    event = dp_accounting.PoissonSampledDpEvent(0.25, dp_accounting.GaussianDpEvent(2.0))
    return dp_accounting.rdp.RdpAccountant().compose(event, 5 * rounds).get_epsilon(1e-5)


def arguments(**changes: object) -> dict:
    from toy.experiment import PointsData, fit_privately, model_interface, task_interface

    return {
        "model_provider": model_interface(),
        "task_keeper": task_interface(fit_privately),
        "data_loader": PointsData(),
        "rounds_to_train": 9,
        "envoys": [*SITES],
        "privacy": LEVEL,
        # With a deadline others go on where one departs.
        "participation": Participation(deadline_seconds=60.0),
    } | changes


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[LocalFederation]:
    """A director, and envoys with budgets: that of 'b' is small, and 'c' adds noise to its metrics.

    The sites of all but 'd' are asked.
    """
    folder = tmp_path_factory.mktemp("privacy")
    with LocalFederation(folder, certificates, USER) as processes:
        processes.start_director()
        for name, number in SITES.items():
            privacy = {
                "corpus": f"points of {name}",
                "unit": "record",
                "epsilon": BUDGET if name == "b" else 50.0,
                "delta": 1e-5,
                "ledger": str(folder / "ledgers" / f"{name}.jsonl"),
            }
            privacy |= {"metrics": "noisy", "metrics_noise": METRICS_NOISE} if name == "c" else {}
            processes.start_envoy(name, points(number), approval="ask", policy={"tracebacks": "code"}, privacy=privacy)
        privacy = {"corpus": "d", "unit": "record", "epsilon": 50.0, "delta": 1e-5, "ledger": str(folder / "d.jsonl")}
        processes.start_envoy("d", points(4), policy={"tracebacks": "code"}, privacy=privacy)
        processes.wait_until_ready([*SITES, "d"], READY_SECONDS)
        yield processes


def at_site(sites: LocalFederation, name: str, *words: str) -> int:
    return main([*words, "-n", name, "-c", str(sites.folder / "settings" / f"{name}.yaml")])


def releases_in(sites: LocalFederation, name: str) -> list[dict]:
    """Return what a site's ledger has, read without our code."""
    _, *entries = map(json.loads, (sites.folder / "ledgers" / f"{name}.jsonl").read_text().splitlines())
    return entries


@pytest.fixture(scope="module")
def finished(sites: LocalFederation, connect: Callable) -> tuple:
    """An experiment of nine rounds that all sites have approved, and its history."""
    import toy

    experiment = FLExperiment(connect(sites), "private", workspace=toy)
    experiment.start(**arguments())
    for name in SITES:
        wait_for(lambda name=name: at_site(sites, name, "approve", "private") == 0)
    return experiment, experiment.watch()


def test_a_budget_ends_in_round_seven_and_the_others_go_on(sites: LocalFederation, finished: tuple, capsys) -> None:
    experiment, history = finished
    records = [*experiment.federation.dir_client.read_history("private")]
    trained = {name: [r["round"] for r in records if "train" in r["envoys"].get(name, {})] for name in SITES}
    assert trained == {"a": [*range(9)], "b": [*range(LAST_ROUND)], "c": [*range(9)]}
    assert records[LAST_ROUND]["refused"] == {"b": "left the experiment: b's budget is spent"}
    told = records[-1]["privacy"]
    assert (told["unit"], told["delta"]) == ("record", 1e-5)
    for name, rounds in (("a", 9), ("b", LAST_ROUND), ("c", 9)):
        of_training = [each for each in releases_in(sites, name) if each["release"]["probability"] == 0.25]
        assert len(of_training) == rounds
        assert told["epsilon"][name] == pytest.approx(cost(rounds))
    assert history["epsilon"].iloc[-1] == pytest.approx(cost(9))
    assert all(record["envoys"]["a"]["train"].keys() == {"size"} for record in records[:9]), "no loss has left"
    capsys.readouterr()
    assert at_site(sites, "b", "privacy") == 0
    assert f"epsilon {cost(LAST_ROUND):.4g}" in capsys.readouterr().out
    entries = map(json.loads, (sites.folder / "envoys" / "b" / RECORD).read_text().splitlines())
    assert [entry["round"] for entry in entries if entry["event"] == "charged"] == [*range(LAST_ROUND)]


def test_noisy_metrics_leave_with_their_noise_and_are_paid_for(sites: LocalFederation, finished: tuple) -> None:
    experiment, _ = finished
    validated = [
        record["envoys"]["c"]["aggregated_model_validate"]
        for record in experiment.federation.dir_client.read_history("private")
    ]
    assert all(each.keys() <= {"size", "accuracy"} for each in validated), "nothing bounds a clip's part in the slope"
    assert {each["size"] for each in validated} != {SITES["c"]}, "its clips are told with noise"
    assert all(0 <= each.get("accuracy", 0) <= 1 for each in validated)
    paid = [each for each in releases_in(sites, "c") if each["experiment"] == "private"]
    noisy = {"noise_multiplier": METRICS_NOISE, "probability": 1.0, "steps": 1}
    assert (
        [each["round_number"] for each in paid if each["release"] == noisy] == [*range(len(validated))] == [*range(10)]
    )
    assert len(paid) == 9 + 10


def test_another_experiment_finds_the_budget_spent(sites: LocalFederation, finished: tuple, connect: Callable) -> None:
    import toy

    experiment = FLExperiment(connect(sites), "again", workspace=toy)
    experiment.start(**arguments(rounds_to_train=1, envoys=["b"]))
    with pytest.raises(ExperimentFailedError, match="b's budget is spent"):
        experiment.watch()
    assert len(releases_in(sites, "b")) == LAST_ROUND


def test_a_task_without_private_steps_never_runs(sites: LocalFederation, finished: tuple, connect: Callable) -> None:
    import toy
    from toy.experiment import leak, task_interface

    experiment = FLExperiment(connect(sites), "leak", workspace=toy)
    experiment.start(**arguments(envoys=["a"], privacy=None, task_keeper=task_interface(leak)))
    with pytest.raises(ExperimentFailedError, match="this site has a budget of privacy, and the experiment protects"):
        experiment.watch()
    assert {each["name"]: each["waits"] for each in status_of(sites)["experiments"]}["leak"] == ""
    assert len(releases_in(sites, "a")) == 9


@pytest.mark.slow
def test_what_is_trained_anew_after_a_stop_is_paid_for_again(
    sites: LocalFederation, finished: tuple, connect: Callable
) -> None:
    import toy

    before = len(releases_in(sites, "c"))
    experiment = FLExperiment(connect(sites), "resumed", workspace=toy)
    experiment.start(**arguments(envoys=["c"], rounds_to_train=4, participation=Participation()))
    wait_for(lambda: at_site(sites, "c", "approve", "resumed") == 0)
    wait_for(lambda: len(releases_in(sites, "c")) > before)
    experiment.stop()
    experiment.resume()
    assert len(experiment.watch()) == 5
    entries = [*map(json.loads, (sites.folder / "envoys" / "c" / RECORD).read_text().splitlines())]
    of_it = [entry for entry in entries if entry.get("experiment") == "resumed"]
    paid = [entry["round"] for entry in of_it if entry["event"] == "charged"]
    sent = [entry["round"] for entry in of_it if entry["event"] == "sent" and entry["tensors"]]
    assert {*sent} == {*range(4)}
    assert len(paid) == len(releases_in(sites, "c")) - before
    for number in range(4):
        assert paid.count(number) >= sent.count(number), "nothing has left that was not paid for"


def test_code_that_is_neither_installed_nor_approved_never_runs(sites: LocalFederation, connect: Callable) -> None:
    import toy

    experiment = FLExperiment(connect(sites), "unseen", workspace=toy)
    experiment.start(**arguments(envoys=["d"], participation=Participation()))
    sentence = (
        "has a budget of privacy, and runs installed workloads and code that its site has approved by hash: 'toy/"
    )
    with pytest.raises(ExperimentFailedError, match=sentence):
        experiment.watch()
    assert len((sites.folder / "d.jsonl").read_text().splitlines()) == 1, "the title, and no release"


@pytest.mark.slow
def test_simulation_gives_the_same_bits_with_noise_for_tests(
    certificates: Path, connect: Callable, tmp_path: Path
) -> None:
    import toy
    from toy.shard import PointsShardDescriptor

    pair = {name: SITES[name] for name in ("a", "b")}
    given = arguments(envoys=[*pair], rounds_to_train=3, participation=Participation())
    with noise_that_repeats(3):
        with federation_of(pair, tmp_path / "federation", certificates) as processes:
            experiment = FLExperiment(connect(processes), "same", workspace=toy)
            experiment.start(**given)
            experiment.watch()
            federated = experiment.last_model().state_dict()
        simulation = Simulation([*pair], lambda name: PointsShardDescriptor(pair[name]), tmp_path / "simulation")
        simulation.start("same", **given)
        simulation.watch()
    for name, tensor in simulation.last_model().state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), federated[name].numpy())
    assert not np.array_equal(federated["0.weight"].numpy(), [[0.0]])
