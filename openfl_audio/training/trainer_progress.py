"""Progress of a Trainer of Transformers: `Trainer(..., callbacks=[ReportSteps()])`."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from openfl_audio.node.progress import report


class ReportSteps(TrainerCallback):
    """Reports each step of a training, with the last loss that the Trainer has logged."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {}

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **others: Any
    ) -> None:
        """Keep the loss, which is logged now and then."""
        self._values = {"loss": logs["loss"]} if logs and "loss" in logs else self._values

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        """Report the step."""
        clips = state.global_step * args.train_batch_size * args.gradient_accumulation_steps
        report(state.global_step, state.max_steps, clips=clips, **self._values)
