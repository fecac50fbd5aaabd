# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Where a stopped training run goes on, and what has to be as before."""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.utils import logging


logger = logging.get_logger(__name__)


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """The last `checkpoint-N` in a folder that was written to its end; a warning names later ones that were not.

    `Trainer` writes into the checkpoint's own folder, so that a full disk or a killed process leaves a part of one. Its
    state is the last file; only behind that are older checkpoints deleted (`save_total_limit`).

    Args:
        output_dir: of the run; it need not exist.

    Returns:
        The folder, or None where no checkpoint is whole: then the run begins anew.

    Raises:
        ValueError: the last whole checkpoint has no state of the optimizer, as with `save_only_model=True`. `Trainer` would
            go on with a fresh one.
    """
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.is_dir() and _step_of(path) is not None]
    for folder in sorted(folders, key=_step_of, reverse=True):  # type: ignore[arg-type]
        if broken := _what_is_broken(folder):
            logger.warning(
                f"{folder} was not written to its end ({broken}), as happens when the disk is full or the process is "
                "killed. It is passed over: the run goes on from the checkpoint before, or begins anew if there is none."
            )
        elif not any(folder.glob("optimizer*")):
            raise ValueError(
                f"{folder} has a model but no state of the optimizer to go on with, as with save_only_model=True. Give "
                "another `output_dir`, or delete the checkpoint to begin anew."
            )
        else:
            return str(folder)
    return None


def _step_of(folder: Path) -> int | None:
    number = folder.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else None


def _what_is_broken(folder: Path) -> str | None:
    if cut := [path.name for path in sorted(folder.iterdir()) if not _is_whole(path)]:
        return f"{', '.join(cut)} can't be read"
    return None if (folder / TRAINER_STATE_NAME).is_file() else f"{TRAINER_STATE_NAME} is missing"


def _is_whole(path: Path) -> bool:
    """Whether a file has its end: what is looked at doesn't grow with the tensors."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_text("utf-8"))
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt"):  # compares the size with the header
                return True
        elif path.suffix in (".pt", ".pth", ".bin"):  # of torch.save
            return zipfile.is_zipfile(path)
    except (OSError, ValueError, SafetensorError):
        return False
    return True


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
