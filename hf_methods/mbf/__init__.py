# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Benford-Fourier coefficients of a classifier's responses, and a detector of adversarial inputs on them."""

from hf_methods.mbf.features_mbf import estimate_shape, generalized_gaussian_mbf, mbf
