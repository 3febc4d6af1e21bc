"""`openfl-audio data check` on a table in which everything is wrong that it tells of."""

import numpy as np
import pytest
import soundfile
import yaml

from openfl_audio.cli.main import main
from shard_descriptors.common.audit import is_clipped
from tests.unit.shard_descriptors.own_recordings import SAMPLE_RATE, write_table, write_tone

HEADER = "file,word,speaker,split,patient name,doctor"


@pytest.fixture
def check(tmp_path, capsys):
    """Write a table with these rows and run the command; returns its exit code and what it printed."""

    def check(rows: list[str]) -> tuple[int, str]:
        write_table(tmp_path / "data", rows, "clips.csv", HEADER)
        shard = {
            "template": "shard_descriptors.table.TableShardDescriptor",
            "params": {
                "data_path": "data/clips.csv",
                "columns": {"path": "file", "label": "word", "group": "speaker", "split": "split"},
            },
        }
        params = {"director_host": "localhost", "work_dir": "work"}
        (tmp_path / "envoy.yaml").write_text(yaml.safe_dump({"params": params, "shard_descriptor": shard}))
        code = main(["data", "check", "-c", str(tmp_path / "envoy.yaml")])
        return code, capsys.readouterr().out

    return check


def test_what_is_right_is_counted(check):
    code, out = check(["a.wav,yes,ann,train,,", "b.wav,no,ann,train,,", "c.wav,no,bob,test,,"])
    assert code == 0
    lines = out.splitlines()
    assert "train: 2 clips of 1 groups: no (1), yes (1)" in lines
    assert "test: 1 clips of 1 groups: no (1)" in lines
    assert "groups: 1 to 2 clips each; the largest are ann (2), bob (1)" in lines
    assert "durations: 0.10 to 0.10 s, median 0.10 s, 0.00 h in all" in lines


def test_what_is_wrong_is_named(check, tmp_path):
    data = tmp_path / "data"
    write_tone(data / "twin.wav", 300)
    (data / "copy.wav").write_bytes((data / "twin.wav").read_bytes())
    soundfile.write(data / "quiet.wav", np.full(800, 1e-4), SAMPLE_RATE, subtype="FLOAT")
    loud = np.clip(3 * np.sin(np.arange(800) / 5), -1, 1)
    soundfile.write(data / "loud.wav", loud, SAMPLE_RATE)
    soundfile.write(data / "nan.wav", np.full(800, np.nan), SAMPLE_RATE, subtype="FLOAT")
    (data / "memo.m4a").write_bytes(b"\0\0\0\x18ftypM4A ")
    code, out = check([
        "twin.wav,yes,ann,train,p1,Sue Smith",
        "copy.wav,yes,bob,test,p2,Jo Müller",
        "quiet.wav,no,bob,train,p2,Jo Müller",
        "loud.wav,no,ann,train,p1,Sue Smith",
        "nan.wav,no,ann,train,p1,",
        "memo.m4a,no,ann,train,p1,",
        "gone.ogg,no,ann,train,p1,",
    ])  # fmt: skip
    assert code == 1
    for line in (
        "note: 1 are silent (peak below -60 dB of full scale): quiet.wav",
        "note: 1 are clipped: loud.wav",
        "note: 1 have the content of another: copy.wav is twin.wav",
        "note: the column 'patient name' is called so: it stays here, and is better not in the table",
        "note: the column 'doctor' has what look like names of people: it stays here, and is better not in the table",
        "fault: 1 left out, as it is not there: gone.ogg",
        "fault: 1 left out, as it is in test as well, with the same content: twin.wav",
        "fault: 1 left out, as it has samples that are NaN or infinite: nan.wav",
        "fault: 1 groups are in several splits: bob",
    ):
        assert line in out.splitlines(), line
    assert "fault: 1 left out, as it is AAC, which is not decoded here" in out


@pytest.mark.parametrize(("level", "clipped"), [(1.0, False), (1.5, True), (0.9, False)])
def test_a_wave_is_clipped_where_it_stays_at_full_scale(level, clipped):
    wave = np.clip(level * np.sin(np.arange(4_000) / 7), -1, 1)
    assert is_clipped(wave.astype(np.float32)) is clipped


def test_another_corpus_is_refused(tmp_path, capsys):
    write_table(tmp_path / "data", ["a.wav,yes,ann"])
    (tmp_path / "uncounted_shard.py").write_text("class MyShard:\n    pass\n")
    settings = {
        "params": {"director_host": "localhost", "work_dir": "work"},
        "shard_descriptor": {"template": "uncounted_shard.MyShard"},
    }
    (tmp_path / "envoy.yaml").write_text(yaml.safe_dump(settings))
    assert main(["data", "check", "-c", str(tmp_path / "envoy.yaml")]) == 1
    assert "uncounted_shard.MyShard reads no table or folder" in capsys.readouterr().err
