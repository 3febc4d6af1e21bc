"""K-means over a federation against Lloyd's algorithm on the frames of all, written down in a few lines of NumPy."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from openfl.interface.interactive_api.shard_descriptor import ShardDescriptor

from openfl_audio.simulation.simulation import Simulation
from workspaces.hubert_codebooks.model import ClusterSums, assign, final_centroids, fit_centroids, next_centroids
from workspaces.hubert_codebooks.tasks import arguments, gather, iterate

pytestmark = pytest.mark.training

WIDTH = 39
CLIENTS = {"client-1": 900, "client-2": 40, "client-3": 2_300}  # frames


class Frames(ShardDescriptor):
    """A client whose clips have ten frames each: points in blobs, of which each client has other ones for the most."""

    def __init__(self, client: str) -> None:
        number = int(client[-1])
        generator = np.random.default_rng(number)
        centres = np.random.default_rng(99).normal(size=(20, WIDTH)) * 40 + 300  # far from 0, as energies are
        blobs = generator.choice(20, size=CLIENTS[client], p=np.roll(np.arange(20) ** 2, 7 * number) / 2_470)
        self.frames = (centres[blobs] + 12 * generator.normal(size=(CLIENTS[client], WIDTH))).astype(np.float32)
        clips = len(self.frames) // 10
        self.names = [f"{client}-{i}" for i in range(clips)]
        self.num_frames = np.full(clips, 10)
        self.num_samples = self.num_frames * WIDTH

    def __len__(self) -> int:
        return len(self.names)

    def get_dataset(self, dataset_type: str) -> "Frames":
        assert dataset_type == "train"
        return self

    def read_waveform(self, index: int) -> np.ndarray:
        return self.frames[10 * index : 10 * index + 10].ravel()


class AsTheyAre:
    """A waveform's samples, in rows."""

    name, width = "as-they-are", WIDTH

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        return waveform.reshape(-1, WIDTH)


def cluster(folder, clusters: int, rounds: int, clients=tuple(CLIENTS), **others) -> Simulation:
    simulation = Simulation(list(clients), Frames, folder)
    simulation.start("kmeans", **arguments(AsTheyAre(), clusters, rounds, **others))
    for _ in simulation.run():
        continue
    return simulation


def lloyd(frames: np.ndarray, centroids: np.ndarray, iterations: int) -> np.ndarray:
    for _ in range(iterations):
        nearest = ((frames[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
        centroids = np.stack([frames[nearest == k].mean(axis=0) for k in range(len(centroids))])
    return centroids


def mean_squared_distance(frames: np.ndarray, centroids: np.ndarray) -> float:
    return float(((frames[:, None] - centroids) ** 2).sum(axis=2).min(axis=1).mean())


@pytest.fixture(scope="module")
def pooled():
    return np.concatenate([Frames(client).frames for client in CLIENTS]).astype(np.float64)


def test_it_is_lloyd_s_algorithm_on_the_frames_of_all(tmp_path, pooled):
    clusters, rounds = 12, 9
    # The first round gathers, the second draws centroids and assigns to them; from there on it is Lloyd's algorithm.
    initial = final_centroids(cluster(tmp_path / "two", clusters, rounds=2).last_model())
    assert len(initial) == clusters
    simulation = cluster(tmp_path / "all", clusters, rounds)
    centroids = final_centroids(simulation.last_model())
    # One iteration less would be something else: it has not converged before.
    assert np.abs(lloyd(pooled, initial, rounds - 3) - lloyd(pooled, initial, rounds - 2)).max() > 0.01
    np.testing.assert_allclose(centroids, lloyd(pooled, initial, rounds - 2), atol=1e-4)
    counts = simulation.last_model().counts.detach().numpy() * len(CLIENTS)  # the mean of the clients' counts
    assert counts.sum() == pytest.approx(len(pooled))


def test_squared_error_is_that_of_all_frames_and_falls(tmp_path, pooled):
    history = cluster(tmp_path, clusters=12, rounds=8).history
    errors = history["train squared_error"].tolist()
    assert errors[0] == pytest.approx((pooled**2).sum(axis=1).mean())
    assert all(later <= earlier for earlier, later in pairwise(errors[1:]))


def test_three_clients_find_what_one_with_all_frames_finds(tmp_path, pooled):
    """Also with empty clusters on the way, of which a new one is split off."""
    model = ClusterSums(60, WIDTH)
    for round_number in range(6):
        iterate(model, pooled, "cpu", None, round_number, seed=0)
    together = cluster(tmp_path, clusters=60, rounds=6).last_model()
    np.testing.assert_allclose(final_centroids(together), final_centroids(model), atol=1e-6)


def test_only_sums_leave_a_client(tmp_path):
    tensors = cluster(tmp_path, clusters=5, rounds=2).definition.tensors
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "sums": (5, WIDTH),
        "squares": (5, WIDTH),
        "counts": (5,),
    }
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float64)}


def test_it_fits_about_as_well_as_scikit_learn_s(tmp_path, pooled):
    together = mean_squared_distance(pooled, final_centroids(cluster(tmp_path, 60, rounds=20).last_model()))
    alone = mean_squared_distance(pooled, fit_centroids(pooled.astype(np.float32), 60, seed=0))
    assert together < 1.1 * alone


def test_a_share_of_the_clips_is_enough_for_sums(tmp_path, pooled):
    model = cluster(tmp_path, clusters=5, rounds=2, share=0.5).last_model()
    frames = sum(10 * -(-n // 20) for n in CLIENTS.values())
    assert model.counts.sum().item() * len(CLIENTS) == pytest.approx(frames)


def test_sums_are_those_of_each_cluster_however_the_frames_are_cut(monkeypatch, pooled):
    centroids = pooled[::400]
    nearest = assign(pooled, centroids)
    for chunk_bytes in (1, 8 * WIDTH * 1_000, 1 << 24):
        monkeypatch.setattr("workspaces.hubert_codebooks.tasks.CHUNK_BYTES", chunk_bytes)
        gathered, squared_error = gather(pooled[:2_100], centroids)
        for k in range(len(centroids)):
            of_k = pooled[:2_100][nearest[:2_100] == k]
            assert gathered["counts"][k] == len(of_k)
            np.testing.assert_allclose(gathered["sums"][k], of_k.sum(axis=0), rtol=1e-12)
            np.testing.assert_allclose(gathered["squares"][k], (of_k**2).sum(axis=0), rtol=1e-12)
        assert squared_error == pytest.approx(mean_squared_distance(pooled[:2_100], centroids))


def test_an_empty_cluster_is_split_off_one_with_much_error():
    sums, squares = np.zeros((4, 2)), np.zeros((4, 2))
    frames = {0: np.array([[1.0, 1], [1, 1]]), 2: np.array([[50.0, 7], [60, 7], [70, 7]])}
    for k, of_k in frames.items():
        sums[k], squares[k] = of_k.sum(axis=0), (of_k**2).sum(axis=0)
    counts = np.array([2.0, 0, 3, 0])
    draw = partial(next_centroids, sums, squares, counts, seed=0)
    centroids = draw(round_number=5)
    np.testing.assert_allclose(centroids[:2], [[1, 1], [60, 7]])
    # The first cluster has no error in it, and the other one none in its second dimension.
    assert (centroids[2:, 1] == 7).all()
    assert (np.abs(centroids[2:, 0] - 60) < 40).all()
    assert len(set(centroids[1:, 0])) == 3
    np.testing.assert_array_equal(centroids, draw(round_number=5))
    assert (centroids[2:, 0] != draw(round_number=6)[2:, 0]).all()


def test_with_fewer_different_frames_than_clusters_the_others_stay_empty():
    model = ClusterSums(5, 3)
    frames = np.repeat(np.eye(3), 4, axis=0)
    for round_number in range(12):
        error = iterate(model, frames, "cpu", None, round_number, seed=0)["squared_error"]
    assert error == 0
    assert sorted(model.counts.tolist()) == [0, 0, 4, 4, 4]
    assert sorted(final_centroids(model).tolist()) == sorted(np.eye(3).tolist())


def test_clusters_fill_up_in_many_dimensions_too():
    """As in hidden states: a draw with the whole deviation would lie too far from all frames there."""
    frames = np.random.default_rng(0).normal(size=(3_000, 768))
    model = ClusterSums(50, 768)
    for round_number in range(5):
        iterate(model, frames, "cpu", None, round_number, seed=0)
    assert torch.count_nonzero(model.counts) == 50


def test_frames_in_a_file_are_clustered_as_those_in_memory(tmp_path, pooled):
    frames = pooled.astype(np.float32)
    frames.tofile(tmp_path / "frames.f32")
    mapped = np.memmap(tmp_path / "frames.f32", "<f4", "r", shape=frames.shape)
    centroids = fit_centroids(mapped, 10, seed=0)
    np.testing.assert_array_equal(centroids, fit_centroids(frames, 10, seed=0))
    assert assign(mapped, centroids).tolist() == ((frames[:, None] - centroids) ** 2).sum(2).argmin(1).tolist()
