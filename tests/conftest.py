# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Nothing in the tests may reach a network, and nothing stays in the user's caches."""

import os
import tempfile


_cache = tempfile.TemporaryDirectory()  # removed at exit
os.environ["HF_DATASETS_CACHE"] = _cache.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
