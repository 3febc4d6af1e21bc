"""HuBERT's codebooks: one is fitted over a federation; kinds are compared by what a model learns with each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from openfl_audio.experiments.comparison import markdown, spread, train
from openfl_audio.notebook.interactive_api import Federation, FLExperiment
from workspaces import hubert, hubert_codebooks
from workspaces.hubert_codebooks.codebook_file import FitSettings, write_codebook
from workspaces.hubert_codebooks.features import Mfcc
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
COEFFICIENTS: Final = 39


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
    keyword_runs = _KeywordRuns(keywords, out / "keywords", seeds)
    rows: list[list[str]] = []
    for codebook in CODEBOOKS:
        metrics = pretrain(codebook, data, out / codebook, clusters, changes)
        accuracies = (f"{metrics[name]:.3f}" for name in ("masked_accuracy", "most_frequent_accuracy"))
        upstream = ("--set", f"model.upstream={out / codebook / 'model'}")
        rows.append([codebook, *accuracies, *keyword_runs.accuracies(codebook, upstream)])
    config = out / CODEBOOKS[0] / "model" / "config.json"
    random_weights = ("--set", "model.upstream=null", "--set", f"model.config={config}")
    rows.append(["none: random weights", "", "", *keyword_runs.accuracies("random", random_weights)])
    rows.append(["none: log-mel", "", "", *keyword_runs.accuracies("log_mel", ())])
    return markdown(HEAD, rows)


def pretrain(codebook: str, data: Path, out: Path, clusters: int, changes: Sequence[str]) -> dict[str, float]:
    """Make the targets of `codebook`, pretrain with them into `out`, and return the best model's validation metrics.

    Raises CorpusError, CalledProcessError.
    """
    name = f"{codebook}-mfcc{COEFFICIENTS}-{clusters}"
    make_targets(data, codebook, clusters, Mfcc(COEFFICIENTS), name)
    targets = ("--set", f"data.targets={name}", "--set", f"model.clusters={clusters}")
    result = train("hubert", ["--mode", "simulated", *targets, *changes], data, out)
    return result["metrics"]["best"]["validation"]


class _KeywordRuns:
    """Keyword spotting on frozen features, several times."""

    def __init__(self, keywords: Path, out: Path, seeds: int) -> None:
        self._keywords, self._out, self._seeds = keywords, out, seeds

    def accuracies(self, name: str, upstream: Sequence[str]) -> list[str]:
        """Return the accuracies of the best models on validation and on test clips, as cells of the table."""
        arguments = ("--mode", "simulated", "--config", "upstream.yaml", *upstream)
        runs = [
            train("keyword_spotting", [*arguments, "--seed", str(seed)], self._keywords, self._out / f"{name}-{seed}")
            for seed in range(self._seeds)
        ]
        return [spread([run["metrics"]["best"][split]["accuracy"] for run in runs]) for split in ("validation", "test")]
