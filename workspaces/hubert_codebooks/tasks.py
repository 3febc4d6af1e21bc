"""K-means on frames: of one node with scikit-learn, and over a federation in which no frame leaves its node.

The federated one is an ordinary experiment, and a round is one iteration of Lloyd's algorithm ("Least squares
quantization in PCM", 1982). A client assigns its frames to the nearest centroids and sends, for each cluster, how many
there are, their sum and the sum of their squares. The director's plain mean of these is the federation's, up to a
factor, and the next centroids are quotients of them: those of Lloyd's algorithm on the frames of all.

    simulation.start("kmeans", **arguments(Mfcc(), clusters=504, rounds=30))
    centroids = final_centroids(simulation.last_model())
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from openfl.interface.interactive_api.experiment import TaskInterface
from sklearn.metrics import pairwise_distances_argmin_min

from openfl_audio.node.model_interface import ModelInterface
from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.rules import Mean
from workspaces.hubert_codebooks.data import FrameData
from workspaces.hubert_codebooks.features import Features
from workspaces.hubert_codebooks.model import ClusterSums, next_centroids, read_sums

# Frames that are taken at a time, in float64.
CHUNK_BYTES = 1 << 24


def arguments(
    features: Features, clusters: int, rounds: int, share: float = 1.0, seed: int = 0, folder: str | None = None
) -> dict[str, Any]:
    """Return the arguments of `FLExperiment.start` and `Simulation.start`.

    The first round only gathers where to draw centroids.

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
    """Run one iteration of Lloyd's algorithm on the frames of one client: the task."""
    before = read_sums(model)
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
        squared_error += float(np.square(distances).sum())  # a dot product depends on the number of threads
    return {"sums": sums.numpy(), "squares": squares.numpy(), "counts": counts}, squared_error / len(frames)
