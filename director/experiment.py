"""One experiment on the director: its rounds, whoever waits for them, and what is kept of it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from enum import Enum
from typing import Any

from director.rounds import Rounds, Update
from director.run_folder import RunFolder
from federation.plan import ExperimentPlan, Task
from federation.wire import Tensors, pack

logger = logging.getLogger(__name__)

# A long poll is answered after this many seconds even if there is nothing to say, so that dead peers are noticed.
LONG_POLL_SECONDS = 20.0


class Status(str, Enum):
    """OpenFL's words for the state of an experiment."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    FINISHED = "finished"
    FAILED = "failed"


class Experiment:
    def __init__(self, plan: ExperimentPlan, owner: str, folder: RunFolder, model: Tensors) -> None:
        self.plan = plan
        self.owner = owner
        self.folder = folder
        self.status = Status.PENDING
        self.error = ""
        self._rounds = Rounds(plan, model)
        self._changed = asyncio.Condition()
        self._packed = b""
        self._open_round()

    @property
    def ended(self) -> bool:
        return self.status in (Status.FINISHED, Status.FAILED)

    def start(self) -> None:
        self.status = Status.IN_PROGRESS
        self._open_round()
        logger.info(
            "experiment '%s' starts: %d rounds on %s", self.plan.name, self.plan.rounds, ", ".join(self.plan.envoys)
        )

    async def wait_for_tasks(self, envoy: str) -> tuple[list[Task], int]:
        """Tasks of `envoy` and their round: waits until there are some, the experiment ends, or a long poll is over."""

        def worth_answering() -> bool:
            return self.ended or bool(self._rounds.tasks_for(envoy))

        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(worth_answering), LONG_POLL_SECONDS)
            except asyncio.TimeoutError:
                return [], self._rounds.round_number
            tasks = [] if self.ended else self._rounds.tasks_for(envoy)
            return tasks, self._rounds.round_number

    def global_model(self) -> bytes:
        """Safetensors bytes of this round's global model, made once for all envoys."""
        if not self._packed:
            self._packed = pack(self._rounds.model, {"round": self._rounds.round_number})
        self._bytes_down += len(self._packed)
        return self._packed

    async def add_update(self, update: Update, n_bytes: int) -> None:
        """Raises UpdateRefusedError."""
        async with self._changed:
            if self.ended:
                return
            self._rounds.add(update)
            self._bytes_up += n_bytes
            if self._rounds.complete:
                self._close_round()
                self._changed.notify_all()

    async def fail(self, reason: str) -> None:
        async with self._changed:
            if self.ended:
                return
            self.status, self.error = Status.FAILED, reason
            logger.error("experiment '%s' failed: %s", self.plan.name, reason)
            self._changed.notify_all()

    async def history(self) -> AsyncIterator[dict[str, Any]]:
        """Records of all rounds, those to come included, until the experiment has ended."""
        seen = 0
        while True:
            async with self._changed:
                while len(self.folder.history) == seen and not self.ended:
                    await self._changed.wait()
                records = self.folder.history[seen:]
            if not records:
                return
            for record in records:
                yield record
            seen += len(records)

    def _open_round(self) -> None:
        self._opened = time.monotonic()
        self._bytes_up = self._bytes_down = 0
        self._packed = b""

    def _close_round(self) -> None:
        record = self._rounds.record()
        record |= {
            "seconds": round(time.monotonic() - self._opened, 3),
            "bytes_up": self._bytes_up,
            "bytes_down": self._bytes_down,
        }
        if record["best"]:
            self.folder.save_model("best", self._rounds.model, record["round"])
        self._rounds.close()
        self.folder.save_model("last", self._rounds.model, self._rounds.round_number)
        self.folder.append_history(record)
        self._open_round()
        logger.info("experiment '%s' round %d: %s", self.plan.name, record["round"], record["metrics"])
        if self._rounds.finished:
            self.status = Status.FINISHED
            logger.info("experiment '%s' is finished", self.plan.name)
