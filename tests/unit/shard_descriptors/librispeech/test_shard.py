"""LibriSpeech prepared for clients: who gets what, what is left out, and what a shard hands out."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from openfl_audio.envoy.settings import ShardDescriptorSettings, build_shard_descriptor
from shard_descriptors.common.audio import AudioError
from shard_descriptors.common.errors import CorpusError
from shard_descriptors.librispeech import LibriSpeechShardDescriptor
from shard_descriptors.librispeech.layout import read_librispeech
from shard_descriptors.librispeech.preparation import divide, prepare_librispeech, summarize
from shard_descriptors.librispeech.store import SPLITS, Clip, count_frames, read_prepared
from tests.unit.shard_descriptors.librifsd50k_corpora import SAMPLE_RATE, frequency_of, recording
from tests.unit.shard_descriptors.librispeech_corpus import make_corpus, said

REPOSITORY = Path(__file__).parents[4]
REAL_CORPUS = REPOSITORY.parent / "shared" / "data" / "LibriSpeech"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus") / "LibriSpeech")


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory):
    """For three clients, by speaker."""
    out = tmp_path_factory.mktemp("prepared") / "three"
    prepare_librispeech(corpus.root, out, clients=3)
    return out


@pytest.fixture
def own_corpus(corpus, tmp_path):
    shutil.copytree(corpus.root, tmp_path / "LibriSpeech")
    return corpus._replace(root=tmp_path / "LibriSpeech")


def pool(seconds: dict[str, list[float]]) -> list[Clip]:
    """Train clips of each speaker."""
    return [
        Clip("train", 0, speaker, f"train-clean-100/{speaker}/7/{speaker}-7-{i:04}.flac", round(s * SAMPLE_RATE))
        for speaker, of_speaker in seconds.items()
        for i, s in enumerate(of_speaker)
    ]


def hours(clips: list[Clip], clients: int) -> np.ndarray:
    return np.bincount([clip.client for clip in clips], [clip.num_samples for clip in clips], clients + 1)[1:]


def test_frames_are_those_of_hubert_s_convolutions():
    for samples in [*range(390, 2_000), 16_000, 559_280]:
        frames = samples
        for kernel, stride in ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)):
            frames = max((frames - kernel) // stride + 1, 0)
        assert count_frames(samples) == frames


def test_each_speaker_is_on_one_client_and_nothing_is_lost(corpus, prepared):
    clips = read_prepared(prepared).clips
    of_clients = [{clip.speaker for clip in clips if clip.client == client} for client in (1, 2, 3)]
    assert sum(map(len, of_clients)) == len(set.union(*of_clients)) == 7
    found = read_librispeech(corpus.root)
    expected = [u.file for subset in found if subset != "test-other" for u in found[subset]]
    assert sorted(clip.file for clip in clips) == sorted(expected)
    assert {clip.speaker for clip in clips if clip.split == "dev"} == {"84", "174"}
    assert {clip.speaker for clip in clips if clip.split == "test"} == {"61", "121"}


def test_clients_are_balanced_by_hours_not_by_clips():
    generator = np.random.default_rng(7)
    # Many clips are short here, so that equal numbers of clips are unequal hours.
    seconds = {str(s): ([2.0] * 50 if s % 2 else [14.0] * 20) for s in range(20)}
    longest = max(sum(of_speaker) for of_speaker in seconds.values())
    for clients, seed in ((2, 0), (5, 1), (7, int(generator.integers(100)))):
        of_client = hours(divide(pool(seconds), clients, "speaker", seed), clients) / SAMPLE_RATE
        assert of_client.max() - of_client.min() <= longest
        assert of_client.sum() == sum(map(sum, seconds.values()))


def test_the_division_is_a_function_of_the_seed():
    clips = pool({str(s): [1.0 + s] * 5 for s in range(12)})
    divided = [divide(clips, 3, partition, seed) for partition in ("speaker", "iid") for seed in (0, 0, 1)]
    assert divided[0] == divided[1] != divided[2]
    assert divided[3] == divided[4] != divided[5]


def test_iid_deals_out_utterances_regardless_of_the_speaker():
    divided = divide(pool({str(s): [1.0] * 25 for s in range(4)}), 3, "iid", seed=0)
    counts = Counter(clip.client for clip in divided)
    assert set(counts.values()) == {33, 34}
    assert all({clip.speaker for clip in divided if clip.client == client} == set("0123") for client in counts)


@pytest.mark.parametrize(("clips", "held_out"), [(1, 0), (2, 1), (4, 1), (20, 2), (26, 3)])
def test_a_tenth_of_a_client_s_clips_is_for_validation(clips, held_out):
    divided = divide(pool({"5": [1.0] * clips}), 1, "speaker", seed=0)
    assert Counter(clip.split for clip in divided)["validation"] == held_out
    assert len(set(divided)) == clips


def test_an_item_is_the_utterance_that_its_row_names(corpus, prepared):
    shard = LibriSpeechShardDescriptor(prepared, "2,3")
    for split in SPLITS:
        dataset = shard.get_dataset(split)
        assert len(dataset) > 0
        for i in range(len(dataset)):
            waveform, targets = dataset[i]
            name = dataset.names[i]
            assert waveform.dtype == np.float32
            assert len(waveform) == dataset.num_samples[i] == round(corpus.seconds[name] * SAMPLE_RATE)
            assert frequency_of(waveform[:SAMPLE_RATE]) == corpus.tones[name]
            assert dataset.speakers[i] == name.split("-")[0]
            assert dataset.transcripts[i] == ("" if dataset.speakers[i] == "26" else said(name))
            assert (targets.shape, targets.dtype) == ((0,), np.int64)
        assert dataset.targets_info is None


def test_a_sandbox_is_told_of_the_folder_and_of_the_audio(corpus, prepared):
    assert LibriSpeechShardDescriptor(prepared).reads == [prepared.resolve(), corpus.root.resolve()]


def test_one_node_of_one_has_the_clips_of_all_clients(prepared):
    everything = LibriSpeechShardDescriptor(prepared)
    shards = [LibriSpeechShardDescriptor(prepared, f"{rank},3") for rank in (1, 2, 3)]
    for split in ("train", "validation"):
        names = [name for shard in shards for name in shard.get_dataset(split).names]
        assert everything.get_dataset(split).names == names
    for split in ("dev", "test"):
        assert all(shard.get_dataset(split).names == everything.get_dataset(split).names for shard in shards)


def test_clients_are_counted_without_opening_a_shard(prepared):
    assert LibriSpeechShardDescriptor.natural_clients(prepared) == 3
    train = [LibriSpeechShardDescriptor(prepared, f"{rank},3").get_dataset("train") for rank in (1, 2, 3)]
    assert LibriSpeechShardDescriptor.clips_per_client(prepared).tolist() == [len(dataset) for dataset in train]
    samples = [dataset.num_samples.sum() for dataset in train]
    assert LibriSpeechShardDescriptor.hours_per_client(prepared) == pytest.approx(np.array(samples) / 57_600_000)


def test_another_number_of_nodes_than_prepared_is_refused(prepared):
    with pytest.raises(CorpusError, match="'1,4' is one of 4 nodes, and .* was prepared for 3; \"1,3\" is the first"):
        LibriSpeechShardDescriptor(prepared, "1,4")


def test_folders_that_were_not_prepared_are_refused(tmp_path):
    with pytest.raises(CorpusError, match="data_path: there is no folder nowhere"):
        LibriSpeechShardDescriptor("nowhere")
    with pytest.raises(
        CorpusError, match="has no librispeech.json: openfl-audio data prepare librispeech writes it when"
    ):
        LibriSpeechShardDescriptor(tmp_path)


def test_files_that_cannot_be_used_are_named_and_in_no_list(own_corpus, tmp_path):
    folder = own_corpus.root / "train-clean-100/103/7"
    cut_short = folder / "103-7-0001.flac"
    content = cut_short.read_bytes()
    cut_short.write_bytes(content[: len(content) // 2])
    (folder / "103-7-0002.flac").write_bytes(b"")
    (folder / "103-7-0003.flac").write_bytes(b"no audio at all")
    soundfile.write(folder / "103-7-0004.flac", recording(300, 1, 8_000), 8_000)
    soundfile.write(own_corpus.root / "dev-clean/84/7/84-7-0001.flac", recording(300, 0.0249), SAMPLE_RATE)
    report = prepare_librispeech(own_corpus.root, tmp_path / "out", clients=2)
    problems = {Path(file).stem: problem for file, problem in report["left_out"].items()}
    assert problems.pop("103-7-0001").startswith("cannot be decoded")
    assert problems.pop("103-7-0003").startswith("is not audio")
    assert problems == {
        "103-7-0002": "is empty (0 bytes)",
        "84-7-0001": "has 398 samples, and one frame needs 400",
    }
    assert not {clip.file for clip in read_prepared(tmp_path / "out").clips}.intersection(report["left_out"])
    assert "left out: train-clean-100/103/7/103-7-0002.flac is empty (0 bytes)" in summarize(report)


def test_subsets_that_lack_or_are_not_used_are_told(own_corpus, tmp_path):
    for subset in ("dev-clean", "test-clean"):
        shutil.rmtree(own_corpus.root / subset)
    lines = summarize(prepare_librispeech(own_corpus.root, tmp_path / "out", clients=2))
    assert lines[:5] == [
        "train-clean-100: 31 utterances of the published 28,539",
        "train-other-500: 8 utterances of the published 148,688",
        "test-other: there, and not used",
        "dev-clean: not there, so the split dev is empty",
        "test-clean: not there, so the split test is empty",
    ]
    assert len(LibriSpeechShardDescriptor(tmp_path / "out").get_dataset("test")) == 0
    for subset in ("train-clean-100", "train-other-500"):
        shutil.rmtree(own_corpus.root / subset)
    lines = summarize(prepare_librispeech(own_corpus.root, tmp_path / "other", clients=1))
    assert "train: made from test-other, as no train subset is there" in lines
    assert read_prepared(tmp_path / "other").parts("train", 1)["train_1"][0].speaker == "367"


def test_a_subset_that_is_trained_on_is_no_split_of_its_own(own_corpus, tmp_path):
    for subset in ("train-clean-100", "train-other-500", "test-clean"):
        shutil.rmtree(own_corpus.root / subset)
    report = prepare_librispeech(own_corpus.root, tmp_path / "out", clients=2)
    assert "dev-clean: used for train, so the split dev is empty" in report["notes"]
    assert {clip.split for clip in read_prepared(tmp_path / "out").clips} == {"train", "validation"}


def test_any_subsets_can_be_those_that_clients_share(corpus, tmp_path):
    chosen = ["train-other-500", "dev-clean"]
    report = prepare_librispeech(corpus.root, tmp_path / "out", clients=2, subsets=chosen)
    assert "dev-clean: used for train, so the split dev is empty" in report["notes"]
    assert "train-clean-100: there, and not used" in report["notes"]
    clips = read_prepared(tmp_path / "out").clips
    shared = {clip.file.partition("/")[0] for clip in clips if clip.split in ("train", "validation")}
    assert shared == set(chosen)
    with pytest.raises(CorpusError, match=r"prepared with subsets \['dev-clean', 'train-other-500'\], now it is None"):
        prepare_librispeech(corpus.root, tmp_path / "out", clients=2)
    with pytest.raises(CorpusError, match="subsets: 'train-clean-360' is not in .*; there are train-clean-100, "):
        prepare_librispeech(corpus.root, tmp_path / "none", clients=2, subsets=["train-clean-360"])


def test_another_rate_is_used_and_told(own_corpus, tmp_path):
    file = "train-clean-100/103/7/103-7-0004.flac"
    soundfile.write(own_corpus.root / file, recording(300, 1, 8_000), 8_000)
    report = prepare_librispeech(own_corpus.root, tmp_path / "out", clients=2)
    assert report["resampled"] == {file: 8_000}
    assert "1 files at 8,000 Hz: resampled to 16,000 Hz" in report["notes"]
    dataset = LibriSpeechShardDescriptor(tmp_path / "out").get_dataset("train")
    held_out = LibriSpeechShardDescriptor(tmp_path / "out").get_dataset("validation")
    within = dataset if "103-7-0004" in dataset.names else held_out
    assert within.read_waveform(within.names.index("103-7-0004")).shape == (16_000,)


TRANSCRIPTS = {
    "a byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "tabs": lambda text: text.replace(" ", "\t").encode(),
    "no-break spaces": lambda text: text.replace(" ", "\u00a0").encode(),
    "UTF-16 and CRLF": lambda text: text.replace("\n", "\r\n").encode("utf-16"),
}


@pytest.mark.parametrize("change", TRANSCRIPTS.values(), ids=TRANSCRIPTS)
def test_transcripts_are_read_as_they_are_meant(own_corpus, tmp_path, change):
    path = own_corpus.root / "train-clean-100/19/7/19-7.trans.txt"
    path.write_bytes(change(path.read_text()))
    path.rename(path.with_name("19-7.TRANS.TXT"))
    prepare_librispeech(own_corpus.root, tmp_path / "out", clients=2)
    clips = [clip for clip in read_prepared(tmp_path / "out").clips if clip.speaker == "19"]
    assert {clip.name: clip.transcript for clip in clips} == {clip.name: said(clip.name) for clip in clips}


def test_two_transcripts_of_one_utterance_are_refused_unless_they_are_alike(own_corpus, tmp_path):
    path = own_corpus.root / "train-clean-100/19/7/19-7.trans.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[0]]))
    prepare_librispeech(own_corpus.root, tmp_path / "out", clients=2)
    path.write_text("\n".join([*lines, lines[0] + " MORE"]))
    with pytest.raises(CorpusError, match=r"19-7.trans.txt, line \d+: 19-7-0000 has another transcript before"):
        prepare_librispeech(own_corpus.root, tmp_path / "again", clients=2)


def test_a_transcript_in_no_encoding_ends_the_run_before_anything_is_decoded(own_corpus, tmp_path):
    path = own_corpus.root / "train-clean-100/19/7/19-7.trans.txt"
    path.write_bytes("19-7-0000 CAFÉ\n".encode("latin-1"))
    with pytest.raises(CorpusError, match=r"19-7.trans.txt is not UTF-8 \(byte 0xc9 in line 1\)"):
        prepare_librispeech(own_corpus.root, tmp_path / "out", clients=2)
    assert not (tmp_path / "out").exists()


def test_transcripts_of_no_utterance_and_recordings_in_another_format_are_told(own_corpus, tmp_path):
    folder = own_corpus.root / "train-clean-100/19/7"
    (folder / "19-7-0000.flac").rename(folder / "19-7-0000.ogg")
    (folder / "19-7-0001.flac").rename(folder / "19-7-0001.FLAC")
    (folder / "._19-7-0001.FLAC").write_bytes(bytes(4_000))
    report = prepare_librispeech(own_corpus.root, tmp_path / "out", clients=2)
    assert "1 transcripts are of no utterance that is there: 19-7-0000" in report["notes"]
    assert report["left_out"] == {"train-clean-100/19/7/19-7-0000.ogg": "is no .flac file"}
    assert "19-7-0001" in [clip.name for clip in read_prepared(tmp_path / "out").clips]


def test_a_run_that_was_stopped_goes_on_and_one_that_is_done_is_left(corpus, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    done = {"file": "dev-clean/84/7/84-7-0000.flac", "num_samples": 12_345}  # not what decoding it would tell
    half = '{"file": "dev-clean/84/7/84-7-0001.flac", "num_sam'
    head = json.dumps({"audio": str(corpus.root.resolve())})
    (out / "journal.jsonl").write_text("\n".join([head, json.dumps(done), half]))
    report = prepare_librispeech(corpus.root, out, clients=2)
    clips = {clip.file: clip.num_samples for clip in read_prepared(out).clips}
    assert (clips[done["file"]], clips["dev-clean/84/7/84-7-0001.flac"]) == (12_345, 32_000)
    assert sorted(path.name for path in out.iterdir()) == ["clips.csv", "librispeech.json"]
    before = (out / "clips.csv").stat().st_mtime_ns
    assert prepare_librispeech(corpus.root, out, clients=2) == report
    assert (out / "clips.csv").stat().st_mtime_ns == before
    with pytest.raises(CorpusError, match="out was prepared with clients 2, now it is 3: choose another folder"):
        prepare_librispeech(corpus.root, out, clients=3)


def test_wrong_settings_are_refused_with_a_sentence(corpus, tmp_path):
    with pytest.raises(CorpusError, match="clients: 0 should be a whole number from 1 on"):
        prepare_librispeech(corpus.root, tmp_path / "a", clients=0)
    with pytest.raises(CorpusError, match="partition: 'chapter' should be one of speaker, iid"):
        prepare_librispeech(corpus.root, tmp_path / "a", clients=2, partition="chapter")
    with pytest.raises(CorpusError, match="8 nodes cannot share 7 speakers"):
        prepare_librispeech(corpus.root, tmp_path / "a", clients=8)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").touch()
    with pytest.raises(CorpusError, match="b exists and is no begun preparation"):
        prepare_librispeech(corpus.root, tmp_path / "b", clients=2)


def test_audio_that_changed_or_moved_since_is_refused(own_corpus, tmp_path):
    prepare_librispeech(own_corpus.root, tmp_path / "out", clients=1)
    shard = LibriSpeechShardDescriptor(tmp_path / "out")
    soundfile.write(own_corpus.root / "dev-clean/84/7/84-7-0000.flac", recording(300, 0.5), SAMPLE_RATE)
    with pytest.raises(AudioError, match="84-7-0000.flac: has 8,000 samples, and had 16,000 when it was prepared"):
        shard.get_dataset("dev")[0]
    own_corpus.root.rename(tmp_path / "elsewhere")
    with pytest.raises(CorpusError, match="LibriSpeech, where .*out has its audio, is not there; write its new place"):
        LibriSpeechShardDescriptor(tmp_path / "out")


def write_targets(prepared: Path, name: str, codebook: str, splits: list[str]) -> dict[str, np.ndarray]:
    """Targets in which every frame of a clip has the clip's own number."""
    folder = prepared / "targets" / name
    folder.mkdir(parents=True)
    clips = read_prepared(prepared).clips
    numbers = {clip.name: np.full(count_frames(clip.num_samples), i, np.int16) for i, clip in enumerate(clips)}
    for part in dict.fromkeys(clip.part for clip in clips if clip.split in splits):
        parts = [numbers[clip.name] for clip in clips if clip.part == part]
        np.concatenate(parts).tofile(folder / f"{part}.i16")
    info = {"codebook": codebook, "clusters": 99, "feature": "mfcc39", "splits": splits, "frames": 1}
    (folder / "targets.json").write_text(json.dumps(info))
    return numbers


def test_targets_belong_to_their_clips(corpus, tmp_path):
    prepare_librispeech(corpus.root, tmp_path / "out", clients=3)
    numbers = write_targets(tmp_path / "out", "mine", "federated", list(SPLITS))
    for rank_worldsize in ("1,1", "1,3", "3,3"):
        shard = LibriSpeechShardDescriptor(tmp_path / "out", rank_worldsize, targets="mine")
        for split in SPLITS:
            dataset = shard.get_dataset(split)
            assert dataset.targets_info == {"codebook": "federated", "clusters": 99, "feature": "mfcc39"}
            for i, name in enumerate(dataset.names):
                targets = dataset.read_targets(i)
                assert targets.dtype == np.int64
                assert targets.tolist() == numbers[name].tolist()
            assert dataset[0][1].tolist() == numbers[dataset.names[0]].tolist()
    assert yaml.safe_load(shard.dataset_description)["targets"]["codebook"] == "federated"


def test_with_a_codebook_per_client_the_global_splits_have_no_targets(corpus, tmp_path):
    prepare_librispeech(corpus.root, tmp_path / "out", clients=3)
    write_targets(tmp_path / "out", "own", "client", ["train", "validation"])
    shard = LibriSpeechShardDescriptor(tmp_path / "out", "1,3", targets="own")
    assert len(shard.get_dataset("train").read_targets(0)) == shard.get_dataset("train").num_frames[0]
    assert shard.get_dataset("test").targets_info is None
    assert shard.get_dataset("test")[0][1].shape == (0,)
    assert yaml.safe_load(shard.dataset_description)["targets"]["without_targets"] == ["dev", "test"]


def test_targets_that_lack_or_do_not_fit_are_refused(corpus, tmp_path):
    prepare_librispeech(corpus.root, tmp_path / "out", clients=3)
    write_targets(tmp_path / "out", "mine", "federated", list(SPLITS))
    with pytest.raises(
        CorpusError, match="has no complete targets 'other', it has mine; openfl-audio data prepare hubert-targets"
    ):
        LibriSpeechShardDescriptor(tmp_path / "out", targets="other")
    with (tmp_path / "out/targets/mine/dev.i16").open("ab") as file:
        file.write(b"\0\0")
    shard = LibriSpeechShardDescriptor(tmp_path / "out", targets="mine")
    frames = sum(count_frames(round(s * SAMPLE_RATE)) for s in (1, 2, 1.25))
    with pytest.raises(CorpusError, match=rf"dev.i16 should hold {frames} frames of 3 clips; remove .* make them"):
        shard.get_dataset("dev")


def test_a_shard_is_opened_and_read_without_torch(prepared):
    code = (
        "import sys; from shard_descriptors.librispeech import LibriSpeechShardDescriptor\n"
        f"LibriSpeechShardDescriptor({str(prepared)!r}, '1,3').get_dataset('train')[0]\n"
        "print(*[name for name in ('torch', 'torchaudio', 'sklearn') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_the_envoy_s_yaml_builds_a_shard(prepared):
    settings = yaml.safe_load((REPOSITORY / "envoys" / "librispeech.yaml").read_text())["shard_descriptor"]
    settings["params"] |= {"data_path": str(prepared), "targets": None}
    shard = build_shard_descriptor(ShardDescriptorSettings(**settings), REPOSITORY)
    assert isinstance(shard, LibriSpeechShardDescriptor)
    assert shard.summary.startswith("LibriSpeech, client 1 of 3 by speaker: ")


@pytest.mark.skipif(not REAL_CORPUS.is_dir(), reason="no LibriSpeech beside the repository")
def test_real_recordings_are_divided(tmp_path):
    report = prepare_librispeech(REAL_CORPUS, tmp_path / "out", clients=5)
    clips = read_prepared(tmp_path / "out").clips
    assert len(clips) == len(list(REAL_CORPUS.glob("train-*/*/*/*.flac")))
    assert max(report["hours_per_client"]) < 1.2 * min(report["hours_per_client"])
    assert all(first.client <= second.client for first, second in pairwise(clips))
    dataset = LibriSpeechShardDescriptor(tmp_path / "out", "1,5").get_dataset("train")
    assert np.abs(dataset[0][0]).max() > 0.05
