# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The Hub of the tests is a server on this machine; nothing reaches a network, nothing stays in the user's caches."""

import os
import tempfile

import pytest
from minihub import serve


# Before any Hugging Face import: the client reads its constants once.
_folder = tempfile.TemporaryDirectory()  # removed at exit
_, HUB, HUB_URL = serve(f"{_folder.name}/server", user="tester", token="hf_" + "t" * 34)
os.environ.update(
    HF_ENDPOINT=HUB_URL,
    HF_TOKEN=HUB.token,
    HF_HOME=f"{_folder.name}/home",
    HF_HUB_DISABLE_XET="1",  # the server speaks git-lfs only
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
)
for _name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE"):
    os.environ.pop(_name, None)


@pytest.fixture
def hub():
    """The state of the local Hub server: `log` of requests, `cuts` for faults, `repos`."""
    HUB.log.clear()
    yield HUB
    HUB.cuts.clear()
