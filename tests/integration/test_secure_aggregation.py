"""Secure aggregation with a real director, real envoys and TLS."""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from openfl_audio import SecureAggregation
from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.privacy.fixed_point import Rounding, encode
from openfl_audio.protocol.codec import encode as packed
from openfl_audio.protocol.messages import SecureAnswer
from openfl_audio.simulation.simulation import Simulation
from tests.integration.conftest import READY_SECONDS, USER, points
from tests.integration.recording_director import RECORDED, SIZES

pytestmark = pytest.mark.integration

SITES = {"a": 1, "b": 3, "c": 5}


class RecordedFederation(LocalFederation):
    """A federation whose director keeps a copy of all messages."""

    def run(self, name: str, command: list[str], cwd: Path, env: Mapping[str, str]) -> None:
        """Run `recording_director`, which lies beside this file, as the director."""
        if name == "director":
            command = ["recording_director" if word == "openfl_audio.cli" else word for word in command]
        super().run(name, command, cwd, env)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[LocalFederation]:
    """A director and three envoys."""
    with RecordedFederation(tmp_path_factory.mktemp("secure"), certificates, USER) as processes:
        processes.start_director()
        for name, n_points in SITES.items():
            processes.start_envoy(name, points(n_points))
        processes.wait_until_ready(SITES, READY_SECONDS)
        yield processes


def arguments(**changes: object) -> dict:
    from toy.experiment import PointsData, model_interface, task_interface

    settings = SecureAggregation(value_range=16.0, largest_weight=8, stage_seconds=20)
    given = {"model_provider": model_interface(), "task_keeper": task_interface(), "data_loader": PointsData()}
    return given | {"rounds_to_train": 3, "envoys": [*SITES], "secure_aggregation": settings} | changes


@pytest.fixture(scope="module")
def finished(secure: LocalFederation, connect: Callable) -> tuple:
    """An experiment of three rounds, its history, and the bytes of the messages so far by method and kind."""
    import toy

    from openfl_audio import FLExperiment

    experiment = FLExperiment(connect(secure), "secure", workspace=toy)
    experiment.start(**arguments())
    history, sizes = experiment.watch(), Counter[tuple[str, str]]()
    for line in (secure.folder / SIZES).read_text().splitlines():
        method, kind, n_bytes = json.loads(line)
        sizes[method, kind] += n_bytes
    return experiment, history, sizes


def test_director_learns_the_mean_and_no_site(secure: LocalFederation, finished: tuple) -> None:
    experiment, history, _ = finished
    # (1 * 1 + 3 * 3 + 5 * 5) / 9 a round, to a millionth of the range.
    assert history["slope"].tolist() == pytest.approx([0, 35 / 9, 70 / 9, 105 / 9], abs=1e-3)
    assert history["train loss"].tolist()[:3] == pytest.approx([35 / 9] * 3, abs=1e-5)
    records = [*experiment.federation.dir_client.read_history("secure")]
    for record in records:
        assert record["secure"] == {"envoys": ["a", "b", "c"], "of": 3, "threshold": 3, "attempt": 1, "approving": 0}
        assert record["envoys"] == {"a": {}, "b": {}, "c": {}}


def test_history_counts_the_bytes_of_all_messages_of_its_rounds(finished: tuple) -> None:
    experiment, _, sizes = finished
    records = [*experiment.federation.dir_client.read_history("secure")]
    up = sizes["SendUpdate", "request"] + sizes["SecureStage", "request"]
    down = sizes["GetModel", "answer"] + sizes["SecureStage", "answer"]
    assert sizes["SecureStage", "request"] > sizes["SendUpdate", "request"], "the model is a small one"
    assert sum(record["bytes_up"] for record in records) == up
    # The last answers of a round, which say that it is over, may come when its record is written.
    late = len(records) * len(SITES) * len(packed(SecureAnswer(state="over", counted=True)))
    assert down - late <= sum(record["bytes_down"] for record in records) <= down


def test_simulation_gives_the_same_bits(finished: tuple, tmp_path: Path) -> None:
    from toy.shard import PointsShardDescriptor

    experiment, history, _ = finished
    simulation = Simulation([*SITES], lambda name: PointsShardDescriptor(n_points=SITES[name]), tmp_path)
    simulation.start("secure", **arguments())
    simulated = simulation.watch()
    last, expected = experiment.last_model().state_dict(), simulation.last_model().state_dict()
    for name, tensor in last.items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name].numpy())
    for column in ("slope", "train loss"):
        assert history[column].dropna().tolist() == simulated[column].dropna().tolist()


@pytest.mark.slow
@pytest.mark.parametrize("is_secure", [True, False], ids=["secure", "plain"])
def test_updates_are_in_memory_files_and_messages_of_the_director_only_without_it(
    secure: LocalFederation, connect: Callable, is_secure: bool
) -> None:
    import toy
    from toy.experiment import create_blank_model, first_weight, plant_numbers, task_interface

    from openfl_audio import FLExperiment
    from openfl_audio.notebook.interactive_api import ModelInterface

    model = ModelInterface(create_blank_model, partial(torch.optim.SGD, lr=0.1))
    experiment = FLExperiment(connect(secure), f"planted-{is_secure}".lower(), workspace=toy)
    settings = SecureAggregation(value_range=1.0, largest_weight=8)
    tasks = task_interface(plant_numbers, first_weight)
    before = (secure.folder / RECORDED).stat().st_size
    changes = {"secure_aggregation": settings} if is_secure else {}
    experiment.start(
        **arguments(model_provider=model, task_keeper=tasks, rounds_to_train=1, secure_aggregation=None) | changes
    )
    experiment.watch()
    needles = {}
    for site, clips in SITES.items():
        update = planted(clips)
        words, _ = encode(update.astype(np.float64), 1.0, clips / 8, settings.bits, Rounding.of(0, 0, site))
        parts = [values[first : first + 16].tobytes() for values in (update, words) for first in range(0, 4096, 1024)]
        needles[site] = parts
    held = [*writable_memory(secure.pid("director")), *contents(secure.folder / "director")]
    # What is looked for can be found: the sum, which the director knows.
    mean = next(iter(experiment.last_model().state_dict().values())).numpy().ravel()
    assert any(mean[:16].tobytes() in content for content in held)
    messages = (secure.folder / RECORDED).read_bytes()[before:]
    assert mean[:16].tobytes() in messages  # the model of the last round, as envoys get it

    def found_in(*places: bytes) -> set[str]:
        return {site for site, parts in needles.items() if any(part in each for each in places for part in parts)}

    assert found_in(messages) == (set() if is_secure else {*SITES})
    # A director that is done with an update may have written something else over it.
    assert bool(found_in(*held)) != is_secure


def planted(n_points: int) -> np.ndarray:
    """Return the update of a site with so many points."""
    return torch.empty(4096).uniform_(-1, 1, generator=torch.Generator().manual_seed(n_points)).numpy()


def writable_memory(pid: int) -> Iterator[bytes]:
    """Yield what a process has in each part of its memory that it can write."""
    maps = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for addresses, permissions, *_ in maps:
            first, last = (int(address, 16) for address in addresses.split("-"))
            if permissions.startswith("rw"):
                memory.seek(first)
                with contextlib.suppress(OSError):  # a part may be gone meanwhile
                    yield memory.read(last - first)


def contents(folder: Path) -> Iterator[bytes]:
    """Yield what is in each file below a folder."""
    yield from (path.read_bytes() for path in folder.rglob("*") if path.is_file())
