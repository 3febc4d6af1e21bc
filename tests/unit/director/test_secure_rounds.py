"""Secure rounds of an experiment: the director's end and the envoys' in one process, with envoys lost at any stage."""

import asyncio
import string
import threading
import time
import tracemalloc
import zipfile
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openfl_audio.director import secure_rounds
from openfl_audio.director.experiment import Experiment
from openfl_audio.director.run_folder import RunFolder
from openfl_audio.envoy.secure_updates import SecureUpdates, Unmaskings
from openfl_audio.errors import DirectorRefusedError, SecureAggregationError
from openfl_audio.privacy.accounting import privacy_cost
from openfl_audio.privacy.discrete_gaussian import discrete_gaussian
from openfl_audio.privacy.fixed_point import Rounding, encode
from openfl_audio.privacy.graph import Graph
from openfl_audio.privacy.noise import repeatable_noise
from openfl_audio.privacy.replay import replay
from openfl_audio.privacy.replay import secure_rounds as replayed_rounds
from openfl_audio.privacy.rotation import ROW, Rotation
from openfl_audio.privacy.transcript import CertificateIdentity, Context, Keys, Stage
from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.authority import write_certificates
from openfl_audio.protocol.bundle import Author, Bundle, describe_model, fingerprint
from openfl_audio.protocol.certificates import load_credentials
from openfl_audio.protocol.messages import JOIN, SecureAnswer, SecureRequest, TaskResult, UpdateMessage
from openfl_audio.protocol.privacy import SiteLevel
from openfl_audio.protocol.record import RECORD, Record, entry_of, read_record
from openfl_audio.protocol.rules import Mean
from openfl_audio.protocol.secure_aggregation import SecureAggregation
from openfl_audio.protocol.tensors import Header, Tensors
from openfl_audio.testing.noise import noise_that_repeats
from tests.unit.director.toy_experiment import (
    CLIPS,
    MODEL,
    SECONDS,
    global_model,
    load,
    make_experiment,
    nothing,
    results_of,
    running,
    until,
)
from tests.unit.privacy.attempts import RememberingIdentity, context_of, make_identities

NAMES = "abcde"
CLIPS.setdefault("e", 23)
BITS, RANGE, LARGEST = 20, 4.0, 50
SETTINGS = SecureAggregation(value_range=RANGE, largest_weight=LARGEST, stage_seconds=0.5)


PLAN = b"{experiment: {settings: {}}, aggregator: {settings: {}}, network: {settings: {}}}"


class LostError(Exception):
    """An envoy is lost."""


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CertificateIdentity]:
    folder = tmp_path_factory.mktemp("certificates")
    write_certificates(folder, director_hosts=[], envoys=[*NAMES])
    return {name: CertificateIdentity(load_credentials(folder, name)) for name in NAMES}


class Envoy(threading.Thread):
    """An envoy that takes part in secure rounds until its experiment ends, or it is lost at a stage of a round."""

    def __init__(
        self, name: str, experiment: Experiment, identity: CertificateIdentity, folder: Path,
        lost: tuple[int, Any] | None = None, change: Callable[[Tensors], Tensors] = lambda tensors: tensors,
        pause: float = 0.0, given: Callable[[Tensors], Tensors] | None = None, told: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(daemon=True)
        self.site, self.experiment, self.identity, self.lost, self.change = name, experiment, identity, lost, change
        self.record = Record(folder / f"{name}.jsonl", f"envoy '{name}'")
        self.counted: list[bool] = []
        self.pause, self.given, self.told = pause, given, told or {}
        self.loop = asyncio.get_running_loop()
        self.start()

    def run(self) -> None:
        plan = self.experiment.plan
        bundle = Bundle(
            sha256=fingerprint({"plan/plan.yaml": PLAN}), plan=plan, model=describe_model(MODEL, "float32"),
            author=Author(user="me"),
        )  # fmt: skip
        updates = SecureUpdates(
            self.site, bundle, True, lambda: self.identity, Unmaskings(self.record), self.ask, self.upload
        )
        try:
            while not self.experiment.ended:
                tasks, round_number = self.wait(self.experiment.scheduler.wait_for_tasks(self.site))
                if tasks:
                    model, _ = global_model(self.experiment)
                    model = self.given(model) if self.given else model
                    trains = any(task.task_type == "train" for task in tasks)
                    trained = self.change(update_of(self.site, round_number, model)) if trains else {}
                    results = results_of(self.site, tasks, model)
                    updates.keep_model(model)
                    self.counted.append(updates.send(round_number, results, trained))
        except LostError:
            pass

    def wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SECONDS)

    def ask(self, request: SecureRequest) -> SecureAnswer:
        if self.lost == (request.round, request.stage):
            raise LostError
        if request.stage == Stage.SHARES:
            pause, self.pause = self.pause, 0.0
            time.sleep(pause)
        answer: SecureAnswer = self.wait(self.experiment.secure.answer(request))
        changed = {name: value for name, value in self.told.items() if name in answer.content}
        return answer.model_copy(update={"content": answer.content | changed})

    def upload(self, header: Header, chunks: Callable[[], Iterator[bytes]]) -> None:
        message = UpdateMessage.model_validate(header.metadata)
        # A lost one may have sent its update: then it is lost when it asks for the survivors.
        if self.lost == (message.round, "upload"):
            raise LostError

        async def sent() -> AsyncIterator[bytes]:
            for chunk in chunks():
                yield chunk

        self.wait(self.experiment.intake.receive(message, header, sent()))


def update_of(site: str, round_number: int, model: Tensors) -> Tensors:
    """Return what a site makes of the model."""
    change = (
        np.random.default_rng([*map(ord, site), round_number]).normal(size=MODEL["weight"].shape).astype(np.float32)
    )
    return {"weight": model["weight"] + change, "steps": model["steps"] + 7}


def next_model(model: Tensors, sites: Collection[str], round_number: int) -> np.ndarray:
    """Return the quantised mean, with NumPy alone."""
    total = np.zeros(MODEL["weight"].size, np.int64)
    for site in sites:
        update = update_of(site, round_number, model)
        change = update["weight"].astype(np.float64).ravel() - model["weight"].astype(np.float64).ravel()
        uniform = Rounding.of(0, round_number, site).uniform(0, len(change))
        total += np.floor(
            np.clip(change, -RANGE, RANGE) * (CLIPS[site] / LARGEST * (2**19 - 1) / RANGE) + uniform
        ).astype(int)
    share = sum(CLIPS[site] for site in sites) / LARGEST
    mean = total * (RANGE / (2**19 - 1) / share)
    return (model["weight"].ravel() + mean).astype(np.float32).reshape(MODEL["weight"].shape)


def make_secure(tmp_path: Path, rounds: int = 2, **changes: Any) -> Experiment:
    given = {"members": NAMES, "envoys": [*NAMES], "secure_aggregation": SETTINGS} | changes
    experiment = make_experiment(tmp_path, rounds=rounds, **given)
    with zipfile.ZipFile(experiment.folder.archive, "w") as archive:
        archive.writestr("plan/plan.yaml", PLAN)
    return experiment


def play(experiment: Experiment, make: Callable[[], list[Envoy]]) -> list[Envoy]:
    async def together() -> list[Envoy]:
        envoys = make()
        await asyncio.wait_for(experiment.scheduler.run(nothing), SECONDS)
        return envoys

    return asyncio.run(together())


def records_of(experiment: Experiment) -> list[dict[str, Any]]:
    return [*experiment.folder.history]


def test_two_rounds_give_the_quantised_mean_to_the_bit(tmp_path: Path, identities: dict) -> None:
    experiment = make_secure(tmp_path)
    envoys = play(experiment, lambda: [Envoy(n, experiment, identities[n], tmp_path) for n in NAMES])
    assert experiment.state.error == ""
    first = {"weight": next_model(MODEL, NAMES, 0), "steps": MODEL["steps"]}
    np.testing.assert_array_equal(load(experiment.folder.model)["weight"], next_model(first, NAMES, 1))
    # Integers stay as they are.
    assert load(experiment.folder.model)["steps"] == 0
    assert all(envoy.counted == [True, True, True] for envoy in envoys)
    for number, record in enumerate(records_of(experiment)):
        assert record["secure"]["envoys"] == [*NAMES]
        assert record["envoys"] == {name: {} for name in NAMES}
        model = [MODEL, first, load(experiment.folder.model)][number]
        clips = [CLIPS[name] for name in NAMES]
        scores = [float(model["weight"].sum()) + ord(name) for name in NAMES]
        expected = np.average(scores, weights=clips)
        assert record["metrics"]["aggregated_model_validate"]["score"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_of_more_envoys_than_share_with_all_the_sum_is_the_quantised_mean_to_the_bit(tmp_path: Path) -> None:
    names = [first + second for first in "wxyz" for second in string.ascii_lowercase[:13]]
    for number, name in enumerate(names):
        CLIPS[name] = 3 + number % 40
    identities = make_identities(tmp_path / "certificates", names, RememberingIdentity)
    settings = SETTINGS.model_copy(update={"stage_seconds": 5.0})
    experiment = make_secure(
        tmp_path, rounds=1, members=names, envoys=names, secure_aggregation=settings,
        participation={"deadline_seconds": 10.0, "quorum": 35},
    )  # fmt: skip
    lost = {"wb": (0, "upload"), "yc": (0, Stage.UNMASKING)}
    play(experiment, lambda: [Envoy(n, experiment, identities[n], tmp_path, lost.get(n)) for n in names])
    assert experiment.state.error == ""
    sites = [name for name in names if name != "wb"]
    np.testing.assert_array_equal(load(experiment.folder.model)["weight"], next_model(MODEL, sites, 0))
    record = records_of(experiment)[0]
    assert (record["secure"]["envoys"], record["secure"]["threshold"]) == (sites, 35)
    entries = [entry for line in read_record(tmp_path / RECORD) if (entry := entry_of(line))]
    assert dict(replayed_rounds(entries))[0].model_dump() == record["secure"]
    [said] = [each for each in entries if each["event"] == "secure_sum" and each["round"] == 0]
    assert len(said["sharers"]) == 52
    graph = Graph(Context.model_validate(said["context"]), [Keys.model_validate(keys) for keys in said["keys"]])
    assert all(len({*graph.holders(name)}) == 23 for name in names)


def test_history_says_how_many_sites_are_bounded_and_not_which(
    tmp_path: Path, identities: dict, caplog: pytest.LogCaptureFixture
) -> None:
    largest = sorted(CLIPS[name] for name in NAMES)[-3]
    settings = SETTINGS.model_copy(update={"largest_weight": largest})
    experiment = make_secure(tmp_path, rounds=1, secure_aggregation=settings)
    play(experiment, lambda: [Envoy(n, experiment, identities[n], tmp_path) for n in NAMES])
    said = f"2 of these envoys have more clips than the largest weight of {largest}"
    assert said in str(records_of(experiment)[0]["notes"])
    assert list(records_of(experiment)[0]["notes"]) == ["a, b, c, d, e"]
    bounded = [name for name in NAMES if CLIPS[name] > largest]
    at_sites = [record.getMessage() for record in caplog.records if "which is the largest weight" in record.message]
    assert sorted(at_sites) == [
        f"update of envoy '{name}' for round 0 weighs {largest}, which is the largest weight: this site has more clips"
        for name in bounded
    ]


@pytest.mark.parametrize("stage", [-1, *list(Stage)[:-1], "upload"])
def test_one_envoy_of_five_is_lost_at_a_stage(tmp_path: Path, identities: dict, stage: Any) -> None:
    experiment = make_secure(tmp_path, rounds=1, participation={"deadline_seconds": 0.7, "quorum": 4})
    play(
        experiment,
        lambda: [Envoy(n, experiment, identities[n], tmp_path, (0, stage) if n == "b" else None) for n in NAMES],
    )
    assert experiment.state.error == ""
    # An update that has come is in the sum, also where its sender is lost afterwards.
    sites = NAMES if stage in (Stage.UPDATE, Stage.AGREEMENT, Stage.UNMASKING) else "acde"
    np.testing.assert_array_equal(load(experiment.folder.model)["weight"], next_model(MODEL, sites, 0))
    assert records_of(experiment)[0]["secure"]["envoys"] == [*sites]


def test_an_update_of_other_tensors_is_refused_and_one_has_a_model_of_its_own(tmp_path: Path, identities: dict) -> None:
    plan = make_secure(tmp_path).plan
    bundle = Bundle(sha256="", plan=plan, model=describe_model(MODEL, "float32"), author=Author(user="me"))
    asked: list[SecureRequest] = []

    def ask(request: SecureRequest) -> SecureAnswer:
        asked.append(request)
        return SecureAnswer(state="over")

    record = Record(tmp_path / "a.jsonl", "envoy 'a'")
    updates = SecureUpdates("a", bundle, True, lambda: identities["a"], Unmaskings(record), ask, lambda *_: None)
    results = {task.name: TaskResult(size=3, metrics={}) for task in plan.tasks}
    updates.keep_model(MODEL)
    assert not updates.send(0, results, {"weight": MODEL["weight"]})
    assert [(request.stage, request.refusal) for request in asked] == [
        (JOIN, "update of envoy 'a' for round 0: tensors missing ['steps'], unknown []")
    ]
    with pytest.raises(DirectorRefusedError, match="round 0: there is no model kept"):
        updates.send(0, results, MODEL)
    updates.keep_model(MODEL)
    updates.free_memory()
    with pytest.raises(DirectorRefusedError, match="round 1: there is no model kept"):
        updates.send(1, results, MODEL)


def test_one_copy_of_the_model_is_kept_for_as_long_as_the_experiment_runs(tmp_path: Path, identities: dict) -> None:
    bundle = Bundle(
        sha256="", plan=make_secure(tmp_path).plan, model=describe_model(MODEL, "float32"), author=Author(user="me")
    )
    record = Record(tmp_path / "a.jsonl", "envoy 'a'")
    updates = SecureUpdates("a", bundle, True, lambda: identities["a"], Unmaskings(record), lambda _: None, print)
    model = {"weight": np.ones(1 << 20, np.float32)}
    tracemalloc.start()
    try:
        for _ in range(3):
            updates.keep_model(model)
        kept, peak = tracemalloc.get_traced_memory()
        updates.free_memory()
        freed, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 4 << 20 <= kept <= peak < 5 << 20
    assert freed < 1 << 20


def play_with_two_refused(experiment: Experiment, identities: dict, folder: Path) -> None:
    """Play with updates of 'b' and 'd' that hold NaN, and see that three of five envoys are too few to unmask."""

    def bad(tensors: Tensors) -> Tensors:
        return {name: tensor + np.nan if name == "weight" else tensor for name, tensor in tensors.items()}

    changes = {"b": {"change": bad}, "d": {"change": bad}}
    envoys = play(
        experiment, lambda: [Envoy(n, experiment, identities[n], folder, **changes.get(n, {})) for n in NAMES]
    )
    assert "3 of 5 envoys are there at stage KEYS, and secure aggregation takes 4" in experiment.state.error
    for envoy in envoys:
        assert not envoy.record.path.exists() or b"unmasked" not in envoy.record.path.read_bytes()


def test_below_the_threshold_the_experiment_fails_and_nothing_is_unmasked(tmp_path: Path, identities: dict) -> None:
    experiment = make_secure(tmp_path, rounds=1)
    play_with_two_refused(experiment, identities, tmp_path)
    assert "update of envoy 'b' for round 0: tensor 'weight' holds NaN" in experiment.state.error


def test_a_failed_attempt_is_followed_by_one_with_fresh_keys(tmp_path: Path, identities: dict) -> None:
    experiment = make_secure(tmp_path, rounds=1)

    # Two are silent for longer than a stage waits, once.
    play(experiment, lambda: [Envoy(n, experiment, identities[n], tmp_path, pause=2.0 * (n in "bd")) for n in NAMES])
    assert experiment.state.error == ""
    np.testing.assert_array_equal(load(experiment.folder.model)["weight"], next_model(MODEL, NAMES, 0))
    record = records_of(experiment)[0]
    assert record["secure"]["attempt"] > 1
    assert "an attempt failed, and nothing was unmasked" in str(record["notes"])
    entries = [entry_of(line) for line in read_record(tmp_path / RECORD)]
    assert [e["round"] for e in entries if e and e["event"] == "secure_failed"] == [0]


@pytest.mark.parametrize("stage", list(Stage)[1:-1])
def test_a_director_that_is_killed_at_a_stage_begins_a_new_attempt(
    tmp_path: Path, identities: dict, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secure_rounds, "LONG_POLL_SECONDS", 0.1)
    first = make_secure(tmp_path, rounds=1)

    async def story() -> Experiment:
        envoys = [Envoy(n, first, identities[n], tmp_path) for n in NAMES]
        async with running(first):
            await until(lambda: first.secure.coordinator is not None and first.secure.coordinator.stage >= stage)
        again = Experiment(RunFolder.load(first.folder.path), first.record, lambda _: True)
        for envoy in envoys:
            envoy.experiment = again
        await asyncio.wait_for(again.scheduler.run(nothing), SECONDS)
        return again

    again = asyncio.run(story())
    assert again.state.error == ""
    np.testing.assert_array_equal(load(again.folder.model)["weight"], next_model(MODEL, NAMES, 0))
    # The one that was killed may have made its sum before anybody looked.
    assert records_of(again)[0]["secure"]["attempt"] in (1, 2)


def test_after_a_sum_may_be_unmasked_no_other_one_is_asked_for(
    tmp_path: Path, identities: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secure_rounds, "LONG_POLL_SECONDS", 0.1)
    monkeypatch.setattr(secure_rounds, "MAX_ATTEMPTS", 2)
    first = make_secure(tmp_path, rounds=1, participation={"deadline_seconds": 3.0, "quorum": 4})

    async def story() -> Experiment:
        envoys = [Envoy(n, first, identities[n], tmp_path) for n in NAMES]
        # Before the director has its shares, so that no sum is counted.
        monkeypatch.setattr(first.secure, "_count", lambda: time.sleep(1))
        async with running(first):
            await until(
                lambda: first.secure.coordinator is not None and first.secure.coordinator.stage >= Stage.UNMASKING
            )
        again = Experiment(RunFolder.load(first.folder.path), first.record, lambda _: True)
        assert again.state.secure_survivors == [*NAMES]
        for envoy in envoys:
            envoy.experiment, envoy.lost = again, (0, -1) if envoy.site == "b" else None
        await asyncio.wait_for(again.scheduler.run(nothing), SECONDS)
        return again

    again = asyncio.run(story())
    assert "updates of ['a', 'c', 'd', 'e'] have come, and envoys may have unmasked the sum of" in again.state.error
    for name in NAMES:
        content = (tmp_path / f"{name}.jsonl").read_text() if (tmp_path / f"{name}.jsonl").exists() else ""
        assert '["a", "c", "d", "e"]' not in content


LEVEL = SiteLevel(noise_multiplier=0.5, clip=2.0, delta=1e-5)
NOISY = {
    "privacy": LEVEL,
    "secure_aggregation": SecureAggregation(stage_seconds=0.5),
    "aggregation": Aggregation(rule=Mean(weighted=False)),
}


def noisy_model(sites: str, noise_seed: int) -> np.ndarray:
    """Return the model after a round with clipping and noise, with NumPy and parts that are tested by themselves."""
    steps = None
    total = np.zeros(ROW, np.int64)
    for site in sites:
        change = (update_of(site, 0, MODEL)["weight"].astype(np.float64) - MODEL["weight"]).ravel()
        change *= min(1.0, LEVEL.clip / np.linalg.norm(change))
        values = np.zeros(ROW)
        # (C / g)^2 + k / 4 + 6.45 * (C / g + sqrt(k) / 2) = 2 * (2^20 / z)^2, for k = 4096 values.
        slack = np.sqrt(60 * np.log(2))
        steps = np.roots([1, slack, ROW / 4 + slack * 32 - 2 * (2**20 / LEVEL.noise_multiplier) ** 2]).max()
        values[: change.size] = change * (steps / LEVEL.clip)
        rounded = np.floor(Rotation(0, 0).turn(values) + Rounding.of(0, 0, site).uniform(0, ROW)).astype(np.int64)
        [stream] = repeatable_noise(noise_seed, site, 0).parts(1)
        total += rounded + discrete_gaussian(stream, ROW)
    mean = Rotation(0, 0).undo(total.astype(np.float64))[: MODEL["weight"].size] * (LEVEL.clip / steps / len(NAMES))
    return MODEL["weight"] + mean.reshape(MODEL["weight"].shape)


@pytest.mark.parametrize("lost", ["", "b"])
def test_sites_clip_and_add_noise_and_the_director_knows_the_sum_alone(
    tmp_path: Path, identities: dict, lost: str
) -> None:
    experiment = make_secure(tmp_path, rounds=1, participation={"deadline_seconds": 0.7, "quorum": 4}, **NOISY)
    with noise_that_repeats(5):
        play(
            experiment,
            lambda: [
                Envoy(n, experiment, identities[n], tmp_path, (0, "upload") if n == lost else None) for n in NAMES
            ],
        )
    assert experiment.state.error == ""
    sites = NAMES.replace("b", "") if lost else NAMES
    # The mean is over the planned number in both cases. The step is computed in another order, to 15 digits.
    np.testing.assert_allclose(load(experiment.folder.model)["weight"], noisy_model(sites, 5), rtol=2e-6)
    assert load(experiment.folder.model)["steps"] == 0
    record = records_of(experiment)[0]
    assert record["secure"]["envoys"] == [*sites]
    assert record["privacy"]["epsilon"]["a"] == privacy_cost(LEVEL, 1)
    assert "2 honest sites of the 4 or more" in record["privacy"]["trust"]
    for name in sites:
        entries = [entry_of(line) for line in read_record(tmp_path / f"{name}.jsonl")]
        unmasked = [entry["noise"] for entry in entries if entry and entry["event"] == "unmasked"]
        assert [len(noise) for noise in unmasked] == [16, 0], "in the round that only validates there is none"


def test_with_too_few_sites_for_the_noise_nothing_is_unmasked(tmp_path: Path, identities: dict) -> None:
    experiment = make_secure(tmp_path, rounds=1, **NOISY)
    play_with_two_refused(experiment, identities, tmp_path)
    np.testing.assert_array_equal(load(experiment.folder.model)["weight"], MODEL["weight"])


def test_a_sum_with_other_noise_is_not_unmasked_after_another_one(tmp_path: Path) -> None:
    context = context_of([*"abc"], round=3)
    record = Record(tmp_path / RECORD, "envoy 'a'")
    Unmaskings(record).commit(context, ["a", "b", "c"], noise="first")
    after_a_restart = Unmaskings(Record(tmp_path / RECORD, "envoy 'a'"))
    after_a_restart.judge(context, ["a", "b", "c"], noise="first")
    with pytest.raises(SecureAggregationError, match="was unmasked for this plan and round before, and one with other"):
        after_a_restart.commit(context, ["a", "b", "c"], noise="second")
    after_a_restart.commit(context.model_copy(update={"round": 4}), ["a", "b", "c"], noise="second")


def test_a_sum_without_noise_is_remembered_as_a_record_of_before_there_was_noise_has_it(tmp_path: Path) -> None:
    record, context = Record(tmp_path / RECORD, "envoy 'a'"), context_of([*NAMES])
    fields = {"plan_sha256": context.plan_sha256, "round": context.round}
    record.append("unmasked", experiment="toy", attempt=1, envoys=[*"abcd"], **fields)
    unmaskings = Unmaskings(record)
    unmaskings.judge(context, [*"abcd"])
    with pytest.raises(SecureAggregationError, match="was unmasked for this plan and round before"):
        unmaskings.judge(context, [*"abce"])


def test_an_envoy_that_was_sent_another_model_is_found(tmp_path: Path, identities: dict) -> None:
    experiment = make_secure(tmp_path, rounds=1)

    def other(model: Tensors) -> Tensors:
        return {"weight": model["weight"] * 2, "steps": model["steps"]}

    play(
        experiment,
        lambda: [Envoy(n, experiment, identities[n], tmp_path, given=other if n == "c" else None) for n in NAMES],
    )
    record = records_of(experiment)[0]
    assert record["secure"]["envoys"] == [*"abde"]
    assert "signature of envoy 'c' is none of this experiment, plan, round, model" in record["refused"]["c"]


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"roster": [{"envoy": "a"}]}, "0.encryption_key is {'envoy': 'a'}: Field required"),
        ({"roster": "keys"}, "content is 'keys': Input should be a valid list"),
        ({"sealed": {"a": "zz"}}, "is 'zz': String should match pattern"),
        ({"sealed": {"a": 5}}, "is 5: Input should be a valid string"),
        ({"survivors": None}, "content is None: Input should be a valid list"),
        ({"agreements": [7]}, "0 is 7: Input should be a valid dictionary"),
    ],
)
def test_answers_that_are_none_are_refused_in_a_sentence(
    tmp_path: Path, identities: dict, told: dict[str, Any], sentence: str,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(secure_rounds, "MAX_ATTEMPTS", 1)
    experiment = make_secure(tmp_path, rounds=1)
    play(experiment, lambda: [Envoy(n, experiment, identities[n], tmp_path, told=told) for n in NAMES])
    refused = [record.getMessage() for record in caplog.records if "attempt 1 of round 0 is refused" in record.message]
    assert len(refused) == len(NAMES)
    assert all(sentence in each for each in refused)
    for name in NAMES:
        path = tmp_path / f"{name}.jsonl"
        assert not path.exists() or b"unmasked" not in path.read_bytes()


def test_what_is_said_of_a_round_follows_from_the_recorded_signatures(tmp_path: Path, identities: dict) -> None:
    experiment = make_secure(tmp_path, rounds=1, participation={"deadline_seconds": 0.7, "quorum": 4})
    play(
        experiment,
        lambda: [Envoy(n, experiment, identities[n], tmp_path, (0, -1) if n == "b" else None) for n in NAMES],
    )
    entries = [entry for line in read_record(tmp_path / RECORD) if (entry := entry_of(line))]
    replayed = dict(replayed_rounds(entries))
    assert [each.model_dump() for each in replayed.values()] == [record["secure"] for record in records_of(experiment)]
    assert replayed[0].envoys == [*"acde"]
    assert replayed[0].against == "a malicious director"
    (entry,) = [each for each in entries if each["event"] == "secure_sum" and each["round"] == 0]
    for change in (
        {"survivors": [*NAMES]},
        {"sharers": [*"acd"]},
        {"signatures": {**entry["signatures"], "a": entry["signatures"]["c"]}},
        {"signatures": {name: entry["signatures"][name] for name in "acd"}},
        {"context": entry["context"] | {"participants": [*"acde"]}},
        {"context": entry["context"] | {"round": 1}},
        {"keys": [keys | {"approves": False} for keys in entry["keys"]]},
        {"keys": []},
    ):
        with pytest.raises(SecureAggregationError):
            replay(entry | change)


def test_what_the_director_holds_has_no_update(tmp_path: Path, identities: dict) -> None:
    # Files of updates are kept for later rounds, and freed only with the experiment.
    kept: list[bytes] = []
    experiment = make_secure(tmp_path, rounds=1)
    free = RunFolder.free_update_file

    def keep(path: Path) -> None:
        kept.append(path.read_bytes())
        free(experiment.folder, path)

    experiment.folder.free_update_file = keep  # type: ignore[method-assign]
    play(experiment, lambda: [Envoy(n, experiment, identities[n], tmp_path) for n in NAMES])
    assert len(kept) >= 5
    for site in NAMES:
        update = update_of(site, 0, MODEL)["weight"]
        change = (update - MODEL["weight"]).ravel()
        encoded, _ = encode(change, RANGE, CLIPS[site] / LARGEST, BITS, Rounding.of(0, 0, site))
        for secret in (update.tobytes(), encoded.tobytes(), encoded[:2].tobytes()):
            assert all(secret not in content for content in kept)


def test_another_set_of_survivors_is_refused_also_after_a_restart_of_the_envoy(
    tmp_path: Path, identities: dict
) -> None:
    record = Record(tmp_path / "record.jsonl", "envoy 'a'")
    unmaskings, context = Unmaskings(record), context_of([*NAMES])
    unmaskings.commit(context, [*"abcd"])
    unmaskings.judge(context, [*"abcd"])
    for again in (unmaskings, Unmaskings(Record(tmp_path / "record.jsonl", "envoy 'a'"))):
        with pytest.raises(SecureAggregationError, match="the sum of a, b, c, d was unmasked for this plan and round"):
            again.commit(context_of([*NAMES], experiment="another-name", attempt=9), [*"abce"])
        again.judge(context_of([*NAMES], round=5), [*"abce"])
        again.judge(context_of([*NAMES], plan_sha256="cd" * 32), [*"abce"])
    assert len([*read_record(record.path)]) == 2
