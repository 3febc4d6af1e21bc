"""The shard of an envoy's settings, looked at without a director."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from openfl_audio.envoy.check import ITEMS, ShardCheck, check_envoy
from openfl_audio.errors import SettingsError
from shard_descriptors.fsd50k.layout import read_layout
from shard_descriptors.fsd50k.preparation import prepare_store
from shard_descriptors.librifsd50k.preparation import prepare_librifsd50k
from shard_descriptors.librispeech.preparation import prepare_librispeech
from tests.unit.shard_descriptors import conftest as speech_commands
from tests.unit.shard_descriptors import fsd50k_corpus, librifsd50k_corpora, librispeech_corpus

# A shard of 21 items in each split, to which `{extra}` adds what is wrong.
SHARD = """
import numpy as np


class Dataset:
    sample_rate = 8_000

    def __len__(self):
        return 21

    def __getitem__(self, index):
        return np.full(4_000 + 200 * index, index / 21, np.float32), index % 3


class Shard:
    corpus = "mine"
    sample_shape, target_shape = ["-1"], ["1"]
    dataset_description = "recordings of mine"

    def get_dataset(self, dataset_type):
        return Dataset()
{extra}
"""


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Check the shard `{module}.Shard` of `SHARD` with something extra, or any other."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def check(extra: str = "", template: str = "my_shard.Shard", **params) -> ShardCheck:
        (tmp_path / "my_shard.py").write_text(SHARD.format(extra=extra))
        config = tmp_path / "envoy.yaml"
        envoy = {"director_host": "localhost", "work_dir": "work"}
        shard_descriptor = {"template": template, "params": params}
        config.write_text(yaml.safe_dump({"params": envoy, "shard_descriptor": shard_descriptor}))
        return check_envoy(config)

    yield check
    sys.modules.pop("my_shard", None)


@pytest.mark.parametrize(
    ("extra", "shapes"),
    [
        ("    sample_shape, target_shape = [16_000], (1, 2)", ["sample_shape: 16000", "target_shape: 1, 2"]),
        ("    del sample_shape, target_shape", ["sample_shape: -1", "target_shape: -1"]),
    ],
)
def test_shapes_are_integers_too_and_may_be_left_out(check, extra, shapes):
    found = check(extra)
    assert found.faults == []
    assert found.lines[2:4] == shapes


def test_a_good_shard_is_described_with_ten_items_of_each_split(check):
    found = check()
    assert found.faults == []
    assert found.lines == [
        "shard descriptor: my_shard.Shard",
        "corpus: mine",
        "sample_shape: -1",
        "target_shape: 1",
        "description:",
        "  recordings of mine",
        *(
            line
            for split in ("train", "validation")
            for line in (
                f"{split}: 21 items; read 0, 2, 4, 7, 9, 11, 13, 16, 18, 20:",
                "  [0]: float32 (4000 to 8000), values 0 to 0.9524, 0.50 to 1.00 s at 8,000 Hz",
                "  [1]: integer, classes 0 (3), 1 (4), 2 (3)",
            )
        ),
    ]


def prepare_superb(folder: Path) -> dict:
    speech_commands.make_corpus(folder / "corpus")
    return {"data_path": str(folder / "corpus"), "rank_worldsize": "1,2"}


def prepare_fsd50k(folder: Path) -> dict:
    fsd50k_corpus.make_corpus(folder / "corpus")
    prepare_store(read_layout(folder / "corpus"), folder / "store")
    return {"data_path": str(folder / "store")}


def prepare_hubert(folder: Path) -> dict:
    prepare_librispeech(librispeech_corpus.make_corpus(folder / "corpus").root, folder / "clients", clients=2)
    return {"data_path": str(folder / "clients")}


def prepare_pairs(folder: Path) -> dict:
    made = librifsd50k_corpora.make_corpora(folder / "corpora")
    prepare_librifsd50k(made.librispeech, made.fsd50k, folder / "store", workers=1)
    return {"data_path": str(folder / "store")}


@pytest.mark.parametrize(
    ("template", "prepare", "described"),
    [
        (
            "shard_descriptors.superb.SuperbShardDescriptor",
            prepare_superb,
            [r"float32 \(16000\), values .*, 1\.00 s at 16,000 Hz", r"integer, classes 0 "],
        ),
        (
            "shard_descriptors.fsd50k.Fsd50kShardDescriptor",
            prepare_fsd50k,
            [r"float32 \(101, 96\), values -\d", r"float32 \(5\), 0 or 1, with 1 at 0, 1, 2"],
        ),
        (
            "shard_descriptors.librispeech.LibriSpeechShardDescriptor",
            prepare_hubert,
            [r"float32 \(\d+ to \d+\), values .*, 1\.00 to 6\.00 s at 16,000 Hz", r"int64 \(0\)"],
        ),
        (
            "shard_descriptors.librifsd50k.LibriFsd50kShardDescriptor",
            prepare_pairs,
            [r"float32 \(64000\), values .*, 4\.00 s at 16,000 Hz"] * 2,
        ),
    ],
)
def test_shards_of_the_project_s_corpora_are_good(check, tmp_path, template, prepare, described):
    found = check(template=template, **prepare(tmp_path))
    assert found.faults == []
    train = found.lines.index(next(line for line in found.lines if line.startswith("train: ")))
    for line, expected in zip(found.lines[train + 1 :], described, strict=False):
        assert re.search(expected, line), line
    assert any(line.startswith("validation: ") for line in found.lines)


ITEM = "    def __getitem__(self, index):\n"
FAULTY_ITEM = "\nclass Dataset(Dataset):\n" + ITEM + "        good = super().__getitem__(index)\n        return {}\n"


@pytest.mark.parametrize(
    ("extra", "fault"),
    [
        (
            FAULTY_ITEM.format("(good[0] + (np.inf if index == 4 else 0), 0)"),
            "train item 4: [0] has 4,800 of 4,800 values that are not finite",
        ),
        (FAULTY_ITEM.format("good if index != 7 else (good[0][:0], 0)"), "train item 7: [0] is empty, of shape (0,)"),
        (FAULTY_ITEM.format("good if index != 7 else (good[0], None)"), "7 is ([0] float32 with 1 axes, [1] NoneType"),
        (FAULTY_ITEM.format("good if index != 7 else good[:1]"), "and item 0 ([0] float32 with 1 axes, [1] int with 0"),
        (FAULTY_ITEM.format("{'audio': np.full(2, np.inf)}"), "train item 20: audio has 2 of 2 values that are not"),
        (FAULTY_ITEM.format("float('nan')"), "train item 0: item has 1 of 1 values that are not finite"),
        (FAULTY_ITEM.format("None"), "train item 0: item is None"),
        (FAULTY_ITEM.format("good if index < 11 else 1 / 0"), "train item 11 cannot be read: ZeroDivisionError: "),
        ("    target_shape = (3, 0.5)", "target_shape is (3, 0.5): it should be a list of sizes, such as [16000]"),
        ("    sample_shape = '16000'", "sample_shape is '16000': it should be a list of sizes, such as [16000]"),
        ("    sample_shape = property(lambda self: 1 / 0)", "sample_shape cannot be read: ZeroDivisionError: "),
        ("    corpus = 3", "corpus is 3: it should be a name in ASCII"),
        ("    dataset_description = None", "dataset_description is a NoneType: it should be a string"),
        ("    del dataset_description", "dataset_description cannot be read: AttributeError: "),
        ("    del get_dataset", "the split 'validation' cannot be opened: AttributeError: "),
        ("    get_dataset = dict", "the split 'train' cannot be opened: ValueError: "),
        ("    def get_dataset(self, dataset_type): pass", "the split 'train' cannot be opened: TypeError: object of"),
        ("    def get_dataset(self, dataset_type): return []", "the split 'train' has no items: an envoy needs some"),
        ("    def __init__(self): open('recordings.csv')", "the shard cannot be built: FileNotFoundError: [Errno 2]"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_shard_is_said(check, extra, fault):
    found = check(extra)
    assert any(fault in sentence for sentence in found.faults), found.faults


def test_a_fault_in_the_site_s_code_is_named_with_its_line(check, tmp_path):
    found = check("    def __init__(self): int('x')")
    number = SHARD.split("{extra}")[0].count("\n") + 1
    assert found.faults == [
        "the shard cannot be built: ValueError: invalid literal for int() with base 10: 'x' "
        f"({tmp_path / 'my_shard.py'}, line {number})"
    ]


def test_one_item_that_cannot_be_read_leaves_the_others_described(check):
    found = check(FAULTY_ITEM.format("good if index != 7 else 1 / 0"))
    assert len(found.faults) == 2  # in train and validation
    assert "  [1]: integer, classes 0 (3), 1 (3), 2 (3)" in found.lines


def test_a_shard_without_validation_items_can_train(check):
    found = check("    def get_dataset(self, dataset_type): return Dataset() if dataset_type == 'train' else []")
    assert found.faults == []
    assert found.lines[-1] == "validation: no items"


@pytest.mark.parametrize("size", [1, 3, ITEMS, ITEMS + 1])
def test_no_item_is_read_twice(check, size):
    reads = "        reads.append(index); assert len(reads) == len(set(reads)) <= 10\n        return index"
    dataset = f"\nclass Counted:\n    def __init__(self): self.reads = []\n    def __len__(self): return {size}\n"
    dataset += f"    def __getitem__(self, index):\n        reads = self.reads\n{reads}\n"
    found = check(f"{dataset}\nclass Shard(Shard):\n    def get_dataset(self, dataset_type): return Counted()")
    assert found.faults == []
    assert f"train: {size} items; read 0" in "\n".join(found.lines)


def test_a_corpus_that_cannot_be_used_is_the_corpus_s_own_sentence(check, tmp_path):
    found = check(template="shard_descriptors.superb.SuperbShardDescriptor", data_path=str(tmp_path / "nothing"))
    assert len(found.faults) == 1
    assert found.faults[0].startswith("the shard cannot be built: data_path: ")
    assert "(" not in found.faults[0].rpartition("nothing")[0]


def test_settings_that_are_wrong_are_refused(check):
    with pytest.raises(SettingsError, match=r"template 'nothing\.Shard' cannot be imported"):
        check(template="nothing.Shard")
    with pytest.raises(SettingsError, match=r"params do not fit my_shard\.Shard"):
        check(folder="here")


def test_tensors_are_described_as_arrays(check):
    found = check("\nimport torch\n" + FAULTY_ITEM.format("(torch.from_numpy(good[0]), torch.tensor(good[1]))"))
    assert found.faults == []
    assert "  [1]: integer, classes 0 (3), 1 (4), 2 (3)" in found.lines


def test_checking_a_shard_imports_no_torch():
    code = "import sys, openfl_audio.envoy.check; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_values_without_any_finite_one_are_described(check):
    found = check(FAULTY_ITEM.format("(good[0] * np.nan, 0)"))
    assert len(found.faults) == 2 * ITEMS
    assert any("values nan" in line for line in found.lines)
