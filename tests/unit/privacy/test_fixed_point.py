import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfl_audio.privacy.fixed_point import Rounding, decode, decode_number, encode, encode_number, steps

N = 200_000


def test_sum_of_integers_is_the_quantised_mean_to_the_bit() -> None:
    generator = np.random.default_rng(3)
    weights, largest, bits, value_range = [30, 500, 1000], 1000, 20, 0.25
    changes = [generator.normal(0, 0.1, N).astype(np.float32) for _ in weights]
    total = np.zeros(N, np.uint32)
    expected = np.zeros(N, np.int64)
    for site, (change, weight) in enumerate(zip(changes, weights, strict=True)):
        rounding = Rounding.of(seed=1, round_number=2, site=f"site-{site}")
        encoded, clipped = encode(change, value_range, weight / largest, bits, rounding)
        total += encoded
        uniform = rounding.uniform(0, N)
        wide = np.clip(change.astype(np.float64), -value_range, value_range)
        expected += np.floor(wide * (weight / largest * (2**19 - 1) / value_range) + uniform).astype(np.int64)
        assert clipped == np.count_nonzero(np.abs(change) > value_range)
    np.testing.assert_array_equal(total.view(np.int32), expected)
    mean = decode(total, value_range, sum(weights) / largest, bits)
    np.testing.assert_array_equal(mean, expected * (value_range / (2**19 - 1) / (sum(weights) / largest)))

    plain = sum(w * np.clip(c.astype(np.float64), -0.25, 0.25) for c, w in zip(changes, weights, strict=True))
    error = np.abs(mean - plain / sum(weights))
    unit = value_range / (2**19 - 1) * largest / sum(weights)
    assert error.max() < 3 * unit
    assert error.std() < np.sqrt(3) * unit / 2


def test_rounding_has_the_mean_of_what_is_rounded() -> None:
    # 0.3 of a step: of 200,000 values, 60,000 are rounded up, with a standard deviation of 205.
    change = np.full(N, 0.3 / steps(20), np.float32)
    encoded, _ = encode(change, 1.0, 1.0, 20, Rounding.of(0, 0, "site"))
    assert {*encoded.tolist()} == {0, 1}
    assert abs(int(encoded.sum()) - 0.3 * N) < 5 * 205


def test_rounding_follows_from_seed_round_site_and_place() -> None:
    first = Rounding.of(1, 2, "a").uniform(0, 100)
    np.testing.assert_array_equal(Rounding.of(1, 2, "a").uniform(40, 60), first[40:])
    for other in (Rounding.of(2, 2, "a"), Rounding.of(1, 3, "a"), Rounding.of(1, 2, "b")):
        assert not np.any(other.uniform(0, 100) == first)


@pytest.mark.parametrize("bits", [8, 20, 28])
def test_extremes_stay_within_their_bits(bits: int) -> None:
    change = np.array([-1e9, -1.0, 0.0, 1.0, 1e9, 3e38], np.float32)
    encoded, clipped = encode(change, 1.0, 1.0, bits, Rounding.of(0, 0, "site"))
    most = 2 ** (bits - 1) - 1
    assert encoded.view(np.int32).tolist() == [-most, -most, 0, most, most, most]
    assert clipped == 3


def test_parts_of_an_update_are_encoded_as_the_whole() -> None:
    change = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    rounding = Rounding.of(0, 0, "site")
    whole, _ = encode(change, 2.0, 0.5, 20, rounding)
    parts = [encode(change[first : first + 300], 2.0, 0.5, 20, rounding, first)[0] for first in range(0, 1000, 300)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@given(st.lists(st.floats(-1e5, 1e5), min_size=1, max_size=50))
def test_numbers_are_summed_to_a_millionth(values: list[float]) -> None:
    total = sum(encode_number(value, len(values)) for value in values)
    assert decode_number(total) == pytest.approx(sum(values), abs=len(values) * 2**-21 + 1e-9)
    assert decode_number(sum(encode_number(7, 50) for _ in range(50))) == 350


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.0**43 / 3])
def test_number_whose_sum_might_not_be_known_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="cannot be summed over 3 sites"):
        encode_number(value, 3)
