"""A codebook for nodes on several machines: fitted by one command over a real director, carried as a file."""

import contextlib
import io

import numpy as np
import pytest

from openfl_audio.cli.main import main
from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.protocol.authority import write_certificates
from shard_descriptors.librispeech.preparation import prepare_librispeech
from tests.unit.shard_descriptors.librispeech_corpus import make_corpus
from workspaces.hubert_codebooks.features import Mfcc
from workspaces.hubert_codebooks.targets import make_targets

pytestmark = pytest.mark.slow

CLIENTS = [f"client-{number}" for number in (1, 2, 3)]
ROUNDS, CLUSTERS = 4, 8


def run(*arguments: object) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([str(argument) for argument in arguments]) == 0
    return printed.getvalue()


def test_a_codebook_from_a_director_is_that_of_the_simulation_and_so_are_its_targets(tmp_path):
    prepared = tmp_path / "prepared"
    prepare_librispeech(make_corpus(tmp_path / "LibriSpeech").root, prepared, len(CLIENTS))
    make_targets(prepared, "federated", CLUSTERS, Mfcc(), "simulated", rounds=ROUNDS)
    certificates = tmp_path / "certificates"
    write_certificates(certificates, director_hosts=["127.0.0.1"], envoys=CLIENTS, users=["ada"])
    codebook = tmp_path / "codebook.npz"
    with LocalFederation(tmp_path / "federation", certificates, "ada") as processes:
        processes.start_director()
        for number, name in enumerate(CLIENTS, 1):
            params = {"data_path": str(prepared), "rank_worldsize": f"{number},{len(CLIENTS)}"}
            template = "shard_descriptors.librispeech.LibriSpeechShardDescriptor"
            processes.start_envoy(name, {"template": template, "params": params})
        processes.wait_until_ready(CLIENTS, 120)
        connection = ("--director", f"127.0.0.1:{processes.port}", "--user", "ada", "--certificates", certificates)
        fit = ("data", "prepare", "hubert-codebook", *connection, "--rounds", ROUNDS, "--clusters", CLUSTERS)
        printed = run(*fit, "--out", codebook)
        assert printed.endswith(f"{codebook}: {CLUSTERS} clusters of mfcc39\n")
        # Once more: the experiment is there, and is taken up.
        run(*fit, "--out", tmp_path / "again.npz")
    with np.load(codebook) as file, np.load(tmp_path / "again.npz") as again:
        centroids = file["centroids"]
        np.testing.assert_array_equal(again["centroids"], centroids)
    with np.load(prepared / "targets" / "simulated" / "codebook.npz") as simulated:
        np.testing.assert_array_equal(centroids, simulated["centroids"])

    printed = run("data", "prepare", "hubert-targets", "--data", prepared, "--codebook", codebook)
    assert printed.startswith("file codebook of mfcc39: 8 clusters")
    made = prepared / "targets" / "codebook-mfcc39-8"
    files = sorted(path.name for path in made.glob("*.i16"))
    assert len(files) > len(CLIENTS)
    for name in files:
        assert (made / name).read_bytes() == (prepared / "targets" / "simulated" / name).read_bytes()
