import numpy as np
import pytest

from workspaces.hubert.masking import MaskSettings, draw_mask, expected_share

PAPER = MaskSettings()


def runs(mask: np.ndarray) -> np.ndarray:
    """Lengths of the stretches of masked frames."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return edges[1::2] - edges[::2]


@pytest.mark.parametrize("frames", [49, 250, 781])
def test_the_share_of_masked_frames_is_that_of_the_formula(frames):
    generator = np.random.default_rng(0)
    shares = [draw_mask(frames, PAPER, generator).mean() for _ in range(2_000)]
    # Standard errors of the mean.
    assert np.mean(shares) == pytest.approx(expected_share(frames, PAPER), abs=4 * np.std(shares) / np.sqrt(2_000))


def test_in_a_long_clip_the_paper_masks_57_percent():
    # A frame is visible if none of the ten frames that end at it begins a span, 8 % of which do: 1 - 0.92^10 = 0.566.
    assert expected_share(1_500, PAPER) == pytest.approx(1 - 0.92**10, abs=0.003)
    # Without overlap it would be 0.8.
    assert expected_share(1_500, PAPER) < 0.58


def test_spans_have_ten_frames_or_more_where_they_overlap():
    generator = np.random.default_rng(0)
    lengths = np.concatenate([runs(draw_mask(200, PAPER, generator)) for _ in range(100)])
    assert lengths.min() == 10
    assert lengths.max() > 20


def test_every_frame_can_be_masked():
    generator = np.random.default_rng(0)
    masked = np.mean([draw_mask(60, PAPER, generator) for _ in range(2_000)], axis=0)
    # Of 51 starts, 4 are drawn or, four times of five, 5. One of them reaches the first frame, ten the middle.
    assert masked[0] == pytest.approx(4.8 / 51, abs=0.03)
    assert masked[-1] == pytest.approx(4.8 / 51, abs=0.03)
    assert masked[30] == pytest.approx(
        1 - (41 / 51) * (40 / 50) * (39 / 49) * (38 / 48) * (0.2 + 0.8 * 37 / 47), abs=0.04
    )


@pytest.mark.parametrize("frames", [1, 3, 10, 12])
def test_a_clip_of_few_frames_has_a_mask(frames):
    mask = draw_mask(frames, PAPER, np.random.default_rng(0))
    assert mask.shape == (frames,)
    assert mask.any()
    assert expected_share(frames, PAPER) == pytest.approx(min(10, frames) / frames, abs=0.2)


def test_a_mask_is_a_function_of_its_generator():
    first, again, other = (draw_mask(300, PAPER, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_probability_of_a_start_is_that_of_the_paper_divided_by_the_length():
    by_start = MaskSettings(start_probability=0.08, probability=0.3)
    assert (by_start.starts, PAPER.starts) == (0.08, pytest.approx(0.08))
    assert expected_share(500, by_start) == pytest.approx(expected_share(500, PAPER), abs=1e-9)
    masks = [draw_mask(500, settings, np.random.default_rng(3)) for settings in (by_start, PAPER)]
    np.testing.assert_array_equal(*masks)
