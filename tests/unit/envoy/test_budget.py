"""A site's budget of privacy: what it refuses, what an update costs, and what a task cannot do about that."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

import workspaces.keyword_spotting
from openfl_audio.config import load_settings
from openfl_audio.envoy.budget import PrivacySettings, SiteBudget, release_of
from openfl_audio.envoy.settings import EnvoyFile
from openfl_audio.errors import PolicyError, PrivacyError, SettingsError
from openfl_audio.privacy.accounting import Release, epsilon
from openfl_audio.protocol.messages import TaskResult
from openfl_audio.protocol.privacy import TEST_NOISE, RecordLevel, SpeakerLevel
from openfl_audio.protocol.tensors import describe
from tests.unit.protocol.test_bundle import TASK, plan

RECORDS = RecordLevel(noise_multiplier=1.0, clip=1.0, delta=1e-5, probability=0.1, steps=10)
VALIDATE = {"name": "aggregated_model_validate", "function_name": "validate", "task_type": "validate"}
TASKS = [VALIDATE, TASK]
PLAN = plan(privacy=RECORDS, tasks=TASKS, envoys=["site_a", "site_b"])
ONE_ROUND = epsilon([release_of(PLAN)], 1e-5)
WEIGHTS = {"weight": np.arange(6, dtype=np.float32)}
ROOT = Path(workspaces.__path__[0]).parent


def settings(folder: Path, **changes) -> PrivacySettings:
    values = {"corpus": "wards", "unit": "record", "epsilon": 1.01 * ONE_ROUND, "delta": 1e-5}
    return PrivacySettings(**values | {"ledger": folder / "wards.jsonl"} | changes)


def budget(folder: Path, envoy: str = "site_b", **changes) -> SiteBudget:
    return SiteBudget(settings(folder, **changes), envoy, folder / envoy)


def charge(site: SiteBudget, round_number: int = 0, tensors=WEIGHTS, of=PLAN) -> bool:
    header = describe(tensors, {})
    # The memory that a worker shares with its envoy may be larger than an update.
    return site.charge(of, round_number, header, b"".join(each.tobytes() for each in tensors.values()) + b"rest")


def test_an_experiment_without_privacy_or_for_another_unit_is_refused_and_one_that_fits_is_not(tmp_path):
    site = budget(tmp_path)
    assert [*site.judge(PLAN)] == []
    assert [*site.judge(plan())] == ["this site has a budget of privacy, and the experiment protects no record"]
    speakers = SpeakerLevel(**RECORDS.model_dump(exclude={"unit"}), clips_per_speaker=3)
    assert [*site.judge(plan(privacy=speakers))] == [
        "the experiment protects each speaker, and the budget of this site is for each record"
    ]


def test_a_round_that_would_overspend_is_refused_before_its_task_and_an_evaluator_trains_nothing(tmp_path):
    site = budget(tmp_path, epsilon=0.9 * ONE_ROUND)
    assert [*site.judge(PLAN)] == ["site_b's budget is spent"]
    with pytest.raises(PolicyError, match="^site_b's budget is spent$"):
        site.refuse_if_spent(PLAN, ["validate", "train"])
    site.refuse_if_spent(PLAN, ["validate"])
    evaluates = plan(privacy=RECORDS, tasks=TASKS, participation={"evaluators": ["site_b"]})
    assert [*site.judge(evaluates)] == []


def test_the_same_bytes_of_a_round_cost_nothing_again_and_anything_else_does(tmp_path):
    site = budget(tmp_path, epsilon=100.0)
    assert charge(site)
    assert not charge(site)
    trained_anew = {"weight": WEIGHTS["weight"] + 1}
    for other in ({"round_number": 1}, {"tensors": trained_anew}, {"of": plan(privacy=RECORDS, federation_uuid="b")}):
        assert charge(site, **other)
    assert site.ledger.spent() == pytest.approx(epsilon([release_of(PLAN)] * 4, 1e-5))


def test_an_update_costs_what_the_plan_says_whatever_a_worker_says_of_its_round(tmp_path):
    site = budget(tmp_path, epsilon=100.0)
    assert charge(site, round_number=PLAN.last_round), "a round of validation has no tensors"
    assert charge(site, tensors={}), "what is said in a round of training costs, also without tensors"
    assert not charge(site, round_number=PLAN.last_round, tensors={})
    evaluates = plan(privacy=RECORDS, tasks=TASKS, participation={"evaluators": ["site_b"]})
    assert not charge(site, of=evaluates, tensors={})
    assert charge(site, of=evaluates, tensors={"weight": WEIGHTS["weight"] * 2})


def test_two_envoys_and_a_second_experiment_share_what_a_corpus_has(tmp_path):
    first, second = budget(tmp_path), budget(tmp_path, "site_a")
    second.refuse_if_spent(PLAN, ["train"])
    charge(first)
    with pytest.raises(PolicyError, match="^site_a's budget is spent$"):
        charge(second, of=plan(name="another", federation_uuid="c", privacy=RECORDS))
    assert budget(tmp_path).ledger.spent() == pytest.approx(ONE_ROUND), "a restart forgets nothing"


def test_a_ledger_from_an_old_backup_is_told_and_others_hear_no_path(tmp_path, caplog):
    site, ledger = budget(tmp_path, epsilon=100.0), tmp_path / "wards.jsonl"
    backup = ledger.read_bytes()
    charge(site)
    ledger.write_bytes(backup)
    with pytest.raises(PrivacyError, match="restored from an old backup or replaced"):
        budget(tmp_path, epsilon=100.0)
    with pytest.raises(PolicyError, match="^the ledger of site_b's budget cannot be used$"):
        charge(site, 1)
    assert "restored from an old backup" in caplog.text
    assert [*site.judge(PLAN)] == ["the ledger of site_b's budget cannot be used"]


def test_what_training_measures_never_leaves_and_validation_as_the_site_says(tmp_path):
    results = {
        "train": TaskResult(size=9, metrics={"loss": 0.25}, counts={"loss": 3}),
        "aggregated_model_validate": TaskResult(size=4, metrics={"accuracy": 0.5}),
        "invented": TaskResult(size=1, metrics={"secret": 4711.0}),
    }
    released = budget(tmp_path).released(PLAN, results)
    nothing = {"metrics": {}, "counts": {}}
    assert released["train"].model_dump() == {"size": 9, **nothing}
    assert released["invented"].model_dump() == {"size": 1, **nothing}
    assert released["aggregated_model_validate"].metrics == {"accuracy": 0.5}
    assert budget(tmp_path, metrics="none").released(PLAN, results)["aggregated_model_validate"].metrics == {}


VALIDATED = {"aggregated_model_validate": TaskResult(size=400, metrics={"accuracy": 0.5, "loss": 2.0})}


def noisy(folder: Path, **changes) -> SiteBudget:
    return budget(folder, **{"metrics": "noisy", "metrics_noise": 10.0} | changes)


def test_noisy_metrics_are_paid_for_each_time_that_they_are_released(tmp_path):
    site = noisy(tmp_path, epsilon=100.0)
    for number in range(3):
        released = site.released(PLAN, VALIDATED | {"train": TaskResult(size=9, metrics={"accuracy": 1.0})})
        assert released["aggregated_model_validate"].metrics.keys() == {"accuracy"}
        assert released["train"].metrics == {}
        assert site.charge_metrics(PLAN, number, released) == Release(10.0, 1.0, 1)
    assert site.charge_metrics(PLAN, number, released), "numbers that come out the same cost as well"
    assert site.ledger.spent() == pytest.approx(epsilon([Release(10.0, 1.0, 4)], 1e-5))
    assert site.charge_metrics(PLAN, number, {"train": released["train"]}) is None
    for changes in ({"units": {"train": "clips", "validate": "words"}}, {"mean_over": {"accuracy": None}}):
        other = site.released(plan(privacy=RECORDS, tasks=TASKS, **changes), VALIDATED)["aggregated_model_validate"]
        assert other == TaskResult(size=0, metrics={}), "nothing bounds how many words a clip adds"
    assert budget(tmp_path, epsilon=100.0).charge_metrics(PLAN, 5, VALIDATED) is None


def test_a_validation_that_would_overspend_is_refused_before_it_an_evaluators_too(tmp_path):
    both = epsilon([release_of(PLAN), Release(2.0, 1.0, 1)], 1e-5)
    assert [*noisy(tmp_path, epsilon=1.01 * both, metrics_noise=2.0).judge(PLAN)] == []
    site = noisy(tmp_path, epsilon=0.99 * both, metrics_noise=2.0)
    assert [*site.judge(PLAN)] == ["site_b's budget is spent"]
    site.refuse_if_spent(PLAN, ["train"])
    site.refuse_if_spent(PLAN, ["validate"])
    with pytest.raises(PolicyError, match="^site_b's budget is spent$"):
        site.refuse_if_spent(PLAN, ["validate", "train"])
    one = epsilon([Release(10.0, 1.0, 1)], 1e-5)
    evaluates = plan(privacy=RECORDS, tasks=TASKS, participation={"evaluators": ["site_b"]})
    assert [*noisy(tmp_path, epsilon=0.99 * one).judge(evaluates)] == ["site_b's budget is spent"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"metrics": "noisy"}, "metrics noisy and metrics_noise, such as 20, go together"),
        ({"metrics_noise": 20.0}, "metrics noisy and metrics_noise, such as 20, go together"),
        (
            {"metrics": "noisy", "metrics_noise": 20.0, "unit": "speaker"},
            "nothing bounds a speaker's clips in a validation, so noise does not protect them: use metrics none",
        ),
    ],
)
def test_noise_on_metrics_that_protects_nobody_is_refused(tmp_path, given, sentence):
    with pytest.raises(ValidationError, match=sentence):
        settings(tmp_path, **given)


def test_noise_that_repeats_and_a_budget_exclude_each_other(tmp_path, monkeypatch):
    monkeypatch.setenv(TEST_NOISE, "0")
    with pytest.raises(PrivacyError, match=f"{TEST_NOISE} makes noise repeat, which protects nobody, and envoy"):
        budget(tmp_path)


def test_settings_name_what_is_missing_and_a_traceback_with_values(tmp_path):
    path = tmp_path / "envoy.yaml"

    def load(privacy: str, more: str = "") -> EnvoyFile:
        path.write_text(
            f"params: {{director_host: a, work_dir: work, privacy: {privacy}{more}}}\nshard_descriptor: {{template: t}}"
        )
        return load_settings(path, EnvoyFile)

    good = "{corpus: wards, unit: record, epsilon: 8, delta: 1.0e-5, ledger: wards.jsonl}"
    assert load(good).params.privacy.ledger == tmp_path / "wards.jsonl"
    assert load(good).params.shows_code
    with pytest.raises(SettingsError, match="'params.privacy.unit' is 'site'"):
        load(good.replace("record", "site"))
    with pytest.raises(SettingsError, match="policy.tracebacks 'values' tells what a budget of privacy protects"):
        load(good, ", policy: {tracebacks: values}")
