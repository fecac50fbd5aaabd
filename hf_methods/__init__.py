# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Five published methods as Hugging Face citizens; importing this registers their Auto classes."""
