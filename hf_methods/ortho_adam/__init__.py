# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""OrthoAdam (arXiv 2410.17174): an optimizer for plain loops, accelerate and `Trainer`."""

from hf_methods.ortho_adam.ortho_adam import OrthoAdam
from hf_methods.ortho_adam.parameter_groups import (
    RESIDUAL_ROTATIONS,
    ortho_adam_cls_and_kwargs,
    ortho_adam_parameter_groups,
)
from hf_methods.ortho_adam.rotations import ortho_adam_state_bytes
