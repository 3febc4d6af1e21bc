"""The SUPERB shard descriptor on a copy of the hub's dataset."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from shard_descriptors.common.errors import CorpusError
from shard_descriptors.superb import SuperbShardDescriptor
from shard_descriptors.superb.layout import LABELS, SILENCE, read_corpus, read_folder
from tests.unit.shard_descriptors.superb_shards import REPOSITORY, all_shards, descriptor, silence_of, starts

pytestmark = pytest.mark.process


def write_hub_copy(
    corpus, folder: Path, names: tuple[str, ...], columns=("file", "audio", "label"), noise=True
) -> None:
    """SUPERB's `ks` as `hf download` leaves it: README.md and ks/*.parquet with the bytes of each file."""
    import datasets

    (folder / "ks").mkdir(parents=True)
    lines = ["---", "configs:", "- config_name: ks", "  data_files:"]
    features = datasets.Features(
        {
            "file": datasets.Value("string"),
            "audio": datasets.Audio(sampling_rate=16_000),
            "label": datasets.ClassLabel(names=list(names)),
        }
    )
    local = read_folder(corpus.root, seed=0)
    for split, all_clips in local.splits.items():
        clips = [clip for clip in all_clips if noise or clip.label != SILENCE]
        rows = {
            "file": [f"/somebody/cache/{clip.file}" for clip in clips],
            "audio": [{"bytes": (corpus.root / clip.file).read_bytes(), "path": None} for clip in clips],
            "label": [names.index(LABELS[clip.label]) for clip in clips],
        }
        # By pyarrow: `datasets` writes audio with torchcodec. The schema carries its column types, as on the hub.
        table = pyarrow.Table.from_pydict(rows, schema=features.arrow_schema).select(columns)
        pyarrow.parquet.write_table(table, folder / "ks" / f"{split}-00000-of-00001.parquet")
        lines += [f"  - split: {split}", f"    path: ks/{split}-*.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_a_copy_of_the_hubs_dataset_gives_the_same_as_the_folder(corpus, tmp_path, hub_cache, frequency_of):
    shuffled = tuple(reversed(LABELS))  # labels go by name, not by number
    write_hub_copy(corpus, tmp_path / "superb", names=shuffled)
    shards = [SuperbShardDescriptor(str(tmp_path / "superb"), f"{rank},3") for rank in (1, 2, 3)]
    for shard, shard_of_folder in zip(shards, all_shards(corpus, 3), strict=True):
        for split in ("train", "validation", "test"):
            dataset, expected = shard.get_dataset(split), shard_of_folder.get_dataset(split)
            assert len(dataset) > 0
            assert (dataset.files, dataset.speakers) == (expected.files, expected.speakers)
            assert dataset.labels.tolist() == expected.labels.tolist()
            for i in np.flatnonzero(dataset.labels != SILENCE):
                assert frequency_of(dataset[i][0]) == corpus.tones[dataset.files[i]]
    assert "an incomplete Speech Commands (68 / 20 / 19 in all" in shards[0].summary


def test_whole_noise_files_from_the_hub_are_cut_at_random_in_train(corpus, tmp_path, hub_cache):
    write_hub_copy(corpus, tmp_path / "superb", names=LABELS)
    dataset = SuperbShardDescriptor(str(tmp_path / "superb")).get_dataset("train")
    assert starts(dataset, 4) == starts(descriptor(corpus).get_dataset("train"), 4)
    assert len(set(starts(dataset, 4))) == 4


def test_silence_can_be_a_share_of_a_copy_of_the_hubs_dataset_too(corpus, tmp_path, hub_cache):
    write_hub_copy(corpus, tmp_path / "superb", names=LABELS)
    dataset = SuperbShardDescriptor(str(tmp_path / "superb"), "2,3", silence_share=0.5).get_dataset("train")
    assert silence_of(dataset) == silence_of(
        descriptor(corpus, rank_worldsize="2,3", silence_share=0.5).get_dataset("train")
    )


def test_a_share_of_silence_of_a_corpus_without_noise_files_raises(corpus, tmp_path, hub_cache):
    write_hub_copy(corpus, tmp_path / "superb", names=LABELS, noise=False)
    folder = str(tmp_path / "superb")
    sentence = "silence_share: 0.1 is cut out of noise files, and .*/superb has none of them$"
    with pytest.raises(CorpusError, match=sentence):
        SuperbShardDescriptor(folder, silence_share=0.1)
    with pytest.raises(CorpusError, match=sentence):
        SuperbShardDescriptor.clips_per_client(folder, 3, silence_share=0.1)
    assert len(SuperbShardDescriptor(folder).get_dataset("train")) == 65


def test_a_copy_of_the_hubs_dataset_is_read_again_when_its_tables_change(corpus, tmp_path, hub_cache):
    write_hub_copy(corpus, tmp_path / "superb", names=LABELS)
    first = read_corpus(tmp_path / "superb", 0)
    assert read_corpus(tmp_path / "superb", 0) is first
    os.utime(tmp_path / "superb" / "ks" / "test-00000-of-00001.parquet", (0, 0))
    assert read_corpus(tmp_path / "superb", 0) is not first


def test_a_hub_dataset_with_other_columns_raises(corpus, tmp_path, hub_cache):
    write_hub_copy(corpus, tmp_path / "superb", names=LABELS, columns=("audio", "label"))
    with pytest.raises(CorpusError, match="is not SUPERB's ks: split train lacks file"):
        SuperbShardDescriptor(str(tmp_path / "superb"))


def test_a_hub_dataset_with_other_labels_raises(corpus, tmp_path, hub_cache):
    write_hub_copy(corpus, tmp_path / "superb", names=(*LABELS, "maybe"))
    with pytest.raises(CorpusError, match="the labels maybe are none of SUPERB's: yes, no"):
        SuperbShardDescriptor(str(tmp_path / "superb"))


def test_a_copy_without_its_readme_raises(corpus, tmp_path, hub_cache):
    write_hub_copy(corpus, tmp_path / "superb", names=LABELS)
    (tmp_path / "superb" / "README.md").unlink()
    with pytest.raises(
        CorpusError, match=r"superb has ks/\*.parquet, but is no copy of SUPERB's dataset with its README"
    ):
        SuperbShardDescriptor(str(tmp_path / "superb"))


def test_a_hub_name_without_network_and_cache_says_how_to_get_it(tmp_path):
    code = (
        "from shard_descriptors.common.errors import CorpusError\n"
        "from shard_descriptors.superb import SuperbShardDescriptor\n"
        "try: SuperbShardDescriptor('s3prl/superb')\n"
        "except CorpusError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith(
        "data_path: s3prl/superb is no folder here, and the Hugging Face hub did not give a dataset of that name (Conn"
    )
    assert "run `hf download s3prl/superb --repo-type dataset" in run.stdout
    assert run.stdout.rstrip().endswith("or give a Speech Commands folder")
    assert run.stdout.count("\n") == 1
