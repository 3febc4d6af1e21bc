"""Learning rates over the steps of all rounds: each round continues where the one before it ended, on any node."""

from collections.abc import Callable, Iterable, Iterator

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def linear_rate(peak: float, warmup: float, rounds: int, round_number: int, step: int, steps: int) -> float:
    """Return the learning rate of a step: linear up from 0 to `peak`, then linear down to 0 at the end of all rounds.

    The rate is that of the middle of the step, so that neither the first nor the last step has the rate 0.

    Args:
        peak: the largest rate.
        warmup: share of the steps of all `rounds` in which the rate rises, from 0 and below 1.
        rounds: number of rounds.
        round_number: the round, from 0.
        step: the step of the round, from 0 and below `steps`.
        steps: number of steps that this node takes in the round.
    """
    progress = (round_number + (step + 0.5) / steps) / rounds
    if progress < warmup:
        return peak * progress / warmup
    return peak * (1 - progress) / (1 - warmup)


def linear_rates(peak: float, warmup: float, rounds: int, round_number: int, steps: int) -> Iterator[float]:
    """Yield the learning rate of each of a round's `steps`; the arguments are those of `linear_rate`."""
    for step in range(steps):
        yield linear_rate(peak, warmup, rounds, round_number, step, steps)


def linear_schedule(
    optimizer: Optimizer, warmup: float, rounds: int, round_number: int, steps_per_round: int
) -> LambdaLR:
    """Return a scheduler for one round that scales the rates of `optimizer`: linear warm-up, then linear decay to 0.

    For optimizers that step a scheduler, such as those of Transformers' Trainer; the arguments are those of
    `linear_rate`. The warm-up of Transformers' own schedule begins at 0, here at 1 / (warm-up steps + 1) of the peak: a
    first step of 0 would change nothing, and the first round of a small shard may have this step only.
    """
    total = rounds * steps_per_round
    warmup_steps = warmup * total

    def factor(step: int) -> float:
        step += round_number * steps_per_round
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return max(0.0, (total - step) / (total - warmup_steps))

    return LambdaLR(optimizer, factor)


def stepwise_rate(initial: float, divide_by: float, divide_every: int, round_number: int) -> float:
    """Return the learning rate of a round: `initial`, divided by `divide_by` every `divide_every` rounds; 0 is never.

    >>> [stepwise_rate(8.0, 2.0, 3, round_number) for round_number in range(7)]
    [8.0, 8.0, 8.0, 4.0, 4.0, 4.0, 2.0]
    """
    return initial / divide_by ** (round_number // divide_every) if divide_every else initial


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give all parameters of `optimizer` the learning rate `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def set_in_turn(optimizer: Optimizer, rates: Iterable[float]) -> Callable[[], None]:
    """Give `optimizer` the first of `rates`, and return a function that gives it the next one: call it after a step.

    After the last rate, and without any, the optimizer keeps the rate that it has.
    """
    left = iter(rates)

    def set_next() -> None:
        rate = next(left, None)
        if rate is not None:
            set_rate(optimizer, rate)

    set_next()
    return set_next
