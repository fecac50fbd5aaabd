# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Other detectors on the same layers: moments, LID, Mahalanobis distances; and on the classifier's answer alone.

The first three keep a layer's responses during a pass; each gives features for the same support vector machine as MBF's.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hf_methods.mbf.attacks_mbf import PixelClassifier
from hf_methods.mbf.extraction_mbf import channel_axis, common_groups, evaluation_mode, group_rows


@contextmanager
def kept_responses(model: nn.Module, layers: list[str]) -> Iterator[dict[str, Tensor]]:
    """Copies of the outputs (batch, ...) of `layers` by name; a layer that runs again replaces its own."""
    outputs: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    handles = []
    try:
        for name in layers:

            def keep(module, args, output, name=name):
                first = output[0] if isinstance(output, (tuple, list)) else output
                outputs[name] = first.detach().clone()  # a residual may be added to it in place

            handles.append(modules[name].register_forward_hook(keep))
        with evaluation_mode(model):
            yield outputs
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _responses(classifier: PixelClassifier, images: Tensor, layers: list[str]) -> dict[str, Tensor]:
    with kept_responses(classifier.classifier, layers) as outputs:
        classifier(images)
    return {name: outputs[name].float() for name in layers}


def moment_features(
    classifier: PixelClassifier, images: Tensor, layers: list[str], batch_size: int = 64, channel_groups: int = 1
) -> Tensor:
    """Mean, standard deviation and kurtosis of each layer's responses, or of each group of its channels.

    Args:
        classifier: in evaluation mode.
        images: uint8 (images, channels, height, width).
        layers: names of modules.
        batch_size: images at a time.
        channel_groups: see `MBFConfig`.

    Returns:
        float64 (images, 3 * groups), on the CPU.
    """
    modules = dict(classifier.classifier.named_modules())
    parts = []
    for batch in images.split(batch_size):
        columns = []
        for name, response in _responses(classifier, batch, layers).items():
            channel = channel_axis(modules[name], response)
            groups = common_groups(channel_groups, response.shape[channel])
            rows = group_rows(response, len(batch), channel, groups).double()
            mean = rows.mean(1, keepdim=True)
            std = (rows - mean).square().mean(1).sqrt()
            kurtosis = (rows - mean).pow(4).mean(1) / std.pow(4).clamp_min(1e-30)
            columns += [moment.reshape(len(batch), groups) for moment in (mean[:, 0], std, kurtosis)]
        parts.append(torch.cat(columns, 1).cpu())
    return torch.cat(parts)


def lid_features(
    classifier: PixelClassifier,
    images: Tensor,
    reference: Tensor,
    layers: list[str],
    num_neighbors: int = 20,
    batch_size: int = 100,
    seed: int = 0,
) -> Tensor:
    """Local intrinsic dimensionality of each layer's responses among clean ones (arXiv 1801.02613).

    -1 / mean_i log(r_i / r_k) over the distances to the k nearest of a mini-batch of clean images, other than the image.

    Args:
        classifier, images, layers: see `moment_features`.
        reference: uint8 clean images, of which each batch draws as many as `batch_size`.
        num_neighbors: k.
        batch_size: images, and reference images, at a time.
        seed: of the drawing.

    Returns:
        float64 (images, layers).
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for batch in images.split(batch_size):
        rows = torch.randperm(len(reference), generator=generator)[:batch_size]
        drawn = reference[rows.to(reference.device)]
        own, others = _responses(classifier, batch, layers), _responses(classifier, drawn, layers)
        columns = []
        for name in layers:
            distances = torch.cdist(own[name].flatten(1).double(), others[name].flatten(1).double())
            # cdist subtracts squares: an image that is in the reference itself has a small distance, not 0
            distances = distances.masked_fill(distances < 1e-6 * distances.amax(), torch.inf)
            nearest = distances.topk(min(num_neighbors, len(drawn) - 1), largest=False).values
            mean = (nearest / nearest[:, -1:]).log().mean(1)
            columns.append(-1 / mean.clamp_max(-1e-12))
        parts.append(torch.stack(columns, 1).cpu())
    return torch.cat(parts)


class MahalanobisFeatures:
    """Distance of each layer's channel means to the nearest class, with one covariance for all (arXiv 1807.03888).

    Without the original's perturbation of the input.

    Args:
        classifier: in evaluation mode.
        layers: names of modules.
        images: uint8, of the classifier's training.
        labels: (images,) their classes.
    """

    def __init__(self, classifier: PixelClassifier, layers: list[str], images: Tensor, labels: Tensor):
        self.classifier, self.layers = classifier, layers
        self.means: dict[str, Tensor] = {}
        self.precisions: dict[str, Tensor] = {}
        channels = self._channel_means(images)
        for name in layers:
            x = channels[name]
            means = torch.stack([x[labels == label].mean(0) for label in labels.unique()])
            centred = x - means[torch.searchsorted(labels.unique(), labels)]
            covariance = centred.T @ centred / len(x)
            self.means[name] = means
            self.precisions[name] = torch.linalg.pinv(covariance, hermitian=True, rtol=1e-8)

    def _channel_means(self, images: Tensor, batch_size: int = 64) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {name: [] for name in self.layers}
        modules = dict(self.classifier.classifier.named_modules())
        for batch in images.split(batch_size):
            for name, response in _responses(self.classifier, batch, self.layers).items():
                rows = response.movedim(channel_axis(modules[name], response), 1)
                parts[name].append(rows.flatten(2).mean(2).double().cpu() if rows.ndim > 2 else rows.double().cpu())
        return {name: torch.cat(rows) for name, rows in parts.items()}

    def __call__(self, images: Tensor) -> Tensor:
        """float64 (images, layers): squared distances to the nearest class."""
        columns = []
        for name, x in self._channel_means(images).items():
            difference = x[:, None] - self.means[name]  # (images, classes, channels)
            columns.append(torch.einsum("icd,de,ice->ic", difference, self.precisions[name], difference).amin(1))
        return torch.stack(columns, 1)


@torch.no_grad()
def max_softmax_score(classifier: PixelClassifier, images: Tensor, batch_size: int = 256) -> Tensor:
    """float64 (images,): 1 - the largest probability of a class; nothing is trained."""
    return torch.cat([1 - classifier(part).double().softmax(1).amax(1).cpu() for part in images.split(batch_size)])


@torch.no_grad()
def feature_squeezing_score(
    classifier: PixelClassifier, images: Tensor, bits: int = 4, window: int = 2, batch_size: int = 256
) -> Tensor:
    """float64 (images,): the larger L1 change of the probabilities by fewer bits and by a median filter.

    arXiv 1704.01155, without its non-local means. Nothing is trained.

    Args:
        classifier, images: as above.
        bits: of each pixel, 1 to 7.
        window: side of the median filter.
    """
    if not 1 <= bits <= 7:
        raise ValueError(f"`bits` must be between 1 and 7, got {bits}.")
    parts = []
    for part in images.split(batch_size):
        pixels = part.float() / 255
        levels = 2**bits - 1
        padded = nn.functional.pad(pixels, (window // 2, (window - 1) // 2, window // 2, (window - 1) // 2), "reflect")
        windows = padded.unfold(2, window, 1).unfold(3, window, 1).flatten(4)
        squeezed = ((pixels * levels).round() / levels, windows.quantile(0.5, dim=4))
        own = classifier(pixels).double().softmax(1)
        changes = [(classifier(other).double().softmax(1) - own).abs().sum(1) for other in squeezed]
        parts.append(torch.stack(changes).amax(0).cpu())
    return torch.cat(parts)
