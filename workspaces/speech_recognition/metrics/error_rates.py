"""Word and character error rates with their parts, as an `evaluate` module, so that an envoy needs no hub."""

import datasets
import evaluate
import jiwer

_DESCRIPTION = """Substitutions, deletions and insertions that turn the references into the predictions, summed over
all clips, over the words (or characters, spaces included) of the references. Lower is better, 0 is perfect; a rate may
be above 1."""
_KWARGS_DESCRIPTION = """
Args:
    predictions: recognized texts (clips,)
    references: true texts (clips,), none of them empty
Returns:
    wer: word error rate, the sum of substitutions, deletions and insertions, which are here as well. Over several
        nodes, the means weighted by words are those over all clips.
    cer: character error rate; of that, the mean weighted by characters.
"""


class ErrorRates(evaluate.Metric):
    """Metric of word and character error rates."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        words = jiwer.process_words(references, predictions)
        total = words.hits + words.substitutions + words.deletions
        parts = {name: getattr(words, name) / total for name in ("substitutions", "deletions", "insertions")}
        return {"wer": words.wer, "cer": jiwer.process_characters(references, predictions).cer, **parts}
