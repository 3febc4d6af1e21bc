"""Whole attempts of a secure round, with envoys lost at any stage."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import chi2

from openfl_audio.errors import BelowThresholdError, SecureAggregationError
from openfl_audio.privacy.masks import Mask, add_masks
from openfl_audio.privacy.transcript import CertificateIdentity, Stage
from openfl_audio.protocol.secure_aggregation import colluders, dropouts, threshold
from tests.unit.privacy.attempts import ITEMS, NAMES, NUMBERS, TENSORS, Attempt

Identities = dict[str, CertificateIdentity]
STAGES = [Stage.KEYS, Stage.SHARES, Stage.UPDATE, Stage.AGREEMENT, Stage.UNMASKING]


def sum_of(attempt: Attempt, names: list[str]) -> np.ndarray:
    """Return the sum of updates, as NumPy has it."""
    return np.sum([attempt.updates[name] for name in names], axis=0, dtype=np.uint32)


@pytest.mark.parametrize("envoys", [3, 4, 5, 8])
def test_sum_of_all_is_known_to_the_bit(identities: Identities, envoys: int) -> None:
    attempt = Attempt(identities, NAMES[:envoys])
    np.testing.assert_array_equal(attempt.run(), sum_of(attempt, NAMES[:envoys]))


@pytest.mark.parametrize("envoys", [5, 8])
@pytest.mark.parametrize("stage", STAGES)
def test_one_envoy_may_be_lost_at_any_stage(identities: Identities, envoys: int, stage: Stage) -> None:
    names = NAMES[:envoys]
    attempt = Attempt(identities, names)
    total = attempt.run({stage: [names[1]]})
    # Its update counts if it has come.
    survivors = [name for name in names if name != names[1] or stage > Stage.UPDATE]
    assert attempt.coordinator.survivors == survivors
    np.testing.assert_array_equal(total, sum_of(attempt, survivors))


@pytest.mark.parametrize("stages", list(combinations(STAGES, 2)))
def test_two_of_eight_may_be_lost_at_different_stages(identities: Identities, stages: tuple[Stage, Stage]) -> None:
    attempt = Attempt(identities, NAMES)
    total = attempt.run({stages[0]: ["site-a"], stages[1]: ["site-h"]})
    lost = {name for name, stage in zip(("site-a", "site-h"), stages, strict=True) if stage <= Stage.UPDATE}
    survivors = [name for name in NAMES if name not in lost]
    np.testing.assert_array_equal(total, sum_of(attempt, survivors))


@pytest.mark.parametrize("stage", STAGES)
def test_below_the_threshold_an_attempt_ends_and_nothing_is_unmasked(identities: Identities, stage: Stage) -> None:
    attempt = Attempt(identities, NAMES[:5])
    sentence = (
        rf"experiment 'speech', round 4, attempt 1: 3 of 5 envoys are there at stage {stage.name}, and secure "
        "aggregation takes 4: without site-b, site-d"
    )
    with pytest.raises(BelowThresholdError, match=sentence):
        attempt.run({stage: ["site-b", "site-d"]})
    if stage < Stage.UNMASKING:
        assert not attempt.unmaskings
    with pytest.raises(SecureAggregationError, match=f"stage {stage.name} is open, and nothing is unmasked"):
        attempt.coordinator.left_masks(TENSORS)


def test_update_that_comes_after_its_envoy_was_given_up_stays_masked(identities: Identities) -> None:
    attempt = Attempt(identities, NAMES[:5])
    attempt.run_until(Stage.UPDATE)
    late = "site-c"
    masks = attempt.participants[late].masks(attempt.coordinator.sealed_for(late))
    masked = attempt.updates[late].copy()
    add_masks(masked, masks[TENSORS])
    attempt.run_stage(Stage.UPDATE, [name for name in NAMES[:5] if name != late])
    with pytest.raises(SecureAggregationError, match="message of envoy 'site-c' is of stage UPDATE, and AGREEMENT"):
        attempt.coordinator.take_update(late)
    attempt.run_stage(Stage.AGREEMENT, NAMES[:5])
    attempt.run_stage(Stage.UNMASKING, NAMES[:5])
    np.testing.assert_array_equal(attempt.sum(), sum_of(attempt, [name for name in NAMES[:5] if name != late]))

    # The director knows all masks of pairs of the late one now, and not its self-mask.
    left = masked.copy()
    add_masks(left, [Mask(mask.key, -mask.sign) for mask in masks[TENSORS][1:]])
    assert np.count_nonzero(left == attempt.updates[late]) < 5
    add_masks(left, [Mask(masks[TENSORS][0].key, -1)])
    np.testing.assert_array_equal(left, attempt.updates[late])
    shares = [unmasking.self_masks for unmasking in attempt.unmaskings.values()]
    assert all(late not in each for each in shares)


def test_every_attempt_has_masks_of_its_own(identities: Identities) -> None:
    first, second = Attempt(identities, NAMES[:3]), Attempt(identities, NAMES[:3], attempt=2)
    np.testing.assert_array_equal(first.run(), second.run())
    for name in NAMES[:3]:
        assert np.count_nonzero(first.masked[name] == second.masked[name]) < 5
        keys = [mask.key for attempt in (first, second) for of in attempt.masks[name].values() for mask in of]
        assert len({*keys}) == len(keys)


def test_masked_bytes_of_two_attempts_are_uniform_and_so_is_their_difference(identities: Identities) -> None:
    first, second = Attempt(identities, NAMES[:3]), Attempt(identities, NAMES[:3], attempt=2)
    first.run()
    second.run()
    sent = [attempt.masked[name] for attempt in (first, second) for name in NAMES[:3]]
    # The update is the same: a mask that is used twice, or shifted, would show in the difference.
    sent += [first.masked[name] - second.masked[name] for name in NAMES[:3]]
    # Pearson's test with 255 degrees of freedom; all nine together are wrong once in a million runs.
    limit = chi2.isf(1e-6 / len(sent), 255)
    assert all(chi_square_of_bytes(values) < limit for values in sent)
    assert all(chi_square_of_bytes(values) > 10 * limit for values in first.updates.values())


def chi_square_of_bytes(values: np.ndarray) -> float:
    """Return Pearson's statistic of the bytes of words against the uniform distribution."""
    counts = np.bincount(values.view(np.uint8), minlength=256)
    expected = values.nbytes / 256
    return float(((counts - expected) ** 2 / expected).sum())


def test_numbers_are_masked_apart_from_tensors(identities: Identities) -> None:
    attempt = Attempt(identities, NAMES[:3])
    attempt.run()
    total = np.zeros(10, np.uint64)
    for name in NAMES[:3]:
        numbers = np.arange(10, dtype=np.uint64)
        add_masks(numbers, attempt.masks[name][NUMBERS])
        total += numbers
    add_masks(total, [Mask(mask.key, -mask.sign) for mask in attempt.coordinator.left_masks(NUMBERS)])
    np.testing.assert_array_equal(total, 3 * np.arange(10))


@pytest.mark.parametrize(("envoys", "bad"), [(4, 1), (7, 2)])
def test_director_with_colluders_learns_no_more_than_the_sum_of_the_others(
    identities: Identities, envoys: int, bad: int
) -> None:
    names, colluding = NAMES[:envoys], NAMES[:bad]
    honest = names[bad:]
    attempt = Attempt(identities, names)
    total = attempt.run()
    for name in colluding:
        total -= attempt.updates[name]
    np.testing.assert_array_equal(total, sum_of(attempt, honest))

    # All masks that they know of an honest update are taken away from it: those of pairs with colluders, and its
    # self-mask, which was unmasked. What is left of any sum of fewer than all honest updates is uniform.
    known = {name: attempt.masked[name].copy() for name in honest}
    for name in honest:
        self_mask, *pairs = attempt.masks[name][TENSORS]
        others = [other for other in names if other != name]
        with_colluders = [mask for other, mask in zip(others, pairs, strict=True) if other in colluding]
        assert len(with_colluders) == bad
        add_masks(known[name], [Mask(mask.key, -mask.sign) for mask in (self_mask, *with_colluders)])
    np.testing.assert_array_equal(np.sum([*known.values()], axis=0, dtype=np.uint32), sum_of(attempt, honest))
    for size in range(1, len(honest)):
        for group in combinations(honest, size):
            left = np.sum([known[name] for name in group], axis=0, dtype=np.uint32) - sum_of(attempt, [*group])
            # Uniform on 2^32: a mean within five standard deviations, and hardly a value twice.
            assert abs(left.mean() / 2**32 - 0.5) < 5 / np.sqrt(12 * ITEMS)
            assert len(np.unique(left)) > ITEMS - 5


def test_secrets_need_more_shares_than_colluders_have(identities: Identities) -> None:
    for envoys in range(3, 51):
        assert colluders(envoys) < threshold(envoys)
        assert threshold(envoys) - colluders(envoys) >= 2
        # Two lists of survivors, each signed by enough: with these colluders an honest envoy would have to sign both.
        honest = envoys - colluders(envoys)
        assert 2 * threshold(envoys) > honest + 2 * colluders(envoys)
        assert dropouts(envoys) == envoys - threshold(envoys) >= 0
