"""The view of an experiment: what its notebook and the status of the director show of it."""

import asyncio
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

from openfl_audio.director.run import Run
from openfl_audio.protocol.messages import BestMetric, ExperimentSummary, Waits, encode


class View:
    """Shows an experiment without changing it."""

    def __init__(self, run: Run) -> None:
        self._run = run

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
        plan = self._run.plan.model_dump(mode="json")
        return self.summary().model_dump() | {"departed": self._run.state.departed, "plan": plan}

    async def history(self, first: int = 0, follow: bool = True) -> AsyncIterator[bytes]:
        """Yield messages as JSON: each round's RoundRecord, from record `first` on and, if `follow`, to the end.

        Between them comes a Waits whenever what the experiment waits for changes.
        """
        run, seen, sent_waits = self._run, first, ""
        while True:
            if follow and run.waits != sent_waits:
                sent_waits = run.waits
                yield encode(Waits(waits=sent_waits))
            elif seen < len(run.folder.history):
                yield await asyncio.to_thread(run.folder.history.line, seen)
                seen += 1
            elif run.ended or not follow:
                return
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
