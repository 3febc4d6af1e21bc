"""Limits that a site sets a director and a worker, beyond what the director checks itself."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from openfl_audio.envoy import shortage
from openfl_audio.envoy.policy import SentToday
from openfl_audio.envoy.rounds_client import LARGEST_TIMES, RoundsClient, check_approved
from openfl_audio.envoy.settings import SENT_FILE, EnvoySettings
from openfl_audio.envoy.shortage import write_when_possible
from openfl_audio.errors import DirectorRefusedError, EndedError, PolicyError
from openfl_audio.protocol.bundle import describe_model, read_bundle
from openfl_audio.protocol.plan import MODEL_FILE
from openfl_audio.protocol.record import RECORD, Record
from openfl_audio.protocol.tensors import describe
from openfl_audio.protocol.wire import open_channel
from tests.unit.envoy.test_budget import PLAN, WEIGHTS, budget
from tests.unit.protocol.test_bundle import files, write

MODEL = {"weight": np.arange(6, dtype=np.float32)}
ROUNDS = 3  # of the plan in `files`


@pytest.fixture
def bundle(tmp_path: Path):
    write(tmp_path / "bundle", files() | {MODEL_FILE: describe_model(MODEL, "float32").model_dump_json().encode()})
    return read_bundle(tmp_path / "bundle")


def test_a_director_gets_the_approved_rounds_and_no_more(bundle):
    check_approved(bundle, 0, MODEL)
    check_approved(bundle, ROUNDS - 1, {"weight": MODEL["weight"] + 1})
    with pytest.raises(DirectorRefusedError, match="asks for round 3, and the site has approved 3 rounds"):
        check_approved(bundle, ROUNDS, MODEL)


@pytest.mark.parametrize(
    "model",
    [
        {"weight": np.nextafter(MODEL["weight"], np.float32(9))},
        {"weight": MODEL["weight"].astype(np.float64)},
        {"weight": MODEL["weight"].reshape(2, 3)},
        {"weight": MODEL["weight"], "more": np.zeros(1, np.float32)},
        {},
    ],
    ids=["values", "type", "shape", "a tensor more", "none"],
)
def test_another_initial_model_than_the_approved_one_is_refused(bundle, model):
    with pytest.raises(DirectorRefusedError, match="initial model is not the one that the site has approved"):
        check_approved(bundle, 0, model)
    check_approved(bundle, 1, model)


def test_an_update_is_no_larger_than_the_model_and_its_optimizer_could_be(bundle, tmp_path):
    settings = EnvoySettings(director_host="127.0.0.1", director_port=1, work_dir=tmp_path)
    with open_channel("127.0.0.1:1", None) as channel:
        record = Record(tmp_path / RECORD, "envoy 'b'")
        client = RoundsClient(channel, "b", bundle, lambda _: None, lambda: False, settings, record)
        most = LARGEST_TIMES * 6 * 4
        assert client.bounded(most) == most
        with pytest.raises(PolicyError, match=f"an update of {most + 1} bytes is larger than the model could be"):
            client.bounded(most + 1)


def test_an_update_waits_for_a_disk_that_does_not_take_what_leaves_today(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shortage, "RETRY_SECONDS", 0.01)
    sent, began = SentToday(tmp_path / "missing" / SENT_FILE), time.monotonic()

    def has_ended() -> bool:
        if "waits" in caplog.text:
            sent.path.parent.mkdir(exist_ok=True)
        return time.monotonic() - began > 30

    write_when_possible(lambda: sent.add(5, 1.0), sent.path, "toy", has_ended)
    assert json.loads(sent.path.read_text())["bytes"] == 5
    assert f"experiment 'toy' waits: {sent.path} cannot be written" in caplog.text
    with pytest.raises(PolicyError, match="more than 1 MB would leave today"):
        write_when_possible(lambda: sent.add(1_000_000, 1.0), sent.path, "toy", has_ended)


def test_nothing_waits_for_a_disk_when_the_worker_has_ended(tmp_path):
    calls = []

    def fail() -> None:
        calls.append("write")
        raise OSError("full")

    write_when_possible(fail, tmp_path, "toy", lambda: True)
    assert calls == ["write"], "what has happened is written where it can be, and nothing waits"


def test_a_charge_is_recorded_though_the_worker_ends_as_soon_as_it_is_paid(bundle, tmp_path):
    site, record = budget(tmp_path), Record(tmp_path / RECORD, "envoy 'site_b'")
    settings = EnvoySettings(director_host="127.0.0.1", director_port=1, work_dir=tmp_path)
    private = bundle.model_copy(update={"plan": PLAN, "model": describe_model(WEIGHTS, "float32")})
    ledger = tmp_path / "wards.jsonl"

    def has_ended() -> bool:
        return len(ledger.read_text().splitlines()) > 1

    header = describe(WEIGHTS, {})
    buffer = b"".join(each.tobytes() for each in WEIGHTS.values())
    with open_channel("127.0.0.1:1", None) as channel:
        client = RoundsClient(
            channel, "site_b", private, lambda _: pytest.fail("left"), has_ended, settings, record, site
        )
        for _ in range(2):  # the second time, nothing is paid either
            with pytest.raises(EndedError):
                client.send_update(0, {}, header, buffer)
    assert has_ended()
    charged = [json.loads(line) for line in record.path.read_text().splitlines()]
    assert [(each["event"], each["round"]) for each in charged if each.get("event") == "charged"] == [("charged", 0)]
