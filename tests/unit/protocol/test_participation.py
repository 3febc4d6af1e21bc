import pytest
from pydantic import ValidationError

from openfl_audio.errors import DefinitionError
from openfl_audio.protocol.participation import Participation

MEMBERS = [f"envoy-{number}" for number in range(10)]


def test_without_a_word_everybody_trains_and_validates_in_every_round_and_no_clock_closes_one():
    participation = Participation()
    assert participation.trainers(3, reversed(MEMBERS)) == MEMBERS
    assert all(participation.validates(round_number, 5) for round_number in range(6))
    assert not participation.is_complete(participants=3, answered=2, is_quorum=True, seconds_open=1e9)


def test_a_draw_is_the_same_after_a_restart_and_on_every_python():
    # Written down from Python 3.10, 3.11 and 3.12, which agree.
    drawn = [["envoy-0", "envoy-5", "envoy-6"], ["envoy-0", "envoy-1", "envoy-2"]]
    participation = Participation(count=3, seed=7)
    assert [participation.trainers(round_number, MEMBERS) for round_number in range(2)] == drawn
    assert [Participation(count=3, seed=7).trainers(round_number, MEMBERS) for round_number in range(2)] == drawn


def test_a_draw_depends_on_who_is_a_member_not_on_their_order():
    participation = Participation(fraction=0.5)
    assert participation.trainers(0, MEMBERS) == participation.trainers(0, MEMBERS[::-1] + MEMBERS[:2])


def test_rounds_and_seeds_draw_differently():
    by_round = {tuple(Participation(count=3).trainers(round_number, MEMBERS)) for round_number in range(20)}
    by_seed = {tuple(Participation(count=3, seed=seed).trainers(0, MEMBERS)) for seed in range(20)}
    # Of 120 possible draws, 20 rounds see about 18 different ones.
    assert len(by_round) > 10
    assert len(by_seed) > 10


def test_over_many_rounds_everybody_trains_about_equally_often():
    participation = Participation(fraction=0.2)
    turns = [name for round_number in range(1000) for name in participation.trainers(round_number, MEMBERS)]
    # 200 turns each are expected, with a standard deviation of 12.6.
    assert all(140 < turns.count(name) < 260 for name in MEMBERS)


@pytest.mark.parametrize("choice", [{}, {"fraction": 0.5}, {"count": 8}])
def test_evaluators_never_train(choice):
    participation = Participation(evaluators=MEMBERS[:4], **choice)
    trained = {name for round_number in range(50) for name in participation.trainers(round_number, MEMBERS)}
    assert trained == set(MEMBERS[4:])
    assert participation.trainers(0, MEMBERS[:4]) == []


@pytest.mark.parametrize(
    ("choice", "members", "expected"),
    [
        ({"fraction": 0.1}, 21, 3),
        ({"fraction": 0.1}, 20, 2),
        ({"fraction": 0.1}, 4, 1),
        ({"fraction": 0.07}, 100, 7),  # 0.07 * 100 is 7.000000000000001
        ({"fraction": 1e-12}, 5, 1),
        ({"fraction": 1}, 7, 7),
        ({"fraction": 0.5}, 0, 0),
        ({"count": 3}, 10, 3),
        ({"count": 3}, 2, 2),
    ],
)
def test_so_many_train(choice, members, expected):
    names = [f"{number:03}" for number in range(members)]
    trainers = Participation(**choice).trainers(0, names)
    assert len(set(trainers)) == expected
    assert trainers == sorted(trainers)


def test_a_fraction_is_one_of_the_members_that_train():
    assert len(Participation(fraction=0.5, evaluators=MEMBERS[:4]).trainers(0, MEMBERS)) == 3


def test_validation_comes_every_so_many_rounds_and_in_the_last():
    participation = Participation(validate_every=3)
    assert [number for number in range(9) if participation.validates(number, last_round=8)] == [0, 3, 6, 8]


@pytest.mark.parametrize(
    ("answered", "is_quorum", "seconds_open", "complete"),
    [
        (5, True, 0.0, True),
        (5, False, 0.0, True),  # everybody has answered: nobody is left to wait for
        (4, True, 59.9, False),
        (4, True, 60.0, True),
        (3, False, 60.0, False),
        (3, False, 1e6, False),
    ],
)
def test_a_round_closes_when_all_have_answered_or_at_the_deadline_with_a_quorum(
    answered, is_quorum, seconds_open, complete
):
    participation = Participation(deadline_seconds=60, quorum=2)
    assert participation.is_complete(5, answered, is_quorum, seconds_open) is complete


def test_it_comes_back_from_json_as_it_was():
    participation = Participation(fraction=0.1, seed=3, evaluators=["a"], deadline_seconds=1.5, quorum=4)
    assert Participation.model_validate_json(participation.model_dump_json()) == participation


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"fraction": 0.5, "count": 2}, "fraction 0.5 and count 2 both say how many train: give one of them"),
        ({"quorum": 2}, "quorum 2 needs deadline_seconds: without a deadline a round waits for all participants"),
        ({"fraction": 0}, "fraction\n.*greater than 0"),
        ({"fraction": 1.1}, "fraction\n.*less than or equal to 1"),
        ({"count": 0}, "count\n.*equal to 1"),
        ({"validate_every": 0}, "validate_every\n.*equal to 1"),
        ({"deadline_seconds": 0}, "deadline_seconds\n.*greater than 0"),
        ({"deadline_seconds": float("inf")}, "deadline_seconds\n.*finite"),
        ({"deadline_seconds": 5, "quorum": 0}, "quorum\n.*equal to 1"),
        ({"fractoin": 0.5}, "fractoin\n.*not permitted"),
    ],
)
def test_a_choice_that_cannot_be_right_is_refused(content, sentence):
    with pytest.raises(ValidationError, match=sentence):
        Participation.model_validate(content)
    with pytest.raises(DefinitionError, match="^Participation: " + sentence.replace("\n", " is ")):
        Participation(**content)


def test_so_many_train_at_least_where_the_fraction_is_smaller():
    participation = Participation(fraction=0.1, min_trainers=3)
    assert [len(participation.trainers(0, MEMBERS[:n])) for n in (2, 5, 10)] == [2, 3, 3]
    assert len(Participation(fraction=0.5, min_trainers=3).trainers(0, MEMBERS)) == 5
    with pytest.raises(DefinitionError, match="min_trainers 3 has no effect with count 2: give one of them"):
        Participation(count=2, min_trainers=3)


def test_only_members_that_train_count_towards_the_least_number():
    participation = Participation(min_members=3, evaluators=["envoy-0"])
    assert [participation.lacking(MEMBERS[:n]) for n in (1, 2, 4, 9)] == [3, 2, 0, 0]
    assert Participation().lacking(["envoy-0"]) == 0
