# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Fixtures of the SubPT tests."""

import gc

import pytest


@pytest.fixture(scope="session", autouse=True)
def _no_old_garbage():
    """Trainer collects garbage before each run, which is four fifths of a tiny run's time: leave out what is loaded."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
