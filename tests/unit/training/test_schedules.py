import pytest
import torch
from torch.optim import SGD

from openfl_audio.training.schedules import (
    linear_rate,
    linear_rates,
    linear_schedule,
    set_in_turn,
    set_rate,
    stepwise_rate,
)


def scheduled_rates(warmup: float, n_rounds: int, rounds: range, steps: int) -> list[float]:
    """Learning rates as an envoy has them that keeps one optimizer for all rounds."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    seen = []
    for round_number in rounds:
        scheduler = linear_schedule(optimizer, warmup, n_rounds, round_number, steps)
        for _ in range(steps):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return seen


def test_a_schedule_continues_across_rounds():
    whole = scheduled_rates(0.2, 1, range(1), steps=50)
    assert scheduled_rates(0.2, 10, range(10), steps=5) == pytest.approx(whole)
    assert whole.index(max(whole)) == 10  # a fifth of the way
    assert max(whole) == pytest.approx(0.5)
    assert whole[-1] == pytest.approx(0.5 / 40)
    # A new optimizer, as after a restart or with opt_treatment RESET, continues at the same place.
    assert scheduled_rates(0.2, 10, range(4, 5), steps=5) == pytest.approx(whole[20:25])


def test_linear_rates_are_those_of_the_middle_of_each_step():
    """Two rounds of four steps, a quarter of them warm-up: an eighth of the run is one step."""
    rates = [linear_rate(8.0, 0.25, 2, round_number, step, 4) for round_number in range(2) for step in range(4)]
    progress = [1 / 16, 3 / 16, 5 / 16, 7 / 16, 9 / 16, 11 / 16, 13 / 16, 15 / 16]
    expected = [8 * p / 0.25 if p < 0.25 else 8 * (1 - p) / 0.75 for p in progress]
    assert rates == expected
    assert [rate for round_number in range(2) for rate in linear_rates(8.0, 0.25, 2, round_number, 4)] == expected
    assert rates[:2] == [2.0, 6.0]


def test_linear_rates_are_the_same_to_the_bit_as_ever():
    """Training must not depend on the order of a product and a quotient."""
    assert linear_rate(5e-4, 0.08, 400, 0, 0, 7) == 1.1160714285714287e-06
    assert linear_rate(5e-4, 0.1, 12, 1, 1, 7) == 0.0004993386243386243
    assert linear_rate(5e-4, 0.08, 12, 1, 2, 7) == 0.0004820134575569358


def test_without_warmup_the_rate_falls_from_the_first_step_on():
    assert linear_rate(1.0, 0.0, 1, 0, 0, 2) == 0.75


def test_a_stepwise_rate_is_divided_every_so_many_rounds_or_never():
    rates = [stepwise_rate(0.008, 2.0, 3, round_number) for round_number in range(7)]
    assert rates == [0.008] * 3 + [0.004] * 3 + [0.002]
    assert stepwise_rate(0.008, 2.0, 0, 1000) == 0.008


def test_all_groups_of_an_optimizer_get_the_rate():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (1.0, 2.0)]
    optimizer = SGD(groups)
    set_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_rates_are_set_in_turn_and_the_last_one_stays():
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)

    def rate() -> float:
        return optimizer.param_groups[0]["lr"]

    set_in_turn(optimizer, iter(()))()
    assert rate() == 0.5
    set_next = set_in_turn(optimizer, [3.0, 2.0])
    seen = [rate()]
    for _ in range(2):
        set_next()
        seen.append(rate())
    assert seen == [3.0, 2.0, 2.0]
