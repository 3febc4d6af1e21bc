"""From published folders to a store: the numbers in it, what is left out, and runs that are stopped or repeated."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import torch
import torchaudio

from shard_descriptors.common.errors import AudioError, CorpusError
from shard_descriptors.fsd50k.layout import read_layout
from shard_descriptors.fsd50k.preparation import HalfRate, MelTransform, check_store, prepare_store
from shard_descriptors.fsd50k.store import open_store, read_table
from tests.unit.shard_descriptors.fsd50k_corpus import SAMPLE_RATE, make_corpus, tone

pytestmark = pytest.mark.process

REPOSITORY = Path(__file__).parents[4]
REAL_CORPUS = REPOSITORY.parent / "shared" / "data" / "FSD50K"
STORE_FILES = ("frames.f16", "clips.jsonl", "store.json", "report.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("fsd50k") / "FSD50K"
    return root, make_corpus(root)


@pytest.fixture
def own(made, tmp_path):
    """For tests that change recordings: a copy with the same times."""
    shutil.copytree(made[0], tmp_path / "FSD50K")
    return tmp_path / "FSD50K"


@pytest.fixture(scope="module")
def store_folder(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("stores") / "store"
    assert prepare_store(read_layout(made[0]), out)
    return out


def contents(folder):
    return {name: (folder / name).read_bytes() for name in STORE_FILES}


def torchaudio_power(waveform, sample_rate=SAMPLE_RATE):
    """The transform of Green & Plumbley: (frames, 96)."""
    transform = torch.nn.Sequential(
        torchaudio.transforms.Resample(sample_rate, 22_050),
        torchaudio.transforms.MelSpectrogram(22_050, n_fft=660, hop_length=220, n_mels=96),
    )
    return transform(torch.from_numpy(waveform.astype(np.float32))).T.numpy()


def noise(samples, scale=0.1):
    return np.random.default_rng(samples).normal(scale=scale, size=samples).clip(-1, 1).astype(np.float32)


# The numbers


@pytest.mark.parametrize("samples", [1_000, 13_230, 44_099, 44_100, 44_101, 100_003])
def test_halving_the_rate_gives_the_samples_of_torchaudio(samples):
    waveform = noise(samples)
    ours, theirs = HalfRate()(waveform), torchaudio.transforms.Resample(44_100, 22_050)(torch.from_numpy(waveform))
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-6)  # sums of 28 products, in another order


@pytest.mark.parametrize(("sample_rate", "seconds"), [(44_100, 0.3), (44_100, 2.345), (22_050, 1.1), (48_000, 1.5)])
def test_mel_power_is_that_of_torchaudio(sample_rate, seconds):
    waveform = noise(round(sample_rate * seconds))
    ours, theirs = MelTransform("power").mel_power(waveform, sample_rate), torchaudio_power(waveform, sample_rate)
    assert ours.shape == theirs.shape == (1 + -(-len(waveform) * 22_050 // sample_rate) // 220, 96)
    # Single precision in other orders of summation; against the largest, as a small one is a difference of large ones.
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6 * theirs.max())


def test_one_second_has_101_frames():
    for sample_rate in (22_050, 44_100, 48_000):
        assert len(MelTransform("log_mel")(noise(sample_rate), sample_rate)) == 101


@pytest.mark.parametrize("features", ["log_mel", "power"])
def test_patches_are_the_frames_of_their_clip_within_float16(made, tmp_path, features):
    root, clips = made
    prepare_store(read_layout(root), tmp_path / "store", features)
    store = open_store(tmp_path / "store")
    assert [clip.name for clip in store.clips] == [clip.name for clip in clips]
    for i, clip in enumerate(clips):
        power = torchaudio_power(soundfile.read(root / clip.file)[0])
        exact = np.log(np.maximum(power, 1e-10)) if features == "log_mel" else power
        repeated = np.concatenate([exact] * 4) if len(exact) < 101 else exact
        patches = 1 + max(0, len(exact) - 101) // 50
        assert store.num_patches[i] == patches
        for position in range(patches):
            patch = store.patches(np.array([i]), np.array([position]))[0]
            assert (patch.shape, patch.dtype) == ((101, 96), np.float32)
            expected = repeated[50 * position : 50 * position + 101]
            if features == "log_mel":
                # Half a step of float16 near -23 is 2 ** -7; a tone leaves bands where rounding is all there is.
                heard = expected > np.log(1e-6)
                np.testing.assert_allclose(patch[heard], expected[heard], rtol=2**-11 + 1e-3, atol=2e-3)
                assert np.abs(patch - expected).max() < 1
            else:
                np.testing.assert_allclose(patch, expected, rtol=2**-11 + 1e-4, atol=1e-6 * power.max())
            assert patch.mean(axis=0).argmax() == clip.band


@pytest.mark.parametrize("features", ["log_mel", "power"])
def test_what_is_stored_comes_back_as_it_was_rounded_to_float16(made, tmp_path, features):
    root, clips = made
    prepare_store(read_layout(root), tmp_path / "store", features)
    store = open_store(tmp_path / "store")
    waveform = soundfile.read(root / clips[0].file, dtype="float32")[0]
    power = MelTransform(features).mel_power(waveform, SAMPLE_RATE).numpy()
    exact = np.log(np.maximum(power, np.float32(1e-10))) if features == "log_mel" else power
    stored = store.patches(np.array([0]), np.array([2]))[0]
    # Half a unit in the last of 11 places, or of the smallest numbers there are; power is kept as a quarter.
    error = np.abs(stored - exact[100:201])
    assert (error <= np.maximum(2.0**-11 * np.abs(exact[100:201]), 4 * 2.0**-25) + 1e-6).all()
    assert error.max() > 0


def test_a_full_scale_square_wave_still_fits_as_power_and_one_ten_times_too_loud_is_refused():
    square = np.sign(tone(60, 1.0)).astype(np.float32)
    frames = MelTransform("power")(square, SAMPLE_RATE)
    assert np.isfinite(frames).all()
    assert frames.max() * 4.0 > 20_000
    with pytest.raises(AudioError, match="has a mel power of .*, more than a store can hold"):
        MelTransform("power")(10 * square, SAMPLE_RATE)
    assert np.isfinite(MelTransform("log_mel")(10 * square, SAMPLE_RATE)).all()


def test_all_51197_clips_fit_into_7_gib(tmp_path):
    # Nothing is saved on one long clip but the frames after its last patch, and little of its table: an upper bound.
    make_corpus(tmp_path / "FSD50K", [("eve", "train", (29.99,))])
    prepare_store(read_layout(tmp_path / "FSD50K"), tmp_path / "store")
    frames, table = ((tmp_path / "store" / name).stat().st_size for name in STORE_FILES[:2])
    assert frames / 29.99 * 108.3 * 3600 + table * 51_197 <= 7 * 2**30


# What is left out, and what is told


def spoil(root, clips):
    """One fault a clip -> the names by fault."""
    corrupt, missing, empty, nan, tiny, stereo, narrow, long = clips[:8]
    (root / corrupt.file).write_bytes(b"RIFF but no audio")
    (root / missing.file).unlink()
    soundfile.write(root / empty.file, np.zeros(0), SAMPLE_RATE)
    soundfile.write(root / nan.file, np.full(SAMPLE_RATE, np.nan), SAMPLE_RATE, subtype="FLOAT")
    soundfile.write(root / tiny.file, noise(600), SAMPLE_RATE)
    # A mean of both channels, not one of them: the left one is silent.
    both = np.stack([np.zeros(SAMPLE_RATE), tone(stereo.band, 1.0)], axis=1)
    soundfile.write(root / stereo.file, both, SAMPLE_RATE)
    soundfile.write(root / narrow.file, tone(narrow.band, 1.5, 32_000), 32_000)
    soundfile.write(root / long.file, tone(long.band, 30.0), SAMPLE_RATE)
    return {"corrupt": corrupt, "missing": missing, "empty": empty, "nan": nan, "tiny": tiny,
            "stereo": stereo, "narrow": narrow, "long": long}  # fmt: skip


def test_clips_that_cannot_be_used_are_counted_and_named_and_never_silence(own, made, tmp_path):
    clips = made[1]
    spoilt = spoil(own, clips)
    prepare_store(read_layout(own), tmp_path / "store")
    report = json.loads((tmp_path / "store/report.json").read_text())
    reasons = {
        fault: report["left_out"].pop(spoilt[fault].name) for fault in ("corrupt", "missing", "empty", "nan", "tiny")
    }
    assert report["left_out"] == {}
    assert reasons.pop("corrupt").startswith("is not audio (")
    assert reasons == {
        "missing": "is missing",
        "empty": "is empty (0 samples)",
        "nan": "has samples that are NaN or infinite",
        "tiny": "has 300 samples at 22050 Hz, and a frame needs 331",
    }
    assert report["averaged_to_mono"] == {spoilt["stereo"].name: 2}
    assert report["other_sample_rate"] == {spoilt["narrow"].name: 32_000}
    assert (report["clips"], report["longest_s"], report["shortest_s"]) == (len(clips) - 5, 30.0, 0.4)
    assert report["repeated_to_a_second"] == sum(clip.seconds < 1 for clip in clips[8:])

    store = open_store(tmp_path / "store")
    names = [clip.name for clip in store.clips]
    assert names == [clip.name for clip in clips[5:]]
    assert set(store.left_out) == {clip.name for clip in clips[:5]}
    patches = store.patches(np.arange(len(names)), np.zeros(len(names), dtype=int))
    assert patches.mean(axis=1).argmax(axis=1).tolist() == [clip.band for clip in clips[5:]]
    assert store.num_patches[names.index(spoilt["long"].name)] == 1 + (3_001 - 101) // 50


# Again, and stopped in the middle


def test_a_second_run_does_nothing(made, store_folder):
    times = {path.name: path.stat().st_mtime_ns for path in store_folder.iterdir()}
    assert set(times) == set(STORE_FILES)
    assert not prepare_store(read_layout(made[0]), store_folder)
    assert {path.name: path.stat().st_mtime_ns for path in store_folder.iterdir()} == times


def is_running(number):
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.timeout(120)
def test_a_killed_run_goes_on_to_the_same_store_and_leaves_no_process(tmp_path):
    root = tmp_path / "FSD50K"
    make_corpus(root, [("ann", "train", (0.5,) * 60), ("eve", "eval", (0.5,) * 4)])
    code = f"""
import os, signal
from pathlib import Path
from shard_descriptors.fsd50k import preparation
from shard_descriptors.fsd50k.layout import read_layout

def line(row, lines=[], write=preparation._line):
    lines.append(row)
    if len(lines) == 33:  # the first of the third task
        print(*Path(f"/proc/{{os.getpid()}}/task/{{os.getpid()}}/children").read_text().split(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return write(row)

if __name__ == "__main__":
    preparation._line = line
    preparation.prepare_store(read_layout(Path({str(root)!r})), Path({str(tmp_path / "store")!r}), workers=2)
"""
    (tmp_path / "killed.py").write_text(code)
    killed = subprocess.run(
        [sys.executable, tmp_path / "killed.py"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    table = tmp_path / "store/clips.jsonl"
    assert len(read_table(table)) == 32
    with pytest.raises(CorpusError, match="is not finished: run openfl-audio data prepare fsd50k again, and it"):
        open_store(tmp_path / "store")
    workers = [int(number) for number in killed.stdout.split()]
    assert len(workers) >= 2
    deadline = time.monotonic() + 60
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # As a run leaves it that was stopped while writing.
    with table.open("ab") as file:
        file.write(b'{"name": "99')
    with (tmp_path / "store/frames.f16").open("ab") as file:
        file.write(b"some of its frames")

    layout = read_layout(root)
    assert prepare_store(layout, tmp_path / "store")
    assert prepare_store(layout, tmp_path / "never_stopped")
    assert contents(tmp_path / "store") == contents(tmp_path / "never_stopped")
    assert check_store(layout, tmp_path / "store") == []


def test_a_run_that_was_killed_at_its_first_file_is_begun_again(made, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".store.json.partial").write_text("{")
    assert prepare_store(read_layout(made[0]), tmp_path / "store")


def test_lines_of_the_table_without_their_frames_are_written_again(made, store_folder, tmp_path):
    shutil.copytree(store_folder, tmp_path / "store")
    description = json.loads((tmp_path / "store/store.json").read_text())
    (tmp_path / "store/store.json").write_text(json.dumps({**description, "complete": False}))
    os.truncate(tmp_path / "store/frames.f16", 1_000)
    assert prepare_store(read_layout(made[0]), tmp_path / "store")
    assert contents(tmp_path / "store") == contents(store_folder)


def test_two_runs_do_not_write_one_store(made, store_folder, tmp_path):
    shutil.copytree(store_folder, tmp_path / "store")
    description = json.loads((tmp_path / "store/store.json").read_text())
    (tmp_path / "store/store.json").write_text(json.dumps({**description, "complete": False}))
    with (tmp_path / "store/clips.jsonl").open() as table:
        fcntl.flock(table, fcntl.LOCK_EX)
        with pytest.raises(CorpusError, match="store is being written by another process"):
            prepare_store(read_layout(made[0]), tmp_path / "store")
    assert prepare_store(read_layout(made[0]), tmp_path / "store")


def test_another_store_or_folder_is_not_written_over(made, own, store_folder, tmp_path):
    with pytest.raises(CorpusError, match="is a store with other settings; remove it, or choose another folder"):
        prepare_store(read_layout(made[0]), store_folder, "power")
    table = own / "FSD50K.ground_truth/dev.csv"
    table.write_text(table.read_text().replace(",val", ",train"))
    with pytest.raises(CorpusError, match="is a store with other sources; remove it"):
        prepare_store(read_layout(own), store_folder)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/diary.txt").write_text("mine")
    with pytest.raises(CorpusError, match="notes exists and is no store of mel frames; choose another folder"):
        prepare_store(read_layout(made[0]), tmp_path / "notes")
    with pytest.raises(CorpusError, match="features: 'mfcc' is unknown; choose log_mel, power"):
        prepare_store(read_layout(made[0]), tmp_path / "new", "mfcc")


# --check


def test_check_finds_damage_and_changes_and_nothing_else(made, own, store_folder, tmp_path):
    layout, out = read_layout(own), tmp_path / "store"
    shutil.copytree(store_folder, out)
    assert check_store(layout, out) == []
    clips = made[1]
    # The same recording at another time is the same; another of the same length is not.
    os.utime(own / clips[0].file)
    soundfile.write(own / clips[1].file, tone(clips[1].band + 1, clips[1].seconds), SAMPLE_RATE)
    (own / clips[2].file).unlink()
    frames = np.memmap(out / "frames.f16", np.float16, "r+")
    frames[-1] += 1
    del frames
    assert check_store(layout, out) == [
        f"{clips[1].name}: its recording was changed",
        f"{clips[2].name}: now is missing; when the store was made: can be read",
        f"{clips[-1].name}: its frames are damaged",
    ]


def test_check_finds_other_settings_tables_and_sizes(own, store_folder, tmp_path):
    out = tmp_path / "store"
    shutil.copytree(store_folder, out)
    assert [
        fault.startswith("was made with {'features': 'log_mel'")
        for fault in check_store(read_layout(own), out, "power")
    ] == [True]
    os.truncate(out / "frames.f16", 1_000)
    assert [
        fault.startswith("frames.f16 has 1,000 bytes, and clips.jsonl") for fault in check_store(read_layout(own), out)
    ] == [True]
    table = own / "FSD50K.ground_truth/eval.csv"
    table.write_text(table.read_text().replace("Water", "Rain", 1))
    assert check_store(read_layout(own), out) == ["FSD50K.ground_truth/eval.csv was changed"]
    assert check_store(read_layout(own), tmp_path / "nowhere") == [f"{tmp_path / 'nowhere'} is no store of mel frames"]


@pytest.mark.skipif(not REAL_CORPUS.is_dir(), reason=f"no real recordings at {REAL_CORPUS}")
def test_real_recordings_are_prepared_whole(tmp_path):
    layout = read_layout(REAL_CORPUS)
    prepare_store(layout, tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert (len(store.clips), store.left_out) == (102, {})
    for i in (0, 50, 101):
        power = torchaudio_power(soundfile.read(REAL_CORPUS / store.clips[i].file)[0])
        patch = store.patches(np.array([i]), np.array([3]))[0]
        np.testing.assert_allclose(patch, np.log(np.maximum(power[150:251], 1e-10)), rtol=2**-10, atol=0.02)
