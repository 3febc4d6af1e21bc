"""`openfl-audio check envoy`: what it prints, and its exit code; what is checked has tests of its own."""

import yaml

from openfl_audio.cli.main import main

SHARD = """
from openfl.interface.interactive_api.shard_descriptor import ShardDataset, ShardDescriptor


class Numbers(ShardDataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class NumbersShard(ShardDescriptor):
    sample_shape, target_shape, dataset_description = ["1"], ["1"], "numbers"

    def __init__(self, items):
        self.items = items

    def get_dataset(self, dataset_type):
        return Numbers(self.items)
"""


def check(folder, items) -> int:
    (folder / "numbers_of_check.py").write_text(SHARD)
    shard_descriptor = {"template": "numbers_of_check.NumbersShard", "params": {"items": items}}
    settings = {"params": {"director_host": "localhost", "work_dir": "runs"}, "shard_descriptor": shard_descriptor}
    (folder / "envoy.yaml").write_text(yaml.safe_dump(settings))
    return main(["check", "envoy", "-c", str(folder / "envoy.yaml")])


def test_a_good_shard_is_described(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert check(tmp_path, [0.5, 0.25]) == 0
    printed = capsys.readouterr()
    assert "train: 2 items; read 0, 1:" in printed.out
    assert "fault" not in printed.out
    assert printed.err == ""


def test_a_faulty_shard_is_described_and_its_faults_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert check(tmp_path, [0.5, None]) == 1
    printed = capsys.readouterr().out
    assert "train: 2 items" in printed
    assert "\nfault: train item 1 " in printed


def test_settings_that_cannot_be_read_are_an_error(tmp_path, capsys):
    assert main(["check", "envoy", "-c", str(tmp_path / "nowhere.yaml")]) == 1
    assert capsys.readouterr().err.startswith("openfl-audio check envoy: cannot read the settings file")
