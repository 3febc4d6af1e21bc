"""The hash of a submission: what changes it, what does not, and who signed it."""

import json

import numpy as np
import pytest
import yaml

from openfl_audio.errors import ArchiveError, CertificateError
from openfl_audio.protocol.authority import write_certificates
from openfl_audio.protocol.bundle import describe_model, fingerprint, read_bundle, sign_bundle, verify_author
from openfl_audio.protocol.certificates import load_credentials
from openfl_audio.protocol.plan import (
    AUTHOR_FILE,
    MODEL_FILE,
    OBJECTS_FILE,
    PLAN_FILE,
    PUBLIC_PLAN_FILE,
    ExperimentPlan,
)

TASK = {"name": "train", "function_name": "train", "task_type": "train"}
TENSORS = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3)}


def openfl_plan(**settings):
    experiment = {"name": "one", "seed": 0, "submission": "x", "precision": "float32", **settings}
    network = {"agg_addr": "localhost", "agg_port": 50051, "tls": True}
    return {
        "experiment": {"settings": experiment},
        "aggregator": {"settings": {"rounds_to_train": 3}},
        "network": {"settings": network},
        "collaborator": {"settings": {"opt_treatment": "RESET"}},
    }


def plan(**changes):
    best = {"metric": "accuracy", "direction": "max"}
    values = {"name": "one", "federation_uuid": "uuid", "rounds": 3, "tasks": [TASK], "best": best}
    return ExperimentPlan(**values | changes)


def files(**changes):
    """The files of a submission; `changes` are other contents by a name without its ending."""
    made = {
        PLAN_FILE: yaml.safe_dump(openfl_plan()).encode(),
        PUBLIC_PLAN_FILE: plan().model_dump_json().encode(),
        MODEL_FILE: describe_model(TENSORS, "float32").model_dump_json().encode(),
        OBJECTS_FILE: json.dumps({"model": 1, "data": 1, "tasks": []}).encode(),
        "package/tasks.py": b"def train(): ...\n",
        "tasks_obj.pkl": b"pickle",
    }
    return made | changes


def write(folder, content):
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


SAME = {
    "name, seed and address": {
        PLAN_FILE: yaml.safe_dump(openfl_plan(name="two", seed=1, submission="y")).replace("50051", "1").encode()
    },
    "the plan's name, id, seed and rounds": {
        PUBLIC_PLAN_FILE: plan(name="two", federation_uuid="other", rounds=9, participation={"seed": 4})
        .model_dump_json()
        .encode()
    },
    "pickles": {"tasks_obj.pkl": b"other"},
    "the author": {AUTHOR_FILE: b"{}"},
}
OTHER = {
    "a source": {"package/tasks.py": b"def train(): return\n"},
    "a new file": {"package/more.py": b""},
    "the objects": {OBJECTS_FILE: b'{"model": 2, "data": 1, "tasks": []}'},
    "the initial model": {
        MODEL_FILE: describe_model({"weight": TENSORS["weight"] + 1}, "float32").model_dump_json().encode()
    },
    "a setting of the worker": {PLAN_FILE: yaml.safe_dump(openfl_plan(precision="float16")).encode()},
    "the aggregation": {PUBLIC_PLAN_FILE: plan(aggregation={"max_share": 0.5}).model_dump_json().encode()},
}


@pytest.mark.parametrize("changes", SAME.values(), ids=SAME)
def test_what_may_change_leaves_the_hash(changes):
    assert fingerprint(files() | changes) == fingerprint(files())


@pytest.mark.parametrize("changes", OTHER.values(), ids=OTHER)
def test_what_decides_changes_the_hash(changes):
    assert fingerprint(files() | changes) != fingerprint(files())


def test_a_name_cannot_take_the_place_of_a_content():
    assert fingerprint({"a": b"b\0c"}) != fingerprint({"a\0b": b"c"})


def test_a_bundle_is_read_with_its_model(tmp_path):
    write(tmp_path, files())
    bundle = read_bundle(tmp_path)
    assert bundle.sha256 == fingerprint(files())
    assert bundle.plan.rounds == 3
    assert bundle.model.tensors == {"weight": ("<f4", (2, 3))}
    assert bundle.model.n_bytes == 24


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({OBJECTS_FILE: b'{"missing": "task x is a lambda"}'}, "pickled code objects, which cannot be shown: task x"),
        ({OBJECTS_FILE: b"{"}, "objects.json is not JSON"),
        ({"package/fast.so": b""}, "'package/fast.so' is compiled code"),
        ({"package/__pycache__/a.pyc": b""}, "is compiled code"),
        ({"package/a.py": b"# -*- coding: utf-7 -*-\n"}, "declares another encoding than UTF-8"),
        ({"package/a.py": b"\xff"}, "'package/a.py' is not UTF-8 at byte 0"),
        ({"package/a.py": "x = 1 # \u202e".encode()}, "characters that reorder text"),
        ({PUBLIC_PLAN_FILE: b"{}"}, "is no plan|cannot be read"),
        ({PLAN_FILE: b"a: b"}, "plan/plan.yaml is no plan of an experiment"),
    ],
)
def test_what_cannot_be_shown_is_refused(tmp_path, changes, sentence):
    write(tmp_path, files() | changes)
    with pytest.raises(ArchiveError, match=sentence):
        read_bundle(tmp_path)


def test_a_submission_of_an_earlier_version_is_refused(tmp_path):
    write(tmp_path, {"tasks_obj.pkl": b"pickle"})
    with pytest.raises(ArchiveError, match="earlier version"):
        read_bundle(tmp_path)


def test_a_signature_is_of_a_user_of_the_authority_and_of_this_submission(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        write_certificates(folder, director_hosts=[], envoys=["site"], users=["ada"])
    own = load_credentials(ours, "ada")
    bundle_folder = tmp_path / "bundle"

    def signed(by, rounds=3):
        author = sign_bundle(fingerprint(files()), rounds, by, "ada")
        write(bundle_folder, files() | {AUTHOR_FILE: author.model_dump_json().encode()})
        return read_bundle(bundle_folder)

    name, key = verify_author(signed(own), own.root)
    assert name == "ada"
    assert len(key) == 64
    for other, sentence in (
        (signed(own, rounds=2), "is not one of this submission"),
        (signed(load_credentials(theirs, "ada")), "was not signed by the authority"),
        (signed(load_credentials(ours, "site")), "signed by envoy 'site', and not by a user"),
        (signed(None), "is not signed"),
    ):
        with pytest.raises(CertificateError, match=sentence):
            verify_author(other, own.root)
