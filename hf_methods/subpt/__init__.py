# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""SubPT and NFL: prompt tuning of CLIP-like models that keeps new class names working."""
