"""Updates of a secure experiment: the envoy masks them, and takes part in the stages of `privacy.participant`.

Keys and masks are the envoy's, and its worker, which runs the experiment's code, has none of them. What the envoy
unmasks is in its record first, from which it knows what it has unmasked before.
"""

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from openfl_audio.errors import DirectorRefusedError, SecureAggregationError, UpdateRefusedError
from openfl_audio.privacy.masks import Mask, add_masks, masked
from openfl_audio.privacy.participant import NUMBERS, TENSORS, Participant
from openfl_audio.privacy.transcript import Agreement, Context, Identity, Keys, Sealed, Stage
from openfl_audio.privacy.update import (
    NUMBER,
    Words,
    encode_numbers,
    encode_tensors,
    masked_header,
    mergeable,
    place_of_words,
    union,
)
from openfl_audio.protocol.aggregate import check_layout
from openfl_audio.protocol.bundle import Bundle, describe_model
from openfl_audio.protocol.codec import describe_faults
from openfl_audio.protocol.messages import JOIN, SecureAnswer, SecureRequest, UpdateMessage
from openfl_audio.protocol.plan import Task
from openfl_audio.protocol.record import Record, entry_of, read_record
from openfl_audio.protocol.rounds import Results
from openfl_audio.protocol.secure_aggregation import SecureAggregation
from openfl_audio.protocol.tensors import Header, Tensors, bytes_of, describe, tensors_in

logger = logging.getLogger(__name__)

UNMASKED = "unmasked"
MAX_REASON = 1000
# What a director answers after the stages.
ROSTER, AGREEMENTS = TypeAdapter(list[Keys]), TypeAdapter(list[Agreement])
SEALED, NAMES = TypeAdapter(dict[str, Sealed | Literal[""]]), TypeAdapter(list[str])


class LostError(Exception):
    """The attempt goes on without this envoy, or has failed."""


class OverError(Exception):
    """The round has ended."""

    def __init__(self, counted: bool) -> None:
        super().__init__(counted)
        self.counted = counted


class Unmaskings:
    """The sums that this envoy has helped to unmask, as its record has them."""

    def __init__(self, record: Record) -> None:
        """Read what is in the record. Raises RecordError if it cannot be read."""
        self._record = record
        self._unmasked: dict[tuple[str, int], tuple[list[str], str]] = {}
        lines = read_record(record.path) if record.path.exists() else iter(())
        for line in lines:
            entry = entry_of(line) if f'"{UNMASKED}"'.encode() in line else None
            if entry and entry["event"] == UNMASKED:
                self._unmasked[entry["plan_sha256"], entry["round"]] = entry["envoys"], entry.get("noise", "")

    def judge(self, context: Context, survivors: Sequence[str], noise: str = "") -> None:
        """Raise SecureAggregationError if another sum of this plan's round was unmasked: their difference would tell.

        Experiments of other names count too, if a site would approve them as the same. So does a sum with other
        `noise`, which is told from the one before by a name: a second release would cost a second time.
        """
        before, noise_before = self._unmasked.get((context.plan_sha256, context.round), ([*survivors], noise))
        if before != [*survivors]:
            raise SecureAggregationError(
                f"{context}: the sum of {', '.join(before)} was unmasked for this plan and round before, and the one "
                f"of {', '.join(survivors)} would tell the difference"
            )
        if noise_before != noise:
            raise SecureAggregationError(
                f"{context}: the sum of {', '.join(before)} was unmasked for this plan and round before, and one with "
                "other noise would tell more than its epsilon says"
            )

    def commit(self, context: Context, survivors: Sequence[str], noise: str = "") -> None:
        """Write down that survivors are about to be unmasked. Raises OSError, and as `judge` does."""
        self.judge(context, survivors, noise)
        self._record.append(
            UNMASKED,
            experiment=context.experiment,
            plan_sha256=context.plan_sha256,
            round=context.round,
            attempt=context.attempt,
            envoys=[*survivors],
            noise=noise,
        )
        self._unmasked[context.plan_sha256, context.round] = [*survivors], noise


class SecureUpdates:
    """Sends the updates of one experiment in secret."""

    def __init__(
        self,
        envoy: str,
        bundle: Bundle,
        approves: bool,
        identity: Callable[[], Identity],
        unmaskings: Unmaskings,
        ask: Callable[[SecureRequest], SecureAnswer],
        upload: Callable[[Header, Callable[[], Iterator[bytes]]], None],
    ) -> None:
        """Take part as `envoy` in the experiment of `bundle`; `approves` tells whether its site approves code.

        `identity` gives what signs now. `ask` calls the director, and `upload` sends an update: its header, and what
        makes its chunks.
        """
        self._envoy, self._bundle, self._approves = envoy, bundle, approves
        self._identity, self._unmaskings = identity, unmaskings
        self._ask_director, self._upload = ask, upload
        self._plan = bundle.plan
        self._memory = np.empty(0, np.uint8)
        self._model: Header | None = None

    def keep_model(self, model: Tensors) -> None:
        """Keep a copy of a round's global model, in memory that the worker does not see, for the update made of it."""
        header = describe(model, {})
        if len(self._memory) != header.data_bytes:
            self._memory = np.empty(header.data_bytes, np.uint8)
        for name, tensor in tensors_in(self._memory, header).items():
            tensor[...] = model[name]
        self._model = header

    def free_memory(self) -> None:
        """Give the memory of model and words back, as the experiment has ended."""
        self._memory, self._model = np.empty(0, np.uint8), None

    def send(self, round_number: int, results: Results, update: Tensors) -> bool:
        """Take part in a round until it has ended, with an update that was trained from the model kept.

        Returns whether the update is in the sum. The tensors are read once, and may change afterwards. The words that
        they become take the model's memory; raises DirectorRefusedError where an update has done so already.
        """
        model, self._model = self._model, None
        if model is None:
            raise DirectorRefusedError(f"round {round_number}: there is no model kept that an update could be made of")
        tasks = self._plan.tasks_for_round(round_number)
        model_sha256 = describe_model(tensors_in(self._memory, model), "float32").sha256
        try:
            words = self._encode(round_number, tasks, results, model, update)
        except UpdateRefusedError as error:
            logger.error("%s", error)
            request = self._request(round_number, 0, JOIN, refusal=str(error)[:MAX_REASON])
            self._ask_director(request)
            return False
        # All attempts of a round have the same noise, which is drawn once.
        is_noisy = self._plan.honest_survivors is not None and len(words.values) > 0
        noise = secrets.token_hex(8) if is_noisy else ""
        attempt = 0
        while True:
            try:
                attempt = self._ask(self._request(round_number, attempt, JOIN)).attempt
                context = self._context(round_number, attempt, model_sha256)
                self._take_part(context, tasks, words, noise, results, model)
            except LostError:
                continue
            except OverError as over:
                return over.counted

    def _encode(
        self, round_number: int, tasks: Sequence[Task], results: Results, model: Header, update: Tensors
    ) -> Words:
        clips = sum(results[task.name].size for task in tasks if task.task_type == "train")
        trains = any(task.task_type == "train" for task in tasks)
        if update:
            check_layout(describe(update, {}), model, f"update of envoy '{self._envoy}' for round {round_number}")
        words = encode_tensors(
            self._plan,
            tensors_in(self._memory, model) if trains else {},
            update,
            clips if update else 0,
            round_number,
            self._envoy,
            place_of_words(self._plan, model, self._memory) if trains else None,
        )
        if words.is_bounded:
            # Without the number of clips, as logs are sent to people.
            logger.warning(
                "update of envoy '%s' for round %d weighs %d, which is the largest weight: this site has more clips",
                self._envoy,
                round_number,
                words.weight,
            )
        return words

    def _take_part(
        self, context: Context, tasks: Sequence[Task], words: Words, noise: str, results: Results, model: Header
    ) -> None:
        """Take part in one attempt. Raises LostError or OverError when it has ended."""

        def ask(stage: Stage, content: Any = None) -> dict[str, Any]:
            message = content.model_dump() if content is not None else {}
            return self._ask(self._request(context.round, context.attempt, stage, message)).content

        try:
            judge, commit = (partial(each, noise=noise) for each in (self._unmaskings.judge, self._unmaskings.commit))
            metrics = mergeable(self._plan, tasks, results)
            participant = Participant(context, self._envoy, self._identity(), metrics, self._approves)
            roster = ROSTER.validate_python(ask(Stage.KEYS, participant.keys())["roster"])
            sealed = SEALED.validate_python(ask(Stage.SHARES, participant.share(roster))["sealed"])
            masks = participant.masks(sealed)
            self._send_masked(context, tasks, words, results, model, union([keys.metrics for keys in roster]), masks)
            survivors = NAMES.validate_python(ask(Stage.UPDATE)["survivors"])
            agreements = AGREEMENTS.validate_python(
                ask(Stage.AGREEMENT, participant.agree(survivors, judge))["agreements"]
            )
            ask(Stage.UNMASKING, participant.unmask(agreements, commit))
        except (SecureAggregationError, UpdateRefusedError, OSError, KeyError, ValidationError) as error:
            reason = describe_faults(error) if isinstance(error, ValidationError) else str(error)
            logger.error("attempt %d of round %d is refused: %s", context.attempt, context.round, reason)
            self._ask_director(self._request(context.round, context.attempt, Stage.KEYS, refusal=reason[:MAX_REASON]))
        raise LostError

    def _send_masked(
        self,
        context: Context,
        tasks: Sequence[Task],
        words: Words,
        results: Results,
        model: Header,
        metrics: Mapping[str, Sequence[str]],
        masks: Mapping[bytes, list[Mask]],
    ) -> None:
        numbers = encode_numbers(self._plan, metrics, words, results, tasks, len(context.participants))
        masked_numbers = np.array(numbers, NUMBER)
        add_masks(masked_numbers, masks[NUMBERS])
        trains = any(task.task_type == "train" for task in self._plan.tasks_for_round(context.round))
        message = UpdateMessage(
            experiment=context.experiment, envoy=self._envoy, round=context.round, results={}, attempt=context.attempt
        )
        header = masked_header(self._plan, model, trains, len(numbers)).with_metadata(message.model_dump())
        values = words.values if trains else words.values[:0]
        self._upload(header, lambda: masked_chunks(masked_numbers, values, masks[TENSORS]))

    def _context(self, round_number: int, attempt: int, model_sha256: str) -> Context:
        return Context(
            experiment=self._plan.name,
            plan_sha256=self._bundle.sha256,
            round=round_number,
            model_sha256=model_sha256,
            attempt=attempt,
            participants=sorted(self._plan.envoys or ()),
            settings=self._plan.secure_aggregation or SecureAggregation(),
        )

    def _request(
        self, number: int, attempt: int, stage: int, content: dict[str, Any] | None = None, refusal: str = ""
    ) -> SecureRequest:
        return SecureRequest(
            experiment=self._plan.name,
            envoy=self._envoy,
            round=number,
            attempt=attempt,
            stage=stage,
            content=content or {},
            refusal=refusal,
        )

    def _ask(self, request: SecureRequest) -> SecureAnswer:
        """Return the answer to go on with. Raises LostError or OverError."""
        while True:
            answer = self._ask_director(request)
            if answer.state == "go":
                return answer
            if answer.state == "lost":
                raise LostError
            if answer.state == "over":
                raise OverError(answer.counted)


def masked_chunks(numbers: np.ndarray, words: np.ndarray, masks: Sequence[Mask]) -> Iterator[bytes]:
    """Yield the bytes of a masked update: its numbers, masked already, and its words, which are masked on the way.

    They are the same whenever they are made: the update of an attempt never has two masked forms.
    """
    yield bytes(bytes_of(numbers))
    for chunk in masked(words, masks):
        yield chunk.tobytes()
