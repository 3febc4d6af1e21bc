"""SI-SDR improvement as an `evaluate` module, so that an envoy needs no hub: `evaluate.load(<path of this file>)`."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = "By how many dB estimates have a higher SI-SDR than the mixtures they were taken from. Higher is better."
_KWARGS_DESCRIPTION = """
Args:
    predictions: SI-SDR of the estimates in dB (clips,)
    references: SI-SDR of the mixtures in dB, for the same reference signals (clips,)
Returns:
    si_sdri: float in dB, the mean improvement. Over several nodes, the mean weighted by clips is that over all clips.
"""
_CITATION = "Le Roux et al., SDR - half-baked or well done?, ICASSP 2019, arXiv 1811.02508"


class SiSdrImprovement(evaluate.Metric):
    """Metric of the mean improvement of SI-SDR, in dB."""

    def _info(self) -> evaluate.MetricInfo:
        # Waveforms would go through lists of Python numbers here.
        scores_db = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": scores_db, "references": scores_db}),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {"si_sdri": float(np.mean(np.asarray(predictions) - np.asarray(references)))}
