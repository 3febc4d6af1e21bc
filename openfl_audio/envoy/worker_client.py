"""A worker's way to its experiment: it asks its envoy, which asks the director."""

import mmap
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from openfl.protocols import aggregator_pb2

from openfl_audio.envoy.link import Link, Request
from openfl_audio.errors import DirectorRefusedError, PolicyError, WireError
from openfl_audio.protocol.bundle import as_sent
from openfl_audio.protocol.codec import validate
from openfl_audio.protocol.messages import GlobalModel, ProgressReport, TaskResult
from openfl_audio.protocol.tensors import Header, Tensors, describe, tensors_in


class WorkerClient:
    """Client of one experiment, for a worker: `round_loop.RoundCollaborator` calls it."""

    def __init__(self, link: Link, precision: str) -> None:
        self._link, self._precision = link, precision
        self._memory: mmap.mmap | bytearray = bytearray()

    def get_tasks(self, collaborator_name: str) -> tuple[Sequence[aggregator_pb2.Task], int, int, bool]:
        """Wait for tasks, for the length of a long poll at most.

        Returns tasks, round number, seconds to sleep (OpenFL's; always 0 here), and whether the experiment has ended.
        """
        answer, _ = self._ask(Request(call="tasks"))
        return [aggregator_pb2.Task(**task) for task in answer["tasks"]], answer["round"], 0, answer["quit"]

    def get_model(self) -> tuple[Tensors, GlobalModel]:
        """Return the global model, and what is said of it. The next call, and an update, overwrite the arrays."""
        _, packed = self._ask(Request(call="model"))
        header = Header.unpack(packed)
        return tensors_in(self._memory, header), validate(header.metadata, GlobalModel)

    def send_update(self, round_number: int, results: dict[str, TaskResult], tensors: Tensors) -> None:
        """Send the update of a round.

        Raises DirectorRefusedError for one that the director does not count, and PolicyError for one that the site does
        not let leave.
        """
        with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite, and the director says so
            sent = {name: as_sent(tensor, self._precision) for name, tensor in tensors.items()}
        header = describe(sent, {})
        packed = header.pack()
        self._ask(Request(call="memory", n_bytes=header.data_bytes))
        for name, place in tensors_in(self._memory, header).items():
            place[...] = sent[name]
        self._ask(Request(call="update", round=round_number, results=results), packed)

    def report(self, progress: ProgressReport) -> float:
        """Report progress, and return after how many seconds the director would like to hear more."""
        answer, _ = self._ask(Request(call="progress", progress=progress.model_dump()))
        return answer["seconds"]

    def _ask(self, request: Request, blob: bytes = b"") -> tuple[dict[str, Any], bytes]:
        self._link.send(request.model_dump(), blob)
        answer, data, files = self._link.receive()
        if "memory" in answer:
            self._memory = bytearray()
            for file in files:
                self._memory = mmap.mmap(file, answer["memory"])
                os.close(file)
        if "refused" in answer:
            raise DirectorRefusedError(answer["refused"])
        if "forbidden" in answer:
            raise PolicyError(answer["forbidden"])
        if "failed" in answer:
            raise WireError(answer["failed"])
        return answer, data
