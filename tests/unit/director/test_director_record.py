import asyncio
import errno
import hashlib
import json
from pathlib import Path
from typing import Any

from openfl_audio.director.director import Director
from openfl_audio.director.run_folder import Status
from openfl_audio.director.server import keep_record
from openfl_audio.protocol.messages import SignedHead
from openfl_audio.protocol.plan import ARCHIVE, EXPERIMENT_PLAN
from openfl_audio.protocol.record import Record, sha256_of_names
from tests.unit.director import test_director
from tests.unit.director.test_director import register, submit
from tests.unit.director.test_shortage import persist
from tests.unit.director.toy_experiment import (
    CLIPS,
    MODEL,
    QUORUM_OF_TWO,
    answer,
    make_experiment,
    running,
    serve,
    until,
)
from tests.unit.director.toy_experiment import play as play_rounds

play = test_director.play
MODEL_BYTES = sum(tensor.nbytes for tensor in MODEL.values())


def entries(record: Record, *events: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in record.path.read_text().splitlines()]
    return [
        {key: value for key, value in entry.items() if key not in ("number", "time", "before", "experiment")}
        for entry in found
        if not events or entry["event"] in events
    ]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_submission_is_recorded_with_the_hashes_of_what_came(play):
    async def story(director: Director) -> None:
        await register(director, "ab")
        experiment = await submit(director, "one", owner="ada")
        (entry,) = entries(director.record, "submitted")
        folder = experiment.folder
        assert (entry["by"], entry["envoys"]) == ("user 'ada'", ["a", "b"])
        assert entry["archive_sha256"] == sha256(folder.path / ARCHIVE)
        assert entry["plan_sha256"] == sha256(folder.path / EXPERIMENT_PLAN)
        assert entry["model_sha256"] == sha256(folder.model)
        assert entry["aggregation"]["rule"]["rule"] == "mean"

    play(story)


def test_a_deleted_experiment_is_recorded_with_who_deleted_it(play):
    async def story(director: Director) -> None:
        await register(director, "a")
        experiment = await submit(director, "one")
        await until(lambda: experiment.state.status is Status.IN_PROGRESS)
        experiment.stop()
        await director.delete("one", "operator 'olga'")
        assert entries(director.record, "ended", "deleted") == [
            {"event": "ended", "status": "stopped", "rounds": 0, "reason": ""},
            {"event": "deleted", "by": "operator 'olga'"},
        ]

    play(story)


def test_of_a_flood_of_heads_few_go_into_the_record_and_the_newest_does(play):
    async def story(director: Director) -> None:
        for number in range(1, 201):
            director.heads.take("envoy 'a'", SignedHead(number=number, sha256=f"{number:064x}"), "", None)
        assert len(entries(director.record, "head")) < 100  # one a second
        keeping = asyncio.create_task(keep_record(director))
        await until(lambda: entries(director.record, "head")[-1]["entry"] == 200)
        keeping.cancel()

    play(story)


def test_each_round_is_recorded_with_what_came_and_what_became_of_it(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1)
    play_rounds(experiment, serve(experiment, "a"), serve(experiment, "b"))
    names_sha256 = sha256_of_names(MODEL)
    received = {"event": "received", "round": 0, "bytes": MODEL_BYTES, "tensors": 2, "names_sha256": names_sha256}
    found = entries(experiment.record, "received", "aggregated", "ended")
    assert sorted(found[:2], key=lambda entry: entry["envoy"]) == [received | {"envoy": envoy} for envoy in "ab"]
    assert found[2] == {
        "event": "aggregated",
        "round": 0,
        "rule": "mean",
        "clips": {envoy: CLIPS[envoy] for envoy in "ab"},
    }
    # The last model is validated only: updates without tensors.
    assert [(entry["round"], entry["bytes"], entry["tensors"]) for entry in found[3:5]] == [(1, 0, 0)] * 2
    assert found[5:] == [{"event": "ended", "status": "finished", "rounds": 2, "reason": ""}]
    assert experiment.record.head.number >= 6


def test_what_is_missing_or_refused_is_recorded_with_the_reason(tmp_path):
    experiment = make_experiment(tmp_path, rounds=1, members="abcd", participation=QUORUM_OF_TWO)

    async def story() -> None:
        async with running(experiment):
            await answer(experiment, "a")
            await answer(experiment, "b")
            experiment.scheduler.depart("c", "no luck\nwith this")
            experiment.scheduler._opened -= 2000
            experiment.answered.notify()
            await until(lambda: experiment.rounds.round_number == 1)

    test_director.asyncio.run(story())
    assert entries(experiment.record, "departed", "missing") == [
        {"event": "departed", "envoy": "c", "reason": "no luck"},
        {"event": "missing", "round": 0, "envoys": ["d"]},
    ]


def test_a_round_waits_for_room_for_its_entries_on_the_disk(tmp_path, monkeypatch):
    experiment = make_experiment(tmp_path, rounds=1)
    whole, full = Record.sync, [True]

    def sync(self: Record) -> Any:
        if full:
            raise OSError(errno.ENOSPC, "full")
        return whole(self)

    monkeypatch.setattr(Record, "sync", sync)

    async def make_room() -> None:
        await until(lambda: bool(experiment.waits))
        assert experiment.waits.startswith("disk full on the director")
        assert experiment.rounds.round_number == 0
        full.clear()

    play_rounds(experiment, persist(experiment, "a"), persist(experiment, "b"), make_room())
    assert experiment.state.status is Status.FINISHED
