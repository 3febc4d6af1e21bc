"""The benchmark on a few clips: that both ways do what they say, and that its sums add up."""

import math

import numpy as np
import pytest
import torch

from benchmarks import fsd50k as benchmark
from shard_descriptors.fsd50k.preparation import prepare_store
from shard_descriptors.fsd50k.store import open_store


@pytest.fixture
def noise(tmp_path):
    return benchmark.make_noise(tmp_path, 6)


def test_both_ways_compute_the_same_patches(noise, tmp_path):
    (tmp_path / "patches").mkdir()
    benchmark.published_way(noise, tmp_path / "patches")
    prepare_store(noise, tmp_path / "store", "power")
    store = open_store(tmp_path / "store")
    assert len(list((tmp_path / "patches").iterdir())) >= store.num_patches.sum() > 50
    for i, clip in enumerate(store.clips):
        for position in range(store.num_patches[i]):
            theirs = torch.load(tmp_path / f"patches/{clip.name}.{position}.pt")
            ours = store.patches(np.array([i]), np.array([position]))[0]
            np.testing.assert_allclose(ours, theirs, rtol=2**-10, atol=1e-5)


def test_the_report_adds_up(noise):
    report = benchmark.measure(noise, repeats=1)
    seconds, ratios = report["seconds_per_audio_second"], report["ours_times_faster"]
    assert ratios["published"] == pytest.approx(seconds["published"] / seconds["ours"], rel=0.02)
    assert seconds["published"] > seconds["published_transform"] > 0
    assert report["times_real_time_per_core"]["ours"] == pytest.approx(1 / seconds["ours"], rel=0.02)
    assert report["audio_s"] == pytest.approx(sum(np.geomspace(0.3, 30, 6)), abs=0.1)
    # 192 bytes a frame, a hundred frames a second, and of each clip 0 to 49 frames less.
    assert 18_000 < report["bytes_per_audio_second"]["ours"] < 192 * 22_050 / 220 + 200
    assert report["full_set"]["GB"] == pytest.approx(report["full_set"]["GiB"] * 1.073741824, rel=1e-3)
    assert math.isclose(report["full_set"]["GB"], 7.2, rel_tol=0.1)
