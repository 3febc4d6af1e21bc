"""The view of an experiment: what its notebook and the status of the director show of it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

from openfl_audio.director.run import Phase, Run
from openfl_audio.protocol.codec import encode
from openfl_audio.protocol.messages import BestMetric, EnvoyProgress, ExperimentSummary, LiveRound, Waits

# Between two looks at the open round, and participants that are named there.
LIVE_SECONDS = 1.0
# Of a history so much is read at a time, as each look at the disk goes through a thread.
READ_BYTES = 1 << 20
MOST_NAMED = 20


class View:
    """Shows an experiment without changing it."""

    def __init__(
        self,
        run: Run,
        seconds_open: Callable[[], float],
        is_online: Callable[[str], bool],
        since: Callable[[str], float],
    ) -> None:
        """Show `run`, whose round has been open for `seconds_open`.

        `is_online` tells whether an envoy is there, and `since` when it came or went.
        """
        self._run, self._seconds_open, self._is_online, self._since = run, seconds_open, is_online, since

    def summary(self) -> ExperimentSummary:
        """Return the entry of this experiment in a list of all."""
        run, rounds = self._run, self._run.rounds
        waiting = [envoy for envoy in rounds.participants if rounds.tasks_for(envoy)]
        last = run.folder.history.last or {}
        return ExperimentSummary(
            name=run.plan.name,
            owner=run.owner,
            corpus=run.plan.corpus or "",
            status=run.state.status.value,
            round=rounds.round_number,
            rounds=run.plan.rounds,
            best=BestMetric(metric=run.plan.best.metric, direction=run.plan.best.direction),
            envoys=run.state.members,
            waiting_for=[] if run.ended else waiting,
            waits=run.waits,
            seconds_per_round=last.get("seconds"),
            error=run.state.error,
            submitted=run.state.submitted,
            ended=run.state.ended_at,
        )

    def details(self) -> dict[str, Any]:
        """Return the content of an ExperimentDetails, without the records of rounds."""
        self._run.live.looked()
        plan = self._run.plan.model_dump(mode="json")
        now = self.live_round() if self._run.phase is Phase.OPEN else None
        return self.summary().model_dump() | {
            "now": now and now.model_dump(),
            "departed": self._run.state.departed,
            "plan": plan,
        }

    def live_round(self) -> LiveRound:
        """Return what happens in the open round."""
        run, rounds = self._run, self._run.rounds
        everybody = [self.progress_of(envoy) for envoy in rounds.participants]
        # In their order: a table that is replaced every second must not shuffle its rows.
        first = {each.name for each in sorted(everybody, key=lambda each: each.state == "done")[:MOST_NAMED]}
        named = [each for each in everybody if each.name in first]
        seconds, last = self._seconds_open(), (run.folder.history.last or {}).get("seconds")
        left = None if last is None else last * (run.plan.rounds - rounds.round_number) - seconds
        return LiveRound(
            live=rounds.round_number,
            rounds=run.plan.rounds,
            seconds=seconds,
            seconds_left=left if left is not None and left > 0 else None,  # nobody knows of a round that is overdue
            envoys=named,
            others=len(everybody) - len(named),
        )

    def progress_of(self, envoy: str) -> EnvoyProgress:
        """Return what a participant does in the open round."""
        rounds = self._run.rounds
        if envoy in rounds.refused:
            return EnvoyProgress(name=envoy, state="refused", why=rounds.refused[envoy])
        if envoy in rounds.results or not rounds.tasks_for(envoy):
            return EnvoyProgress(name=envoy, state="done")
        if not self._is_online(envoy):
            return EnvoyProgress(name=envoy, state="offline", since=self._since(envoy))
        if envoy in self._run.awaiting_approval:
            return EnvoyProgress(name=envoy, state="waits for approval")
        report, transfer = self._run.live.of(envoy, rounds.round_number), self._run.live.transfer_of(envoy)
        works = EnvoyProgress(
            name=envoy,
            state="works",
            memory_bytes=report.memory_bytes if report else 0,
            gpu_memory_bytes=report.gpu_memory_bytes if report else 0,
        )
        if transfer is not None:
            moving = {"transfer": transfer.direction, "bytes_moved": transfer.moved, "bytes_total": transfer.total}
            return works.model_copy(update=moving | {"seconds_left": transfer.seconds_left})
        if report is None:
            return works
        told = {"task": report.task, "step": report.step, "total": report.total, "values": report.values}
        if report.task:  # between two tasks it reports nothing
            told["silent_seconds"] = self._run.live.silent_seconds(envoy)
        if report.clips and report.seconds:
            told["clips_per_second"] = report.clips / report.seconds
        if report.step and report.total:
            told["seconds_left"] = report.seconds / report.step * max(0, report.total - report.step)
        return works.model_copy(update=told)

    async def history(self, first: int = 0, follow: bool = True, live: bool = False) -> AsyncIterator[bytes]:
        """Yield messages as JSON: each round's RoundRecord, from record `first` on and, if `follow`, to the end.

        With `live` a LiveRound comes every second in which there is nothing else.
        Between them comes a Waits whenever what the experiment waits for changes.
        """
        run, seen, sent_waits = self._run, first, ""
        while True:
            if follow and run.waits != sent_waits:
                sent_waits = run.waits
                yield encode(Waits(waits=sent_waits))
            elif seen < len(run.folder.history):
                for line in await asyncio.to_thread(run.folder.history.lines, seen, READ_BYTES):
                    yield line
                    seen += 1
            elif run.ended or not follow:
                return
            elif live and run.phase is Phase.OPEN:
                with run.live.watched():
                    yield encode(self.live_round())
                    await run.news.wait(LIVE_SECONDS)
            else:
                await run.news.wait()

    def kept_model(self, which: str, sizes: Iterator[int]) -> Generator[bytes, None, None]:
        """Return model 'initial', 'last', 'best' or another best one, in chunks of these sizes.

        Raises WireError if there is none yet.
        """
        path = self._run.folder.named_model(which)

        def chunks() -> Generator[bytes, None, None]:
            with self._run.folder.open_model(path) as model:
                yield from model.chunks(sizes)

        return chunks()
