"""Attempts among so many envoys that each shares secrets with its neighbours only."""

import random
from collections import Counter
from collections.abc import Collection, Iterable

import numpy as np
import pytest
from scipy.stats import chi2

from openfl_audio.errors import BelowThresholdError, SecureAggregationError
from openfl_audio.privacy.graph import Graph, draw
from openfl_audio.privacy.keys import derive
from openfl_audio.privacy.masks import Mask, add_masks
from openfl_audio.privacy.participant import TENSORS
from openfl_audio.privacy.replay import entry_of_sum, replay
from openfl_audio.privacy.transcript import CertificateIdentity, Keys, Stage
from openfl_audio.protocol.secure_aggregation import colluders, dropouts, neighbours, threshold
from tests.unit.privacy.attempts import MANY, NAMES, Attempt, Ledger, context_of

Identities = dict[str, CertificateIdentity]
STAGES = list(Stage)[:-1]
DRAWN, SHARES = neighbours(len(MANY))


def graph_of(commitments: Iterable[str], names: list[str] = MANY, roster: Collection[str] = MANY) -> Graph:
    """Return the graph of envoys with these commitments."""
    key = "00" * 32
    all_keys = [
        Keys(envoy=name, encryption_key=key, mask_key=key, commitment=commitment, metrics={})
        for name, commitment in zip(names, commitments, strict=True)
    ]
    return Graph(context_of(names), [keys for keys in all_keys if keys.envoy in roster])


def commitments(seed: int, names: list[str] = MANY) -> list[str]:
    generator = random.Random(seed)
    return [generator.randbytes(32).hex() for _ in names]


def reached(graph: Graph, among: Collection[str]) -> set[str]:
    """Return the envoys among some that are connected with the first of them by masks."""
    found = {min(among)}
    while True:
        more = {name for name in among if name not in found and any(graph.have_mask(name, each) for each in found)}
        if not more:
            return found
        found |= more


def sum_of(attempt: Attempt, names: Collection[str]) -> np.ndarray:
    return np.sum([attempt.updates[name] for name in names], axis=0, dtype=np.uint32)


def test_each_envoy_has_drawn_as_many_others_and_has_masks_with_them_both_ways() -> None:
    graph = graph_of(commitments(1))
    for name in MANY:
        holders = {*graph.holders(name)}
        assert name in holders
        assert len(holders) == DRAWN + 1
        assert holders <= {*MANY}
        with_mask = {other for other in MANY if graph.have_mask(name, other)}
        assert holders - {name} <= with_mask
        assert all(graph.have_mask(other, name) for other in with_mask)
        assert with_mask - holders == {other for other in MANY if name in graph.holders(other)} - holders
    assert graph.shares == SHARES


def test_honest_survivors_are_connected_whoever_colludes_and_is_lost() -> None:
    generator = random.Random(3)
    for seed in range(20):
        graph = graph_of(commitments(seed))
        names = generator.sample(MANY, len(MANY))
        bad = colluders(len(MANY))
        survivors = names[bad : threshold(len(MANY))]
        assert reached(graph, survivors) == {*survivors}
        # And no honest envoy has given away its secrets.
        assert all(len({*graph.holders(name)} & {*names[:bad]}) < SHARES for name in names[bad:])


def test_envoys_draw_others_with_every_attempt_and_each_other_one_as_often() -> None:
    first, second = graph_of(commitments(1)), graph_of(commitments(2))
    assert all(first.holders(name) != second.holders(name) for name in MANY)
    counts = Counter(
        other for seed in range(40) for each in commitments(seed) for other in draw(each, "site-00", MANY, 5)
    )
    assert counts.keys() == {*MANY[1:]}
    expected = 40 * 60 * 5 / 59
    statistic = sum((counts[name] - expected) ** 2 / expected for name in MANY[1:])
    assert statistic < chi2.isf(1e-6, 58)


def test_who_comes_last_cannot_choose_whom_an_honest_envoy_draws() -> None:
    known = commitments(1)
    graph = graph_of(known)
    for seed in range(5):
        # A director with all but one envoy tries other keys, and leaves envoys out.
        others = [known[0], *commitments(10 + seed)[1:]]
        assert {*graph_of(others).holders(MANY[0])} == {*graph.holders(MANY[0])}
    few = [MANY[0], *MANY[20:]]
    assert {*graph_of(known, roster=few).holders(MANY[0])} == {*graph.holders(MANY[0])} & {*few}


def test_up_to_fifty_all_share_with_all() -> None:
    fifty = [f"site-{number:02}" for number in range(50)]
    for names in (NAMES[:3], NAMES, fifty):
        graph = graph_of(commitments(1, names), names, names)
        assert all({*graph.holders(name)} == {*names} for name in names)
        assert graph.have_mask(names[0], names[1])
        assert not graph.have_mask(names[0], names[0])
        assert graph.shares == threshold(len(names))


@pytest.mark.training
def test_sum_of_sixty_is_known_to_the_bit_and_the_graph_is_the_same_at_each(many: Identities) -> None:
    attempt = Attempt(many, MANY)
    np.testing.assert_array_equal(attempt.run(), sum_of(attempt, MANY))
    graphs = [attempt.coordinator._graph, *(each._graph for each in attempt.participants.values())]
    for name in MANY:
        assert len({tuple(sorted(graph.holders(name))) for graph in graphs}) == 1
    # Fewer masks than pairs: those of neighbours, and the own one.
    for name in MANY:
        with_mask = [other for other in MANY if graphs[0].have_mask(name, other)]
        assert len(attempt.masks[name][TENSORS]) == 1 + len(with_mask) < len(MANY)
    # Shares are held by those that were drawn, and unmasked by them.
    for sender, shares in attempt.coordinator._shares.items():
        assert len(shares.sealed) == DRAWN + 1
        given = [name for name, unmasking in attempt.unmaskings.items() if sender in unmasking.self_masks]
        assert {*given} == {*shares.sealed}


@pytest.mark.training
@pytest.mark.parametrize(
    "stage", [stage if stage is Stage.UPDATE else pytest.param(stage, marks=pytest.mark.slow) for stage in STAGES]
)
def test_a_fifth_may_be_lost_at_any_stage(many: Identities, stage: Stage) -> None:
    lost = random.Random(int(stage)).sample(MANY, dropouts(len(MANY)))
    attempt = Attempt(many, MANY)
    total = attempt.run({stage: lost})
    survivors = [name for name in MANY if name not in lost or stage > Stage.UPDATE]
    assert attempt.coordinator.survivors == survivors
    np.testing.assert_array_equal(total, sum_of(attempt, survivors))


@pytest.mark.slow
def test_some_may_be_lost_at_every_stage(many: Identities) -> None:
    lost = {stage: MANY[4 * stage : 4 * stage + 2] for stage in STAGES}
    attempt = Attempt(many, MANY)
    total = attempt.run(lost)
    gone = {*MANY[:2], *MANY[4:6], *MANY[8:10]}
    np.testing.assert_array_equal(total, sum_of(attempt, [name for name in MANY if name not in gone]))


def without_holders(attempt: Attempt, victim: str) -> list[str]:
    """Return holders of the victim's shares without which one too few is left."""
    holders = sorted({*attempt.coordinator._graph.holders(victim)} - {victim})
    return holders[: DRAWN + 1 - (SHARES - 1)]


@pytest.mark.training
@pytest.mark.parametrize(
    "stage", [stage if stage is Stage.UPDATE else pytest.param(stage, marks=pytest.mark.slow) for stage in STAGES[1:]]
)
def test_with_too_few_holders_of_one_envoys_shares_nothing_is_unmasked(many: Identities, stage: Stage) -> None:
    attempt = Attempt(many, MANY)
    attempt.run_until(stage)
    lost = without_holders(attempt, "site-07")
    there = [name for name in MANY if name not in lost]
    assert len(there) >= threshold(len(MANY)), "enough for the sum as a whole"
    with pytest.raises(BelowThresholdError, match="holders of shares of envoy 'site-[0-9]+' are there, and"):
        attempt.run_stage(stage, there)
    assert not attempt.coordinator.is_enough
    if stage < Stage.UNMASKING:
        assert not attempt.unmaskings
    with pytest.raises(SecureAggregationError, match=f"stage {stage.name} is open, and nothing is unmasked"):
        attempt.coordinator.left_masks(TENSORS)


@pytest.mark.training
def test_envoy_whose_neighbours_have_sent_no_keys_shares_nothing_and_the_others_continue(many: Identities) -> None:
    attempt = Attempt(many, MANY)
    alone, keys = attempt.participants["site-07"], {}
    keys["site-07"] = alone.keys()
    drawn = draw(keys["site-07"].commitment, "site-07", MANY, DRAWN)
    there = [name for name in MANY if name not in drawn[: DRAWN + 1 - (SHARES - 1)]]
    keys |= {name: attempt.participants[name].keys() for name in there if name != "site-07"}
    for each in keys.values():
        attempt.coordinator.take_keys(each)
    attempt.coordinator.close_stage()
    with pytest.raises(
        BelowThresholdError, match="13 holders of shares of envoy 'site-07' are there, and there must be 14"
    ):
        alone.share(attempt.roster())
    attempt.coordinator.give_up("site-07")
    assert "site-07" not in attempt.coordinator.awaited


@pytest.mark.training
def test_director_that_tells_other_neighbours_is_refused(many: Identities) -> None:
    attempt = Attempt(many, MANY)
    attempt.run_until(Stage.UPDATE)
    graph = attempt.coordinator._graph
    told = attempt.coordinator.sealed_for("site-03")
    neighbour = next(name for name in MANY[4:] if "site-03" in graph.holders(name))
    stranger = next(name for name in MANY[4:] if "site-03" not in graph.holders(name))
    assert told[stranger] == ""
    sentences = {
        "for no neighbour of envoy '{0}', and by the keys of '{0}' it is one": (neighbour, ""),
        "for a neighbour of envoy '{0}', and by the keys of '{0}' it is none": (stranger, told[neighbour]),
    }
    for number, (sentence, (sender, text)) in enumerate(sentences.items()):
        name = ("site-03", "site-04")[number]
        participant = attempt.participants[name]
        if name == "site-04":
            told = attempt.coordinator.sealed_for(name)
            sender = next(each for each in MANY[5:] if name not in graph.holders(each))
        with pytest.raises(SecureAggregationError, match=f"takes envoy '{name}' " + sentence.format(sender)):
            participant.masks(told | {sender: text})


@pytest.mark.slow
def test_shares_that_a_director_sends_to_another_envoy_cannot_be_opened(many: Identities) -> None:
    attempt = Attempt(many, MANY)
    attempt.run_until(Stage.UPDATE)
    graph, told = attempt.coordinator._graph, attempt.coordinator.sealed_for("site-03")
    first, second = [name for name in MANY[4:] if "site-03" in graph.holders(name)][:2]
    with pytest.raises(SecureAggregationError, match="sealed shares cannot be opened: keys or participants"):
        attempt.participants["site-03"].masks(told | {first: told[second]})


@pytest.mark.training
def test_survivors_that_leave_too_few_holders_are_not_signed(many: Identities) -> None:
    attempt = Attempt(many, MANY)
    attempt.run_until(Stage.AGREEMENT)
    lost = without_holders(attempt, "site-07")
    told = [name for name in MANY if name not in lost]
    ledger = Ledger()
    with pytest.raises(SecureAggregationError, match="holders of shares of envoy 'site-[0-9]+' are there"):
        attempt.participants[told[0]].agree(told, ledger.judge)
    with pytest.raises(SecureAggregationError, match="stage AGREEMENT comes when UNMASKING is next"):
        attempt.participants[told[0]].agree(MANY, ledger.judge)


@pytest.mark.slow
def test_director_takes_shares_for_neighbours_only_and_secrets_that_were_shared(many: Identities) -> None:
    attempt = Attempt(many, MANY)
    attempt.run_until(Stage.SHARES)
    coordinator, sender = attempt.coordinator, "site-05"
    shares = attempt.participants[sender].share(attempt.roster())
    stranger = next(name for name in MANY if name not in coordinator._graph.holders(sender))
    for sealed in (shares.sealed | {stranger: "00"}, {name: shares.sealed[name] for name in [*shares.sealed][1:]}):
        with pytest.raises(SecureAggregationError, match=f"envoy '{sender}' has shares for other envoys"):
            coordinator.take_shares(shares.model_copy(update={"sealed": sealed}))
    coordinator.take_shares(shares)
    for stage in STAGES[1:4]:
        attempt.run_stage(stage, MANY)
    signed = [*coordinator.agreements.values()]
    unmasking = attempt.participants[sender].unmask(signed, Ledger().commit)
    assert {*unmasking.self_masks} == {name for name in MANY if sender in coordinator._graph.holders(name)}
    held, *others = unmasking.self_masks
    fewer = {name: unmasking.self_masks[name] for name in others}
    for changes in ({"self_masks": fewer}, {"mask_keys": {held: unmasking.self_masks[held]}}):
        with pytest.raises(SecureAggregationError, match=f"envoy '{sender}' has shares of other secrets"):
            coordinator.take_unmasking(unmasking.model_copy(update=changes))


@pytest.mark.slow
def test_colluders_and_the_director_know_no_honest_update(many: Identities) -> None:
    attempt = Attempt(many, MANY)
    attempt.run()
    bad, graph = MANY[: colluders(len(MANY))], attempt.coordinator._graph
    for name in MANY[len(bad) :]:
        # Taken away: its own mask, which is unmasked, and those that it has in common with colluders.
        known = attempt.masked[name].copy()
        own, *pairs = attempt.masks[name][TENSORS]
        others = [other for other in MANY if graph.have_mask(name, other)]
        told = [mask for other, mask in zip(others, pairs, strict=True) if other in bad]
        add_masks(known, [Mask(mask.key, -mask.sign) for mask in (own, *told)])
        assert own.key == derive(attempt.participants[name]._self_mask, TENSORS)
        assert len(others) - len(told) > len(MANY) / 3, "masks with honest ones are left"
        assert np.count_nonzero(known == attempt.updates[name]) < 5


@pytest.mark.slow
def test_record_of_a_round_is_replayed_with_its_graph(many: Identities) -> None:
    attempt = Attempt(many, MANY)
    attempt.run({Stage.UPDATE: MANY[:3]})
    coordinator = attempt.coordinator
    signed = [*coordinator.agreements.values()]
    entry = entry_of_sum(coordinator.context, coordinator.roster, coordinator.sharers, coordinator.survivors, signed)
    told = replay(entry)
    assert (told.of, told.threshold, told.envoys) == (60, 41, MANY[3:])
    # Enough envoys sign survivors that could not have been unmasked.
    ledger = Ledger()
    again = Attempt(many, MANY)
    again.run_until(Stage.AGREEMENT)
    lost = without_holders(again, "site-07")
    few = [name for name in MANY if name not in lost]
    for name in few:
        again.participants[name]._graph.check_holders = lambda *_: None  # type: ignore[method-assign]
    signed = [again.participants[name].agree(few, ledger.judge) for name in few]
    entry = entry_of_sum(again.context, again.coordinator.roster, again.coordinator.sharers, few, signed)
    with pytest.raises(SecureAggregationError, match="holders of shares of envoy 'site-[0-9]+' are there"):
        replay(entry)
