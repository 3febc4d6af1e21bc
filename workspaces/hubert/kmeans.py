"""K-means on frames: of one node with scikit-learn, and over a federation in which no frame leaves its node.

The federated one is an ordinary experiment, and a round is one iteration of Lloyd's algorithm ("Least squares
quantization in PCM", 1982). A client assigns its frames to the nearest centroids and sends, for each cluster, how many
there are, their sum and the sum of their squares. The director's plain mean of these is the federation's, up to a
factor, and the next centroids are quotients of them: those of Lloyd's algorithm on the frames of all.

    simulation.start("kmeans", **arguments(Mfcc(), clusters=504, rounds=30))
    centroids = final_centroids(simulation.last_model())
"""

import tempfile
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from openfl.interface.interactive_api.experiment import DataInterface, TaskInterface
from openfl.interface.interactive_api.shard_descriptor import ShardDescriptor
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import pairwise_distances_argmin, pairwise_distances_argmin_min

from openfl_audio.node.model_interface import ModelInterface
from openfl_audio.protocol.aggregation import Aggregation, Mean
from workspaces.hubert.features import Features, draw_clips, read_frames

# Frames that are taken at a time, in float64.
CHUNK_BYTES = 1 << 24


class ClusterSums(torch.nn.Module):
    """What travels, in float64: of the frames in each cluster the `sums` and the sums of `squares`, both (clusters,
    width), and the `counts`, (clusters,). Centroids follow from them."""

    def __init__(self, clusters: int, width: int) -> None:
        super().__init__()
        self.sums = torch.nn.Parameter(torch.zeros(clusters, width, dtype=torch.float64))
        self.squares = torch.nn.Parameter(torch.zeros(clusters, width, dtype=torch.float64))
        self.counts = torch.nn.Parameter(torch.zeros(clusters, dtype=torch.float64))


class FrameData(DataInterface):
    """Gives the task the frames of the node's train clips, or of a share of them that the seed draws.

    They are kept in `folder`, or for as long as this process lives.
    """

    units: ClassVar[dict[str, str]] = {"train": "frames", "validate": "frames"}

    def __init__(self, features: Features, share: float = 1.0, seed: int = 0, folder: str | None = None) -> None:
        super().__init__()
        self._features, self._share, self._seed, self._folder = features, share, seed, folder

    @property
    def shard_descriptor(self) -> ShardDescriptor:
        return self._shard_descriptor

    @shard_descriptor.setter
    def shard_descriptor(self, shard_descriptor: ShardDescriptor) -> None:
        self._shard_descriptor = shard_descriptor
        self._dataset = shard_descriptor.get_dataset("train")
        self._indices = draw_clips(len(self._dataset), self._share, self._seed)
        self._frames: np.ndarray | None = None

    def get_train_loader(self, **kwargs: Any) -> np.ndarray:
        """float32 (frames, width)"""
        if self._frames is None:
            if self._folder is None:
                self._temporary = tempfile.TemporaryDirectory()
            folder = self._folder or self._temporary.name
            self._frames = read_frames(self._dataset, self._features, self._indices, folder)
        return self._frames

    def get_train_data_size(self) -> int:
        """Frames, not clips: the mean of `squared_error` is then that over all frames."""
        return int(self._dataset.num_frames[self._indices].sum())

    def get_valid_loader(self, **kwargs: Any) -> np.ndarray:
        return np.empty((0, self._features.width), dtype=np.float32)

    def get_valid_data_size(self) -> int:
        return 0


def arguments(
    features: Features, clusters: int, rounds: int, share: float = 1.0, seed: int = 0, folder: str | None = None
) -> dict[str, Any]:
    """Of `FLExperiment.start` and `Simulation.start`; the first round only gathers where to draw centroids.

    Its metric is `squared_error`, the mean squared distance of a frame to its centroid (lower is better); in the first
    round, to the origin.
    """
    tasks = TaskInterface()
    tasks.register_fl_task(
        model="model", data_loader="frames", device="device", optimizer="optimizer", round_num="round_number"
    )(iterate)
    tasks.add_kwargs(seed=seed)(iterate)
    return {
        # OpenFL wants an optimizer. It never takes a step.
        "model_provider": ModelInterface(
            partial(ClusterSums, clusters, features.width), partial(torch.optim.SGD, lr=0.0)
        ),
        "task_keeper": tasks,
        "data_loader": FrameData(features, share, seed, folder),
        "rounds_to_train": rounds,
        # Sums add up: what a client has more of is in its sums already.
        "aggregation": Aggregation(rule=Mean(weighted=False)),
        "corpus": "librispeech",
    }


def iterate(model, frames, device, optimizer, round_number, seed):
    """The task: one iteration of Lloyd's algorithm on the frames of one client."""
    before = _read(model)
    if before["counts"].any():
        centroids = next_centroids(**before, seed=seed, round_number=round_number)
    else:
        centroids = np.zeros((1, frames.shape[1]))  # all frames in one cluster
    gathered, squared_error = gather(frames, centroids)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.zero_()[: len(centroids)] = torch.from_numpy(gathered[name])
    return {"squared_error": squared_error}


def gather(frames: np.ndarray, centroids: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """Assign frames (frames, width) to the nearest centroids (clusters, width).

    Returns:
        {"sums", "squares", "counts"} in float64 as `ClusterSums` has them, and the mean squared distance.
    """
    clusters, width = centroids.shape
    sums, squares = (torch.zeros(clusters, width, dtype=torch.float64) for _ in range(2))
    counts = np.zeros(clusters)
    squared_error = 0.0
    rows = max(1, CHUNK_BYTES // (8 * width))
    for start in range(0, len(frames), rows):
        # float64, so that a frame between two centroids goes to the same one wherever it lies.
        chunk = np.asarray(frames[start : start + rows], dtype=np.float64)
        nearest, distances = pairwise_distances_argmin_min(chunk, centroids)
        members = torch.from_numpy(nearest)
        sums.index_add_(0, members, torch.from_numpy(chunk))
        squares.index_add_(0, members, torch.from_numpy(chunk**2))
        counts += np.bincount(nearest, minlength=clusters)
        squared_error += float(distances @ distances)
    return {"sums": sums.numpy(), "squares": squares.numpy(), "counts": counts}, squared_error / len(frames)


def next_centroids(
    sums: np.ndarray, squares: np.ndarray, counts: np.ndarray, seed: int, round_number: int
) -> np.ndarray:
    """The means of the clusters with frames, then a centroid split off one of them for each cluster without.

    The one to split is drawn in proportion to the squared error in it, as k-means++ draws frames (Arthur and
    Vassilvitskii 2007); the new centroid from a normal distribution around its mean, with the deviations of its frames.
    In d dimensions of equal deviation that would be sqrt(d) deviations away, where no frame would follow, so it is at
    most 2; d is estimated as (sum of variances)^2 / sum of squared variances. In the first round all frames are in one
    cluster, so this is where the first centroids come from.

    Everything here is a function of what has travelled, so every client comes to the same centroids.

    Returns:
        float64 (clusters, width); less clusters where frames are all on their centroids, and nothing can be split.
    """
    means = _means(sums, counts)
    occupied = counts > 0
    variances = np.maximum(squares[occupied] / counts[occupied, None] - means**2, 0)
    errors = counts[occupied] * variances.sum(axis=1)
    if occupied.all() or not errors.any():
        return means
    generator = np.random.default_rng((seed, round_number))
    split = generator.choice(len(means), size=np.count_nonzero(~occupied), p=errors / errors.sum())
    dimensions = variances[split].sum(axis=1) ** 2 / (variances[split] ** 2).sum(axis=1)
    reach = np.minimum(1, 2 / np.sqrt(dimensions))[:, None] * np.sqrt(variances[split])
    return np.concatenate([means, means[split] + reach * generator.standard_normal(reach.shape)])


def final_centroids(model: torch.nn.Module) -> np.ndarray:
    """The codebook, float64 (clusters, width), of the last round's `ClusterSums`; without clusters that are empty."""
    values = _read(model)
    return _means(values["sums"], values["counts"])


def fit_centroids(frames: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """K-means of one node's frames (frames, width), which may be mapped into memory: float64 (clusters, width).

    Batches of 10,000 frames and up to 100 passes, as published for HuBERT's targets (fairseq's simple_kmeans).
    """
    kmeans = MiniBatchKMeans(
        clusters,
        batch_size=10_000,
        max_iter=100,
        max_no_improvement=100,
        tol=0.0,
        n_init=5,
        reassignment_ratio=0.0,
        compute_labels=False,
        random_state=seed,
    )
    return kmeans.fit(frames).cluster_centers_.astype(np.float64)


def assign(frames: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest centroid of each frame: int64 (frames,)."""
    return pairwise_distances_argmin(frames.astype(np.float64), centroids)


def _read(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: parameter.detach().cpu().numpy() for name, parameter in model.named_parameters()}


def _means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return sums[counts > 0] / counts[counts > 0, None]
