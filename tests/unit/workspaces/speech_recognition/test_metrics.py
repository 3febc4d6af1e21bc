import evaluate
import numpy as np
import pytest

from workspaces.speech_recognition.tasks import ERROR_RATES


def compute(pairs: list[tuple[str, str]]) -> dict[str, float]:
    references, predictions = zip(*pairs, strict=True)
    metric = evaluate.load(str(ERROR_RATES), keep_in_memory=True)
    return metric.compute(references=list(references), predictions=list(predictions))


PAIRS = [
    ("the cat sat", "the cat sat"),  # right
    ("a b c d", "a x c"),  # a word substituted, one deleted; a letter substituted, " d" deleted
    ("oh", "oh no no"),  # two words and six characters inserted
]


def test_rates_are_sums_of_errors_over_sums_of_words_and_characters():
    rates = compute(PAIRS)
    assert rates["wer"] == pytest.approx((0 + 2 + 2) / (3 + 4 + 1))
    parts = {"substitutions": 1 / 8, "deletions": 1 / 8, "insertions": 2 / 8}
    assert {name: rates[name] for name in parts} == pytest.approx(parts)
    assert rates["cer"] == pytest.approx((0 + 3 + 6) / (11 + 7 + 2))


def test_rates_of_nodes_merge_to_that_of_all():
    parts = [PAIRS[:1], PAIRS[1:]]
    words = [3, 5]
    assert np.average([compute(part)["wer"] for part in parts], weights=words) == pytest.approx(compute(PAIRS)["wer"])


def test_nothing_recognized_is_a_rate_of_one():
    parts = {"substitutions": 0.0, "deletions": 1.0, "insertions": 0.0}
    assert compute([("hello there", "")]) == {"wer": 1.0, "cer": 1.0} | parts
