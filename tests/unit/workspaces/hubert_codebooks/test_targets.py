"""Targets of a tiny prepared LibriSpeech: each frame's cluster is its nearest centroid, in every split and codebook."""

import shutil

import numpy as np
import pytest

from openfl_audio.errors import FolderInUseError
from shard_descriptors.common.errors import CorpusError
from shard_descriptors.librispeech import LibriSpeechShardDescriptor
from shard_descriptors.librispeech.preparation import prepare_librispeech
from shard_descriptors.librispeech.store import SPLITS
from tests.unit.shard_descriptors.librispeech_corpus import make_corpus
from workspaces.hubert.model import create_hubert, save_model
from workspaces.hubert_codebooks.codebook_file import FitSettings, write_codebook
from workspaces.hubert_codebooks.features import HiddenStates, Mfcc
from workspaces.hubert_codebooks.targets import CODEBOOKS, make_targets, make_targets_of, summarize

pytestmark = pytest.mark.training

CLIENTS = 3
SETTINGS = np.array('{"mfcc": 39, "clusters": 8, "rounds": 5, "share": 1.0, "seed": 0}')


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus") / "LibriSpeech")


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory):
    """Prepare a folder with targets of all three codebooks."""
    out = tmp_path_factory.mktemp("prepared") / "three"
    prepare_librispeech(corpus.root, out, CLIENTS)
    for codebook in CODEBOOKS:
        make_targets(out, codebook, clusters=8, features=Mfcc(), rounds=5)
    return out


@pytest.fixture
def own_prepared(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "three")
    return tmp_path / "three"


def centroids(prepared, name: str, client: int) -> np.ndarray:
    folder = prepared / "targets" / name
    path = folder / f"codebook_{client}.npz"
    return np.load(path if path.is_file() else folder / "codebook.npz")["centroids"]


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_a_target_is_the_centroid_nearest_to_its_frame(prepared, codebook):
    name = f"{codebook}-mfcc39-8"
    splits = ("train", "validation") if codebook == "client" else SPLITS
    for client in range(1, CLIENTS + 1):
        shard = LibriSpeechShardDescriptor(prepared, f"{client},{CLIENTS}", targets=name)
        codes = centroids(prepared, name, client)
        assert len(codes) == 8
        for split in splits:
            dataset = shard.get_dataset(split)
            assert dataset.targets_info == {"codebook": codebook, "clusters": 8, "feature": "mfcc39"}
            for waveform, targets in (dataset[i] for i in range(len(dataset))):
                frames = Mfcc()(waveform)
                nearest = ((frames[:, None] - codes) ** 2).sum(axis=2).argmin(axis=1)
                assert targets.tolist() == nearest.tolist()


def test_clients_share_a_codebook_unless_each_has_its_own(prepared):
    own = [centroids(prepared, "client-mfcc39-8", client) for client in (1, 2)]
    assert np.abs(own[0] - own[1]).max() > 1
    shared = [centroids(prepared, "federated-mfcc39-8", client) for client in (1, 2)]
    np.testing.assert_array_equal(*shared)


def test_all_train_frames_are_fitted_whatever_the_codebook(prepared):
    train = LibriSpeechShardDescriptor(prepared).get_dataset("train")
    for codebook in CODEBOOKS:
        info = make_targets(prepared, codebook, 8, Mfcc(), rounds=5)  # is there, and is read
        assert info["frames"] == sum(of["frames"] for of in info["codebooks"]) == train.num_frames.sum()
        assert len(info["codebooks"]) == (CLIENTS if codebook == "client" else 1)
        codes = {client: centroids(prepared, f"{codebook}-mfcc39-8", client) for client in range(1, CLIENTS + 1)}
        errors = []
        for client, of_client in codes.items():
            dataset = LibriSpeechShardDescriptor(prepared, f"{client},{CLIENTS}").get_dataset("train")
            frames = np.concatenate([Mfcc()(dataset.read_waveform(i)) for i in range(len(dataset))])
            errors.append(((frames[:, None] - of_client) ** 2).sum(axis=2).min(axis=1))
        assert info["squared_error"] == pytest.approx(np.concatenate(errors).mean(), rel=1e-5)


def test_what_the_global_splits_lack_is_told(prepared):
    lines = summarize(make_targets(prepared, "client", 8, Mfcc()))
    assert "targets: train, validation" in lines
    assert lines[-1].startswith("dev and test have no targets: they belong to no client")
    assert "targets: train, validation, dev, test" in summarize(make_targets(prepared, "central", 8, Mfcc()))


def test_a_run_that_was_stopped_goes_on_to_the_same_targets(own_prepared):
    folder = own_prepared / "targets" / "federated-mfcc39-8"
    expected = (folder / "train_2.i16").read_bytes()
    fitted = (folder / "codebook.npz").stat().st_mtime_ns
    (folder / "targets.json").unlink()
    (folder / "train_2.i16").unlink()
    (folder / "train_2.i16.partial").write_bytes(expected[: len(expected) // 2 + 1])
    with pytest.raises(CorpusError, match="has no complete targets 'federated-mfcc39-8', it has central-"):
        LibriSpeechShardDescriptor(own_prepared, targets="federated-mfcc39-8")
    make_targets(own_prepared, "federated", 8, Mfcc(), rounds=5)
    assert (folder / "train_2.i16").read_bytes() == expected
    assert not (folder / "train_2.i16.partial").exists()
    assert (folder / "codebook.npz").stat().st_mtime_ns == fitted


def test_a_client_with_few_frames_has_fewer_clusters(prepared):
    info = make_targets(prepared, "client", 504, Mfcc(13))
    train = [LibriSpeechShardDescriptor(prepared, f"{rank},{CLIENTS}").get_dataset("train") for rank in (1, 2, 3)]
    possible = [int(dataset.num_frames.sum()) // 39 for dataset in train]
    assert [of["clusters"] for of in info["codebooks"]] == possible
    assert info["clusters"] == max(possible) < 504
    assert "504 clusters need 39 frames each, and there are fewer" in summarize(info)


def test_a_share_of_the_train_clips_is_fitted_and_every_clip_gets_targets(prepared):
    info = make_targets(prepared, "central", 4, Mfcc(13), name="tenth", share=0.1)
    train = LibriSpeechShardDescriptor(prepared, targets="tenth").get_dataset("train")
    assert 0 < info["frames"] < train.num_frames.sum() / 3
    assert [len(train.read_targets(i)) for i in range(len(train))] == train.num_frames.tolist()


def test_a_layer_of_a_model_is_clustered_too(prepared, tmp_path):
    save_model(create_hubert("hubert_small.json", clusters=8), tmp_path / "run" / "model")
    features = HiddenStates(tmp_path / "run", layer=2)
    info = make_targets(prepared, "federated", 4, features, rounds=4)
    assert info["feature"] == features.name
    name = f"federated-{features.name}-4"
    dataset = LibriSpeechShardDescriptor(prepared, targets=name).get_dataset("dev")
    frames = features(dataset.read_waveform(1))
    nearest = ((frames[:, None] - centroids(prepared, name, 1)) ** 2).sum(axis=2).argmin(axis=1)
    assert dataset.read_targets(1).tolist() == nearest.tolist()


def test_wrong_settings_are_refused_with_a_sentence(prepared):
    with pytest.raises(FolderInUseError, match="has targets with clusters 8, now it is 9: give them another name"):
        make_targets(prepared, "central", 9, Mfcc(), name="central-mfcc39-8")
    with pytest.raises(CorpusError, match="codebook: 'each' should be one of client, federated, central"):
        make_targets(prepared, "each", 9, Mfcc())
    with pytest.raises(CorpusError, match="clusters: 40000 should be from 1 to 32,767"):
        make_targets(prepared, "central", 40_000, Mfcc())
    with pytest.raises(CorpusError, match="share: 0 should be above 0, and 1 at most"):
        make_targets(prepared, "central", 8, Mfcc(), share=0)
    with pytest.raises(CorpusError, match="rounds: 1 should be 2 or more; the first only finds where to begin"):
        make_targets(prepared, "federated", 8, Mfcc(), rounds=1)


def test_batches_and_passes_of_k_means_are_options_and_belong_to_the_targets(prepared):
    chosen = {"name": "quick", "batch_size": 256, "max_iter": 1}
    make_targets(prepared, "central", 8, Mfcc(), **chosen)
    quick, usual = (centroids(prepared, name, 0) for name in ("quick", "central-mfcc39-8"))
    assert quick.shape == usual.shape
    assert not np.allclose(quick, usual)
    with pytest.raises(FolderInUseError, match="max_iter 1, now it is 2"):
        make_targets(prepared, "central", 8, Mfcc(), **chosen | {"max_iter": 2})
    with pytest.raises(CorpusError, match="batch_size: 0 should be 1 or more"):
        make_targets(prepared, "central", 8, Mfcc(), name="none", batch_size=0)


def test_targets_follow_from_a_codebook_in_a_file(own_prepared, tmp_path):
    fitted = centroids(own_prepared, "federated-mfcc39-8", 1)
    settings = FitSettings(mfcc=39, clusters=8, rounds=5, share=1.0, seed=0)
    write_codebook(tmp_path / "mine.npz", fitted, settings)
    info = make_targets_of(own_prepared, tmp_path / "mine.npz")
    as_federated = make_targets(own_prepared, "federated", clusters=8, features=Mfcc(), rounds=5)
    assert {key: info[key] for key in ("clusters", "frames", "splits", "codebooks")} == {
        key: as_federated[key] for key in ("clusters", "frames", "splits", "codebooks")
    }
    for path in (own_prepared / "targets" / "federated-mfcc39-8").glob("*.i16"):
        assert (own_prepared / "targets" / "mine-mfcc39-8" / path.name).read_bytes() == path.read_bytes()
    write_codebook(tmp_path / "mine.npz", fitted + 1, settings)
    with pytest.raises(FolderInUseError, match="sha256"):
        make_targets_of(own_prepared, tmp_path / "mine.npz")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "is no such codebook"),
        (b"text", "no codebook of openfl-audio data prepare hubert-codebook"),
        ({"centroids": np.zeros((8, 39))}, "no codebook of .*settings"),
        ({"centroids": np.zeros((8, 13)), "settings": SETTINGS}, r"shape \(8, 13\) should be \(clusters, 39\)"),
        ({"centroids": np.full((8, 39), np.nan), "settings": SETTINGS}, "finite"),
    ],
    ids=["missing", "text", "without settings", "of another width", "not finite"],
)
def test_a_file_that_is_no_codebook_is_refused_by_name(prepared, tmp_path, content, sentence):
    path = tmp_path / "mine.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises(CorpusError, match=rf"mine\.npz: .*{sentence}"):
        make_targets_of(prepared, path)
