# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Scenes that the tests of this folder share."""

import pytest

from hf_methods.cross_teaching.scenes_cross_teaching import make_digit_scenes


@pytest.fixture(scope="module")
def scenes():
    return make_digit_scenes("labeled", 6), make_digit_scenes("unlabeled", 5), make_digit_scenes("test", 5)
