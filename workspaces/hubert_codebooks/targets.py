"""Targets of HuBERT: k-means on the train clips of a prepared LibriSpeech, then the cluster of every frame.

    client      a codebook for each client: cluster 7 is another sound on each, so a shared output layer is taught
                contradictions
    federated   one codebook, by k-means over the federation; no frame leaves its client
    central     one codebook, of all frames in one place: what federated is measured by
    a file      one codebook, fitted over the envoys of a director: see `codebook_file`

What is written is described in `shard_descriptors.librispeech.store`. The codebooks lie beside it, and for federated
the history of its rounds.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from openfl_audio.files import claim, replacing, write_json
from openfl_audio.protocol.record import sha256_of_file
from openfl_audio.simulation.simulation import Simulation
from shard_descriptors.common.errors import CorpusError
from shard_descriptors.librispeech.shard import LibriSpeechShardDataset, LibriSpeechShardDescriptor
from shard_descriptors.librispeech.store import (
    GLOBAL_SPLITS,
    SPLITS,
    TARGET_TYPE,
    TARGETS,
    TARGETS_INFO,
    Clip,
    Prepared,
    read_prepared,
)
from workspaces.hubert_codebooks.codebook_file import read_codebook
from workspaces.hubert_codebooks.features import Features, compute_frames, draw_clips, read_frames, write_clips
from workspaces.hubert_codebooks.model import BATCH_FRAMES, MAX_PASSES, assign, final_centroids, fit_centroids
from workspaces.hubert_codebooks.tasks import arguments, gather

CODEBOOKS = ("client", "federated", "central")
FILE = "file"
FRAMES_PER_CLUSTER = 39  # at least; as faiss wants it, below which centroids follow single frames
SETTINGS = "settings.json"
EVERYBODY = 0  # in place of a client's number, from 1


def make_targets(
    data: str | Path,
    codebook: str,
    clusters: int,
    features: Features,
    name: str | None = None,
    share: float = 1.0,
    seed: int = 0,
    rounds: int = 30,
    batch_size: int = BATCH_FRAMES,
    max_iter: int = MAX_PASSES,
) -> dict[str, Any]:
    """Write the targets of a prepared folder to <data>/targets/<name>.

    With fewer than 39 frames per cluster, on a small client or altogether, there are as many fewer clusters. A run that
    was stopped resumes where it was; targets that are complete are left as they are. Frames that k-means is fitted on
    stay in <data>/frames for other codebooks, and may be removed.

    Args:
        data: the prepared folder.
        codebook: "client", "federated" or "central".
        clusters: number of clusters.
        features: what k-means clusters.
        name: by default <codebook>-<feature>-<clusters>, `federated-mfcc39-504`.
        share: share of each client's train clips that k-means is fitted on.
        seed: of the clips that are drawn and of the centroids.
        rounds: rounds of the federated codebook.
        batch_size: frames of a batch of k-means, where it is not federated.
        max_iter: passes over the frames at most, where it is not federated.

    Returns:
        The content of targets.json.

    Raises:
        CorpusError: no prepared folder, or settings that cannot be.
        FolderInUseError: targets of that name with other settings.
        AudioError: a file that is broken since it was prepared.
        FeatureError: a clip whose features are not as many as HuBERT has frames.
    """
    prepared = read_prepared(data)
    settings = {
        "codebook": codebook,
        "clusters": clusters,
        "feature": features.name,
        "share": share,
        "seed": seed,
        "rounds": rounds if codebook == "federated" else None,
    }
    if codebook != "federated" and (batch_size, max_iter) != (BATCH_FRAMES, MAX_PASSES):
        settings |= {"batch_size": batch_size, "max_iter": max_iter}
    _check(settings)
    return _make(prepared, name or f"{codebook}-{features.name}-{clusters}", settings, features, _Fitting.fit)


def make_targets_of(data: str | Path, path: Path, name: str | None = None) -> dict[str, Any]:
    """Write the targets of a prepared folder by the codebook in a file, to <data>/targets/<name>.

    `name` is by default that of the file, with feature and clusters. Returns the content of targets.json. Raises
    CorpusError for a file that is no codebook, and else what `make_targets` raises.
    """
    prepared = read_prepared(data)
    centroids, fitted = read_codebook(path)
    settings = {
        "codebook": FILE,
        "sha256": sha256_of_file(path),
        "clusters": fitted.clusters,
        "feature": fitted.features.name,
        "share": fitted.share,
        "seed": fitted.seed,
        "rounds": fitted.rounds,
    }

    def take(fitting: _Fitting) -> dict[int, dict[str, np.ndarray]]:
        return {EVERYBODY: fitting.take(centroids)}

    name = name or f"{path.stem}-{fitted.features.name}-{fitted.clusters}"
    return _make(prepared, name, settings, fitted.features, take)


def _make(
    prepared: Prepared,
    name: str,
    settings: dict[str, Any],
    features: Features,
    fit: Callable[["_Fitting"], dict[int, dict[str, np.ndarray]]],
) -> dict[str, Any]:
    folder = prepared.folder / TARGETS / name
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder / SETTINGS, settings, "targets", "give them another name")
    if (folder / TARGETS_INFO).is_file():
        return json.loads((folder / TARGETS_INFO).read_text(encoding="utf-8"))
    codebook = settings["codebook"]
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)) as progress:
        codebooks = fit(_Fitting(prepared, folder, features, settings, progress))
        splits = SPLITS if codebook != "client" else tuple(split for split in SPLITS if split not in GLOBAL_SPLITS)
        parts = [part for split in splits for part in prepared.parts(split).items()]
        task = progress.add_task("Targets", total=sum(len(clips) for _, clips in parts))
        for part, clips in parts:
            centroids = codebooks[clips[0].client if codebook == "client" else EVERYBODY]["centroids"]
            _write_targets(folder, prepared, part, clips, features, centroids, lambda: progress.advance(task))
    info = settings | {"clusters_wanted": settings["clusters"], "splits": list(splits)} | _describe(codebooks)
    write_json(folder / TARGETS_INFO, info)
    return info


def summarize(info: Mapping[str, Any]) -> list[str]:
    """Return what targets.json says, in lines for a terminal."""
    fitted = info["codebooks"]
    sizes = [of["clusters"] for of in fitted]
    lines = [
        f"{info['codebook']} codebook of {info['feature']}: {_range(sizes)} clusters, "
        f"of which {_range([of['used'] for of in fitted])} have frames, fitted on {info['frames']:,} frames; "
        f"mean squared distance {info['squared_error']:.2f}",
        f"targets: {', '.join(info['splits'])}",
    ]
    if max(sizes) < info["clusters_wanted"]:
        lines.append(f"{info['clusters_wanted']} clusters need {FRAMES_PER_CLUSTER} frames each, and there are fewer")
    if info["codebook"] == "client":
        lines.append(
            "dev and test have no targets: they belong to no client, and each client has a codebook of its own"
        )
    return lines


class _Fitting:
    """K-means for the codebooks that are not there yet."""

    def __init__(
        self, prepared: Prepared, folder: Path, features: Features, settings: Mapping[str, Any], progress: Progress
    ) -> None:
        self._prepared, self._folder, self._features = prepared, folder, features
        self._settings, self._progress = settings, progress
        self._frames_folder = prepared.folder / "frames"

    def fit(self) -> dict[int, dict[str, np.ndarray]]:
        """Return codebooks by client, or of EVERYBODY.

        Each has "centroids" (clusters, width), "counts" (clusters,) of train frames, and their mean "squared_error".
        """
        if self._settings["codebook"] == "federated":
            return {EVERYBODY: self._kept(EVERYBODY, self._fit_together)}
        own = range(1, self._prepared.clients + 1) if self._settings["codebook"] == "client" else [EVERYBODY]
        return {client: self._kept(client, partial(self._fit_alone, client)) for client in own}

    def take(self, centroids: np.ndarray) -> dict[str, np.ndarray]:
        """Return the codebook of these centroids (clusters, width), as `fit` does, with the counts of all frames."""
        frames = self._read_frames(EVERYBODY)
        gathered, squared_error = gather(frames, centroids)
        return {"centroids": centroids, "counts": gathered["counts"], "squared_error": np.array(squared_error)}

    def _kept(self, client: int, fit: Callable[[], dict[str, Any]]) -> dict[str, np.ndarray]:
        path = self._folder / (f"codebook_{client}.npz" if client else "codebook.npz")
        if not path.is_file():
            kept = fit()
            with replacing(path, durable=False) as temporary, temporary.open("wb") as file:
                np.savez(file, **kept)
        with np.load(path) as file:
            return dict(file)

    def _fit_alone(self, client: int) -> dict[str, Any]:
        frames = self._read_frames(client)
        task = self._progress.add_task(f"K-means, {_name(client)}", total=None)
        centroids = fit_centroids(
            frames,
            self._clusters(len(frames)),
            self._settings["seed"],
            self._settings.get("batch_size", BATCH_FRAMES),
            self._settings.get("max_iter", MAX_PASSES),
        )
        gathered, squared_error = gather(frames, centroids)
        self._progress.remove_task(task)
        return {"centroids": centroids, "counts": gathered["counts"], "squared_error": squared_error}

    def _fit_together(self) -> dict[str, Any]:
        width = len(str(self._prepared.clients))
        names = {f"client-{client:0{width}}": client for client in range(1, self._prepared.clients + 1)}
        of_clients = [self._read_frames(client) for client in names.values()]
        frames = sum(len(of_client) for of_client in of_clients)

        def open_shard(name: str) -> LibriSpeechShardDescriptor:
            return LibriSpeechShardDescriptor(self._prepared.folder, f"{names[name]},{len(names)}")

        simulation = Simulation(list(names), open_shard, self._folder / "rounds")
        rounds, share, seed = (self._settings[key] for key in ("rounds", "share", "seed"))
        experiment = arguments(
            self._features, self._clusters(frames), rounds, share, seed, folder=str(self._frames_folder)
        )
        simulation.start("kmeans", **experiment)
        task = self._progress.add_task("K-means, rounds", total=rounds, completed=len(simulation.records))
        for _ in simulation.run():
            self._progress.advance(task)
        centroids = final_centroids(simulation.last_model())
        gathered = [gather(of_client, centroids) for of_client in of_clients]
        return {
            "centroids": centroids,
            "counts": np.sum([sums["counts"] for sums, _ in gathered], axis=0),
            "squared_error": np.average([error for _, error in gathered], weights=[len(each) for each in of_clients]),
        }

    def _read_frames(self, client: int) -> np.ndarray:
        parts = self._prepared.parts("train", None if client == EVERYBODY else client)
        dataset = LibriSpeechShardDataset(self._prepared, parts, targets=None)
        indices = draw_clips(len(dataset), self._settings["share"], self._settings["seed"])
        task = self._progress.add_task(f"Frames, {_name(client)}", total=len(indices))
        frames = read_frames(
            dataset, self._features, indices, self._frames_folder, lambda: self._progress.advance(task)
        )
        self._progress.remove_task(task)
        return frames

    def _clusters(self, frames: int) -> int:
        return max(1, min(self._settings["clusters"], frames // FRAMES_PER_CLUSTER))


def _write_targets(
    folder: Path,
    prepared: Prepared,
    part: str,
    clips: list[Clip],
    features: Features,
    centroids: np.ndarray,
    on_clip: Callable[[], None],
) -> None:
    dataset = LibriSpeechShardDataset(prepared, {part: clips}, targets=None)

    def make(index: int) -> np.ndarray:
        return assign(compute_frames(dataset, index, features), centroids).astype(TARGET_TYPE)

    write_clips(folder / f"{part}.i16", make, dataset.num_frames, TARGET_TYPE.itemsize, on_clip)


def _check(settings: Mapping[str, Any]) -> None:
    if settings["codebook"] not in CODEBOOKS:
        raise CorpusError(f"codebook: {settings['codebook']!r} should be one of {', '.join(CODEBOOKS)}")
    most = np.iinfo(TARGET_TYPE).max
    if not 1 <= settings["clusters"] <= most:
        raise CorpusError(f"clusters: {settings['clusters']} should be from 1 to {most:,}")
    for name in ("batch_size", "max_iter"):
        if settings.get(name, 1) < 1:
            raise CorpusError(f"{name}: {settings[name]} should be 1 or more")
    if not 0 < settings["share"] <= 1:
        raise CorpusError(f"share: {settings['share']} should be above 0, and 1 at most")
    if settings["rounds"] is not None and settings["rounds"] < 2:
        raise CorpusError(f"rounds: {settings['rounds']} should be 2 or more; the first only finds where to begin")


def _describe(codebooks: Mapping[int, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Return `clusters`, the most that a codebook has, and what k-means was fitted on, and how well."""
    counts = [codebook["counts"] for codebook in codebooks.values()]
    frames = [float(of_codebook.sum()) for of_codebook in counts]
    errors = [float(codebook["squared_error"]) for codebook in codebooks.values()]
    return {
        "clusters": max(map(len, counts)),
        "frames": int(sum(frames)),
        "squared_error": float(np.average(errors, weights=frames)),
        "codebooks": [
            {"clusters": len(of_codebook), "used": int(np.count_nonzero(of_codebook)), "frames": int(of_codebook.sum())}
            for of_codebook in counts
        ],
    }


def _name(client: int) -> str:
    return f"client {client}" if client else "all clients"


def _range(numbers: list[int]) -> str:
    return f"{min(numbers):,}" if min(numbers) == max(numbers) else f"{min(numbers):,} to {max(numbers):,}"
