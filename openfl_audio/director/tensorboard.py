"""The history of an experiment as TensorBoard reads it."""

import io
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from openfl_audio.files import append_at
from openfl_audio.protocol.metrics import shown_name


class TensorBoard:
    """Writer of TensorBoard's files in `folder`; rounds from `first_round` on replace those that did not count.

    TensorBoard's own writer has a thread and an open file, and leaves half a record on a full disk.
    """

    def __init__(self, folder: Path, first_round: int) -> None:
        self._path = folder / f"events.out.tfevents.{time.time():017.6f}.{uuid.uuid4().hex}"
        self._end = 0
        self._unwritten = [
            Event(wall_time=time.time(), file_version="brain.Event:2"),
            Event(step=first_round, session_log=SessionLog(status=SessionLog.START)),
        ]

    def add(self, record: dict[str, Any]) -> None:
        """Write a record, whole or not at all. Raises OSError; then it may be added again."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(record)]
        event = Event(wall_time=time.time(), step=record["round"], summary=Summary(value=values))
        records = io.BytesIO()
        for each in (*self._unwritten, event):
            RecordWriter(records).write(each.SerializeToString())
        self._path.parent.mkdir(exist_ok=True)
        # It can be made again from the history: no reason to wait for the disk.
        self._end = append_at(self._path, self._end, records.getvalue(), durable=False)
        self._unwritten = []


def scalars(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a record with their tags, such as "train/loss" and "envoys/NAME/train/loss"."""
    for task, metrics in record["metrics"].items():
        for name, value in metrics.items():
            yield f"{task}/{shown_name(record, task, name)}", value
    for envoy, tasks in record["envoys"].items():
        for task, metrics in tasks.items():
            for name, value in metrics.items():
                yield f"envoys/{envoy}/{task}/{name}", value
    for name in ("seconds", "bytes_up", "bytes_down"):
        yield f"round/{name}", record[name]
    yield "round/participants", len(record["envoys"])
