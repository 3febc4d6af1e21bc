"""Secure rounds of a simulation: sums as a federation makes them, without masks, which cancel in a sum."""

from collections.abc import Mapping
from dataclasses import replace

from openfl_audio.errors import RoundFailedError, UpdateRefusedError
from openfl_audio.privacy.aggregate import SumAggregator
from openfl_audio.privacy.fixed_point import NUMBER_BITS
from openfl_audio.privacy.transcript import Stage
from openfl_audio.privacy.update import Words, decode_numbers, encode_numbers, encode_tensors, mergeable, union
from openfl_audio.protocol.messages import SecureSum
from openfl_audio.protocol.rounds import Results, Rounds
from openfl_audio.protocol.secure_aggregation import threshold
from openfl_audio.protocol.tensors import Tensors


class SecureRound:
    """Sums the updates of one round."""

    def __init__(self, rounds: Rounds, aggregator: SumAggregator, lost: Mapping[str, Stage]) -> None:
        """Begin the open round of `rounds`; `lost` clients send nothing from a stage on."""
        self._lost = lost
        self._rounds, self._aggregator, self._plan = rounds, aggregator, rounds.plan
        self._sites: dict[str, tuple[Words, Results]] = {}
        aggregator.begin(rounds.round_number)

    def add(self, client: str, results: Results, trained: Tensors) -> None:
        """Add the update of a client, or note why it is refused. One that is lost before has none."""
        if self._lost.get(client, Stage.DONE) <= Stage.UPDATE:
            return
        plan, number = self._plan, self._rounds.round_number
        clips = sum(results[task.name].size for task in self._rounds.participants[client] if task.task_type == "train")
        model = self._aggregator.model if self._rounds.trains else {}
        try:
            words = encode_tensors(plan, model, trained, clips if trained else 0, number, client)
        except UpdateRefusedError as error:
            self._rounds.refuse(client, str(error))
            return
        if model:
            self._aggregator.add_words(words)
        self._sites[client] = replace(words, values=words.values[:0]), results

    def finish(self) -> None:
        """Count the sum. Raises RoundFailedError if too few clients are there to unmask it."""
        rounds, envoys = self._rounds, sorted(self._sites)
        of = len(self._plan.envoys or ())
        unmasking = [envoy for envoy in envoys if envoy not in self._lost]
        if len(unmasking) < threshold(of):
            lost = [f"'{envoy}' is lost at stage {stage.name}" for envoy, stage in sorted(self._lost.items())]
            raise RoundFailedError(
                f"round {rounds.round_number}: {len(unmasking)} of {of} envoys are there at the end, and secure "
                f"aggregation takes {threshold(of)}: " + "; ".join([*rounds.refused.values(), *lost])
            )
        tasks = rounds.participants[envoys[0]]
        metrics = union([mergeable(self._plan, tasks, results) for _, results in self._sites.values()])
        numbers = [
            encode_numbers(self._plan, metrics, words, results, tasks, of) for words, results in self._sites.values()
        ]
        totals = [sum(each) % 2**NUMBER_BITS for each in zip(*numbers, strict=True)]
        results, weight, bounded, clipped = decode_numbers(metrics, totals)
        summed = SecureSum(envoys=envoys, of=of, threshold=threshold(of), attempt=1, approving=0)
        rounds.count_sum(summed, results, trained=weight > 0)
        rounds.note_clipped(clipped)
        rounds.note_bounded(bounded)
