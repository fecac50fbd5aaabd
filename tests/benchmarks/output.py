# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Where a benchmark writes."""

import argparse
from pathlib import Path


def output_path(script: str) -> Path:
    """The JSON file of `script`: in results/ beside it, or in the folder that the command line gives as `--out`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(script).parent / "results", help="folder of the JSON file")
    return parser.parse_args().out / f"{Path(script).stem}.json"
