import json
import math

import pytest
from pydantic import BaseModel

from openfl_audio.errors import WireError
from openfl_audio.protocol.codec import decode, decode_answer, decode_history, decode_upload, encode, validate
from openfl_audio.protocol.messages import (
    Accepted,
    AttendRequest,
    Counted,
    Credit,
    Ended,
    ExperimentDetails,
    ExperimentRequest,
    FederationStatus,
    Message,
    ModelRequest,
    Order,
    RoundRecord,
    StatusRequest,
    TaskResult,
    UpdateEnvelope,
    UpdateMessage,
    Waits,
)

UPDATE = UpdateMessage(
    experiment="toy",
    envoy="ä",
    round=3,
    results={"train": TaskResult(size=2, metrics={"loss": 0.1}), "none": TaskResult(size=0, metrics={})},
)
MESSAGES = [
    UPDATE,
    AttendRequest(envoy="a", instance="1"),
    ModelRequest(experiment="toy", envoy="a"),
    ModelRequest(experiment="toy", which="best"),
    ExperimentRequest(experiment="toy"),
    StatusRequest(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_was_also_as_plain_json(message):
    assert decode(encode(message), type(message)) == message
    assert decode(encode(message.model_dump()), type(message)) == message


def test_a_model_request_of_a_user_asks_for_the_last_model():
    request = decode(b'{"experiment": "toy"}', ModelRequest)
    assert (request.envoy, request.which) == (None, "last")


def test_a_metric_that_is_no_number_arrives_as_it_is_to_be_refused_by_name_later():
    update = UPDATE.model_copy(update={"results": {"train": TaskResult(size=1, metrics={"loss": math.nan})}})
    came = decode(encode(update.model_dump()), UpdateMessage)
    assert math.isnan(came.results["train"].metrics["loss"])


def changed(**changes: object) -> bytes:
    return json.dumps(UPDATE.model_dump() | changes).encode()


def with_result(**changes: object) -> bytes:
    return changed(results={"train": {"size": 2, "metrics": {}} | changes})


BAD_MESSAGES: dict[str, tuple[bytes, type[Message], str]] = {
    "nothing": (b"", UpdateMessage, "not a UpdateMessage: content is"),
    "other bytes": (b"\xff\x00", UpdateMessage, "content is"),
    "no object": (b"[1]", UpdateMessage, r"content is \[1\]"),
    "a field too many": (b'{"experiment": "toy", "user": "me"}', ExperimentRequest, "user is 'me': Extra inputs"),
    "a field too few": (b"{}", ExperimentRequest, "experiment is {}: Field required"),
    "a number as text": (changed(round="3"), UpdateMessage, "round is '3': Input should be a valid integer"),
    "a number as name": (changed(envoy=3), UpdateMessage, "envoy is 3: Input should be a valid string"),
    "a bool as round": (changed(round=True), UpdateMessage, "round is True"),
    "a fraction as round": (changed(round=0.5), UpdateMessage, "round is 0.5"),
    "a negative size": (with_result(size=-5), UpdateMessage, "results.train.size is -5: .*greater than or equal to 0"),
    "a size beyond all corpora": (with_result(size=10**9 + 1), UpdateMessage, "results.train.size is 1000000001"),
    "text as metric": (with_result(metrics={"loss": "1"}), UpdateMessage, "results.train.metrics.loss is '1'"),
    "no metric at all": (with_result(metrics={"loss": None}), UpdateMessage, "metrics.loss is None"),
    "too many metrics": (
        with_result(metrics={str(index): 0.0 for index in range(1001)}),
        UpdateMessage,
        "results.train.metrics is .*at most 1000 items",
    ),
    "results that are a list": (changed(results=[]), UpdateMessage, r"results is \[\]"),
}


@pytest.mark.parametrize("fault", BAD_MESSAGES)
def test_bytes_that_are_no_such_message_raise_and_the_field_is_named(fault):
    data, kind, sentence = BAD_MESSAGES[fault]
    with pytest.raises(WireError, match=sentence):
        decode(data, kind)


def test_a_refusal_stays_short_whatever_was_sent():
    message = json.dumps({f"field {index}": "x" * 10_000 for index in range(100)}).encode()
    with pytest.raises(WireError) as caught:
        decode(message, ExperimentRequest)
    assert len(str(caught.value)) < 1000


def test_a_message_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        UPDATE.round = 4


RECORD = RoundRecord(
    round=3,
    best=True,
    metrics={"train": {"loss": 0.5}},
    envoys={"a": {"train": {"size": 2, "loss": 0.5}}},
    refused={"b": "no number"},
    missing=["c"],
    notes={"c": ["no answer"]},
    seconds=1.5,
    bytes_up=10,
    bytes_down=20,
)
SUMMARY = {"name": "toy", "owner": "me", "status": "in_progress", "error": ""}
ANSWERS: list[BaseModel] = [
    Order(experiment="toy", prestart=True),
    RECORD,
    FederationStatus(
        envoys=[{"name": "a", "corpus": "superb", "online": True, "experiment": ""}], experiments=[SUMMARY]
    ),
    ExperimentDetails(**SUMMARY, best={"metric": "accuracy", "direction": "max"}, history=[RECORD]),
]


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: type(answer).__name__)
def test_an_answer_comes_back_as_it_was_also_from_a_newer_director_that_says_more(answer):
    assert decode_answer(encode(answer), type(answer)) == answer
    more = json.loads(encode(answer)) | {"mood": "fine"}
    assert decode_answer(json.dumps(more).encode(), type(answer)) == answer


@pytest.mark.parametrize("message", [RECORD, Waits(waits=""), Ended(status="failed", error="no envoy")])
def test_a_message_of_a_history_is_told_by_its_fields(message):
    came = decode_history(encode(message))
    assert (type(came), came) == (type(message), message)


@pytest.mark.parametrize("message", [Credit(chunks=3, chunk_bytes=10), Counted(counted=False), Accepted()])
def test_an_answer_to_an_upload_is_told_by_its_fields(message):
    came = decode_upload(encode(message))
    assert (type(came), came) == (type(message), message)


def test_an_order_has_the_names_of_the_first_version_on_the_wire():
    assert json.loads(encode(Order(experiment="toy", prestart=False))) == {"experiment": "toy", "warm": False}


def test_an_answer_that_is_none_raises_and_the_field_is_named():
    with pytest.raises(WireError, match="not a Order: experiment is 3: Input should be a valid string"):
        decode_answer(b'{"experiment": 3, "warm": true}', Order)
    with pytest.raises(WireError, match="not an answer to an upload: chunks.chunk_bytes is .*: Field required"):
        decode_upload(b'{"chunks": 1}')
    with pytest.raises(WireError, match="not a message of a history: waits.waits is 3: Input should be a valid string"):
        decode_history(b'{"waits": 3}')


def test_an_answer_may_be_larger_than_a_request():
    waits = Waits(waits="x" * (1 << 20))
    assert decode_answer(encode(waits), Waits) == waits
    with pytest.raises(WireError, match="are more than 65536"):
        decode(encode(waits), Waits)


def test_metadata_whose_results_are_wrong_still_tells_whose_update_it_is():
    metadata = UPDATE.model_dump() | {"results": "none"}
    assert str(validate(metadata, UpdateEnvelope)) == "update of envoy 'ä' for round 3"
    with pytest.raises(WireError, match="not a UpdateMessage: results is 'none'"):
        validate(metadata, UpdateMessage)
