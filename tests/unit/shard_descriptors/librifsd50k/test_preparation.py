"""LibriFSD50K and FedWHAM as they are written: by what is heard in the files, and by what the report says."""

import csv
import json
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

from shard_descriptors.common.errors import CorpusError
from shard_descriptors.librifsd50k.preparation import (
    SPEECH_LABELS,
    plan_fedwham,
    plan_librifsd50k,
    prepare_fedwham,
    prepare_librifsd50k,
    to_int16,
)
from shard_descriptors.librifsd50k.store import read_store
from tests.unit.shard_descriptors.librifsd50k_corpora import (
    SPEECH,
    frequency_of,
    make_corpora,
    make_fsd50k_part,
    make_librispeech,
    make_wham,
    recording,
)

pytestmark = pytest.mark.process

REAL_DATA = Path(__file__).parents[5] / "shared" / "data"
SPLITS = ("train", "validation", "test")
FOLDER_OF = {"train": "train", "validation": "val", "test": "test"}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """For tests that only read."""
    return make_corpora(tmp_path_factory.mktemp("corpora"))


@pytest.fixture(scope="module")
def store(corpora, tmp_path_factory):
    out = tmp_path_factory.mktemp("stores") / "librifsd50k"
    return out, prepare_librifsd50k(corpora.librispeech, corpora.fsd50k, out, workers=2)


@pytest.fixture
def own_corpora(corpora, tmp_path):
    """For tests that change files."""
    for folder in (corpora.librispeech, corpora.fsd50k):
        shutil.copytree(folder, tmp_path / folder.name)
    return corpora._replace(librispeech=tmp_path / "LibriSpeech", fsd50k=tmp_path / "FSD50K")


def table(out: Path) -> list[dict[str, str]]:
    with (out / "chunks.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def source(file: str) -> str:
    """The utterance or clip that a written file is called after."""
    return Path(file).stem.rsplit("_id_", 1)[1]


# What is written


def test_every_chunk_is_4_seconds_of_the_recording_that_it_is_called_after(corpora, store):
    out, _ = store
    rows = table(out)
    assert len(rows) == len({row["speech"] for row in rows}) == len({row["noise"] for row in rows})
    for row in rows:
        for which in ("speech", "noise"):
            info = soundfile.info(out / row[which])
            assert (info.samplerate, info.channels, info.frames, info.subtype) == (16_000, 1, 64_000, "PCM_16")
            pair, chunk = Path(row[which]).name.split("_")[:2]
            assert pair == row["pair"]
            waveform, _ = soundfile.read(out / row[which])
            assert frequency_of(waveform) == corpora.tones[source(row[which])] + 1_000 * (chunk != "0")
            assert row[which].split("/")[:3] == [FOLDER_OF[row["split"]], row["speaker"], which]
        assert source(row["speech"]).split("-")[0] == row["speaker"]
        assert "_Water_id_" in row["noise"]


def test_there_are_as_many_chunks_as_the_shorter_recording_has(corpora, store):
    out, report = store
    chunks = defaultdict(list)
    for row in table(out):
        chunks[source(row["speech"]), source(row["noise"])].append(Path(row["speech"]).name.split("_")[1])
    recordings = [*corpora.librispeech.rglob("*.flac"), *corpora.fsd50k.rglob("*.wav")]
    lengths_s = {path.stem: soundfile.info(path).duration for path in recordings}
    for (utterance, clip), numbers in chunks.items():
        whole = int(min(lengths_s[utterance], lengths_s[clip]) // 4)
        assert numbers == [str(number) for number in range(max(1, whole))]
    assert {len(numbers) for numbers in chunks.values()} >= {1, 2}
    assert sum(map(len, chunks.values())) == sum(counts["chunks"] for counts in report["splits"].values())


def test_what_is_shorter_than_4_seconds_ends_in_zeros(corpora, store):
    out, report = store
    row = next(row for row in table(out) if source(row["speech"]) == "103-7-0000")  # 2 s
    waveform, _ = soundfile.read(out / row["speech"])
    assert not waveform[32_000:].any()
    assert np.abs(waveform[31_000:32_000]).max() > 0.4
    assert report["splits"]["train"]["padded_speech"] == 1
    padded = [row for row in table(out) if not soundfile.read(out / row["noise"])[0][-1_000:].any()]
    assert len(padded) == sum(counts["padded_noise"] for counts in report["splits"].values()) > 0


def test_a_speaker_has_all_its_utterances_before_the_next_one_begins(store):
    train = [source(row["speech"]) for row in table(store[0]) if row["split"] == "train"]
    speakers = list(dict.fromkeys(name.split("-")[0] for name in train))
    assert speakers == ["19", "103", "1089", "26", "118"]
    assert train == sorted(train, key=lambda name: (speakers.index(name.split("-")[0]), name))


def test_16_bits_come_through_as_they_are(own_corpora, tmp_path):
    utterance = own_corpora.librispeech / "train-clean-100/19/7/19-7-0000.flac"
    samples = np.random.default_rng(0).integers(-32_768, 32_768, 64_000, dtype=np.int16)
    soundfile.write(utterance, samples, 16_000)
    out = tmp_path / "out"
    prepare_librifsd50k(own_corpora.librispeech, own_corpora.fsd50k, out)
    row = next(row for row in table(out) if source(row["speech"]) == "19-7-0000")
    np.testing.assert_array_equal(soundfile.read(out / row["speech"], dtype="int16")[0], samples)


def test_beyond_full_scale_a_recording_is_scaled_down_as_a_whole():
    samples, scaled = to_int16(np.array([0.5, -2.0, 1.0], dtype=np.float32))
    assert scaled
    np.testing.assert_array_equal(samples, [8_192, -32_768, 16_384])
    assert not to_int16(np.array([1.0, -1.0], dtype=np.float32))[1]


# Splits


def test_no_utterance_clip_or_speaker_is_in_two_splits_and_none_is_used_twice(store):
    rows = table(store[0])
    for what in (lambda row: source(row["speech"]), lambda row: source(row["noise"])):
        uses = defaultdict(set)
        for row in rows:
            uses[what(row)].add((row["split"], row["speaker"], row["pair"]))
        assert all(len(of_one) == 1 for of_one in uses.values())
    speakers = [{row["speaker"] for row in rows if row["split"] == split} for split in SPLITS]
    assert len(set().union(*speakers)) == sum(map(len, speakers))


def test_splits_are_those_of_librispeech_and_fsd50k(corpora, store):
    rows = table(store[0])
    for split, subsets in {
        "train": ("train-clean-100", "train-clean-360"),
        "validation": ("dev-clean",),
        "test": ("test-clean",),
    }.items():
        assert {row["speaker"] for row in rows if row["split"] == split} == {
            speaker for subset in subsets for speaker in SPEECH[subset]
        }
        part = "eval" if split == "test" else "dev"
        clips = {source(row["noise"]) for row in rows if row["split"] == split}
        assert all((corpora.fsd50k / f"FSD50K.{part}_audio" / f"{clip}.wav").is_file() for clip in clips)


def test_the_dev_clips_are_cut_9_to_1(corpora):
    plan = plan_librifsd50k(corpora.librispeech, corpora.fsd50k)
    used = {split: [pair.noise for pair in plan.pairs if pair.split == split] for split in SPLITS}
    unused = {split: plan.left_out[f"no utterance is left for it in {split}"] for split in SPLITS}
    assert [len(used[split]) + len(unused[split]) for split in SPLITS] == [54, 6, 6]  # of 60 dev and 6 eval clips
    assert len(used["train"]) == 15  # all utterances of the train speakers


@pytest.mark.parametrize("each", [1, 2])
def test_where_recordings_are_few_clips_go_round_within_their_split(tmp_path, each):
    make_librispeech(tmp_path / "speech", {"train-clean-100": {str(10 + i): (4,) * 3 for i in range(20)}})
    make_fsd50k_part(tmp_path / "noise", "dev", {str(1_000 + i): "Rain" for i in range(20)}, 3_000)
    published, plan = (
        plan_librifsd50k(tmp_path / "speech", tmp_path / "noise", clips_per_utterance=n) for n in (None, each)
    )
    # There are 16 clips for 48 utterances.
    assert sum(pair.split == "train" for pair in published.pairs) == 16
    clips = set()
    for split, utterances in (("train", 48), ("validation", 6), ("test", 6)):
        pairs = [pair for pair in plan.pairs if pair.split == split]
        assert set(Counter(pair.speech for pair in pairs).values()) == {each}
        assert len({(pair.speech, pair.noise) for pair in pairs}) == len(pairs) == utterances * each
        assert len({(pair.speaker, pair.number) for pair in pairs}) == len(pairs)
        uses = Counter(pair.noise for pair in pairs)
        assert max(uses.values()) - min(uses.values()) <= 1
        assert clips.isdisjoint(uses)
        clips |= uses.keys()
    assert not any(files for reason, files in plan.left_out.items() if "is left for it" in reason)


def test_an_utterance_takes_each_clip_once_at_most(corpora):
    for wrong, why in ((0, "should be a whole number from 1 on"), (999, r"should be at most \d+, the noise clips of")):
        with pytest.raises(CorpusError, match=f"clips_per_utterance: {wrong} {why}"):
            plan_librifsd50k(corpora.librispeech, corpora.fsd50k, clips_per_utterance=wrong)


def test_clips_with_a_speech_like_label_are_left_out(corpora, store):
    out, report = store
    assert {source(row["noise"]) for row in table(out)}.isdisjoint({"73", "83", "93", "74", "84", "94"})
    spoken = report["left_out"]["has a speech-like label"]
    assert spoken["count"] == 6
    assert "FSD50K.eval_audio/74.wav" in spoken["files"]
    # the list has 28 names; people who are heard, but do not use their voice, are noise
    assert len(SPEECH_LABELS) == 28
    assert not SPEECH_LABELS & {"Walk_and_footsteps", "Clapping", "Applause", "Music", "Animal"}


def test_another_seed_makes_other_pairs_of_the_same_recordings(corpora):
    pairs = [
        {(pair.speech, pair.noise) for pair in plan_librifsd50k(corpora.librispeech, corpora.fsd50k, seed).pairs}
        for seed in (0, 0, 1)
    ]
    assert pairs[0] == pairs[1] != pairs[2]
    assert {speech for speech, _ in pairs[0]} == {speech for speech, _ in pairs[2]}


def test_the_report_says_how_complete_librispeech_is(store):
    assert "LibriSpeech dev-clean: 6 utterances of the published 2,703" in store[1]["notes"]
    assert json.loads((store[0] / "report.json").read_text()) == store[1]


def test_without_dev_and_test_speakers_are_held_out_and_it_is_told(tmp_path):
    make_librispeech(tmp_path / "speech", {"train-clean-100": {str(10 + i): (4,) for i in range(20)}})
    make_fsd50k_part(tmp_path / "noise", "dev", {str(1_000 + i): "Rain" for i in range(30)}, 3_000)
    plan = plan_librifsd50k(tmp_path / "speech", tmp_path / "noise")
    speakers = {split: {pair.speaker for pair in plan.pairs if pair.split == split} for split in SPLITS}
    assert [len(speakers[split]) for split in SPLITS] == [16, 2, 2]
    assert len(set().union(*speakers.values())) == 20
    clips = [pair.noise for pair in plan.pairs]
    assert len(set(clips)) == len(clips)
    notes = "\n".join(plan.notes)
    assert (
        f"validation: 2 of 20 train speakers are held out for it: {', '.join(sorted(speakers['validation']))}" in notes
    )
    assert "noise: cut 80/10/10 out of FSD50K's dev clips, as there are no eval clips" in notes


def test_dev_clean_alone_will_do(tmp_path, corpora):
    make_librispeech(tmp_path / "speech", {"dev-clean": {str(10 + i): (4,) for i in range(7)}})
    plan = plan_librifsd50k(tmp_path / "speech", corpora.fsd50k)
    assert [len([pair for pair in plan.pairs if pair.split == split]) for split in SPLITS] == [3, 2, 2]
    assert "train: made from dev-clean, as no train subset is there" in plan.notes


# Faults


def test_unusable_and_missing_files_are_left_out_and_named(own_corpora, tmp_path):
    plan = plan_librifsd50k(own_corpora.librispeech, own_corpora.fsd50k)
    broken, quiet = plan.pairs[0], next(pair for pair in plan.pairs if pair.split == "test")
    (own_corpora.fsd50k / broken.noise).write_bytes(b"this is no sound")
    soundfile.write(own_corpora.fsd50k / quiet.noise, np.zeros(64_000), 16_000)
    out = tmp_path / "out"
    report = prepare_librifsd50k(own_corpora.librispeech, own_corpora.fsd50k, out)
    left_out = {file: reason for reason, of in report["left_out"].items() for file in of["files"]}
    assert left_out[broken.noise].startswith("is not audio")
    assert left_out[broken.speech] == "is paired with a file that cannot be used"
    assert left_out[f"{quiet.noise} (chunk 0)"] == "has a chunk of digital silence"
    written = {source(row["noise"]) for row in table(out)}
    assert written.isdisjoint({Path(broken.noise).stem, Path(quiet.noise).stem})
    assert len(written) == len(plan.pairs) - 2

    (own_corpora.fsd50k / broken.noise).unlink()
    left_out = plan_librifsd50k(own_corpora.librispeech, own_corpora.fsd50k).left_out
    assert left_out["is in the ground truth, but not there"] == [broken.noise]


def test_what_is_no_fsd50k_is_told_apart(corpora, own_corpora, tmp_path):
    with pytest.raises(CorpusError, match="there is no FSD50K folder .*/nowhere"):
        plan_librifsd50k(corpora.librispeech, tmp_path / "nowhere")
    with pytest.raises(
        CorpusError, match=r"LibriSpeech is not an FSD50K folder .* FSD50K.dev_audio with FSD50K.ground"
    ):
        plan_librifsd50k(corpora.librispeech, corpora.librispeech)
    (own_corpora.fsd50k / "FSD50K.ground_truth/eval.csv").write_text("name,labels\n1,Rain\n")
    with pytest.raises(CorpusError, match="eval.csv: lacks the columns fname"):
        plan_librifsd50k(corpora.librispeech, own_corpora.fsd50k)
    (own_corpora.fsd50k / "FSD50K.ground_truth/eval.csv").unlink()
    with pytest.raises(CorpusError, match=r"eval.csv is not there; FSD50K.ground_truth.zip has it"):
        plan_librifsd50k(corpora.librispeech, own_corpora.fsd50k)


def test_too_little_for_three_splits_is_refused(tmp_path, corpora):
    make_librispeech(tmp_path / "speech", {"train-clean-100": {str(10 + i): (4,) for i in range(4)}})
    with pytest.raises(CorpusError, match="test: 2 speakers cannot be held out for it, as train has 2 only"):
        plan_librifsd50k(tmp_path / "speech", corpora.fsd50k)
    make_fsd50k_part(tmp_path / "noise", "dev", {str(1_000 + i): "Rain" for i in range(15)}, 3_000)
    with pytest.raises(CorpusError, match="15 dev and 0 eval clips without speech, too few: validation would have 1"):
        plan_librifsd50k(corpora.librispeech, tmp_path / "noise")


def test_a_split_that_lost_its_pairs_is_refused_with_the_reasons_until_they_are_mended(
    corpora, own_corpora, store, tmp_path
):
    for clip in (own_corpora.fsd50k / "FSD50K.eval_audio").iterdir():
        clip.write_bytes(b"")
    with pytest.raises(CorpusError, match=r"test has 0 pairs .* and 2 are needed.*; 4 is empty \(0 bytes\)"):
        prepare_librifsd50k(own_corpora.librispeech, own_corpora.fsd50k, tmp_path / "out")
    assert not (tmp_path / "out" / "chunks.csv").exists()

    # mended, the same command goes on
    shutil.copytree(corpora.fsd50k, own_corpora.fsd50k, dirs_exist_ok=True)
    report = prepare_librifsd50k(own_corpora.librispeech, own_corpora.fsd50k, tmp_path / "out")
    assert report["splits"]["test"]["pairs"] == 4
    assert files_of(tmp_path / "out") == files_of(store[0])


# Resuming


def test_a_run_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(corpora, store, tmp_path):
    out = tmp_path / "out"
    code = f"""
import os, signal, sys, time
from pathlib import Path
from shard_descriptors.librifsd50k import preparation

write, calls = preparation.write_chunks, 0

def write_and_die(plan, pair, out):
    global calls
    calls += 1
    if calls == 7:
        deadline = time.monotonic() + 60
        while len((out / "journal.jsonl").read_text().splitlines()) < int(sys.argv[1]) and time.monotonic() < deadline:
            time.sleep(0.01)  # until the six that are done are in the journal
        half = out / pair.folder / "speech" / f".{{pair.number}}_0_id_{{Path(pair.speech).stem}}.wav.partial"
        half.parent.mkdir(parents=True, exist_ok=True)
        half.write_bytes(b"RIFF")
        with (out / "journal.jsonl").open("a") as journal:
            journal.write('{{"pair": 6, "chu')
        os.kill(os.getpid(), signal.SIGKILL)
    return write(plan, pair, out)

preparation.write_chunks = write_and_die
preparation.prepare_librifsd50k({str(corpora.librispeech)!r}, {str(corpora.fsd50k)!r}, {str(out)!r})
"""
    done: dict[Path, int] = {}
    for journal_lines in (7, 13):  # its first line and six pairs; six more
        command = [sys.executable, "-c", code, str(journal_lines)]
        killed = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert killed.returncode == -9, killed.stderr
        assert {path: path.stat().st_mtime_ns for path in done} == done
        before = len(done)
        done = {path: path.stat().st_mtime_ns for path in out.rglob("*.wav")}
        assert len(done) > before
    assert not (out / "chunks.csv").exists()
    with pytest.raises(CorpusError, match="was not prepared to the end: run its preparation again, it resumes"):
        read_store(out)

    assert prepare_librifsd50k(corpora.librispeech, corpora.fsd50k, out) == store[1]
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert files_of(out) == files_of(store[0])  # which two threads wrote


def test_a_complete_store_is_left_as_it_is(corpora, store):
    out, report = store
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert prepare_librifsd50k(corpora.librispeech, corpora.fsd50k, out) == report
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_other_recordings_do_not_get_into_the_same_folder(corpora, store, tmp_path):
    with pytest.raises(CorpusError, match="was prepared from other recordings or with another seed"):
        prepare_librifsd50k(corpora.librispeech, corpora.fsd50k, store[0], seed=1)
    (tmp_path / "letter.txt").touch()
    with pytest.raises(CorpusError, match="exists and is no begun preparation"):
        prepare_librifsd50k(corpora.librispeech, corpora.fsd50k, tmp_path)
    with pytest.raises(CorpusError, match="workers: 0 should be a whole number from 1 on"):
        prepare_librifsd50k(corpora.librispeech, corpora.fsd50k, tmp_path / "out", workers=0)


# FedWHAM

MIXTURES = {
    "tr": ["011a0101_1.2_401a0102_-1.2", "011a0103_0.1_20ga0102_-0.1", "401a0102_0.5_011a0101_-0.5"],
    "cv": ["011a0105_1.2_401a0109_-1.2", "401a0109_0.4_20ga0102_-0.4"],
    "tt": ["050a0501_0.3_22ga0102_-0.3", "053a0501_0.7_22ga0102_-0.7"],
}

SAID_IN_TRAIN = "011a0101_0.9_20ga0109_-0.9"


def test_wham_is_copied_by_the_first_speaker_of_its_mixtures(tmp_path):
    tones = make_wham(tmp_path / "wham", MIXTURES)
    out = tmp_path / "fedwham"
    report = prepare_fedwham(tmp_path / "wham", out)
    assert {row["speech"]: row["speaker"] for row in table(out)} == {
        "train/011/speech/0_id_011.wav": "011",
        "train/011/speech/1_id_011.wav": "011",
        "train/401/speech/0_id_401.wav": "401",
        "val/011/speech/0_id_011.wav": "011",
        "val/401/speech/0_id_401.wav": "401",
        "test/050/speech/0_id_050.wav": "050",
        "test/053/speech/0_id_053.wav": "053",
    }
    for file, name in {
        "train/011/{}/1": "011a0103_0.1_20ga0102_-0.1",
        "val/401/{}/0": "401a0109_0.4_20ga0102_-0.4",
        "test/050/{}/0": "050a0501_0.3_22ga0102_-0.3",
    }.items():
        speech, _ = soundfile.read(out / f"{file.format('speech')}_id_{file.split('/')[1]}.wav")
        noise, _ = soundfile.read(out / f"{file.format('noise')}.wav")
        assert (len(speech), len(noise)) == (80_000, 80_000)
        assert (frequency_of(speech), frequency_of(noise)) == (tones[name], tones[name] + 2_000)
    assert report["left_out"] == {}


def test_what_cannot_be_used_of_wham_is_left_out_and_named(tmp_path):
    root = tmp_path / "wham"
    make_wham(
        root, MIXTURES | {"tr": [*MIXTURES["tr"], "20ga0101_1_011a0101_-1"], "cv": [*MIXTURES["cv"], SAID_IN_TRAIN]}
    )
    (root / "tr/noise/011a0103_0.1_20ga0102_-0.1.wav").unlink()
    soundfile.write(root / "cv/s1/011a0105_1.2_401a0109_-1.2.wav", recording(500, 5, 8_000), 8_000)
    report = prepare_fedwham(root, tmp_path / "out")
    assert {reason: of["files"] for reason, of in report["left_out"].items()} == {
        "has no noise of its name": ["tr/s1/011a0103_0.1_20ga0102_-0.1.wav"],
        "says what another split says too": ["tr/s1/011a0101_1.2_401a0102_-1.2.wav"],
        "is at 8,000 Hz, and WHAM's wav16k is at 16,000 Hz": ["cv/s1/011a0105_1.2_401a0109_-1.2.wav"],
    }


def test_wham_without_cv_and_tt_holds_speakers_out(tmp_path):
    make_wham(
        tmp_path,
        {"tr": [f"{speaker}a0101_1_999a0102_-1" for speaker in ("011", "012", "013", "014", "015", "016", "017")]},
    )
    plan = plan_fedwham(tmp_path)
    assert sorted(pair.split for pair in plan.pairs) == ["test"] * 2 + ["train"] * 3 + ["validation"] * 2
    assert len({pair.speaker for pair in plan.pairs}) == 7
    assert len(plan.notes) == 2
    with pytest.raises(CorpusError, match="is no folder of WHAM: it should have tr/s1 and tr/noise"):
        plan_fedwham(tmp_path / "tr")


@pytest.mark.skipif(not (REAL_DATA / "LibriSpeech").is_dir(), reason="no real recordings beside the repository")
def test_real_recordings_are_prepared(tmp_path):
    report = prepare_librifsd50k(REAL_DATA / "LibriSpeech", REAL_DATA / "FSD50K", tmp_path / "out", workers=2)
    assert all(counts["chunks"] for counts in report["splits"].values())
    assert len(table(tmp_path / "out")) == sum(counts["chunks"] for counts in report["splits"].values())
