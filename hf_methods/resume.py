# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What has to be as before when a stopped training run goes on."""

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class ExamplesPerStep(TrainerCallback, ExportableState):
    """Refuses to resume with steps of another number of examples: they would be other batches than those of the run.

    The number of processes may change, if each takes more or fewer examples for it.
    """

    def __init__(self, examples_per_step: int | None = None):
        self.examples_per_step = examples_per_step

    def state(self) -> dict:
        """What a checkpoint keeps of it, in trainer_state.json."""
        return {"args": {"examples_per_step": self.examples_per_step}, "attributes": {}}

    def on_train_begin(self, args, state, control, **kwargs):
        """Compare the checkpoint that was loaded, if one was, with the arguments.

        Raises:
            ValueError: they differ.
        """
        processes, accumulation = args.world_size, args.gradient_accumulation_steps
        self.examples_per_step = args.train_batch_size * accumulation * processes
        stored = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        before = stored["args"]["examples_per_step"] if stored else None
        if before not in (None, self.examples_per_step):
            raise ValueError(
                f"the checkpoint of step {state.global_step} was trained with {before} examples a step, now it would be "
                f"{self.examples_per_step} ({processes} processes x per_device_train_batch_size={args.train_batch_size} x "
                f"gradient_accumulation_steps={accumulation}). Set these so that their product is {before}."
            )
