"""Shards of LibriFSD50K: who has what, what is heard in an item, and that every draw can be repeated."""

import csv
import pkgutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from shard_descriptors.common.audio import AudioError
from shard_descriptors.common.errors import CorpusError
from shard_descriptors.librifsd50k.preparation import prepare_fedwham, prepare_librifsd50k
from shard_descriptors.librifsd50k.shard import (
    LibriFsd50kShardDescriptor,
    assign_roles,
    contiguous,
    normalize,
    scale_to_snr,
)
from shard_descriptors.librifsd50k.store import Chunk, read_store
from tests.unit.shard_descriptors.librifsd50k_corpora import SPEECH, frequency_of, make_corpora, make_wham

REPOSITORY = Path(__file__).parents[4]
HALF = {"available_speech_percentage": 0.5, "supervised": False}
TRAIN_SPEAKERS = ["19", "26", "103", "118", "1089"]  # in the order of their numbers


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    return make_corpora(tmp_path_factory.mktemp("corpora"))


@pytest.fixture(scope="module")
def store(corpora, tmp_path_factory):
    out = tmp_path_factory.mktemp("stores") / "librifsd50k"
    prepare_librifsd50k(corpora.librispeech, corpora.fsd50k, out, workers=2)
    return out


def all_shards(store, world_size, **params):
    return [LibriFsd50kShardDescriptor(store, f"{rank},{world_size}", **params) for rank in range(1, world_size + 1)]


def write_table(folder: Path, chunks: list[Chunk]) -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / "chunks.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows([Chunk._fields, *chunks])
    return folder


def power(waveform: np.ndarray) -> float:
    return float(np.mean(np.square(waveform, dtype=np.float64)))


def tone(corpora, file: str) -> int:
    """The frequency that a chunk of the store begins with, in Hz."""
    later = Path(file).name.split("_")[1] != "0"
    return corpora.tones[Path(file).stem.rsplit("_id_", 1)[1]] + 1_000 * later


def noises_alone(store, dataset) -> set[str]:
    chunks = [chunk for chunk in read_store(store).chunks if chunk.split == "train"]
    return {chunk.noise for chunk in chunks if chunk.speech not in dataset.files}


def same(items: list, others: list) -> bool:
    return all(
        np.array_equal(a, b)
        for item, other in zip(items, others, strict=True)
        for a, b in zip(item, other, strict=True)
    )


# What is heard


def test_an_item_is_speech_its_noise_and_the_noise_of_a_pair_that_is_not_mixed(corpora, store):
    dataset = LibriFsd50kShardDescriptor(store, **HALF).get_dataset("train")
    chunks = {chunk.speech: chunk for chunk in read_store(store).chunks}
    alone = {tone(corpora, file) for file in noises_alone(store, dataset)}
    assert len(dataset) == len(dataset.files) == len(dataset.speakers) > 0
    for i in range(len(dataset)):
        item = dataset[i]
        assert [(waveform.shape, waveform.dtype) for waveform in item] == [((64_000,), np.float32)] * 3
        speech, noise, extra_noise = map(frequency_of, item)
        assert speech == tone(corpora, dataset.files[i])
        assert noise == tone(corpora, chunks[dataset.files[i]].noise)
        assert extra_noise in alone
        assert dataset.files[i].split("/")[1] == dataset.speakers[i]
    assert frequency_of(dataset[-1][0]) == tone(corpora, dataset.files[-1])
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_all_chunks_of_a_pair_are_mixed_or_alone():
    # pairs of 3, 1, 2, 1, 1 chunks
    chunks = [
        Chunk("train", speaker, pair, f"{speaker}{pair}{k}", "")
        for speaker, pair, number in (("a", 0, 3), ("a", 1, 1), ("b", 0, 2), ("b", 1, 1), ("b", 2, 1))
        for k in range(number)
    ]
    roles = assign_roles(chunks, range(len(chunks)), 0.5)
    assert roles.mixed == (0, 1, 2, 4, 5, 7)  # the first, third and fifth pair
    assert roles.noise == (3, 6)


def test_an_extra_noise_is_another_clip_than_the_mixtures(tmp_path):
    # 20 pairs of 4 clips: each clip is in mixtures and alone
    folder = tmp_path / "train" / "19"
    chunks = [
        Chunk("train", "19", i, f"train/19/{i}.wav", f"train/19/{i}_0_id_{i * 7 % 20 // 5}.wav") for i in range(20)
    ]
    chunks += [Chunk(split, "84", i, *chunks[i][3:]) for split in ("validation", "test") for i in range(2)]
    folder.mkdir(parents=True)
    for chunk in chunks[:20]:
        soundfile.write(tmp_path / chunk.speech, np.zeros(64_000), 16_000)
        soundfile.write(tmp_path / chunk.noise, np.full(64_000, 0.1 * (1 + int(chunk.clip))), 16_000)
    dataset = LibriFsd50kShardDescriptor(write_table(tmp_path, chunks), **HALF).get_dataset("train")
    drawn = set()
    for epoch in range(20):
        dataset.set_epoch(epoch)
        drawn |= {tuple(round(10 * waveform[0]) for waveform in dataset[i][1:]) for i in range(len(dataset))}
    assert drawn == {(noise, extra) for noise in range(1, 5) for extra in range(1, 5) if noise != extra}


@pytest.mark.parametrize(
    ("share", "pairs", "mixed"), [(0.5, 5, 3), (0.07, 100, 7), (0.07, 101, 8), (1, 5, 5), (0.01, 2, 1)]
)
def test_the_share_of_available_speech_is_rounded_up(share, pairs, mixed):
    chunks = [Chunk("train", "a", pair, "", "") for pair in range(pairs)]
    roles = assign_roles(chunks, range(pairs), share)
    assert (len(roles.mixed), len(roles.noise)) == (mixed, pairs - mixed)


def test_with_all_speech_available_no_extra_noise_is_left(store):
    supervised = LibriFsd50kShardDescriptor(store, available_speech_percentage=1.0, p_single_mix=1.0).get_dataset(
        "train"
    )
    assert supervised.supervised
    speech, noise, extra_noise = supervised[0]
    assert power(speech) > 0
    assert power(noise) > 0
    assert not extra_noise.any()
    with pytest.raises(CorpusError, match="1.0 leaves no extra noise for shard 1 of 1, which has 15 pairs"):
        LibriFsd50kShardDescriptor(store, available_speech_percentage=1.0, supervised=False)


# Speakers and nodes


def test_speakers_go_to_nodes_in_the_order_of_their_numbers(store):
    shards = all_shards(store, 2, **HALF)
    assert [sorted(set(shard.get_dataset("train").speakers), key=int) for shard in shards] == [
        ["19", "26", "103"],
        ["118", "1089"],
    ]
    assert contiguous(["011", "20m", "01a"], 3) == {"011": 2, "01a": 0, "20m": 1}  # WSJ's are no numbers


@pytest.mark.parametrize("partition", ["contiguous", "random"])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_shards_share_nothing_but_the_test_split_and_lack_nothing(store, partition, world_size):
    shards = all_shards(store, world_size, partition=partition)  # all speech is available
    chunks = read_store(store).chunks
    train = [file for shard in shards for file in shard.get_dataset("train").files]
    assert sorted(train) == sorted(chunk.speech for chunk in chunks if chunk.split == "train")
    validation = [file for shard in shards for file in shard.get_dataset("validation").files]
    whole = LibriFsd50kShardDescriptor(store).get_dataset("validation").files
    assert sorted(validation) == sorted(whole)
    for shard in shards:
        assert shard.get_dataset("test").files == LibriFsd50kShardDescriptor(store).get_dataset("test").files
    speakers = [set(shard.get_dataset("train").speakers) for shard in shards]
    assert sum(map(len, speakers)) == len(set().union(*speakers)) == len(TRAIN_SPEAKERS)


def test_the_seed_moves_speakers_of_a_random_partition_only(store):
    def divided(partition, seed):
        shards = all_shards(store, 5, partition=partition, seed=seed)
        return [shard.get_dataset("train").speakers[0] for shard in shards]

    assert [divided("contiguous", seed) for seed in (0, 1)] == [TRAIN_SPEAKERS] * 2
    assert divided("random", 0) == divided("random", 0)
    assert len({tuple(divided("random", seed)) for seed in range(5)}) > 1


def test_clients_are_counted_without_opening_their_shards(store):
    assert LibriFsd50kShardDescriptor.natural_clients(store) == len(TRAIN_SPEAKERS)
    for params in ({"partition": "random", "seed": 3}, {"available_speech_percentage": 0.5}):
        counts = LibriFsd50kShardDescriptor.clips_per_client(store, 3, **params)
        assert counts.dtype == np.int64
        assert counts.tolist() == [len(shard.get_dataset("train")) for shard in all_shards(store, 3, **params)]


def test_half_of_validation_and_test_is_mixed_whatever_the_share(store):
    for share in (0.1, 1.0):
        shard = LibriFsd50kShardDescriptor(store, available_speech_percentage=share)
        for split, subset in (("validation", "dev-clean"), ("test", "test-clean")):
            utterances = {Path(file).stem.split("_id_")[1] for file in shard.get_dataset(split).files}
            assert len(utterances) == sum(map(len, SPEECH[subset].values())) / 2


# Draws


def test_draws_are_a_function_of_seed_epoch_and_item(store):
    def items(seed, epoch, order=1):
        dataset = LibriFsd50kShardDescriptor(store, seed=seed, max_abs_snr_db=5, p_single_mix=0.3, **HALF).get_dataset(
            "train"
        )
        dataset.set_epoch(epoch)
        return [dataset[i] for i in range(len(dataset))[::order]][::order]

    assert same(items(0, 0), items(0, 0, order=-1))
    assert same(items(2, 7), items(2, 7))
    assert not same(items(0, 0), items(0, 1))
    assert not same(items(0, 0), items(1, 0))
    dataset = LibriFsd50kShardDescriptor(store, **HALF).get_dataset("train")
    assert same([dataset[3]], [dataset[3]])  # in an epoch, an item is the same at every access


def test_extra_noises_of_an_item_change_with_the_epoch_over_all_that_are_there(corpora, store):
    dataset = LibriFsd50kShardDescriptor(store, **HALF).get_dataset("train")
    heard = set()
    for epoch in range(100):
        dataset.set_epoch(epoch)
        heard.add(frequency_of(dataset[0][2]))
    # each of 9 is missed with a chance of 8e-6
    assert heard == {tone(corpora, file) for file in noises_alone(store, dataset)}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_validation_and_test_are_the_same_for_every_seed_epoch_and_node(store, split):
    def items(**params):
        dataset = LibriFsd50kShardDescriptor(store, **(HALF | params)).get_dataset(split)
        dataset.set_epoch(params.get("seed", 0))
        return {file: dataset[i] for i, file in enumerate(dataset.files)}

    whole = items()
    other = items(seed=5, max_abs_snr_db=20, p_single_mix=1.0, partition="random")
    assert whole.keys() == other.keys()
    assert same(list(whole.values()), list(other.values()))
    assert all(power(waveform) > 0 for item in whole.values() for waveform in item)
    parts = [items(rank_worldsize=f"{rank},3") for rank in (1, 2, 3)]
    for part in parts:
        assert same(list(part.values()), [whole[file] for file in part])
    assert {file for part in parts for file in part} == set(whole)


def test_a_single_mixture_is_silent_in_one_half_or_the_other(store):
    def silent(p_single_mix):
        dataset = LibriFsd50kShardDescriptor(store, p_single_mix=p_single_mix, **HALF).get_dataset("train")
        found = []
        for epoch in range(40):
            dataset.set_epoch(epoch)
            found += [tuple(not waveform.any() for waveform in dataset[i]) for i in range(4)]
        return {kind: found.count(kind) for kind in set(found)}

    noisy_speech, extra_noise, nothing = (True, True, False), (False, False, True), (False, False, False)
    assert silent(0.0) == {nothing: 160}
    always = silent(1.0)
    assert always.keys() == {noisy_speech, extra_noise}
    assert min(always.values()) > 50  # 80 expected, standard deviation 6.3
    sometimes = silent(0.25)
    assert 90 < sometimes[nothing] < 150  # 120 expected, standard deviation 5.5


def test_noise_is_scaled_to_the_snr_that_is_asked_for():
    generator = np.random.default_rng(0)
    speech, noise = (generator.normal(scale=scale, size=64_000).astype(np.float32) for scale in (0.1, 0.003))
    scaled = scale_to_snr(speech, noise, -7.0)
    assert scaled.dtype == np.float32
    assert 10 * np.log10(power(speech) / power(scaled)) == pytest.approx(-7.0, abs=1e-4)
    np.testing.assert_allclose(scaled / noise, scaled[0] / noise[0], rtol=1e-5)  # one gain, nothing else
    silence = np.zeros_like(speech)
    np.testing.assert_array_equal(scale_to_snr(speech, silence, 3.0), silence)
    np.testing.assert_array_equal(scale_to_snr(silence, noise, 3.0), noise)


def test_levels_are_as_recorded_unless_an_snr_is_drawn(store):
    recorded = LibriFsd50kShardDescriptor(store, **HALF).get_dataset("train")
    drawn = LibriFsd50kShardDescriptor(store, max_abs_snr_db=5, **HALF).get_dataset("train")
    snrs_db = []
    for epoch in range(30):
        drawn.set_epoch(epoch)
        speech, *noises = drawn[0]
        np.testing.assert_array_equal(speech, recorded[0][0])
        snrs_db.append([10 * np.log10(power(speech) / power(noise)) for noise in noises])
    assert np.abs(snrs_db).max() <= 5.001
    assert np.all(np.ptp(snrs_db, axis=0) > 6)  # of 10 dB; both noises vary
    assert np.std(np.diff(snrs_db, axis=1)) > 1  # and not together
    np.testing.assert_allclose([np.abs(noise).max() for noise in recorded[0]], 0.5, atol=0.01)  # as the tones are


def test_a_longer_recording_is_cut_at_random_in_train_and_at_its_beginning_elsewhere(tmp_path):
    names = [f"{speaker}a010{take}_1_999a0102_-1" for speaker in ("011", "012") for take in range(3)]
    tones = make_wham(
        tmp_path / "wham", {"tr": names, "cv": [f"cv{n}" for n in names], "tt": ["0ttx_1", "0tty_1"]}, seconds=9
    )
    prepare_fedwham(tmp_path / "wham", tmp_path / "store")
    shard = LibriFsd50kShardDescriptor(tmp_path / "store", **HALF)
    dataset = shard.get_dataset("train")
    beginnings = set()
    for epoch in range(20):
        dataset.set_epoch(epoch)
        speech, noise, extra_noise = dataset[0]
        assert speech.shape == noise.shape == extra_noise.shape == (64_000,)
        # the tone is 1,000 Hz higher from the 4th second on, so how long the lower one is heard tells the place
        low = np.abs(speech @ np.exp(-2j * np.pi * tones[names[0]] * np.arange(64_000) / 16_000)) / 16_000
        beginnings.add(round(4 - low, 1))
    assert len(beginnings) > 5
    test = shard.get_dataset("test")
    assert frequency_of(test[0][0]) == tones["0ttx_1"]
    spectrum = np.abs(np.fft.rfft(test[0][0]))
    assert spectrum.argmax() == 4 * tones["0ttx_1"]
    assert spectrum[4 * (tones["0ttx_1"] + 1_000)] < 0.01 * spectrum.max()


def test_a_cut_does_not_run_into_the_zeros_that_fill_up_a_shorter_recording(tmp_path):
    names = [f"011a010{take}_1_999a0102_-1" for take in range(2)]
    make_wham(tmp_path / "wham", {"tr": names, "cv": ["cv1", "cv2"], "tt": ["0ttx_1", "0tty_1"]}, seconds=9)
    prepare_fedwham(tmp_path / "wham", tmp_path / "store")
    dataset = LibriFsd50kShardDescriptor(tmp_path / "store", **HALF).get_dataset("train")
    path = tmp_path / "store" / dataset.files[0]
    waveform, _ = soundfile.read(path)
    waveform[5 * 16_000 :] = 0
    soundfile.write(path, waveform, 16_000)
    for epoch in range(20):
        dataset.set_epoch(epoch)
        assert dataset[0][0][-100:].any()


# Opening, and faults


def test_items_have_the_length_the_rate_and_the_loudness_that_are_asked_for(store):
    plain = LibriFsd50kShardDescriptor(store).get_dataset("test")
    shard = LibriFsd50kShardDescriptor(store, clip_seconds=5.0, sample_rate=8_000, normalize_audio=True)
    dataset = shard.get_dataset("test")
    assert (dataset.sample_rate, shard.sample_shape, shard.target_shape) == (8_000, ["40000"], ["40000"])
    for own, other in zip(dataset[0], plain[0], strict=True):
        assert own.shape == (40_000,)
        assert not own[32_000:].any()  # the store has chunks of 4 s
        recorded = own[:32_000]
        assert (abs(recorded.mean()), recorded.std()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, rel=1e-4))
        # A tone keeps its frequency.
        frequencies = [np.abs(np.fft.rfft(each)).argmax() / 4 for each in (recorded, other)]
        assert frequencies[0] == pytest.approx(frequencies[1], abs=0.5)


def test_silence_stays_silence_when_it_is_normalized():
    assert not normalize(np.zeros(10, dtype=np.float32)).any()


def test_hundreds_of_shards_open_at_once_and_no_audio_is_looked_at(tmp_path):
    chunks = [
        Chunk(
            split,
            f"{speaker}",
            pair,
            f"{split}/{speaker}/speech/{pair}_{k}_id_x.wav",
            f"{split}/{speaker}/noise/{pair}.wav",
        )
        for split, speakers in (("train", range(300)), ("validation", range(300, 340)), ("test", range(340, 380)))
        for speaker in speakers
        for pair in range(100)
        for k in range(1 + (pair % 4 > 1))
    ]
    write_table(tmp_path, chunks)
    began = time.process_time()
    shards = all_shards(tmp_path, 256, **HALF)
    took_s = time.process_time() - began
    assert sum(len(shard.get_dataset("train")) for shard in shards) == pytest.approx(22_500, rel=0.01)
    assert took_s < 10  # about 0.5 s, of which half is the table; a table per shard would take a minute
    with pytest.raises(AudioError, match=r"train/0/speech/0_0_id_x.wav: cannot be read \(No such file"):
        shards[0].get_dataset("train")[0]


def test_a_table_that_was_written_again_is_read_again(tmp_path):
    chunks = [
        Chunk(split, "19", pair, f"{split}{pair}", "") for split in ("train", "validation", "test") for pair in range(2)
    ]
    write_table(tmp_path, chunks)
    assert len(LibriFsd50kShardDescriptor(tmp_path).get_dataset("train")) == 2
    assert read_store(tmp_path) is read_store(tmp_path)
    write_table(tmp_path, [*chunks, Chunk("train", "26", 0, "more", "")])
    assert len(LibriFsd50kShardDescriptor(tmp_path).get_dataset("train")) == 3


def test_an_envoy_reads_items_without_torch(store):
    code = f"""
import sys
from shard_descriptors.librifsd50k import LibriFsd50kShardDescriptor
LibriFsd50kShardDescriptor({str(store)!r}).get_dataset("train")[0]
sys.exit("torch" in sys.modules or "torchaudio" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_the_settings_of_an_envoy_open_a_shard_that_describes_itself(store):
    settings = yaml.safe_load((REPOSITORY / "envoys" / "librifsd50k.yaml").read_text())["shard_descriptor"]
    assert pkgutil.resolve_name(settings["template"]) is LibriFsd50kShardDescriptor
    shard = LibriFsd50kShardDescriptor(**(settings["params"] | {"data_path": str(store)}))
    description = yaml.safe_load(shard.dataset_description)
    assert (description["corpus"], description["supervised"]) == ("librifsd50k", False)
    train = shard.get_dataset("train")
    assert f"shard 1 of 3 (contiguous), not supervised: {len(train)} train mixtures" in description["summary"]
    assert shard.sample_shape == shard.target_shape == ["64000"]


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"partition": "speaker"}, "partition: 'speaker' is unknown; choose contiguous or random"),
        ({"rank_worldsize": "1,6"}, "6 nodes cannot share 5 speakers: there can be 5 nodes at most"),
        ({"rank_worldsize": "3,2"}, "asks for rank 3 of 2"),
        ({"available_speech_percentage": 0}, "available_speech_percentage: 0 should be a share above 0, and 1 at most"),
        ({"available_speech_percentage": 50}, "available_speech_percentage: 50 should be a share above 0"),
        ({"p_single_mix": 1.5}, "p_single_mix: 1.5 should be a number from 0 to 1"),
        ({"supervised": "no"}, "supervised: 'no' should be true or false"),
        ({"seed": -1}, "seed: -1 should be a whole number from 0 on"),
        ({"max_abs_snr_db": -5}, "max_abs_snr_db: -5 should be a number of dB from 0 on"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_would_be_right(store, params, sentence):
    with pytest.raises(CorpusError, match=sentence):
        LibriFsd50kShardDescriptor(store, **params)


def test_a_wrong_folder_or_split_is_named(store, tmp_path):
    with pytest.raises(CorpusError, match="data_path: None should be a folder"):
        LibriFsd50kShardDescriptor(None)
    with pytest.raises(CorpusError, match="data_path: there is no folder .*/nowhere"):
        LibriFsd50kShardDescriptor(tmp_path / "nowhere")
    with pytest.raises(
        CorpusError,
        match=r"is no such store; openfl-audio data prepare librifsd50k \(or fedwham\) writes one with",
    ):
        LibriFsd50kShardDescriptor(tmp_path)
    with pytest.raises(CorpusError, match="there is no split 'val'; the splits are train, validation, test"):
        LibriFsd50kShardDescriptor(store).get_dataset("val")
    (tmp_path / "chunks.csv").write_text("speech,noise\n")
    with pytest.raises(CorpusError, match=r"chunks.csv: its first line should be split,speaker,pair,speech,noise"):
        LibriFsd50kShardDescriptor(tmp_path)
    write_table(tmp_path / "one", [Chunk(split, "19", 0, "a", "b") for split in ("train", "validation", "test")])
    with pytest.raises(CorpusError, match="validation has 1 pair, and 2 are needed"):
        LibriFsd50kShardDescriptor(tmp_path / "one")
