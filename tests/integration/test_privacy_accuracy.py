"""A point of accuracy against epsilon: a federation gives the bits of the simulation."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from benchmarks import privacy_accuracy
from benchmarks.privacy_accuracy import ROWS, Cell, prepare, read, settings_of, train
from openfl_audio.experiments.run import run
from openfl_audio.experiments.workloads import find_workload
from openfl_audio.testing.noise import noise_that_repeats

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    """Make corpora, public training and runs as small as they can be, in one thread as a command's own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        sizes = {
            "PUBLIC_SPEAKERS": 5,
            "PUBLIC_ROUNDS": 1,
            "CLIENT_SPEAKERS": 8,
            "SOUND_CLIPS": 60,
            "TEST_SOUND_CLIPS": 20,
        }
        for name, size in sizes.items():
            patch.setattr(privacy_accuracy, name, size)
        patch.setitem(ROWS, "head", replace(ROWS["head"], rounds=2, steps=2))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a benchmark with its words and its public encoder."""
    folder = tmp_path_factory.mktemp("privacy_accuracy")
    prepare(folder, "words")
    return folder


@pytest.mark.parametrize("name", ROWS)
def test_each_row_of_the_matrix_trains_a_step_at_each_client(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ROWS[name]
    monkeypatch.setitem(ROWS, name, replace(row, rounds=1, steps=1, clients=min(row.clients, 10)))
    prepare(folder, row.data)
    cell = Cell(name, 8.0, 0)
    train(cell, folder)
    found = read(cell, folder)
    assert 0.99 * 8 < found["spent"] <= 8
    assert 0 <= found["score"] <= 1


def test_a_federation_of_five_gives_the_bits_of_the_simulated_point(folder: Path, tmp_path: Path) -> None:
    row, settings = ROWS["head"], settings_of(Cell("head", 8.0, 0), folder / "encoder")
    assert settings.clients == 5
    with noise_that_repeats(4):
        for mode in ("simulated", "federated"):
            run(find_workload(row.workload), settings, mode, folder / row.data, tmp_path / mode)
    simulated, federated = (
        load_file(tmp_path / mode / "model-last" / "model.safetensors") for mode in ("simulated", "federated")
    )
    assert simulated.keys() == federated.keys()
    for name, tensor in simulated.items():
        np.testing.assert_array_equal(federated[name], tensor, err_msg=name)
    with noise_that_repeats(5):
        run(find_workload(row.workload), settings, "simulated", folder / row.data, tmp_path / "other")
    other = load_file(tmp_path / "other" / "model-last" / "model.safetensors")
    assert any(not np.array_equal(other[name], tensor) for name, tensor in simulated.items()), "the noise matters"
