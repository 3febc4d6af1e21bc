import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import openfl_audio
from openfl_audio.errors import PrivacyError
from openfl_audio.privacy import noisy_sum as module
from openfl_audio.privacy.discrete_gaussian import DEVIATION
from openfl_audio.privacy.fixed_point import Rounding
from openfl_audio.privacy.noise import Noise, repeatable_noise
from openfl_audio.privacy.noisy_sum import NoisySum
from openfl_audio.privacy.rotation import ROW, Rotation
from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.plan import TRAIN, BestModel, ExperimentPlan, Task
from openfl_audio.protocol.privacy import SiteLevel
from openfl_audio.protocol.rules import Mean
from openfl_audio.protocol.secure_aggregation import SecureAggregation

SIZES = {"b": 70_000, "a": 5, "c": 3}
N = sum(SIZES.values())
CLIP = 0.5
Change = dict[str, np.ndarray]


def plan_of(sites: int = 5, noise_multiplier: float = 2.0, colluders: int | None = None) -> ExperimentPlan:
    return ExperimentPlan(
        name="noisy",
        federation_uuid="",
        rounds=3,
        tasks=[Task(name=TRAIN, function_name="fit", task_type="train")],
        best=BestModel(metric="accuracy", direction="max"),
        envoys=[f"site-{number}" for number in range(sites)],
        aggregation=Aggregation(rule=Mean(weighted=False)),
        privacy=SiteLevel(noise_multiplier=noise_multiplier, clip=CLIP, delta=1e-5, colluders=colluders),
        secure_aggregation=SecureAggregation(),
    )


def change_of(seed: int, norm: float) -> Change:
    generator = np.random.default_rng(seed)
    values = {name: generator.normal(size=size) for name, size in SIZES.items()}
    return {name: each * (norm / norm_of(values)) for name, each in values.items()}


def norm_of(change: Change) -> float:
    return math.hypot(*(float(np.linalg.norm(each)) for each in change.values()))


def encode(noisy: NoisySum, change: Change, site: int = 0, seed: int = 0) -> np.ndarray:
    return noisy.encode(
        lambda name, first, last: change[name][first:last],
        norm_of(change),
        Rounding.of(seed, 0, f"site-{site}"),
        repeatable_noise(seed, f"site-{site}", 0),
    )


def decode(noisy: NoisySum, total: np.ndarray) -> Change:
    return {
        name: noisy.decode(total[slice(*noisy.rows_of(name, 0, size))], name, 0, size) for name, size in SIZES.items()
    }


def flat(change: Change) -> np.ndarray:
    return np.concatenate([change[name] for name in sorted(change)])


@pytest.fixture
def without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "discrete_gaussian", lambda _, count: np.zeros(count, np.int64))


def by_hand(change: Change, site: int, steps: float) -> np.ndarray:
    """Return the integers of a site, with NumPy alone, of a vector of 18 rows."""
    values = np.zeros(18 * ROW)
    values[:N] = flat(change) * min(1.0, CLIP / norm_of(change)) * (steps / CLIP)
    uniform = Rounding.of(0, 0, f"site-{site}").uniform(0, len(values))
    return np.floor(Rotation(0, 0).turn(values) + uniform).astype(np.int64)


def test_the_sum_is_that_of_the_rounded_changes_and_its_mean_is_theirs_within_rounding(without_noise: None) -> None:
    noisy = NoisySum(plan_of(), SIZES)
    changes = [change_of(site, norm) for site, norm in enumerate((0.1, 0.4, 0.5, 3.0, 100.0))]
    total = sum(encode(noisy, change, site) for site, change in enumerate(changes))
    # Of five sites four come, and two of these may collude: 2 * (2^20 / 2)^2 bounds the square of a norm.
    bound, steps = 2 * (2**20 / 2) ** 2, CLIP / noisy._step
    slack = math.sqrt(2 * math.log(2**30))
    assert steps**2 + 18 * ROW / 4 + slack * (steps + math.sqrt(18 * ROW) / 2) == pytest.approx(bound, rel=1e-12)
    expected = sum(by_hand(change, site, steps) for site, change in enumerate(changes))
    # Scaling may round otherwise in the last bit, which moves one in a billion to the next integer.
    assert np.abs(total.view(np.int32) - expected).max() <= 1
    assert np.count_nonzero(total.view(np.int32) != expected) <= 1
    plain = sum(flat(change) * min(1.0, CLIP / norm_of(change)) for change in changes) / 5
    error = flat(decode(noisy, total)) - plain
    step = noisy._step / 5
    # Each of the five rounds by less than a step, with a variance of a quarter at most.
    assert error.std() < math.sqrt(5) / 2 * step * 1.01
    assert abs(error.mean()) < 4 * error.std() / math.sqrt(N)


def test_rounding_moves_the_mean_nowhere(without_noise: None) -> None:
    noisy, change = NoisySum(plan_of(3), SIZES), change_of(1, 0.3)
    errors = [flat(decode(noisy, encode(noisy, change, seed=seed))) - flat(change) / 3 for seed in range(40)]
    deviation = np.std(errors) / math.sqrt(40)
    mean = np.mean(errors, axis=0)
    assert mean.std() == pytest.approx(deviation, rel=0.02), "what is left is chance"


@pytest.mark.parametrize(("sites", "colluders", "honest"), [(3, None, 2), (5, None, 2), (5, 0, 4), (8, 1, 5)])
@pytest.mark.parametrize("noise_multiplier", [0.5, 2.0, 20.0])
def test_honest_survivors_together_have_the_noise_of_the_plan(sites, colluders, honest, noise_multiplier) -> None:
    plan = plan_of(sites, noise_multiplier, colluders)
    assert plan.honest_survivors == honest
    noisy = NoisySum(plan, SIZES)
    nothing = {name: np.zeros(size) for name, size in SIZES.items()}
    total = sum(encode(noisy, nothing, site) for site in range(honest))
    found = flat(decode(noisy, total)) * sites
    # It is for the norm after rounding, which is larger than the bound by less than one per cent here.
    deviation = noise_multiplier * CLIP
    tolerance = 4 / math.sqrt(2 * N)
    assert deviation * (1 - tolerance) < found.std() < deviation * 1.01 * (1 + tolerance)
    assert abs(found.mean()) < 4 * found.std() / math.sqrt(N)
    assert abs(total.view(np.int32).astype(float).std() / DEVIATION / math.sqrt(honest) - 1) < tolerance


@settings(deadline=None, max_examples=25)
@given(st.floats(0, 1e12), st.integers(0, 5), st.sampled_from([0.5, 2.0, 50.0]))
def test_no_change_is_longer_than_its_noise_is_for(norm, seed, noise_multiplier) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "discrete_gaussian", lambda _, count: np.zeros(count, np.int64))
        noisy, change = NoisySum(plan_of(5, noise_multiplier), SIZES), change_of(seed, norm)
        rounded = encode(noisy, change, seed=seed).view(np.int32).astype(np.int64)
    assert int(rounded @ rounded) <= 2 * (2**20 / noise_multiplier) ** 2


def test_a_change_that_rounding_makes_too_long_is_rounded_again(without_noise: None) -> None:
    noisy, change = NoisySum(plan_of(), SIZES), change_of(4, CLIP)
    first = encode(noisy, change).view(np.int32).astype(np.int64)
    squares = [int(rounded @ rounded) for rounded in (roundings(noisy, change)(place) for place in range(6))]
    assert squares[0] == int(first @ first)
    noisy._bound = squares[0] - 1
    kept = encode(noisy, change).view(np.int32).astype(np.int64)
    assert int(kept @ kept) == next(square for square in squares if square < squares[0])


def test_a_change_that_no_rounding_makes_short_enough_is_refused(without_noise: None) -> None:
    noisy, change = NoisySum(plan_of(), SIZES), change_of(4, CLIP)
    with pytest.raises(PrivacyError, match="a change of norm 0.25 is longer than its noise is for"):
        noisy.encode(lambda name, first, last: 100 * change[name][first:last], 0.25, Rounding.of(0, 0, "a"), Noise())


def roundings(noisy: NoisySum, change: Change) -> Callable[[int], np.ndarray]:
    """Return what makes the roundings that are tried, by their number."""
    scale, rounding = 1.0 / noisy._step, Rounding.of(0, 0, "site-0")

    def rounded(number: int) -> np.ndarray:
        found = noisy._rounded(lambda n, first, last: change[n][first:last], scale, rounding, number * noisy.length)
        return found.astype(np.int64)

    return rounded


def test_a_part_of_a_tensor_is_decoded_as_the_whole() -> None:
    noisy = NoisySum(plan_of(), SIZES, 1)
    total = encode(noisy, change_of(0, 0.2))
    whole = decode(noisy, total)
    for first, number in ((0, 10), (4090, 12), (65_000, 5000), (69_999, 1)):
        start, end = noisy.rows_of("b", first, number)
        assert start % ROW == end % ROW == 0
        part = noisy.decode(total[start:end], "b", first, number)
        np.testing.assert_array_equal(part, whole["b"][first : first + number])


@pytest.mark.parametrize(("sites", "noise_multiplier"), [(50, 0.02), (50, 5.0), (3, 0.001)])
def test_words_hold_the_sum_of_like_changes_and_their_noise(sites, noise_multiplier) -> None:
    """All sites change the same value by the whole bound, which is the most that a sum can be."""
    noisy = NoisySum(plan_of(sites, noise_multiplier), SIZES)
    change = {name: np.zeros(size) for name, size in SIZES.items()}
    change["c"][1] = CLIP
    words = [encode(noisy, change, site).view(np.int32).astype(np.int64) for site in range(sites)]
    assert np.abs(sum(words)).max() < 2**31
    total = sum(words).astype(np.int32).view(np.uint32)
    deviation = math.sqrt(sites) * DEVIATION * noisy._step / sites
    assert abs(decode(noisy, total)["c"][1] - CLIP) < 6 * deviation


@pytest.mark.parametrize(
    ("sites", "noise_multiplier", "sentence"),
    [
        (50, 0.01, "noise_multiplier is 0.01: with so little noise a sum of 50 sites does not fit into 32 bits"),
        (3, 1e-4, "does not fit into 32 bits, give more"),
        (3, 2e4, "noise_multiplier is 20000: over 73728 values rounding alone is as large as the changes"),
    ],
)
def test_noise_that_the_words_cannot_carry_is_refused(sites, noise_multiplier, sentence) -> None:
    with pytest.raises(PrivacyError, match=sentence):
        NoisySum(plan_of(sites, noise_multiplier), SIZES)


def test_the_example_of_the_page_can_be_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "privacy.md").read_text(encoding="utf-8")
    _, code = re.findall(r"```python\n(.*?)```", page, re.S)
    asked: dict = {}

    class Submitted:
        def __init__(self, *_: object, **__: object) -> None:
            self.start = asked.update

    monkeypatch.setattr(openfl_audio, "FLExperiment", Submitted, raising=False)
    exec(code.replace("    ...,\n", ""), {"federation": None, "speech_recognition": None})
    plan = plan_of().model_copy(update=asked)
    plan.check_secure()
    plan.check_site_level()
    assert plan.honest_survivors == 2
    assert NoisySum(plan, SIZES).length == 18 * ROW


def test_a_plan_without_secret_sums_has_none() -> None:
    with pytest.raises(PrivacyError, match="no privacy of sites by secure aggregation"):
        NoisySum(plan_of().model_copy(update={"secure_aggregation": None}), SIZES)
