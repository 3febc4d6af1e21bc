import numpy as np
import pytest

from openfl_audio.privacy import masks
from openfl_audio.privacy.masks import Mask, add_masks, words

KEY = bytes(range(32))


def test_stream_is_aes_256_of_the_counter() -> None:
    # FIPS 197, appendix C.3: the block 00112233...eeff under the key 00 01 ... 1f.
    block = int("00112233445566778899aabbccddeeff", 16)
    assert words(KEY, "<u4", 4 * block, 4).tobytes().hex() == "8ea2b7ca516745bfeafc49904b496089"
    assert words(KEY, "<u8", 2 * block, 2).tobytes().hex() == "8ea2b7ca516745bfeafc49904b496089"


@pytest.mark.parametrize("dtype", ["<u4", "<u8"])
def test_any_part_of_a_stream_is_the_same_by_itself(dtype: str) -> None:
    whole = words(KEY, dtype, 0, 1000)
    for first, count in ((0, 0), (0, 1), (1, 5), (3, 997), (7, 13), (999, 1)):
        np.testing.assert_array_equal(words(KEY, dtype, first, count), whole[first : first + count])


def test_masks_cancel_in_a_sum_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "CHUNK_WORDS", 1 << 8)
    values = np.arange(1000, dtype=np.uint32)
    one, other = values.copy(), values.copy()
    add_masks(one, [Mask(KEY, 1)])
    for first in range(0, 1000, 300):
        add_masks(other[first : first + 300], [Mask(KEY, -1)], first)
    assert not np.any(one == values)
    np.testing.assert_array_equal(one + other, 2 * values)


@pytest.mark.parametrize("count", [0, 7, 256, 1000])
def test_chunks_that_are_masked_on_their_way_are_those_of_a_masked_copy(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "CHUNK_WORDS", 1 << 8)
    values, several = np.arange(count, dtype=np.uint32), [Mask(KEY, 1), Mask(bytes(32), -1), Mask(KEY[::-1], 1)]
    expected = values.copy()
    for mask in several:
        stream = words(mask.key, "<u4", 0, count)
        expected = expected + stream if mask.sign > 0 else expected - stream
    copy = values.copy()
    add_masks(copy, several)
    np.testing.assert_array_equal(copy, expected)
    chunks = [chunk.copy() for chunk in masks.masked(values, several)]
    assert [len(chunk) for chunk in chunks] == [min(256, count - start) for start in range(0, count, 256)]
    np.testing.assert_array_equal(np.concatenate([values[:0], *chunks]), expected)
    np.testing.assert_array_equal(values, np.arange(count))


def test_masked_values_are_uniform_and_say_nothing_of_the_update() -> None:
    n = 1 << 16
    update = np.zeros(n, np.uint32)
    one, other = update.copy(), update.copy()
    add_masks(one, [Mask(KEY)])
    add_masks(other, [Mask(bytes(32))])
    for masked in (one, other, one - other):
        counts = np.bincount(masked.view(np.uint8), minlength=256)
        expected = 4 * n / 256
        # Chi-squared with 255 degrees of freedom: mean 255, standard deviation 22.6.
        assert ((counts - expected) ** 2 / expected).sum() < 255 + 5 * 22.6
