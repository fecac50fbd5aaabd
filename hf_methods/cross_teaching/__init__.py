# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Cross Teaching: semi-supervised object detection by detectors that rectify each other's pseudo labels."""

from hf_methods.cross_teaching.rectification_cross_teaching import rectify, weighted_boxes_fusion
