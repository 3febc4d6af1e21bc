"""The SUPERB shard descriptor reads a corpus once, and says what is not right with it."""

import logging
import os
import pkgutil
import shutil
import subprocess
import sys
import time
import tracemalloc
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from shard_descriptors.common.audio import AudioError
from shard_descriptors.common.errors import CorpusError
from shard_descriptors.superb import SuperbShardDescriptor, layout
from shard_descriptors.superb.layout import LABELS, SILENCE, UNKNOWN, Counts, read_corpus, read_folder
from tests.unit.shard_descriptors.superb_shards import REPOSITORY, all_shards, descriptor, make_test_set

# Many shards in one process


def test_a_corpus_is_read_once_however_it_is_named(corpus, monkeypatch, tmp_path):
    once = read_corpus(corpus.root, 0)
    (tmp_path / "link").symlink_to(corpus.root)
    monkeypatch.chdir(corpus.root.parent)
    names = [str(corpus.root), corpus.root.name, f"{corpus.root}/../{corpus.root.name}/", tmp_path / "link"]
    assert all(read_corpus(name, 0) is once for name in names)


def test_a_folder_that_changed_is_read_again_and_open_shards_keep_what_they_had(own_corpus, make_tone):
    def files(split):
        return descriptor(own_corpus).get_dataset(split).files

    open_shard = descriptor(own_corpus)
    before = files("train")
    added = "yes/aa09_nohash_0.wav"
    soundfile.write(own_corpus.root / added, make_tone(300), 16_000)
    assert sorted(files("train")) == sorted([*before, added])
    assert open_shard.get_dataset("train").files == before

    with (own_corpus.root / "validation_list.txt").open("a") as listing:
        listing.write(added)
    assert added in files("validation")

    make_test_set(own_corpus.root.parent / "speech_commands_test_set_v0.01", make_tone)
    assert len(files("test")) == 12
    (own_corpus.root.parent / "speech_commands_test_set_v0.01" / "yes" / "dd01_nohash_0.wav").unlink()
    assert len(files("test")) == 11

    shutil.rmtree(own_corpus.root)
    with pytest.raises(CorpusError, match="there is no folder"):
        descriptor(own_corpus)


def test_a_file_is_looked_at_when_its_split_is_asked_for_and_once_per_process(own_corpus):
    first, second = own_corpus.clips["train"][:2]
    testing = own_corpus.clips["testing"][0]
    shard = descriptor(own_corpus)
    (own_corpus.root / second).write_bytes(b"")
    (own_corpus.root / testing).write_bytes(b"")
    assert second not in shard.get_dataset("train").files
    assert sorted(shard.left_out) == sorted([second, testing])
    (own_corpus.root / first).write_bytes(b"")
    assert first in descriptor(own_corpus).get_dataset("train").files  # overwritten in place: not looked at again


def test_what_an_envoy_registers_names_the_unusable_files_of_every_split(own_corpus, caplog):
    bad = [own_corpus.clips[split][0] for split in ("train", "validation", "testing")]
    for file in bad:
        (own_corpus.root / file).write_bytes(b"")
    for _ in range(2):
        description = yaml.safe_load(descriptor(own_corpus).dataset_description)
        for file in bad:
            assert f"{file} is empty (0 bytes)" in description["summary"]
            assert caplog.text.count(f"left out 1 file: {file} is empty (0 bytes)") == 1  # once per process


def test_a_further_shard_costs_neither_a_pass_over_the_corpus_nor_memory(own_corpus):
    recording = own_corpus.root / own_corpus.clips["train"][0]
    for i in range(3_000):
        (own_corpus.root / f"yes/ee{i % 100:02d}_nohash_{i}.wav").hardlink_to(recording)
    begin = time.process_time()
    shards = [descriptor(own_corpus, rank_worldsize="1,100")]
    first_s = time.process_time() - begin
    shards[0].get_dataset("test")
    tracemalloc.start()
    seconds = []
    try:
        for rank in range(2, 42):
            begin = time.process_time()
            shards.append(descriptor(own_corpus, rank_worldsize=f"{rank},100"))
            seconds.append(time.process_time() - begin)
        grown_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert min(seconds) < first_s / 5  # a fiftieth, on an idle machine and without tracemalloc
    assert grown_bytes / 40 < 10_000  # the clips of the corpus, or pointers to them, take 25,000 and more


def test_with_as_many_nodes_as_natural_clients_each_is_one_speaker_or_group(corpus):
    for params, speakers in (
        ({}, [1] * 6),
        ({"partition": "speaker_groups", "speakers_per_group": 2}, [2] * 3),
        ({"partition": "speaker_groups", "speakers_per_group": 4}, [6]),
    ):
        clients = SuperbShardDescriptor.natural_clients(str(corpus.root), **params)
        trained = [set(s.get_dataset("train").speakers) - {""} for s in all_shards(corpus, clients, **params)]
        assert [len(names) for names in trained] == speakers
        assert len(set.union(*trained)) == 6
        with pytest.raises(CorpusError, match=f"{clients + 1} nodes cannot share {clients} "):
            descriptor(corpus, rank_worldsize=f"1,{clients + 1}", **params)


def test_clips_have_no_natural_clients(corpus):
    sentence = "partition: clips has no natural clients; choose speaker or speaker_groups"
    with pytest.raises(CorpusError, match=sentence):
        SuperbShardDescriptor.natural_clients(corpus.root, "clips")
    with pytest.raises(CorpusError, match="speakers_per_group: None should be a whole number from 1 on"):
        SuperbShardDescriptor.natural_clients(corpus.root, "speaker_groups")


@pytest.mark.parametrize(
    "params", [{}, {"partition": "speaker_groups", "speakers_per_group": 2}, {"partition": "clips"}], ids=str
)
@pytest.mark.parametrize("share", [None, 0.1, 0.7])
def test_clips_per_client_are_those_of_the_shards(corpus, params, share):
    params = {**params, "seed": 1, "silence_share": share}
    clips = SuperbShardDescriptor.clips_per_client(str(corpus.root), 3, **params)
    assert clips.tolist() == [len(shard.get_dataset("train")) for shard in all_shards(corpus, 3, **params)]
    assert (clips.shape, clips.dtype) == ((3,), np.int64)


def test_clips_per_client_of_more_nodes_than_clips_are_0_for_the_last(corpus):
    clips = SuperbShardDescriptor.clips_per_client(corpus.root, 70, partition="clips", silence_share=0.1)
    assert sorted(clips.tolist()) == [0] * 5 + [2] * 65


@pytest.mark.parametrize(
    ("world_size", "params", "sentence"),
    [
        (0, {}, "world_size: 0 should be a whole number from 1 on"),
        ("3", {}, "world_size: '3' should be a whole number from 1 on"),
        (True, {}, "world_size: True should be a whole number from 1 on"),
        (7, {}, "7 nodes cannot share 6 speakers"),
        (3, {"silence_share": 2}, "silence_share: 2 should be a number above 0, and 1 at most"),
        (3, {"partition": "uploader"}, "partition: 'uploader' is unknown"),
    ],
)
def test_clips_per_client_of_a_wrong_parameter_raises(corpus, world_size, params, sentence):
    with pytest.raises(CorpusError, match=sentence):
        SuperbShardDescriptor.clips_per_client(corpus.root, world_size, **params)


# Complete and incomplete corpora

COMPLETE = {  # version: clips in train, validation list, testing list; keywords in the testing list
    "v0.01": (51_088, 6_798, 6_835, 2_567),
    "v0.02": (84_843, 9_981, 11_005, 4_074),
}


def touch_corpus(root: Path, version: str) -> None:
    """A corpus of the published size whose files are all empty: counting looks at names only."""
    train, validation, testing, keywords = COMPLETE[version]
    (root / "_background_noise_").mkdir(parents=True)
    for k in range(6):
        (root / "_background_noise_" / f"{k}.wav").touch()
    names = {}
    sizes = {"train": (18_000, train), "validation": (2_500, validation), "testing": (keywords, testing)}
    for split, (keyword_clips, clips) in sizes.items():
        words = ["yes"] * keyword_clips + ["bed"] * (clips - keyword_clips)
        names[split] = [f"{word}/{split}{i % 300:03d}_nohash_{i}.wav" for i, word in enumerate(words)]
    for word in ("yes", "bed"):
        (root / word).mkdir()
    for files in names.values():
        for file in files:
            os.close(os.open(root / file, os.O_CREAT))
    for split in ("validation", "testing"):
        (root / f"{split}_list.txt").write_text("\n".join(names[split]))


@pytest.mark.training
def test_the_complete_v001_corpus_counts_as_superb_does(tmp_path):
    root = tmp_path / "speech_commands_v0.01"
    touch_corpus(root, "v0.01")
    try:
        corpus = read_folder(root, seed=0)
        assert corpus.counts == (51_094, 6_798, 3_081)
        assert corpus.version == "v0.01"
        labels = Counter(clip.label for clip in corpus.splits["test"])
        assert (labels[SILENCE], labels[UNKNOWN]) == (257, 257)

        # The number of clips is right, and the lists are not.
        shutil.copy(root / "validation_list.txt", tmp_path)
        lines = (root / "validation_list.txt").read_text().splitlines()
        (root / "validation_list.txt").write_text("\n".join(lines[1:]))
        counted = "but its splits count 51,095 / 6,797 / 3,081 where 51,094 / 6,798 / 3,081 is published"
        with pytest.raises(CorpusError, match=f"the 64,721 word clips of Speech Commands v0.01, {counted}"):
            read_folder(root, seed=0)

        # A clip is gone: not the complete corpus.
        shutil.copy(tmp_path / "validation_list.txt", root)
        (root / lines[0]).unlink()
        corpus = read_folder(root, seed=0)
        assert (corpus.version, corpus.counts, corpus.missing) == (None, (51_094, 6_797, 3_081), (lines[0],))
    finally:
        shutil.rmtree(root)  # pytest would keep three times 64,721 files


def test_the_published_counts_follow_from_the_lists():
    for word_clips, (version, counts) in layout.PUBLISHED.items():
        train, validation, testing, keywords = COMPLETE[version]
        assert train + validation + testing == word_clips
        assert counts == (train + 6, validation, keywords + 2 * -(-keywords // 10))


def test_the_description_of_a_complete_corpus_says_so(corpus, own_corpus, monkeypatch):
    incomplete = descriptor(corpus)
    assert "of an incomplete Speech Commands (68 / 20 / 19 in all; v0.01 has 51,094 / 6,798 / 3,081" in (
        incomplete.summary
    )
    words = sum(map(len, corpus.clips.values()))
    monkeypatch.setitem(layout.PUBLISHED, words, ("v0.00", Counts(68, 20, 19)))
    complete = descriptor(own_corpus).summary
    assert complete.endswith("of the complete Speech Commands v0.00 (68 / 20 / 19 in all)")


def test_the_registry_gets_the_clips_of_each_label_as_yaml(corpus):
    shard = descriptor(corpus)
    description = yaml.safe_load(shard.dataset_description)
    assert description["corpus"] == "superb"
    assert description["summary"] == shard.summary
    for split in ("train", "validation"):
        labels = [LABELS[label] for label in shard.get_dataset(split).labels]
        assert description[split] == {label: labels.count(label) for label in LABELS if label in labels}


def test_the_description_is_one_line_with_the_numbers_of_the_shard(corpus):
    shard = descriptor(corpus, rank_worldsize="2,3")
    train, validation = shard.get_dataset("train"), shard.get_dataset("validation")
    assert shard.summary.startswith(
        f"SUPERB keyword spotting, shard 2 of 3 by speaker: {len(train)} train clips of "
        f"{len(set(train.speakers) - {''})} speakers, {len(validation)} validation clips of 1, 19 test clips, of an inc"
    )
    assert "\n" not in shard.summary


# Bad input


def test_unusable_files_are_left_out_counted_and_named(own_corpus, caplog, make_tone):
    empty, text, no_samples, fourth = own_corpus.clips["train"][:4]
    (own_corpus.root / empty).write_bytes(b"")
    (own_corpus.root / text).write_text("this is a text\n" * 100)
    soundfile.write(own_corpus.root / no_samples, np.zeros(0, np.float32), 16_000)
    (own_corpus.root / fourth).write_bytes(b"RIFF")
    shard = descriptor(own_corpus)
    assert shard.left_out[empty] == "is empty (0 bytes)"
    assert shard.left_out[text].startswith("is not audio (Format not recognised")
    assert shard.left_out[no_samples] == "is empty (0 samples)"
    assert sorted(shard.left_out) == sorted([empty, text, no_samples, fourth])
    files = shard.get_dataset("train").files
    assert not set(files) & set(shard.left_out)
    assert len(files) == len(own_corpus.clips["train"]) + 3 - 4
    said = f"left out 4 files: {empty} is empty (0 bytes), {text} is not audio"
    assert said in shard.summary
    assert shard.summary.endswith("and 1 more")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert said in warnings[0]


def test_a_bad_file_concerns_only_the_node_that_has_it(own_corpus):
    bad = own_corpus.clips["train"][0]
    (own_corpus.root / bad).write_bytes(b"")
    left_out = [shard.left_out for shard in all_shards(own_corpus, 3)]
    assert sorted(map(len, left_out)) == [0, 0, 1]
    files = [file for shard in all_shards(own_corpus, 3) for file in shard.get_dataset("train").files]
    assert sorted([*files, bad]) == sorted(own_corpus.clips["train"] + own_corpus.noise)


def test_a_file_that_only_decoding_shows_to_be_bad_raises_when_read(own_corpus, make_tone):
    bad = sorted(own_corpus.clips["train"])[0]
    soundfile.write(own_corpus.root / bad, np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=f"{bad}: has samples that are NaN or infinite"):
        descriptor(own_corpus).get_dataset("train")[0]


def test_files_that_the_lists_name_but_that_are_not_there_are_told(own_corpus, caplog):
    gone = own_corpus.clips["validation"][0]
    (own_corpus.root / gone).unlink()
    shard = descriptor(own_corpus)
    assert shard.missing == (gone,)
    assert f"its lists name 1 file not there: {gone}" in shard.summary
    assert f"its lists name 1 file not there: {gone}" in caplog.text
    assert gone not in shard.get_dataset("validation").files


LISTS = {
    "a byte order mark": lambda text: ("\ufeff" + text).encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "backslashes": lambda text: text.replace("/", "\\").encode(),
    "./ in front": lambda text: "".join(f"./{line}\n" for line in text.splitlines()).encode(),
    "a path in front": lambda text: "".join(f"C:\\words\\{line}\n" for line in text.splitlines()).encode(),
    "capitals": lambda text: text.upper().encode(),
    "white space": lambda text: "".join(f"\u00a0{line} \t\n\n" for line in text.splitlines()).encode(),
}


@pytest.mark.parametrize("change", LISTS.values(), ids=LISTS)
def test_a_list_holds_out_the_same_clips_however_it_was_written(corpus, own_corpus, change):
    for name in ("validation_list.txt", "testing_list.txt"):
        path = own_corpus.root / name
        path.write_bytes(change(path.read_text()))
    assert read_folder(own_corpus.root, 0).splits == read_folder(corpus.root, 0).splits


def test_a_list_holds_out_clips_whose_names_have_another_unicode_form(own_corpus):
    nfc, nfd = (unicodedata.normalize(form, "über") for form in ("NFC", "NFD"))
    (own_corpus.root / "bed").rename(own_corpus.root / nfd)
    for name in ("validation_list.txt", "testing_list.txt"):
        path = own_corpus.root / name
        path.write_text(path.read_text().replace("bed/", f"{nfc}/"))
    read = read_folder(own_corpus.root, 0)
    assert not read.missing
    assert not {clip.speaker for clip in read.splits["train"]} & {"bb01", "bb02", "bb03", "cc01", "cc02"}


WRONG_ENTRIES = {
    "of a speaker who trains": (
        "yes/aa01_nohash_7.wav",
        "validation_list.txt names .* which is not there, and clips of",
    ),
    "without a speaker": ("yes/bb01.wav", "validation_list.txt names .* and no speaker is named by it"),
    "without a word": ("bb01_nohash_0.wav", r"validation_list.txt, line 21: .* should be <word>/<speaker>_nohash_"),
}


@pytest.mark.parametrize(("entry", "sentence"), WRONG_ENTRIES.values(), ids=WRONG_ENTRIES)
def test_an_entry_that_may_mean_a_clip_that_trains_is_refused(own_corpus, entry, sentence):
    path = own_corpus.root / "validation_list.txt"
    path.write_text(path.read_text() + entry + "\n")
    with pytest.raises(CorpusError, match=sentence):
        descriptor(own_corpus)


def test_names_from_other_systems_are_read_or_told(own_corpus, caplog):
    root = own_corpus.root
    file = own_corpus.clips["train"][0]
    (root / file).rename((root / file).with_suffix(".WAV"))
    for folder in (root, root / "yes", root / "_background_noise_"):
        (folder / "._a.wav").write_bytes(bytes(4_000))
    shutil.copy(root / own_corpus.clips["train"][1], root / "yes/aa01_nohash_9.flac")
    shutil.copytree(root / "bed", root / os.fsdecode(b"caf\xe9"))
    shard = descriptor(own_corpus)
    assert set(shard.left_out.values()) == {"is no .wav file", "has a name that is not UTF-8"}
    assert shard.left_out["yes/aa01_nohash_9.flac"] == "is no .wav file"
    assert "passed over 23 files: caf\\xe9/aa01_nohash_0.wav has a name that is not UTF-8" in caplog.text
    assert "left out" in shard.summary
    shard.dataset_description.encode()
    assert Path(file).with_suffix(".WAV").as_posix() in shard.get_dataset("train").files
    assert len(shard.get_dataset("train")) == len(own_corpus.clips["train"]) + len(own_corpus.noise)


def test_a_shard_without_a_usable_train_clip_raises(own_corpus):
    for file in own_corpus.clips["train"] + own_corpus.noise:
        (own_corpus.root / file).write_bytes(b"")
    with pytest.raises(CorpusError, match="no train clip for shard 1 of 1; left out 68 files: bed/aa01_nohash_0"):
        descriptor(own_corpus)


def test_a_missing_folder_raises(tmp_path):
    with pytest.raises(CorpusError, match=r"data_path: there is no folder .*/nowhere"):
        SuperbShardDescriptor(data_path=str(tmp_path / "nowhere"))


def test_a_file_in_place_of_a_folder_raises(corpus):
    with pytest.raises(CorpusError, match=r"data_path: .*/testing_list.txt is a file, not a folder"):
        SuperbShardDescriptor(data_path=str(corpus.root / "testing_list.txt"))


def test_an_empty_folder_raises(tmp_path):
    with pytest.raises(CorpusError, match=r"data_path: the folder .* is empty"):
        SuperbShardDescriptor(data_path=str(tmp_path))


def test_a_folder_of_something_else_raises_and_says_what_it_lacks(tmp_path):
    (tmp_path / "FSD50K.dev_audio").mkdir()
    lacks = r"validation_list.txt; testing_list.txt; _background_noise_/\*.wav; a folder of any keyword \(yes, no, up, "
    with pytest.raises(CorpusError, match=f"is not a Speech Commands folder: it lacks {lacks}"):
        SuperbShardDescriptor(data_path=str(tmp_path))


def test_a_speech_commands_folder_without_one_list_raises(own_corpus):
    (own_corpus.root / "validation_list.txt").unlink()
    with pytest.raises(CorpusError, match=r"is not a Speech Commands folder: it lacks validation_list.txt$"):
        descriptor(own_corpus)


def test_a_clip_in_both_lists_raises(own_corpus):
    twice = own_corpus.clips["testing"][0]
    with (own_corpus.root / "validation_list.txt").open("a") as listing:
        listing.write(twice)
    with pytest.raises(CorpusError, match=f"validation_list.txt and testing_list.txt both name {twice}"):
        descriptor(own_corpus)


def test_a_clip_that_does_not_name_its_speaker_raises(own_corpus):
    (own_corpus.root / "yes" / "recording.wav").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"but no speaker is named by yes/recording.wav$"):
        descriptor(own_corpus)


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"rank_worldsize": "4,3"}, "'4,3' asks for rank 4 of 3; with 3 nodes the rank goes from 1 to 3"),
        ({"rank_worldsize": "1,7"}, "7 nodes cannot share 6 speakers: there can be 6 nodes at most"),
        ({"partition": "uploader"}, "partition: 'uploader' is unknown; choose speaker, speaker_groups, clips"),
        ({"partition": "speaker_groups"}, "speakers_per_group: None should be a whole number from 1 on"),
        ({"partition": "speaker_groups", "speakers_per_group": 0}, "speakers_per_group: 0 should be a whole number"),
        ({"speakers_per_group": 2}, "speakers_per_group: 2 has no effect with partition: speaker"),
        ({"seed": "7"}, "seed: '7' should be a whole number from 0 on"),
        ({"seed": -1}, "seed: -1 should be a whole number from 0 on"),
        ({"seed": True}, "seed: True should be a whole number from 0 on"),
        ({"silence_share": 0}, "silence_share: 0 should be a number above 0, and 1 at most"),
        ({"silence_share": 1.01}, "silence_share: 1.01 should be a number above 0, and 1 at most"),
        ({"silence_share": -0.1}, "silence_share: -0.1 should be"),
        ({"silence_share": float("nan")}, "silence_share: nan should be"),
        ({"silence_share": float("inf")}, "silence_share: inf should be"),
        ({"silence_share": "0.1"}, "silence_share: '0.1' should be"),
        ({"silence_share": True}, "silence_share: True should be"),
        ({"data_path": None}, "data_path: None should be a folder or the name of a dataset on the hub"),
    ],
)
def test_a_wrong_parameter_raises(corpus, params, sentence):
    with pytest.raises(CorpusError, match=sentence):
        SuperbShardDescriptor(**{"data_path": str(corpus.root), **params})


def test_importing_and_building_a_shard_needs_no_heavy_library(corpus):
    heavy = ["torch", "torchaudio", "transformers", "datasets", "pandas", "sklearn", "openfl.pipelines"]
    code = (
        "import sys; from shard_descriptors.superb import SuperbShardDescriptor; "
        f"SuperbShardDescriptor({str(corpus.root)!r}).get_dataset('train')[0]; "
        f"print(*[name for name in {heavy} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_the_yaml_of_the_page_builds_a_shard(corpus):
    page = (REPOSITORY / "docs" / "corpora" / "superb.md").read_text()
    config = yaml.safe_load(page.split("```yaml")[1].split("```")[0])["shard_descriptor"]
    assert pkgutil.resolve_name(config["template"]) is SuperbShardDescriptor
    shard = SuperbShardDescriptor(**{**config["params"], "data_path": str(corpus.root)})
    assert (shard.rank, shard.world_size) == (1, 3)
