"""Updates that must not count: refused in a sentence, kept in the history, and the mean is that of the others."""

import json
import math
import queue
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from openfl.protocols import aggregator_pb2, base_pb2

from openfl_audio.protocol.plan import TRAIN, VALIDATE
from openfl_audio.protocol.tensors import CHUNK_BYTES, Tensors, stream
from tests.integration.conftest import FakeEnvoy, wait_for

pytestmark = pytest.mark.integration

NAME = "bad-updates"
NAN, INFINITY = float("nan"), float("inf")
REFUSED = r"update of envoy 'c' for round \d+: "


@dataclass
class Answer:
    """The director's answer to one upload: {"counted": ...}, or a refusal."""

    counted: bool | None = None
    code: grpc.StatusCode | None = None
    sentence: str = ""


@dataclass
class Turn:
    """One round of the fake envoy, with the update that would be good."""

    envoy: FakeEnvoy
    federation_uuid: str
    round: int
    metadata: dict[str, Any]
    tensors: Tensors
    answers: list[Answer] = field(default_factory=list)

    def send(self, metadata: dict[str, Any] | None = None, tensors: Tensors | None = None) -> None:
        self.send_pieces(stream(self.tensors if tensors is None else tensors, metadata or self.metadata))

    def send_pieces(self, pieces: Iterator[bytes]) -> None:
        try:
            *_, answer = self.envoy.rounds.send_update(pieces, timeout=30)
            self.answers.append(Answer(counted=json.loads(answer)["counted"]))
        except grpc.RpcError as error:
            self.answers.append(Answer(code=error.code(), sentence=error.details()))

    def with_tensor(self, name: str, value: Any) -> None:
        self.send(tensors=self.tensors | {name: value})

    def with_training(self, **changes: Any) -> None:
        results = self.metadata["results"]
        self.send(self.metadata | {"results": results | {TRAIN: results[TRAIN] | changes}})

    def with_metrics(self, **metrics: Any) -> None:
        self.with_training(metrics=metrics)

    def send_stock(self, task: str, tensor: base_pb2.NamedTensor) -> None:
        """Results of one task as OpenFL's own envoys send them."""
        header = aggregator_pb2.MessageHeader(sender="c", federation_uuid=self.federation_uuid)
        results = aggregator_pb2.TaskResults(
            header=header, round_number=self.round, task_name=task, data_size=4, tensors=[tensor]
        )
        pieces = [base_pb2.DataStream(npbytes=results.SerializeToString())]
        self.envoy.aggregator.SendLocalTaskResults(iter(pieces), timeout=30)


def filled(turn: Turn, name: str, value: float) -> np.ndarray:
    return np.full_like(turn.tensors[name], value)


def send_twice(turn: Turn) -> None:
    turn.send()
    turn.send(tensors={name: tensor + 1000 for name, tensor in turn.tensors.items()})


def send_for_earlier_round(turn: Turn) -> None:
    turn.send(turn.metadata | {"round": turn.round - 1}, {n: t + 1000 for n, t in turn.tensors.items()})
    turn.send()


def send_two_at_once(turn: Turn) -> None:
    """The second one is through while the first is on its way; then the first ends."""
    pieces: queue.Queue[bytes | None] = queue.Queue()
    first = Turn(turn.envoy, turn.federation_uuid, turn.round, turn.metadata, turn.tensors)
    header, data = stream({n: t + 1000 for n, t in turn.tensors.items()}, turn.metadata)
    thread = threading.Thread(target=lambda: first.send_pieces(iter(pieces.get, None)))
    thread.start()
    pieces.put(header)
    turn.send()
    pieces.put(data)
    pieces.put(None)
    thread.join()
    turn.answers += first.answers


def give_up_often(turn: Turn) -> None:
    """An upload that breaks off is no answer, wherever it does: the envoy sends it once more."""
    header, data = stream(turn.tensors, turn.metadata)
    for attempt in range(30):
        pieces: queue.Queue[bytes] = queue.Queue()
        call = turn.envoy.rounds.send_update(iter(pieces.get, b""))
        pieces.put(header)
        pieces.put(data[: attempt % len(data)] or data[:1])
        wait_for(lambda queued=pieces, call=call: queued.empty() or not call.is_active())
        call.cancel()
        pieces.put(b"")
    turn.send()


def send_more_than_the_header_says(turn: Turn) -> None:
    turn.send_pieces(iter([*stream(turn.tensors, turn.metadata), b"\0" * CHUNK_BYTES]))


def send_less_than_the_header_says(turn: Turn) -> None:
    header, data = stream(turn.tensors, turn.metadata)
    turn.send_pieces(iter([header, data[:-1]]))


def send_a_header_with(turn: Turn, change: Callable[[dict[str, Any]], Any]) -> None:
    header, *data = stream(turn.tensors, turn.metadata)
    content = json.loads(zlib.decompress(header)[8:])
    change(content)
    text = json.dumps(content).encode()
    turn.send_pieces(iter([zlib.compress(len(text).to_bytes(8, "little") + text), *data]))


def without(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in mapping.items() if k != key}


def send_stock_tensor(turn: Turn, **changes: Any) -> None:
    described = {"name": "0.weight", "tags": ["trained"], "data_bytes": b"\0" * 4}
    tensor = base_pb2.NamedTensor(**(described | changes))
    tensor.transformer_metadata.add(int_list=[1, 1])
    turn.send_stock(TRAIN, tensor)


# What is sent, and what the refusal says of it.
REFUSALS: dict[str, tuple[Callable[[Turn], None], str]] = {
    "NaN": (lambda t: t.with_tensor("0.weight", filled(t, "0.weight", NAN)), "tensor '0.weight' holds NaN or infinity"),
    "infinity": (lambda t: t.with_tensor("0.bias", filled(t, "0.bias", INFINITY)), "tensor '0.bias' holds NaN or inf"),
    "minus infinity": (lambda t: t.with_tensor("0.bias", filled(t, "0.bias", -INFINITY)), "tensor '0.bias' holds NaN"),
    "a wrong shape": (
        lambda t: t.with_tensor("0.weight", np.zeros((2, 2), np.float32)),
        r"tensor '0.weight' is float32\(2, 2\), not float32\(1, 1\)",
    ),
    "another shape of one size": (
        lambda t: t.with_tensor("0.weight", t.tensors["0.weight"].reshape(1)),
        r"tensor '0.weight' is float32\(1,\), not float32\(1, 1\)",
    ),
    "a wrong type": (
        lambda t: t.with_tensor("0.weight", t.tensors["0.weight"].astype(np.float64)),
        r"tensor '0.weight' is float64\(1, 1\), not float32",
    ),
    "a type of the same width": (
        lambda t: t.with_tensor("0.weight", t.tensors["0.weight"].astype(np.int32)),
        r"tensor '0.weight' is int32\(1, 1\), not float32",
    ),
    "a missing tensor": (lambda t: t.send(tensors=without(t.tensors, "0.bias")), r"missing \['0.bias'\], unknown \[\]"),
    "an extra tensor": (lambda t: t.with_tensor("9.bias", np.zeros(1)), r"missing \[\], unknown \['9.bias'\]"),
    "no tensor at all": (lambda t: t.send(tensors={}), "tensors missing"),
    "size 0": (lambda t: t.with_training(size=0), "trained on 0 clips"),
    "a negative size": (lambda t: t.with_training(size=-1), "size is -1"),
    "an absurd size": (lambda t: t.with_training(size=10**18), f"size is {10**18}"),
    "half a clip": (lambda t: t.with_training(size=1.5), "size is 1.5"),
    "a size in words": (lambda t: t.with_training(size="4"), "size is '4'"),
    "no size": (lambda t: t.with_training(size=None), "size is None"),
    "a metric that is no number": (lambda t: t.with_metrics(loss="low"), "loss is 'low'"),
    "a thousand and one metrics": (lambda t: t.with_metrics(**dict.fromkeys(map(str, range(1001)), 0.5)), "1000"),
    "results of an unknown task": (
        lambda t: t.send(t.metadata | {"results": t.metadata["results"] | {"guess": {"size": 1, "metrics": {}}}}),
        r"has results of .*'guess'.*, asked for",
    ),
    "no results of a task": (
        lambda t: t.send(t.metadata | {"results": without(t.metadata["results"], VALIDATE)}),
        r"has results of \['train'\], asked for \['aggregated_model_validate', 'train'\]",
    ),
    "more bytes than tensors": (send_more_than_the_header_says, "larger than the 8 bytes of its tensors"),
}
# No answer to this round, as it does not say so: refused, and the round waits for the envoy's update, which comes next.
UNREADABLE: dict[str, tuple[Callable[[Turn], None], str]] = {
    # A connection that broke looks like this.
    "fewer bytes than tensors": (send_less_than_the_header_says, "ends after 7 of 8 bytes"),
    "nothing": (lambda t: t.send_pieces(iter([])), "not a compressed header"),
    "no header": (lambda t: t.send_pieces(iter([b"\0" * 100])), "not a compressed header"),
    "a header that is no safetensors": (
        lambda t: t.send_pieces(iter([zlib.compress(b"\0" * 100)])),
        "not a safetensors header: 100 bytes",
    ),
    "a header that unpacks to 64 MiB": (
        lambda t: t.send_pieces(iter([zlib.compress(b"\0" * (64 << 20))])),
        "a compressed header, or one of more than",
    ),
    "tensors that overlap": (
        lambda t: send_a_header_with(t, lambda c: c["0.bias"].update(data_offsets=c["0.weight"]["data_offsets"])),
        "bytes of tensor '0..*' do not fit its shape",
    ),
    "an extra tensor whose name is no text": (
        lambda t: send_a_header_with(t, lambda c: c.update({"\ud800": c["0.bias"] | {"shape": [0]} | at_end(c)})),
        "not a safetensors header",
    ),
    "a tensor that fits nowhere and whose name is no text": (
        lambda t: send_a_header_with(t, lambda c: c.update({"\ud800": c["0.bias"] | {"shape": [5]} | at_end(c)})),
        "not a safetensors header",
    ),
    "a shape that is negative": (
        lambda t: send_a_header_with(t, lambda c: c["0.bias"].update(shape=[-1])),
        r"not a safetensors header: ValueError\('shape \[-1\]",
    ),
    "no experiment": (lambda t: t.send(without(t.metadata, "experiment")), "not a UpdateEnvelope: experiment is"),
    "an unknown experiment": (
        lambda t: t.send(t.metadata | {"experiment": "of-nobody"}),
        "envoy 'c' has no experiment 'of-nobody'",
    ),
    "a round that is no number": (lambda t: t.send(t.metadata | {"round": "next"}), "round is 'next'"),
    "a later round": (
        lambda t: t.send(t.metadata | {"round": t.round + 1}),
        r"update of envoy 'c' for round \d+: round \d+ asks for",
    ),
}
# What is sent, and which of it counts.
DROPPED: dict[str, tuple[Callable[[Turn], None], list[bool]]] = {
    "an earlier round": (send_for_earlier_round, [False, True]),
    "one that was sent twice": (send_twice, [True, False]),
    "two at once": (send_two_at_once, [True, False]),
    "thirty that broke off": (give_up_often, [True]),
}
STOCK: dict[str, tuple[Callable[[Turn], None], str]] = {
    "a stock update whose bytes do not fill its shape": (
        lambda t: send_stock_tensor(t, data_bytes=b"\0" * 8),
        "tensor '0.weight': cannot reshape",
    ),
    "a stock update with half a number": (lambda t: send_stock_tensor(t, data_bytes=b"\0" * 3), "tensor '0.weight'"),
    "a stock metric without a value": (
        lambda t: send_stock_tensor(t, name="loss", tags=["metric"], data_bytes=b""),
        "metric 'loss'|tensor 'loss'",
    ),
}
# The update counts, and the metric does not.
LEFT_OUT: dict[str, tuple[Callable[[Turn], None], str]] = {
    "a metric that is NaN": (lambda t: t.with_metrics(loss=NAN), "metric 'loss' of task 'train' is nan: undefined"),
    "a metric that is infinite": (lambda t: t.with_metrics(loss=INFINITY), "'loss' of task 'train' is inf: undefined"),
    "a metric as large as a number can be": (
        lambda t: t.with_metrics(loss=1.7e308),
        r"metric 'loss' of task 'train' is 1.7e\+308: outside its bounds",
    ),
}
# Finite numbers that would make the model infinite: nothing is wrong with the form of it, so it is not sent back.
TOO_LARGE = {"a weight of 3.4e38": (lambda t: t.with_tensor("0.weight", filled(t, "0.weight", 3.4e38)), "3.4e\\+38")}
CASES = DROPPED | REFUSALS | UNREADABLE | STOCK | LEFT_OUT | TOO_LARGE


def at_end(content: dict[str, Any]) -> dict[str, Any]:
    end = max(entry["data_offsets"][1] for name, entry in content.items() if name != "__metadata__")
    return {"data_offsets": [end, end]}


def is_over(state: dict[str, Any]) -> bool:
    return state.status not in ("pending", "in_progress")


@pytest.fixture(scope="module")
def outcome(running, connect) -> tuple[dict[str, list[Answer]], dict[str, Any]]:
    """One experiment, one bad update of a fake envoy 'c' a round beside two real ones: the answers, and how it went."""
    import toy
    from toy.experiment import PointsData, model_interface, task_interface

    from openfl_audio.notebook.interactive_api import FLExperiment

    experiment = FLExperiment(connect(running), NAME, workspace=toy)
    client = experiment.federation.dir_client
    turns: list[Turn] = []
    with FakeEnvoy(running, "c") as fake:
        experiment.start(
            model_provider=model_interface(),
            task_keeper=task_interface(),
            data_loader=PointsData(),
            # The first round is a good one, so that there is an earlier round.
            rounds_to_train=1 + len(CASES),
            envoys=["a", "b", "c"],
            best=("slope", "max"),
        )
        federation_uuid = experiment.plan.federation_uuid
        for number, send in enumerate([Turn.send, *(case[0] for case in CASES.values()), Turn.send]):
            turn = wait_for(lambda wanted=number: next_turn(fake, federation_uuid, wanted))
            send(turn)
            state = client.get_experiment(NAME)
            if (state.round, "c" in state.waiting_for) == (number, True):
                turn.send()
            turns.append(turn)
        wait_for(lambda: is_over(client.get_experiment(NAME)), 60)
    # The last round validates, and has no case.
    answers = {case: turn.answers for case, turn in zip(CASES, turns[1:-1], strict=True)}
    return answers, client.get_experiment(NAME)


def next_turn(fake: FakeEnvoy, federation_uuid: str, number: int) -> Turn | None:
    """Round `number`, once it is open. The update is the mean of what 'a' and 'b' do, so that it changes nothing."""
    answer = fake.get_tasks(federation_uuid)
    assert answer.round_number <= number, f"round {number} is over before its update was sent"
    if not answer.tasks or answer.round_number < number:
        return None
    model, _ = fake.get_model(NAME)
    tensors = {name: tensor + np.float32(2.5) for name, tensor in model.items()}
    slope = model["0.weight"].item()
    results = {
        TRAIN: {"size": 4, "metrics": {"loss": 2.5}},
        VALIDATE: {"size": 4, "metrics": {"accuracy": -abs(slope - 2), "slope": slope}},
    }
    names = [task.name for task in answer.tasks]
    metadata = {"experiment": NAME, "envoy": "c", "round": number, "results": {name: results[name] for name in names}}
    tensors = tensors if TRAIN in names else {}
    return Turn(fake, federation_uuid, number, metadata, tensors)


def record_of(outcome, case: str) -> dict[str, Any]:
    return outcome[1].history[1 + list(CASES).index(case)].model_dump()


def test_the_experiment_goes_on_to_its_end_with_the_mean_of_the_good_updates(outcome):
    _, experiment = outcome
    assert (experiment.status, experiment.error) == ("finished", "")
    # (1 * 1 + 3 * 3) / 4 a round, with or without an update that agrees with it.
    slopes = [record.metrics[VALIDATE]["slope"] for record in experiment.history]
    assert slopes == [2.5 * number for number in range(2 + len(CASES))]
    assert all({"a", "b"} <= record.envoys.keys() for record in experiment.history)


@pytest.mark.parametrize("case", REFUSALS)
def test_a_bad_update_is_refused_with_its_envoys_name_and_kept_in_the_history(outcome, case):
    answer, *_ = outcome[0][case]
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    record = record_of(outcome, case)
    assert list(record["refused"]) == ["c"]
    assert list(record["envoys"]) == ["a", "b"]
    assert re.search(REFUSED, answer.sentence), answer.sentence
    assert not re.search(REFUSED, record["refused"]["c"]), "the history has both beside it"
    for sentence in (answer.sentence, record["refused"]["c"]):
        assert re.search(REFUSALS[case][1], sentence), sentence
        assert "\n" not in sentence


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_is_no_update_of_this_round_is_refused_and_the_right_update_counts(outcome, case):
    refused, right = outcome[0][case]
    assert refused.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ABORTED)
    assert re.search(UNREADABLE[case][1], refused.sentence), refused.sentence
    assert right.counted
    assert list(record_of(outcome, case)["envoys"]) == ["a", "b", "c"]


@pytest.mark.parametrize("case", DROPPED)
def test_what_comes_late_again_or_half_is_dropped_and_the_right_update_counts(outcome, case):
    assert [answer.counted for answer in outcome[0][case]] == DROPPED[case][1]
    record = record_of(outcome, case)
    assert list(record["envoys"]) == ["a", "b", "c"]
    assert record["refused"] == {}


@pytest.mark.parametrize("case", STOCK)
def test_a_bad_update_of_an_openfl_envoy_is_kept_in_the_history_and_nobody_waits_for_it(outcome, case):
    record = record_of(outcome, case)
    assert re.search(STOCK[case][1], record["refused"]["c"])
    assert record["missing"] == []


@pytest.mark.parametrize("case", LEFT_OUT)
def test_a_metric_that_is_left_out_is_said_and_the_update_counts(outcome, case):
    assert [answer.counted for answer in outcome[0][case]] == [True]
    record = record_of(outcome, case)
    assert list(record["envoys"]) == ["a", "b", "c"]
    assert "loss" not in record["envoys"]["c"]["train"]
    assert record["refused"] == {}
    (sentence,) = record["notes"]["c"]
    assert re.search(LEFT_OUT[case][1], sentence), sentence


@pytest.mark.parametrize("case", TOO_LARGE)
def test_an_update_that_would_make_the_model_infinite_is_left_out_by_name(outcome, case):
    assert [answer.counted for answer in outcome[0][case]] == [False]
    record = record_of(outcome, case)
    assert record["notes"].keys() == record["refused"].keys() == {"c"}
    assert re.search(TOO_LARGE[case][1], record["refused"]["c"])


def test_means_of_metrics_stay_finite(outcome):
    for record in outcome[1].history:
        for metrics in record.metrics.values():
            assert all(math.isfinite(value) for value in metrics.values()), record.metrics
