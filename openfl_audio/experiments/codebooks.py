"""HuBERT's codebooks: one is fitted over a federation; kinds are compared by what a model learns with each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from openfl_audio.experiments.comparison import SPLITS, markdown, spread, train
from openfl_audio.notebook.interactive_api import Federation, FLExperiment
from workspaces import hubert, hubert_codebooks
from workspaces.hubert_codebooks.codebook_file import FitSettings, write_codebook
from workspaces.hubert_codebooks.features import Features, Mfcc
from workspaces.hubert_codebooks.model import final_centroids
from workspaces.hubert_codebooks.targets import CODEBOOKS, make_targets
from workspaces.hubert_codebooks.tasks import arguments

HEAD = (
    "codebook",
    "masked accuracy, validation",
    "most frequent cluster",
    "keyword accuracy, validation",
    "keyword accuracy, test",
)
MFCC: Final = Mfcc(39)


def fit_over_federation(federation: Federation, name: str, settings: FitSettings, out: Path) -> int:
    """Fit a codebook over the envoys that serve LibriSpeech, write it to `out`, and return its number of clusters.

    An experiment `name` that is there already, with the same settings, is taken up. Raises DirectorError,
    ExperimentExistsError, and ExperimentFailedError with an envoy's reason.
    """
    experiment = FLExperiment(federation, name, workspace=[hubert_codebooks, hubert])
    kmeans = arguments(settings.features, settings.clusters, settings.rounds, settings.share, settings.seed)
    experiment.start(**kmeans, if_exists="attach")
    experiment.watch()
    centroids = final_centroids(experiment.last_model())
    write_codebook(out, centroids, settings)
    return len(centroids)


def compare_codebooks(
    data: Path, keywords: Path, out: Path, clusters: int, seeds: int, changes: Sequence[str] = ()
) -> str:
    """Pretrain with each codebook, spot keywords on the features, and return the results as a table in Markdown.

    Random weights and log-mel are compared with them. What was interrupted is resumed.

    Args:
        data: a LibriSpeech that was prepared for clients.
        keywords: a Speech Commands corpus.
        out: the folder of the runs.
        clusters: number of clusters of each codebook.
        seeds: number of runs of keyword spotting, whose mean and deviation are told.
        changes: further arguments of `openfl-audio train` for the pretraining.

    Raises CorpusError, and CalledProcessError for a run that failed.
    """

    def spot(name: str, upstream: Sequence[str]) -> list[str]:
        accuracies = spot_keywords(keywords, out / "keywords", name, upstream, seeds)
        return [spread(accuracies[split]) for split in SPLITS]

    rows: list[list[str]] = []
    for codebook in CODEBOOKS:
        metrics = pretrain(codebook, data, out / codebook, clusters, changes)
        accuracies = (f"{metrics[name]:.3f}" for name in ("masked_accuracy", "most_frequent_accuracy"))
        rows.append([codebook, *accuracies, *spot(codebook, frozen(out / codebook))])
    config = out / CODEBOOKS[0] / "model" / "config.json"
    random_weights = ("--set", "model.upstream=null", "--set", f"model.config={config}")
    rows.append(["none: random weights", "", "", *spot("random", random_weights)])
    rows.append(["none: log-mel", "", "", *spot("log_mel", ())])
    return markdown(HEAD, rows)


def pretrain(
    codebook: str, data: Path, out: Path, clusters: int, changes: Sequence[str], features: Features = MFCC
) -> dict[str, float]:
    """Make the targets of `codebook`, pretrain with them into `out`, and return the best model's validation metrics.

    The frames that k-means clusters are `features`. Raises CorpusError, CalledProcessError.
    """
    name = f"{codebook}-{features.name}-{clusters}"
    make_targets(data, codebook, clusters, features, name)
    targets = ("--set", f"data.targets={name}", "--set", f"model.clusters={clusters}")
    result = train("hubert", ["--mode", "simulated", *targets, *changes], data, out)
    return result["metrics"]["best"]["validation"]


def frozen(run: Path) -> tuple[str, str]:
    """Return the arguments of `spot_keywords` for the frozen features of a run's model."""
    return "--set", f"model.upstream={run / 'model'}"


def spot_keywords(keywords: Path, out: Path, name: str, upstream: Sequence[str], seeds: int) -> dict[str, list[float]]:
    """Spot keywords on frozen features, and return the accuracies of the best models by split, one for each seed.

    The runs are in `out`, with the name and the number of the seed, and are resumed there. Raises CalledProcessError.
    """
    arguments = ("--mode", "simulated", "--config", "upstream.yaml", *upstream)
    runs = [
        train("keyword_spotting", [*arguments, "--seed", str(seed)], keywords, out / f"{name}-{seed}")
        for seed in range(seeds)
    ]
    return {split: [run["metrics"]["best"][split]["accuracy"] for run in runs] for split in SPLITS}
