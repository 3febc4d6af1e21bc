"""A director process that breaks the rules of secure aggregation: its envoys find it, and unmask nothing."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from openfl_audio import SecureAggregation
from openfl_audio.errors import ExperimentFailedError
from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.protocol.record import RECORD, entry_of, read_record
from tests.integration.conftest import READY_SECONDS, USER, points

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SITES = {"a": 1, "b": 3, "c": 5, "d": 7}


class MaliciousFederation(LocalFederation):
    """A federation of envoys that keep to the rules, and a director that does not."""

    def run(self, name: str, command: list[str], cwd: Path, env: Mapping[str, str]) -> None:
        """Run `malicious_director`, which lies beside this file, as the director."""
        if name == "director":
            command = ["malicious_director" if word == "openfl_audio.cli" else word for word in command]
        super().run(name, command, cwd, env)


@pytest.fixture(scope="module")
def malicious(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[LocalFederation]:
    """A malicious director and four envoys, of which a sum needs three."""
    with MaliciousFederation(tmp_path_factory.mktemp("malicious"), certificates, USER) as processes:
        processes.start_director()
        for name, n_points in SITES.items():
            processes.start_envoy(name, points(n_points))
        processes.wait_until_ready(SITES, READY_SECONDS)
        yield processes


def unmasked(processes: LocalFederation, experiment: str) -> dict[str, list[list[str]]]:
    """Return of each envoy which sets of survivors it has unmasked for an experiment, as its record has them."""
    found = {}
    for name in SITES:
        (path,) = (processes.folder / "envoys" / name).rglob(RECORD)
        entries = [entry for line in read_record(path) if (entry := entry_of(line))]
        found[name] = [e["envoys"] for e in entries if e["event"] == "unmasked" and e["experiment"] == experiment]
    return found


@pytest.mark.parametrize(
    ("trick", "sentence", "sums"),
    [
        ("swapped-keys", "attempt 1 of round 0 is refused: the signature of envoy '{other}' is none of this", []),
        ("replayed-keys", "attempt 2 of round 0 is refused: the signature of envoy '{other}' is none of this", []),
        ("split-survivors", "attempt 1 of round 0 is refused: the signature of envoy '{liar}' is none of this", []),
        ("left-alone", "attempt 1: updates of 1 envoys, and of 4 there must be 3", []),
        ("one-fewer", "the sum of a, b, c, d was unmasked for this plan and round before", [[*"abcd"]]),
    ],
)  # fmt: skip
def test_envoys_find_what_a_director_does_and_unmask_nothing(
    malicious: LocalFederation, connect: Callable, trick: str, sentence: str, sums: list[list[str]]
) -> None:
    import toy
    from toy.experiment import PointsData, model_interface, task_interface

    from openfl_audio import FLExperiment

    experiment = FLExperiment(connect(malicious), trick, workspace=toy)
    experiment.start(
        model_provider=model_interface(),
        task_keeper=task_interface(),
        data_loader=PointsData(),
        rounds_to_train=1,
        envoys=[*SITES],
        secure_aggregation=SecureAggregation(value_range=16.0, largest_weight=8, stage_seconds=20),
    )
    with pytest.raises(ExperimentFailedError, match="round 0"):
        experiment.watch()
    for name in "abc":
        other, liar = "b" if name == "a" else "a", "c" if name in "ab" else "a"
        log = malicious.log(name).read_text()
        assert f"experiment '{trick}'" in log or trick.endswith("-keys")
        assert sentence.format(other=other, liar=liar) in log
    assert unmasked(malicious, trick) == dict.fromkeys(SITES, sums)
