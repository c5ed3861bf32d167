"""What goes on beside a Trainer's steps: evaluations, seals on checkpoints, reports."""

from pathlib import Path
from typing import Any, final

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from foredraft.training.llava import checkpoint_folder
from foredraft.training.llava.tuning import Report, Step


@final
class Milestones(TrainerCallback):
    """Evaluate after the last step too, and seal every checkpoint once all processes wrote it."""

    def on_step_end(  # noqa: D102
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = True

    def on_save(  # noqa: D102
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            checkpoint_folder.seal(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")


@final
class Reporter(TrainerCallback):
    """Tell the caller of every step and of every evaluation."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.loss = float("nan")

    def on_log(  # noqa: D102
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        logs: dict[str, float] = kwargs["logs"]
        self.loss = logs.get("loss", self.loss)
        if state.is_world_process_zero and {"loss", "eval_loss"} & {*logs}:
            self.report(Step(state.global_step, self.loss, logs.get("eval_loss")))
