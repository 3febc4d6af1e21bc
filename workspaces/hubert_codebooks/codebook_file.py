"""A codebook in a file: fitted over the envoys of a director, and carried to each node, which makes its targets of it.

The file is NumPy's `.npz` with the centroids, float64 (clusters, width), and what they were fitted with, as JSON.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from openfl_audio.files import replacing
from shard_descriptors.common.errors import CorpusError
from workspaces.hubert_codebooks.features import Mfcc


class FitSettings(BaseModel):
    """Settings that a codebook was fitted with.

    Attributes:
        mfcc: coefficients of a frame.
        clusters: clusters that were wanted; of those without frames there is no centroid.
        rounds: rounds of the experiment.
        share: share of each node's train clips that k-means was fitted on.
        seed: seed of the clips that are drawn and of the centroids.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mfcc: int = Field(json_schema_extra={"choices": [13, 39]})
    clusters: int = Field(ge=1)
    rounds: int = Field(ge=2)  # the first only finds where to begin
    share: float = Field(gt=0, le=1)
    seed: int

    @property
    def features(self) -> Mfcc:
        """Return the features of a frame."""
        return Mfcc(39 if self.mfcc == 39 else 13)


def write_codebook(path: Path, centroids: np.ndarray, settings: FitSettings) -> None:
    """Write centroids, float64 (clusters, width), and what they were fitted with."""
    with replacing(path, durable=True) as temporary, temporary.open("wb") as file:
        np.savez(file, centroids=centroids, settings=np.array(settings.model_dump_json()))


def read_codebook(path: Path) -> tuple[np.ndarray, FitSettings]:
    """Return the centroids, float64 (clusters, width), and what they were fitted with.

    Raises CorpusError, naming the file, for one that is missing or no codebook.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            content: dict[str, Any] = dict(file)
        settings = FitSettings.model_validate(json.loads(str(content["settings"])))
        centroids = content["centroids"]
    except FileNotFoundError:
        raise CorpusError(f"{path}: there is no such codebook") from None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, ValidationError) as error:
        raise CorpusError(f"{path}: no codebook of openfl-audio data prepare hubert-codebook ({error})") from None
    if centroids.ndim != 2 or centroids.shape[1] != settings.mfcc or not np.isfinite(centroids).all():
        raise CorpusError(
            f"{path}: centroids of shape {centroids.shape} should be (clusters, {settings.mfcc}), and finite"
        )
    return centroids, settings
