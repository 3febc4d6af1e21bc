"""Codebooks: what a round of federated k-means sends, and the centroids that follow from it."""

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import pairwise_distances_argmin

BATCH_FRAMES, MAX_PASSES = 10_000, 100


class ClusterSums(torch.nn.Module):
    """The sums that a client sends, in float64: over the frames in each cluster; centroids follow from them.

    They are the `sums` and the sums of `squares`, both (clusters, width), and the `counts`, (clusters,).
    """

    def __init__(self, clusters: int, width: int) -> None:
        super().__init__()
        self.sums = torch.nn.Parameter(torch.zeros(clusters, width, dtype=torch.float64))
        self.squares = torch.nn.Parameter(torch.zeros(clusters, width, dtype=torch.float64))
        self.counts = torch.nn.Parameter(torch.zeros(clusters, dtype=torch.float64))


def next_centroids(
    sums: np.ndarray, squares: np.ndarray, counts: np.ndarray, seed: int, round_number: int
) -> np.ndarray:
    """Return the means of the clusters with frames, then a centroid split off one of them for each cluster without.

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
    """Return the codebook, float64 (clusters, width), of the last round's `ClusterSums`, without empty clusters."""
    values = read_sums(model)
    return _means(values["sums"], values["counts"])


def fit_centroids(
    frames: np.ndarray, clusters: int, seed: int, batch_size: int = BATCH_FRAMES, max_iter: int = MAX_PASSES
) -> np.ndarray:
    """Fit k-means to one node's frames (frames, width), which may be mapped into memory: float64 (clusters, width).

    By default in batches of 10,000 frames and up to 100 passes, as published for HuBERT's targets (fairseq's
    simple_kmeans).
    """
    kmeans = MiniBatchKMeans(
        clusters,
        batch_size=batch_size,
        max_iter=max_iter,
        max_no_improvement=100,
        tol=0.0,
        n_init=5,
        reassignment_ratio=0.0,
        compute_labels=False,
        random_state=seed,
    )
    return kmeans.fit(frames).cluster_centers_.astype(np.float64)


def assign(frames: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Return the nearest centroid of each frame: int64 (frames,)."""
    return pairwise_distances_argmin(frames.astype(np.float64), centroids)


def read_sums(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Return the `sums`, `squares` and `counts` of ClusterSums as arrays."""
    return {name: parameter.detach().cpu().numpy() for name, parameter in model.named_parameters()}


def _means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return sums[counts > 0] / counts[counts > 0, None]
