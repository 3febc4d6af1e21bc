import json
import math
import threading
import time
from collections.abc import Iterator

import pytest

from federation.wire import (
    AttendRequest,
    ExperimentRequest,
    Message,
    ModelRequest,
    StatusRequest,
    TaskResult,
    UpdateMessage,
    WireError,
    decode,
    encode,
    send_pieces,
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


class Call:
    """A call as gRPC makes it: a thread of its own takes pieces as long as there are any."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.sent: list[bytes] = []
        self.sent_with_leave: list[int] = []
        self._thread = threading.Thread(target=self._take, args=(pieces,), daemon=True)
        self._thread.start()

    def _take(self, pieces: Iterator[bytes]) -> None:
        for piece in pieces:
            self.sent.append(piece)

    def __iter__(self) -> Iterator[bytes]:
        for leave, expected in ((3, 1), (2, 4)):
            deadline = time.monotonic() + 10
            while len(self.sent) < expected and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.05)  # for a piece too many, should one be sent
            self.sent_with_leave.append(len(self.sent))
            yield encode({"leave": leave})
        self._thread.join(10)
        yield encode({"counted": True})

    def cancel(self) -> None:
        pass


def test_pieces_go_as_leave_is_given_and_the_last_answer_is_returned():
    calls = []

    def call(pieces: Iterator[bytes]) -> Call:
        calls.append(Call(pieces))
        return calls[0]

    assert send_pieces(call, (bytes([n]) for n in range(6))) == {"counted": True}
    assert calls[0].sent == [bytes([n]) for n in range(6)]
    assert calls[0].sent_with_leave == [1, 4]


def test_nobody_waits_for_leave_after_the_call_has_ended():
    class Broken(Call):
        def __iter__(self) -> Iterator[bytes]:
            raise ConnectionError("gone")

    calls = []
    with pytest.raises(ConnectionError):
        send_pieces(lambda pieces: calls.append(Broken(pieces)) or calls[0], (b"x" for _ in range(2)))
    calls[0]._thread.join(10)
    assert not calls[0]._thread.is_alive()
