"""The history of an experiment as TensorBoard reads it."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter


class TensorBoard:
    """Writes into `folder`; after a restart, rounds from `first_round` on replace those that did not count."""

    def __init__(self, folder: Path, first_round: int) -> None:
        self._writer = EventFileWriter(str(folder))
        self._writer.add_event(Event(step=first_round, session_log=SessionLog(status=SessionLog.START)))

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, record: dict[str, Any]) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(record)]
        self._writer.add_event(Event(wall_time=time.time(), step=record["round"], summary=Summary(value=values)))
        self._writer.flush()


def _scalars(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    origins = {"": record["metrics"], **{f"envoys/{envoy}/": tasks for envoy, tasks in record["envoys"].items()}}
    for prefix, tasks in origins.items():
        for task, metrics in tasks.items():
            for name, value in metrics.items():
                yield f"{prefix}{task}/{name}", value
    for name in ("seconds", "bytes_up", "bytes_down"):
        yield f"round/{name}", record[name]
