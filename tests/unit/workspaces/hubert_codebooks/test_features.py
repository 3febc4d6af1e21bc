"""Features that k-means clusters: their numbers, as many as HuBERT has frames, and the file that they are kept in."""

import numpy as np
import pytest
import torch
from torchaudio.models.wav2vec2.components import _get_feature_extractor

from workspaces.hubert.model import create_hubert, save_model
from workspaces.hubert_codebooks.features import FeatureError, HiddenStates, Mfcc, draw_clips, read_frames, write_clips


class Waveforms:
    """A stand-in for a LibriSpeech shard: noise of several lengths, and how often each was read."""

    def __init__(self, num_samples: list[int], num_frames: list[int] | None = None) -> None:
        self.num_samples = np.array(num_samples)
        self.num_frames = (self.num_samples - 400) // 320 + 1 if num_frames is None else np.array(num_frames)
        self.names = [f"19-7-{i:04}" for i in range(len(num_samples))]
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self.num_samples)

    def read_waveform(self, index: int) -> np.ndarray:
        self.reads.append(index)
        return np.random.default_rng(index).normal(size=self.num_samples[index]).astype(np.float32) / 10


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run whose model is small and untrained."""
    folder = tmp_path_factory.mktemp("run")
    save_model(create_hubert("hubert_small.json", clusters=10), folder / "model")
    return folder


@pytest.mark.parametrize("width", [13, 39])
def test_there_are_as_many_mfcc_as_torchaudio_s_hubert_has_frames(width):
    extractor = _get_feature_extractor("group_norm", [(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)] * 2, bias=False)
    for samples in (400, 719, 720, 721, 5_000, 16_000):
        waveform = torch.randn(1, samples) / 10
        with torch.inference_mode():
            expected = extractor(waveform, None)[0].shape[1]
        frames = Mfcc(width)(waveform[0].numpy())
        assert frames.shape == (expected, width)
        assert (frames.dtype, np.isfinite(frames).all()) == (np.float32, True)


def test_the_first_13_are_static_and_the_others_their_slopes():
    waveform = Waveforms([16_000]).read_waveform(0)
    frames = Mfcc(39)(waveform)
    static = frames[:, :13]
    np.testing.assert_array_equal(static, Mfcc(13)(waveform))
    # The slope of a straight line through five frames, by least squares; at the ends the outer frame is repeated.
    for source, slopes in ((static, frames[:, 13:26]), (frames[:, 13:26], frames[:, 26:])):
        padded = np.pad(source, ((2, 2), (0, 0)), mode="edge")
        expected = [np.polyfit(np.arange(5), padded[i : i + 5], deg=1)[0] for i in range(len(source))]
        np.testing.assert_allclose(slopes, expected, atol=1e-3)  # float32, values of hundreds


def test_a_frame_hears_its_own_samples_only():
    waveform = Waveforms([16_000]).read_waveform(0)
    changed = waveform.copy()
    changed[: 320 * 10] = 0.01  # frames from 10 on begin later
    np.testing.assert_array_equal(Mfcc(13)(waveform)[10:], Mfcc(13)(changed)[10:])
    assert not np.array_equal(Mfcc(13)(waveform)[9], Mfcc(13)(changed)[9])


def test_a_layer_s_outputs_are_the_model_s(run):
    dataset = Waveforms([8_000, 5_000])
    features = HiddenStates(run, layer=2)
    model = create_hubert("hubert_small.json", clusters=10).eval()
    with torch.inference_mode():
        layers, _ = model.extract_features(torch.from_numpy(dataset.read_waveform(0))[None])
    frames = features(dataset.read_waveform(0))
    np.testing.assert_allclose(frames, layers[1][0].numpy(), atol=1e-5)
    assert frames.shape == (dataset.num_frames[0], features.width)
    assert features.name.startswith("layer2-")


def test_another_layer_or_model_has_another_name(run, tmp_path):
    save_model(create_hubert("hubert_small.json", clusters=10, seed=1), tmp_path)
    names = {HiddenStates(run, 1).name, HiddenStates(run, 2).name, HiddenStates(tmp_path, 2).name}
    assert len(names) == 3


def test_a_layer_that_the_model_lacks_is_refused(run):
    for layer in (0, 99):
        with pytest.raises(FeatureError, match=f"layer: {layer} should be from 1 to [0-9]+, the layers of .*model"):
            HiddenStates(run, layer)


def test_frames_are_kept_in_the_order_of_the_clips_and_made_once(tmp_path):
    dataset = Waveforms([4_000, 400, 1_000, 2_000])
    indices = np.array([0, 1, 3])
    frames = read_frames(dataset, Mfcc(13), indices, tmp_path)
    np.testing.assert_array_equal(frames, np.concatenate([Mfcc(13)(dataset.read_waveform(i)) for i in indices]))
    dataset.reads.clear()
    assert len(read_frames(dataset, Mfcc(13), indices, tmp_path)) == len(frames)
    assert dataset.reads == []
    read_frames(dataset, Mfcc(13), np.array([0, 2, 3]), tmp_path)  # other clips are other frames
    assert dataset.reads == [0, 2, 3]


def test_a_run_that_was_stopped_goes_on_after_its_last_whole_clip(tmp_path):
    dataset = Waveforms([4_000, 3_000, 1_000, 2_000])
    whole = read_frames(dataset, Mfcc(13), np.arange(4), tmp_path / "whole")
    (path,) = (tmp_path / "whole").iterdir()
    in_the_third = int(dataset.num_frames[:2].sum()) * 13 * 4 + 7
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / f"{path.name}.partial").write_bytes(path.read_bytes()[:in_the_third])
    dataset.reads.clear()
    clips: list[None] = []
    frames = read_frames(dataset, Mfcc(13), np.arange(4), tmp_path / "half", lambda: clips.append(None))
    np.testing.assert_array_equal(frames, whole)
    assert (dataset.reads, len(clips)) == ([2, 3], 4)


def test_a_stopped_run_leaves_no_file_that_looks_complete(tmp_path):
    def make(clip: int) -> np.ndarray:
        if clip == 2:
            raise KeyboardInterrupt
        return np.full(3, clip, np.int16)

    with pytest.raises(KeyboardInterrupt):
        write_clips(tmp_path / "targets.i16", make, [3, 3, 3], row_bytes=2)
    assert [path.name for path in tmp_path.iterdir()] == ["targets.i16.partial"]


def test_a_clip_with_another_number_of_frames_is_named(tmp_path):
    dataset = Waveforms([4_000, 4_000], num_frames=[12, 13])
    message = r"19-7-0001: mfcc13 has frames of shape \(12, 13\), and HuBERT makes \(13, 13\) of its 4,000 samples"
    with pytest.raises(FeatureError, match=message):
        read_frames(dataset, Mfcc(13), np.arange(2), tmp_path)


def test_a_share_of_the_clips_is_drawn_by_the_seed():
    drawn = draw_clips(100, 0.1, seed=3)
    assert drawn.tolist() == draw_clips(100, 0.1, seed=3).tolist() != draw_clips(100, 0.1, seed=4).tolist()
    assert (len(set(drawn)), drawn.max() < 100) == (10, True)
    assert draw_clips(7, 1.0, seed=3).tolist() == list(range(7))
    assert len(draw_clips(7, 0.01, seed=3)) == 1
