# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What the arguments of every trainer ask of the processes that a launcher started."""

import os

from transformers import TrainingArguments


def check_processes(args: TrainingArguments) -> None:
    """Refuse a launch whose processes do not know of each other: each would train by itself, and nothing would tell.

    Raises:
        ValueError: the launcher started another number of processes than `args.world_size`.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != args.world_size:
        raise ValueError(f"{launched} processes were started, but Trainer sees {args.world_size}; give use_cpu=True.")
