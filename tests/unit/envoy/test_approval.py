"""Decisions of a site: kept in files, found by name or hash, and what is asked again."""

import json
from pathlib import Path

import pytest
import yaml

from openfl_audio.envoy.approval import Approvals, Desk
from openfl_audio.envoy.review import describe, review, show_characters
from openfl_audio.envoy.settings import EnvoySettings
from openfl_audio.errors import ApprovalError
from openfl_audio.protocol.authority import write_certificates
from openfl_audio.protocol.bundle import fingerprint, read_bundle, sign_bundle
from openfl_audio.protocol.certificates import load_credentials
from openfl_audio.protocol.plan import AUTHOR_FILE, PUBLIC_PLAN_FILE
from openfl_audio.protocol.privacy import SiteLevel
from openfl_audio.protocol.revocation import revoke
from openfl_audio.protocol.secure_aggregation import SecureAggregation
from tests.unit.protocol.test_bundle import files, plan, write


def submitted(folder: Path, **changes):
    """A bundle that was unpacked; its files change by name."""
    write(folder, files() | changes)
    return read_bundle(folder)


def desk_of(work_dir: Path, root: bytes | None = None, **settings):
    values = {"director_host": "127.0.0.1", "director_port": 1, "work_dir": work_dir, "approval": "ask"}
    return Desk("b", EnvoySettings(**values | settings), root)


def asked(tmp_path, name, **changes):
    desk, folder = desk_of(tmp_path / "envoys"), tmp_path / name
    bundle = submitted(folder, **changes)
    desk.approvals.ask(bundle, folder, "ada", False)
    return bundle


def named(name, rounds=3):
    return {PUBLIC_PLAN_FILE: plan(name=name, rounds=rounds).model_dump_json().encode()}


def test_a_decision_survives_a_restart_and_holds_for_fewer_rounds(tmp_path):
    bundle = asked(tmp_path, "one")
    assert desk_of(tmp_path / "envoys").judge(bundle).waits
    Approvals(tmp_path / "envoys" / "b").approve("one")
    desk = desk_of(tmp_path / "envoys")
    assert not desk.judge(bundle).waits
    assert not desk.judge(submitted(tmp_path / "two", **named("two", rounds=2))).waits
    assert desk.judge(submitted(tmp_path / "three", **named("three", rounds=4))).waits
    assert desk.judge(submitted(tmp_path / "four", **{"package/tasks.py": b"other"})).waits


def test_what_is_rejected_is_refused_with_the_reason_until_it_is_approved(tmp_path):
    bundle = asked(tmp_path, "one")
    desk = desk_of(tmp_path / "envoys")
    desk.approvals.reject(bundle.sha256[:8], "no consent")
    assert desk.judge(bundle).refused == "the site of envoy 'b' has rejected this experiment: no consent"
    desk.approvals.approve("one")
    assert not desk.judge(bundle).refused


def test_files_that_are_not_those_that_were_submitted_cannot_be_approved(tmp_path):
    bundle = asked(tmp_path, "one")
    approvals = Approvals(tmp_path / "envoys" / "b")
    (approvals.files_of(bundle.sha256) / "package/tasks.py").write_text("other")
    with pytest.raises(ApprovalError, match="are not those that were submitted"):
        approvals.approve("one")


def test_what_nobody_decided_of_is_forgotten_with_its_files_and_the_rest_is_kept(tmp_path):
    first, second = asked(tmp_path, "one"), asked(tmp_path, "two", **named("two") | {"package/tasks.py": b"2"})
    approvals = Approvals(tmp_path / "envoys" / "b")
    approvals.approve("two")
    for name in ("one", "two"):
        approvals.forget_waiting(name)
    assert approvals.waiting() == []
    assert not approvals.files_of(first.sha256).exists()
    assert approvals.files_of(second.sha256).exists()
    assert not list(approvals.folder.rglob("*.pkl")), "pickles are not shown, and not kept"


def test_an_unknown_name_and_a_hash_of_two_are_sentences(tmp_path):
    asked(tmp_path, "one")
    approvals = Approvals(tmp_path / "envoys" / "b")
    with pytest.raises(ApprovalError, match="no experiment 'other' was submitted .* one waits"):
        approvals.approve("other")
    (approvals.folder / "waiting/one.json").write_text("{")
    with pytest.raises(ApprovalError, match=r"waiting/one.json cannot be read"):
        approvals.waiting()


def test_a_list_has_hashes_with_rounds(tmp_path):
    bundle = submitted(tmp_path / "one")
    listed = tmp_path / "approved.yaml"
    desk = desk_of(tmp_path / "envoys", approval="listed", approved=listed)
    for content, allowed in (
        ({}, False),
        ({"bundles": [{"sha256": bundle.sha256}]}, True),
        ({"bundles": [{"sha256": bundle.sha256, "rounds": 3}]}, True),
        ({"bundles": [{"sha256": bundle.sha256, "rounds": 2}]}, False),
        ({"bundles": [{"sha256": "0" * 64}]}, False),
        ({"authors": ["ada"]}, False),  # nothing is signed here
    ):
        listed.write_text(yaml.safe_dump(content))
        verdict = desk.judge(bundle)
        assert (verdict.refused == "") == allowed
        assert not verdict.waits
    assert "without TLS nothing is signed) is not on the list" in verdict.refused


def test_a_listed_author_counts_until_the_certificate_is_revoked(tmp_path):
    authority, listed = tmp_path / "authority", tmp_path / "approved.yaml"
    write_certificates(authority, director_hosts=[], envoys=["b"], users=["ada"])
    listed.write_text(yaml.safe_dump({"authors": ["ada"]}))
    own = load_credentials(authority, "ada")
    author = sign_bundle(fingerprint(files()), 3, own, "ada")
    bundle = submitted(tmp_path / "one", **{AUTHOR_FILE: author.model_dump_json().encode()})
    desk = desk_of(tmp_path, own.root, approval="listed", approved=listed, certificates=authority)
    assert desk.judge(bundle).refused == ""
    assert desk.author_of(bundle)[1]
    revoke(authority, ["ada"])
    assert "the certificate of 'ada', serial " in desk.judge(bundle).refused
    assert "is revoked) is not on the list" in desk.judge(bundle).refused
    assert desk.author_of(bundle) == ("ada", ""), "and proves no user of a policy"
    listed.write_text(yaml.safe_dump({"bundles": [{"sha256": bundle.sha256}]}))
    assert desk.judge(bundle).refused == "", "the site lists it by its hash, whoever has signed it"


def test_a_review_hides_nothing_that_would_run(tmp_path):
    objects = {
        "model": {"partial": {"name": "package.tasks:make"}, "args": [{"call": "a:b", "args": [1], "state": "secret"}]},
        "data": {"new": "package.data:Clips", "state": {"dict": [["limit", 3]]}, "items": [4], "pairs": [["k", 5]]},
        "tasks": [{"function": {"name": "package.tasks:train"}, "contract": {"model": "m"}, "settings": {"dict": []}}],
    }
    source = b"x = 1\x1b[2K\n"
    asked(tmp_path, "one", **{"objects.json": json.dumps(objects).encode(), "package/tasks.py": source})
    desk = desk_of(tmp_path / "envoys", reports="steps")
    text = "\n".join(review(desk.approvals, desk._settings, desk.approvals.find("one")))
    assert "model = partial(package.tasks.make, a.b(1, state='secret'))" in text
    assert "data = package.data.Clips(limit=3, 4, 'k': 5)" in text
    assert "task package.tasks.train with model='m', and {}" in text
    assert r"x = 1\x1b[2K" in text
    assert "\x1b" not in text
    assert "1 tensors, 24 bytes" in text
    assert "setting reports: steps" in text
    assert "bandit" in text


@pytest.mark.parametrize("is_secret", [False, True])
def test_a_review_tells_what_privacy_costs_and_whom_it_trusts(tmp_path, is_secret):
    level = SiteLevel(noise_multiplier=5.0, clip=0.5, delta=1e-5)
    changes = {"rounds": 50, "privacy": level, "envoys": ["a", "b", "c", "d", "e"]}
    changes |= {"secure_aggregation": SecureAggregation()} if is_secret else {}
    asked(tmp_path, "one", **{PUBLIC_PLAN_FILE: plan().model_copy(update=changes).model_dump_json().encode()})
    desk = desk_of(tmp_path / "envoys")
    text = "\n".join(review(desk.approvals, desk._settings, desk.approvals.find(plan().name)))
    assert (
        "privacy of each site: noise_multiplier 5, clip 0.5, epsilon 7.08 at a delta of 1e-05 after all rounds" in text
    )
    trusted = "no director, but 2 honest sites of the 4 or more in a round" if is_secret else "the director, which adds"
    assert f"trusted for it: {trusted}" in text


def test_characters_that_hide_are_shown():
    assert show_characters("a\u202eb") == r"a\u202eb"
    assert describe({"float": "nan"}) == '{"float": "nan"}'


def test_a_trusted_author_is_no_approval_by_hash(tmp_path):
    bundle = asked(tmp_path, "one")
    desk = desk_of(tmp_path / "envoys")
    assert not desk.approved_by_hash(bundle)
    desk.approvals.approve("one")
    assert desk.approved_by_hash(bundle)
    assert not desk.approved_by_hash(submitted(tmp_path / "more", **named("more", rounds=4)))
    assert not desk.approved_by_hash(submitted(tmp_path / "other", **{"package/tasks.py": b"other"}))
    assert not desk_of(tmp_path / "envoys", approval="any").approved_by_hash(bundle)
    desk.approvals.reject("one", "")
    assert not desk.approved_by_hash(bundle)

    path, listed = tmp_path / "listed.yaml", {"approval": "listed", "approved": tmp_path / "listed.yaml"}
    path.write_text(yaml.safe_dump({"authors": ["ada"]}))
    assert not desk_of(tmp_path / "others", **listed).approved_by_hash(bundle)
    path.write_text(yaml.safe_dump({"bundles": [{"sha256": bundle.sha256}]}))
    assert desk_of(tmp_path / "others", **listed).approved_by_hash(bundle)
