"""Tables as people's machines write them, and shards of what they name."""

import json
import pkgutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from openfl_audio.envoy.check import check_envoy
from shard_descriptors.common.errors import CorpusError
from shard_descriptors.folder import FolderShardDescriptor
from shard_descriptors.table import TableShardDescriptor
from shard_descriptors.table.layout import read_table
from tests.unit.shard_descriptors.own_recordings import SAMPLE_RATE, frequency_of, write_table, write_tone

REPOSITORY = Path(__file__).resolve().parents[4]
COLUMNS = {"path": "file", "label": "word", "group": "speaker"}


def read(table, columns=None, **options):
    return read_table(table, table.parent, columns or COLUMNS, **options)


def test_a_table_of_a_spreadsheet_is_read_whatever_its_marks_and_separators(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "zoë/café.wav") for form in ("NFC", "NFD"))
    write_tone(tmp_path / decomposed, 300)
    write_tone(tmp_path / "Ann" / "One.WAV", 500)
    text = f'file;word;speaker;level\r\n"{composed}";Stra\u00dfe;zoë;"-3,5"\r\nann\\one.wav; yes ;Ann;2\r\n'
    (tmp_path / "clips.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    listing = read(tmp_path / "clips.csv")
    assert [(each.target, each.group) for each in listing.recordings] == [("Straße", "zoë"), ("yes", "Ann")]
    assert [each.file.exists() for each in listing.recordings] == [True, True]
    numbers = read(tmp_path / "clips.csv", {"path": "file", "number": "level"})
    assert [each.target for each in numbers.recordings] == [-3.5, 2.0]


def test_a_shard_tells_a_sandbox_where_its_recordings_are(tmp_path):
    for number in range(20):
        write_tone(tmp_path / "audio" / f"{number}.wav", 300 + number)
    write_tone(tmp_path / "elsewhere" / "far.wav", 500)
    rows = [f"{number}.wav,{'yes' if number % 2 else 'no'},ann{number}" for number in range(20)]
    table = write_table(tmp_path, [*rows, f"{tmp_path / 'elsewhere' / 'far.wav'},yes,bob"])
    shard = TableShardDescriptor(table, COLUMNS, audio_path=tmp_path / "audio")
    assert shard.reads == [table, tmp_path / "audio", tmp_path / "elsewhere"]


def test_labels_in_another_unicode_form_are_one_label(tmp_path):
    rows = [f"{i}.wav,{unicodedata.normalize(form, 'café')},ann" for i, form in enumerate(("NFC", "NFD"))]
    assert len({each.target for each in read(write_table(tmp_path, rows)).recordings}) == 1


def test_json_lines_and_parquet_have_labels_numbers_and_what_is_empty(tmp_path):
    rows = [
        {"file": "a.wav", "tags": ["dog", "rain"], "from": 0.02, "to": 0.05},
        {"file": "b.wav", "tags": [], "from": None, "to": None},
        {"file": "c.wav", "tags": ["rain"]},
    ]
    for number, row in enumerate(rows):
        write_tone(tmp_path / row["file"], 300 + 50 * number)
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    columns = {"path": "file", "labels": "tags", "start": "from", "end": "to"}
    for name in ("t.jsonl", "t.parquet"):
        listing = read(tmp_path / name, columns)
        found = [(each.target, each.start_s, each.end_s) for each in listing.recordings]
        assert found == [(("dog", "rain"), 0.02, 0.05), ((), 0.0, None), (("rain",), 0.0, None)], name


def test_several_labels_in_a_cell_are_separated(tmp_path):
    table = write_table(tmp_path, ["a.wav,dog|rain | dog,ann", "b.wav,,ann"])
    columns = {"path": "file", "labels": "word"}
    assert [each.target for each in read(table, columns).recordings] == [("dog", "rain"), ()]


def test_rows_that_cannot_be_used_are_left_out_with_the_reason(tmp_path):
    table = write_table(tmp_path, ["a.wav,yes,ann", "b.wav,,ann", ",no,ann", "gone.ogg,no,bob", "a.wav,no,bob"])
    listing = read(table)
    assert listing.left_out == {
        "b.wav": "has no label", "a row (line 4)": "has no path", "gone.ogg": "is not there",
    }  # fmt: skip
    assert [each.name for each in listing.recordings] == ["a.wav", "a.wav (line 6)"]


def test_a_part_that_is_not_in_its_file_is_left_out(tmp_path):
    table = write_table(tmp_path, ["a.wav,yes,0.5,0.6", "b.wav,no,0.05,0.01"], header="file,word,from,to")
    left_out = read(table, {"path": "file", "label": "word", "start": "from", "end": "to"}).left_out
    assert left_out == {"a.wav": "starts at 0.5 s of a file of 0.100 s", "b.wav": "ends at 0.01 s and starts at 0.05 s"}


WRONG_COLUMNS = {
    "lacks": ({"path": "file", "label": "wrod"}, "lacks the columns wrod of the settings; it has file, word, speaker"),
    "unknown role": ({"path": "file", "label": "word", "who": "speaker"}, "columns: who is unknown"),
    "no target": ({"path": "file"}, "should have a path, and one of label, labels, number, text"),
    "two targets": ({"path": "file", "label": "word", "text": "word"}, "should have a path, and one of"),
    "no number": ({"path": "file", "number": "word"}, "clips.csv, line 2: 'yes' is no number, such as 2.5"),
    "no split": ({"path": "file", "label": "word", "split": "speaker"}, "clips.csv, line 2: 'ann' is no split"),
}


@pytest.mark.parametrize(("columns", "sentence"), WRONG_COLUMNS.values(), ids=WRONG_COLUMNS)
def test_columns_that_do_not_fit_are_refused(tmp_path, columns, sentence):
    with pytest.raises(CorpusError, match=sentence):
        read(write_table(tmp_path, ["a.wav,yes,ann"]), columns)


def test_a_sheet_and_a_table_that_is_not_there_are_refused(tmp_path):
    (tmp_path / "clips.xlsx").write_bytes(b"PK")
    with pytest.raises(CorpusError, match="a sheet is saved as CSV UTF-8"):
        read(tmp_path / "clips.xlsx")
    with pytest.raises(CorpusError, match="there is no table"):
        read(tmp_path / "gone.csv")


@pytest.fixture
def table(tmp_path) -> Path:
    """Six speakers with four clips each, two words."""
    rows = [f"{who}_{i}.wav,{'yes' if i % 2 else 'no'},{who}" for who in "abcdef" for i in range(4)]
    return write_table(tmp_path, rows)


def test_items_are_the_tones_of_their_rows_with_the_sites_labels(table):
    shard = TableShardDescriptor(table, COLUMNS, sample_rate=SAMPLE_RATE)
    datasets = [shard.get_dataset(split) for split in ("train", "validation", "test")]
    assert sum(map(len, datasets)) == 24
    assert not set(datasets[0].groups) & set(datasets[1].groups + datasets[2].groups)
    for dataset in datasets:
        for i, name in enumerate(dataset.files):
            waveform, label = dataset[i]
            row = 4 * "abcdef".index(name[0]) + int(name[2])
            assert frequency_of(waveform) == pytest.approx(200 + 50 * row, abs=10)
            assert label == ("yes" if row % 2 else "no")


def test_relative_paths_hold_where_the_folder_is_another_later(table, tmp_path, monkeypatch):
    """As in a worker, which opens its shard beside the settings and reads it from the folder of an experiment."""
    for name in ("classes/yes/a.wav", "elsewhere/x"):
        (tmp_path / name).parent.mkdir(parents=True)
    write_tone(tmp_path / "classes" / "yes" / "a.wav", 300)
    options = {"sample_rate": SAMPLE_RATE, "validation_share": 0, "test_share": 0}
    monkeypatch.chdir(tmp_path)
    shards = [
        TableShardDescriptor(table.name, COLUMNS, **options),
        TableShardDescriptor(table.name, COLUMNS, audio_path=".", **options),
        FolderShardDescriptor("classes", **options),
    ]
    monkeypatch.chdir(tmp_path / "elsewhere")
    for shard in shards:
        assert len(shard.get_dataset("train")[0][0]) == 800


def test_all_nodes_together_have_everything_once(table):
    shards = [TableShardDescriptor(table, COLUMNS, rank_worldsize=f"{rank},2") for rank in (1, 2)]
    files = [set(shard.get_dataset("train").files) for shard in shards]
    assert all(files)
    assert not files[0] & files[1]
    assert files[0] | files[1] == set(TableShardDescriptor(table, COLUMNS).get_dataset("train").files)
    assert shards[0].get_dataset("test").files == shards[1].get_dataset("test").files


def test_a_part_of_a_file_and_a_window_sound_as_they_should(tmp_path):
    write_tone(tmp_path / "low.wav", 300, 0.5)
    write_tone(tmp_path / "high.wav", 900, 0.5)
    import soundfile

    whole = np.concatenate([soundfile.read(tmp_path / name)[0] for name in ("low.wav", "high.wav")])
    soundfile.write(tmp_path / "both.flac", whole, SAMPLE_RATE)
    rows = ["both.flac,low,0,0.5", "both.flac,high,0.5,1.0"]
    table = write_table(tmp_path, rows, header="file,word,from,to")
    columns = {"path": "file", "label": "word", "start": "from", "end": "to"}
    options = {"sample_rate": SAMPLE_RATE, "validation_share": 0, "test_share": 0}
    train = TableShardDescriptor(table, columns, **options).get_dataset("train")
    assert [(frequency_of(waveform), len(waveform), label) for waveform, label in (train[0], train[1])] == [
        (300, 4_000, "low"), (900, 4_000, "high"),
    ]  # fmt: skip
    windows = TableShardDescriptor(table, columns, window_s=0.4, **options).get_dataset("train")
    assert [(frequency_of(windows[i][0]), windows[i][0].shape) for i in (0, 2)] == [(300, (3_200,)), (900, (3_200,))]
    assert len(windows) == 4
    # The second window of each part has a quarter of its samples, and zeros.
    assert not windows[1][0][800:].any()
    assert windows[1][0][:800].any()


def test_the_description_has_counts_of_classes_and_no_name(table):
    write_tone(table.parent / "sue_smith.wav", 400)
    (table.parent / "memo_sue_smith.m4a").write_bytes(b"\0\0\0\x18ftypM4A ")
    table.write_text(table.read_text() + "memo_sue_smith.m4a,yes,sue smith\n")
    shard = TableShardDescriptor(table, COLUMNS)
    text = shard.dataset_description
    described = yaml.safe_load(text)
    counts = [described[split] for split in ("train", "validation", "test")]
    assert {label: sum(each[label] for each in counts) for label in ("yes", "no")} == {"yes": 12, "no": 12}
    assert described["kind"] == "label"
    assert "1 recordings left out" in described["summary"]
    assert "smith" not in text


WRONG_OPTIONS = {
    "shares": ({"validation_share": 0.5, "test_share": 0.5}, "are 1 together: no train"),
    "share": ({"test_share": 15}, "test_share: 15 should be a number from 0 on, and below 1"),
    "rate": ({"sample_rate": "16k"}, "sample_rate: '16k' should be a whole number of Hz"),
    "seed": ({"seed": -1}, "seed: -1 should be a whole number from 0 on"),
    "window": ({"window_s": 0}, "window_s: 0 should be a number of seconds above 0"),
    "hop": ({"hop_s": 1}, "hop_s: 1 has no effect without window_s"),
    "rank": ({"rank_worldsize": "40,40"}, "has no train clip for shard 40 of 40"),
}


@pytest.mark.parametrize(("options", "sentence"), WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
def test_a_wrong_parameter_is_refused_with_its_value(table, options, sentence):
    with pytest.raises(CorpusError, match=sentence):
        TableShardDescriptor(table, COLUMNS, **options)


def test_the_envoys_example_is_checked_and_served(tmp_path):
    settings = yaml.safe_load((REPOSITORY / "envoys" / "table.yaml").read_text())
    params = settings["shard_descriptor"]["params"]
    (tmp_path / "envoys").mkdir()
    folder = tmp_path / "data" / "recordings"
    folder.parent.mkdir()
    rows = [f"{who}.wav,{word},{who},{split}" for who, word, split in (
        ("a", "yes", "train"), ("b", "no", "train"), ("c", "no", "Dev"), ("d", "yes", "test"),
    )]  # fmt: skip
    write_table(folder, rows, "recordings.csv", "file,word,speaker,split")
    assert params["data_path"] == "../data/recordings/recordings.csv"
    (tmp_path / "envoys" / "table.yaml").write_text(yaml.safe_dump(settings))
    check = check_envoy(tmp_path / "envoys" / "table.yaml")
    assert check.faults == []
    assert "corpus: recordings" in check.lines
    assert any(line.startswith("train: 2 items") for line in check.lines)
    assert any(line.startswith("validation: 1 items") for line in check.lines)


@pytest.mark.parametrize("place", [1, 2])
def test_the_yaml_of_the_page_builds_a_shard(table, place):
    page = (REPOSITORY / "docs" / "corpora" / "own-recordings.md").read_text()
    settings = yaml.safe_load(page.split("```yaml")[place].split("```")[0])["shard_descriptor"]
    of_folder = settings["params"]["data_path"] == "/data/recordings"
    if of_folder:
        (table.parent / "words").mkdir()
        for file in sorted(table.parent.glob("*.wav")):
            file.rename(table.parent / "words" / file.name)
    settings["params"]["data_path"] = str(table.parent if of_folder else table)
    shard = pkgutil.resolve_name(settings["template"])(**settings["params"])
    assert {group for split in shard.splits.values() for group in (each.group for each in split)} == set("abcdef")


def test_a_channel_is_heard_alone_and_recordings_without_it_are_left_out(tmp_path):
    time = np.arange(800) / SAMPLE_RATE
    tones = np.stack([0.5 * np.sin(2 * np.pi * hz * time) for hz in (400, 1_200)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", tones, SAMPLE_RATE)
    write_table(tmp_path, ["mono.wav,yes,ann", "stereo.wav,no,ann"])
    options = {"columns": COLUMNS, "sample_rate": SAMPLE_RATE, "validation_share": 0, "test_share": 0}
    for channel, hz in ((1, 400), (2, 1_200)):
        shard = TableShardDescriptor(tmp_path / "clips.csv", channel=channel, **options)
        dataset = shard.get_dataset("train")
        assert frequency_of(dataset[dataset.files.index("stereo.wav")][0]) == pytest.approx(hz, abs=10)
    assert shard.division.left_out == {"mono.wav": "has 1 channels, and channel 2 is wanted"}
    windows = TableShardDescriptor(tmp_path / "clips.csv", channel=2, window_s=0.05, **options).get_dataset("train")
    assert frequency_of(windows[1][0]) == pytest.approx(1_200, abs=20)
    for wrong in (0, "left", True):
        with pytest.raises(CorpusError, match="should be mean, or the number of a channel from 1 on"):
            TableShardDescriptor(tmp_path / "clips.csv", channel=wrong, **options)
