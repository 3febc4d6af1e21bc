"""Attempts of a director or an envoy to learn more: each is found, in one sentence, with nothing unmasked."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from openfl_audio.errors import SecureAggregationError
from openfl_audio.privacy.participant import TENSORS, Participant
from openfl_audio.privacy.transcript import (
    Agreement,
    CertificateIdentity,
    Keys,
    Stage,
    Unmasking,
    roster_digest,
    survivors_statement,
)
from openfl_audio.protocol.authority import write_certificates
from openfl_audio.protocol.certificates import load_credentials, owner_of
from tests.unit.privacy.attempts import NAMES, Attempt, Ledger, context_of

Identities = dict[str, CertificateIdentity]
FIVE = NAMES[:5]


def swapped(keys: Keys, **changes: object) -> Keys:
    return keys.model_copy(update=changes)


def with_changed(attempt: Attempt, name: str, **changes: object) -> list[Keys]:
    """Return the roster with other keys of one envoy."""
    return [swapped(keys, **changes) if keys.envoy == name else keys for keys in attempt.roster()]


@pytest.fixture
def attempt(identities: Identities) -> Attempt:
    """Return an attempt of five envoys whose keys are there."""
    attempt = Attempt(identities, FIVE)
    attempt.run_until(Stage.SHARES)
    return attempt


Change = Callable[[Attempt], list[Keys]]
ROSTERS: dict[str, tuple[Change, str]] = {
    "swapped mask key": (
        lambda attempt: with_changed(attempt, "site-b", mask_key="11" * 32),
        "signature of envoy 'site-b' is none of this experiment, plan, round, model, attempt",
    ),
    "swapped encryption key": (
        lambda attempt: with_changed(attempt, "site-b", encryption_key="11" * 32),
        "signature of envoy 'site-b' is none",
    ),
    "other metrics": (
        lambda attempt: with_changed(attempt, "site-b", metrics={"validate": ["names"]}),
        "signature of envoy 'site-b' is none",
    ),
    "one's own keys swapped": (
        lambda attempt: with_changed(attempt, "site-a", mask_key="11" * 32),
        "the keys of envoy 'site-a' itself were swapped",
    ),
    "signed by another envoy": (
        lambda attempt: with_changed(attempt, "site-b", certificate=attempt.roster()[2].certificate),
        "keys of envoy 'site-b' are signed by envoy site-c",
    ),
    "keys of one envoy for two": (
        lambda attempt: [
            *attempt.roster()[:4], swapped(attempt.roster()[1], envoy="site-e")
        ],
        "two envoys have the same encryption_key",
    ),
    "one envoy twice": (lambda attempt: [*attempt.roster(), attempt.roster()[1]], "keys of one envoy twice"),
    "a stranger": (
        lambda attempt: [*attempt.roster()[:4], swapped(attempt.roster()[4], envoy="nobody")],
        r"keys of \['nobody'\]",
    ),
    "all but two claimed lost": (
        lambda attempt: attempt.roster()[:2],
        "keys of 2 envoys, and of 5 there must be 4",
    ),
    "without this envoy": (lambda attempt: attempt.roster()[1:], "has given up envoy 'site-a'"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROSTERS)
def test_roster_that_is_not_right_is_found(attempt: Attempt, name: str) -> None:
    change, sentence = ROSTERS[name]
    with pytest.raises(SecureAggregationError, match=sentence):
        attempt.participants["site-a"].share(change(attempt))
    # The attempt is over for it: the right roster comes too late.
    with pytest.raises(SecureAggregationError, match="stage SHARES comes when UPDATE is next"):
        attempt.participants["site-a"].share(attempt.roster())


@pytest.mark.parametrize(
    "changes",
    [
        {"attempt": 2},
        {"round": 5},
        {"experiment": "other"},
        {"plan_sha256": "cd" * 32},
        {"model_sha256": "cd" * 32},
        {"participants": NAMES[:6]},
        {"settings": {"bits": 16}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_keys_of_anything_else_cannot_be_replayed(identities: Identities, changes: dict[str, object]) -> None:
    names = changes.get("participants", FIVE)
    before, now = Attempt(identities, FIVE), Attempt(identities, list(names), **changes)  # type: ignore[call-overload]
    before.run_until(Stage.SHARES)
    now.run_until(Stage.SHARES)
    replayed = [before.roster()[1] if keys.envoy == "site-b" else keys for keys in now.roster()]
    with pytest.raises(SecureAggregationError, match="signature of envoy 'site-b' is none of this experiment"):
        now.participants["site-a"].share(replayed)


def test_certificates_of_others_and_revoked_ones_are_found(tmp_path: Path, identities: Identities) -> None:
    write_certificates(tmp_path, director_hosts=[], envoys=["site-b"], users=["site-c"])
    own = CertificateIdentity(load_credentials(tmp_path, "site-b"))
    statement = b"statement"
    other = identities["site-a"]
    with pytest.raises(SecureAggregationError, match="certificate of envoy 'site-b' was not signed by the authority"):
        other.check("site-b", own.certificate, own.sign(statement), statement)
    user = CertificateIdentity(load_credentials(tmp_path, "site-c"))
    with pytest.raises(SecureAggregationError, match="keys of envoy 'site-c' are signed by user site-c"):
        own.check("site-c", user.certificate, user.sign(statement), statement)
    serial = owner_of(own.certificate.encode()).serial
    strict = CertificateIdentity(load_credentials(tmp_path, "site-b"), revoked=[serial])
    with pytest.raises(SecureAggregationError, match="certificate of envoy 'site-b' is revoked"):
        strict.check("site-b", own.certificate, own.sign(statement), statement)


def test_different_rosters_are_found_before_an_update_is_masked(identities: Identities, attempt: Attempt) -> None:
    # Two rosters that are right by themselves: site-e is in one of them only.
    four = attempt.roster()[:4]
    sealed = {name: attempt.participants[name].share(four) for name in FIVE[:2]}
    sealed |= {name: attempt.participants[name].share(attempt.roster()) for name in FIVE[2:]}
    with pytest.raises(SecureAggregationError, match="sealed shares cannot be opened: keys or participants"):
        attempt.participants["site-a"].masks(
            {name: each.sealed["site-a"] for name, each in sealed.items() if name in FIVE[:4]}
        )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda sealed: sealed | {"site-b": sealed["site-c"]}, "sealed shares cannot be opened"),
        (lambda sealed: {name: sealed[name] for name in FIVE[:3]}, "shares of 3 envoys, and of 5 there must be 4"),
        (lambda sealed: {name: sealed[name] for name in FIVE[1:]}, "has given up envoy 'site-a'"),
        (lambda sealed: sealed | {"nobody": sealed["site-b"]}, r"shares of \['nobody'\]"),
    ],
)
def test_shares_that_are_not_right_are_found(
    attempt: Attempt, change: Callable[[dict[str, str]], dict[str, str]], sentence: str
) -> None:
    attempt.run_stage(Stage.SHARES, FIVE)
    with pytest.raises(SecureAggregationError, match=sentence):
        attempt.participants["site-a"].masks(change(attempt.coordinator.sealed_for("site-a")))


def test_different_survivors_told_to_different_envoys_are_found(attempt: Attempt) -> None:
    attempt.run_stage(Stage.SHARES, FIVE)
    attempt.run_stage(Stage.UPDATE, FIVE)
    without_e, without_d = FIVE[:4], [*FIVE[:3], "site-e"]
    signed = {}
    for name, told in zip(FIVE[:4], (without_e, without_e, without_d, without_e), strict=True):
        if name in told:
            signed[name] = attempt.participants[name].agree(told, Ledger().judge)
    ledger = Ledger()
    with pytest.raises(SecureAggregationError, match="signature of envoy 'site-c' is none of this experiment"):
        attempt.participants["site-a"].unmask([*signed.values()], ledger.commit)
    assert not ledger.unmasked


def test_different_sharers_told_to_different_envoys_are_found(attempt: Attempt) -> None:
    attempt.run_stage(Stage.SHARES, FIVE)
    for name in FIVE[:4]:
        sealed = (
            attempt.coordinator.sealed_for(name)
            if name == "site-b"
            else {sender: text for sender, text in attempt.coordinator.sealed_for(name).items() if sender != "site-e"}
        )
        attempt.participants[name].masks(sealed)
    signed = [attempt.participants[name].agree(FIVE[:4], Ledger().judge) for name in FIVE[:4]]
    with pytest.raises(SecureAggregationError, match="signature of envoy 'site-b' is none"):
        attempt.participants["site-a"].unmask(signed, Ledger().commit)


def test_too_few_or_forged_signatures_unmask_nothing(identities: Identities, attempt: Attempt) -> None:
    attempt.run_stage(Stage.SHARES, FIVE)
    attempt.run_stage(Stage.UPDATE, FIVE)
    signed = [attempt.participants[name].agree(FIVE[:4], Ledger().judge) for name in FIVE[:4]]
    ledger = Ledger()
    with pytest.raises(
        SecureAggregationError, match="signatures of the survivors of 3 envoys, and of 5 there must be 4"
    ):
        attempt.participants["site-a"].unmask(signed[:3], ledger.commit)
    # The director has site-e's signature forged by a colluder.
    statement = survivors_statement(roster_digest(attempt.context, attempt.roster()), FIVE, FIVE[:4])
    forged = Agreement(envoy="site-d", signature=identities["site-e"].sign(statement))
    with pytest.raises(SecureAggregationError, match="signature of envoy 'site-d' is none"):
        attempt.participants["site-b"].unmask([*signed[:3], forged], ledger.commit)
    assert not ledger.unmasked


def test_both_kinds_of_shares_are_given_to_nobody(attempt: Attempt) -> None:
    attempt.run_stage(Stage.SHARES, FIVE)
    attempt.run_stage(Stage.UPDATE, FIVE[:4])
    attempt.run_stage(Stage.AGREEMENT, FIVE)
    attempt.run_stage(Stage.UNMASKING, FIVE)
    for unmasking in attempt.unmaskings.values():
        assert {*unmasking.self_masks} == {*FIVE[:4]}
        assert {*unmasking.mask_keys} == {"site-e"}
    # Asked again, as if others had survived, with signatures that were right.
    with pytest.raises(SecureAggregationError, match="stage AGREEMENT comes when DONE is next"):
        attempt.participants["site-a"].agree([*FIVE[:3], "site-e"], Ledger().judge)
    with pytest.raises(SecureAggregationError, match="stage UNMASKING comes when DONE is next"):
        attempt.participants["site-a"].unmask([*attempt.coordinator.agreements.values()], Ledger().commit)


def test_all_but_one_cannot_be_claimed_lost(attempt: Attempt) -> None:
    attempt.run_stage(Stage.SHARES, FIVE)
    attempt.run_stage(Stage.UPDATE, FIVE)
    with pytest.raises(SecureAggregationError, match="updates of 1 envoys, and of 5 there must be 4"):
        attempt.participants["site-a"].agree(["site-a"], Ledger().judge)


def test_round_asked_again_with_one_site_fewer_is_refused(identities: Identities) -> None:
    first = Attempt(identities, FIVE)
    first.run()
    again = Attempt(identities, FIVE, first.ledgers, attempt=2)
    with pytest.raises(SecureAggregationError, match="another set of survivors"):
        again.run({Stage.UPDATE: ["site-b"]})
    assert not again.unmaskings
    assert not again.coordinator.agreements
    # The same survivors once more tell nothing new.
    np.testing.assert_array_equal(Attempt(identities, FIVE, first.ledgers, attempt=3).run(), first.sum())


def test_survivors_are_judged_before_signing_and_written_down_before_unmasking(attempt: Attempt) -> None:
    attempt.run_stage(Stage.SHARES, FIVE)
    attempt.run_stage(Stage.UPDATE, FIVE)
    attempt.run_stage(Stage.AGREEMENT, FIVE)

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        attempt.participants["site-a"].unmask([*attempt.coordinator.agreements.values()], full_disk)


def test_false_shares_of_an_envoy_are_found_by_the_director(attempt: Attempt) -> None:
    for stage in (Stage.SHARES, Stage.UPDATE, Stage.AGREEMENT, Stage.UNMASKING):
        attempt.run_stage(stage, FIVE)
    right = attempt.unmaskings["site-b"]
    false = right.model_copy(update={"self_masks": right.self_masks | {"site-c": "00" * 33}})
    attempt.coordinator._unmaskings["site-b"] = false
    with pytest.raises(SecureAggregationError, match="shares of one secret contradict each other"):
        attempt.coordinator.left_masks(TENSORS)


def test_messages_out_of_turn_are_refused_by_the_director(attempt: Attempt) -> None:
    director = attempt.coordinator
    shares = attempt.participants["site-a"].share(attempt.roster())
    director.take_shares(shares)
    with pytest.raises(SecureAggregationError, match="site-a' has sent its message of SHARES before"):
        director.take_shares(shares)
    with pytest.raises(SecureAggregationError, match="is of stage UPDATE, and SHARES is open"):
        director.take_update("site-a")
    with pytest.raises(SecureAggregationError, match="'nobody' has no part in stage SHARES"):
        director.take_shares(shares.model_copy(update={"envoy": "nobody"}))
    with pytest.raises(SecureAggregationError, match="'site-b' has shares for other envoys"):
        director.take_shares(shares.model_copy(update={"envoy": "site-b", "sealed": {"site-a": "00"}}))
    assert director.awaited == {*FIVE[1:]}
    director.give_up("site-e")
    assert director.awaited == {*FIVE[1:4]}


def test_director_takes_no_shares_of_other_secrets(attempt: Attempt) -> None:
    for stage in (Stage.SHARES, Stage.UPDATE, Stage.AGREEMENT):
        attempt.run_stage(stage, FIVE)
    empty = Unmasking(envoy="site-a", self_masks={}, mask_keys={})
    with pytest.raises(SecureAggregationError, match="'site-a' has shares of other secrets"):
        attempt.coordinator.take_unmasking(empty)


def test_envoy_without_a_part_in_the_round_sends_nothing(identities: Identities) -> None:
    with pytest.raises(SecureAggregationError, match="envoy 'site-h' has no part in it, by its plan"):
        Participant(context_of(FIVE), "site-h", identities["site-h"], {}, approves=True)
