# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""CPE: one backbone, classwise batch normalisation, and a head for each expert (arXiv 2312.15702).

Written against transformers 5.24 (`PreTrainedModel`, `AutoModel`, `TimmWrapperModel`).
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput

from .configuration_cpe import CPEConfig
from .losses_cpe import (
    class_ranks,
    classwise_consistency_loss,
    classwise_weights,
    log_class_prior,
    logit_adjusted_cross_entropy,
    select_pseudo_labels,
    shift_to_prior,
)
from .normalization_cpe import ClasswiseBatchNorm


EMPTY_CLASS_PRIOR = 1e-12  # of ACR, for `allow_empty_classes`


@dataclass
class CPEModelOutput(ModelOutput):
    """Features of a batch of images.

    Args:
        last_hidden_state: what is normalised: the map (N, C, H, W), or (N, C) of a backbone with a pooling of its own.
        pooler_output: (N, C), its mean over the map.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None


@dataclass
class CPEImageClassifierOutput(ModelOutput):
    """Answers of the experts; with unlabelled views also what was learned from them.

    Args:
        loss: scalar.
        logits: (N, K) of `eval_expert`, or of all experts as `config.fusion` says.
        expert_logits: (N, E, K), means over the branches.
        group_logits: (N, E, G, K) of each branch; in a step with unlabelled views (M, E, G, K) of the strong ones.
        pooled_features: (N, C), before classwise batch normalisation.
        supervised_loss: (E,), detached.
        unsupervised_loss: (E,), detached.
        pseudo_labels: int64 (M, E).
        pseudo_label_mask: bool (M, E), the pseudo-labels that were used.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    expert_logits: Tensor | None = None
    group_logits: Tensor | None = None
    pooled_features: Tensor | None = None
    supervised_loss: Tensor | None = None
    unsupervised_loss: Tensor | None = None
    pseudo_labels: Tensor | None = None
    pseudo_label_mask: Tensor | None = None


class WideResNetBlock(nn.Module):
    """Two 3x3 convolutions with activations before them, and a shortcut."""

    def __init__(self, config: CPEConfig, in_channels: int, out_channels: int, stride: int, is_first_stage: bool):
        super().__init__()
        self.changes_channels = in_channels != out_channels
        # As the official code has it, and its weights with it: blocks that change the number of channels activate their
        # input in the first stage only. In the others the activated input is computed and dropped.
        self.activates_input = is_first_stage or not self.changes_channels
        if self.activates_input or config.keep_dead_bn:
            self.bn1 = nn.BatchNorm2d(in_channels, eps=config.bn_eps, momentum=config.bn_momentum)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels, eps=config.bn_eps, momentum=config.bn_momentum)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        if self.changes_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
        self.slope, self.drop_rate = config.leaky_slope, config.drop_rate

    def forward(self, hidden_states: Tensor) -> Tensor:
        inner = F.leaky_relu(self.bn1(hidden_states), self.slope) if self.activates_input else hidden_states
        residual = self.shortcut(inner) if self.changes_channels else hidden_states
        inner = F.leaky_relu(self.bn2(self.conv1(inner)), self.slope)
        if self.drop_rate:
            inner = F.dropout(inner, self.drop_rate, self.training)
        return residual + self.conv2(inner)


class WideResNet(nn.Module):
    """The WideResNet of USB: (N, num_channels, H, W) to (N, 64 * widen_factor, H / 4, W / 4), rounded up."""

    def __init__(self, config: CPEConfig):
        super().__init__()
        channels = [16, *(size * config.widen_factor for size in (16, 32, 64))]
        num_blocks = (config.depth - 4) // 6
        self.stem = nn.Conv2d(config.num_channels, channels[0], 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    WideResNetBlock(
                        config,
                        channels[stage] if block == 0 else channels[stage + 1],
                        channels[stage + 1],
                        stride=2 if stage > 0 and block == 0 else 1,
                        is_first_stage=stage == 0,
                    )
                    for block in range(num_blocks)
                )
            )
            for stage in range(3)
        )
        self.norm = nn.BatchNorm2d(channels[3], eps=config.final_bn_eps, momentum=config.bn_momentum)
        self.slope, self.num_features = config.leaky_slope, channels[3]

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden_states = self.stem(pixel_values)
        for stage in self.stages:
            hidden_states = stage(hidden_states)
        return F.leaky_relu(self.norm(hidden_states), self.slope)


class CPEPreTrainedModel(PreTrainedModel):
    """What the models of CPE share: their configuration and the initialisation of their weights."""

    config: CPEConfig
    config_class = CPEConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012 (as transformers declares it)
    # The loss is a mean over each batch; with **kwargs `Trainer` would take it for a sum under accumulation.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")
            if module.bias is not None:  # as in `Conv2d`
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, (nn.BatchNorm2d, ClasswiseBatchNorm)):
            for name, tensor in module.state_dict(
                keep_vars=True
            ).items():  # keep_vars: those that know they were loaded
                (init.ones_ if name in ("weight", "running_var") else init.zeros_)(tensor)
        elif isinstance(module, CPEHead):
            # The first head is of the official backbone (xavier, no bias), the others were added with `Linear`'s own
            # initialisation. Not in place on rows, which do not know whether their tensor was loaded.
            num_classes, num_features = module.num_classes, module.weight.shape[1]
            weight, bias = torch.empty_like(module.weight), torch.zeros_like(module.bias)
            bound = 1 / math.sqrt(num_features)
            nn.init.xavier_normal_(weight[:num_classes])
            nn.init.uniform_(weight[num_classes:], -bound, bound)
            nn.init.uniform_(bias[num_classes:], -bound, bound)
            init.copy_(module.weight, weight)
            init.copy_(module.bias, bias)


class CPEModel(CPEPreTrainedModel):
    """The shared backbone: the native WideResNet, or the model of `config.backbone_config`."""

    def __init__(self, config: CPEConfig):
        super().__init__(config)
        self.encoder: nn.Module
        if config.backbone_config is None:
            self.encoder = wide_resnet = WideResNet(config)
            self.num_features = wide_resnet.num_features
        else:
            self.encoder = encoder = AutoModel.from_config(config.backbone_config)
            self.num_features = _num_features(encoder)
        self.post_init()

    def forward(self, pixel_values: Tensor, return_dict: bool | None = None) -> CPEModelOutput | tuple:
        """Features of images.

        Args:
            pixel_values: float (N, num_channels, H, W), normalised.
            return_dict: `False` returns a tuple.

        Raises:
            TypeError: images of integers.
            ValueError: another number of channels.
        """
        self._check_pixels(pixel_values)
        if self.config.backbone_config is None:
            features = self.encoder(pixel_values)
        else:
            outputs = self.encoder(pixel_values)
            features, pooled = outputs.last_hidden_state, getattr(outputs, "pooler_output", None)
            # A pooler that keeps the map's axes has no parameters (ResNet): its map is normalised. Others (ConvNeXt,
            # ViT, timm) have layers in their pooler, which would be left without a gradient.
            if pooled is not None and pooled.ndim == 2:
                features = pooled
            elif features.ndim == 3:  # tokens (N, T, C) and no pooler
                features = features.mean(1)
        pooled = features.flatten(2).mean(2) if features.ndim > 2 else features
        output = CPEModelOutput(last_hidden_state=features, pooler_output=pooled)
        return output.to_tuple() if return_dict is False else output

    def _check_pixels(self, pixel_values: Tensor) -> None:
        if not isinstance(pixel_values, Tensor) or not pixel_values.is_floating_point():
            got = pixel_values.dtype if isinstance(pixel_values, Tensor) else type(pixel_values).__name__
            raise TypeError(f"`pixel_values` must be normalised floats, got {got}; use the image processor.")
        if self.config.backbone_config is None and pixel_values.shape[1:2] != (self.config.num_channels,):
            raise ValueError(
                f"`pixel_values` must be (N, {self.config.num_channels}, H, W), got {list(pixel_values.shape)}. Set "
                "`num_channels=1` for grayscale images, or let the image processor make them RGB."
            )


def _num_features(encoder: PreTrainedModel) -> int:
    config = encoder.config
    if config.model_type == "timm_wrapper":
        timm_model: Any = encoder.timm_model
        return getattr(timm_model, "head_hidden_size", None) or timm_model.num_features
    if sizes := getattr(config, "hidden_sizes", None):
        return sizes[-1]
    if size := getattr(config, "hidden_size", None):
        return size
    raise ValueError(
        f"`backbone_config` of type {config.model_type!r} has neither `hidden_size` nor `hidden_sizes`; take ResNet, "
        "ConvNeXt, ViT, or any timm model with `TimmWrapperConfig`."
    )


class CPEHead(nn.Linear):
    """The heads of all experts as one linear layer: rows e * K to (e + 1) * K are expert e's.

    Args:
        in_features: C.
        num_experts: E.
        num_classes: K.
    """

    def __init__(self, in_features: int, num_experts: int, num_classes: int):
        super().__init__(in_features, num_experts * num_classes)
        self.num_experts, self.num_classes = num_experts, num_classes

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, E, K) of features (N, C)."""
        return super().forward(features).unflatten(-1, (self.num_experts, self.num_classes))


class CPEForImageClassification(CPEPreTrainedModel):
    """Image classifier with complementary experts.

    Example:

    ```python
    >>> config = CPEConfig(num_labels=10, class_counts=[1500, 899, 539, 323, 193, 116, 69, 41, 25, 15])
    >>> model = CPEForImageClassification(config)
    >>> model(pixel_values).logits.shape  # (N, 3, 32, 32) -> (N, 10)
    ```
    """

    def __init__(self, config: CPEConfig):
        super().__init__(config)
        config.validate()  # fields may have been set after they were checked
        self.backbone = CPEModel(config)
        if config.use_cbn:
            self.classwise_norm = ClasswiseBatchNorm(
                self.backbone.num_features, config.num_groups, config.cbn_eps, config.cbn_momentum
            )
        self.classifier = CPEHead(self.backbone.num_features, config.num_experts, config.num_classes)
        self._made_for: tuple | None = None
        self._class_tensors: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
        self.post_init()

    @classmethod
    def from_backbone(cls, backbone: PreTrainedModel, **config_kwargs) -> "CPEForImageClassification":
        """A model on a pretrained backbone: `from_backbone(AutoModel.from_pretrained("timm/resnet18.a1_in1k"), ...)`.

        Args:
            backbone: what `AutoModel` gives; it becomes part of the model.
            config_kwargs: fields of `CPEConfig`, such as `num_labels` and `class_counts`.
        """
        model = cls(CPEConfig(backbone_config=backbone.config, **config_kwargs))
        if type(model.backbone.encoder) is not type(backbone):
            raise TypeError(
                f"`backbone` must be a {type(model.backbone.encoder).__name__}, got {type(backbone).__name__}."
            )
        model.backbone.encoder = backbone
        return model

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        pixel_values_weak: Tensor | None = None,
        pixel_values_strong: Tensor | None = None,
        target_prior: Tensor | None = None,
        output_group_logits: bool = False,
        threshold: float = 0.95,
        lambda_u: float = 1.0,
        unsup_reduction: str = "selected",
        normalize_across_ranks: bool = False,
        return_dict: bool | None = None,
    ) -> CPEImageClassifierOutput | tuple:
        """Classify images; in training learn from labelled ones and from two views of unlabelled ones.

        Args:
            pixel_values: float (N, num_channels, H, W).
            labels: int64 (N,); -100 is ignored. In training the loss is the experts' logit-adjusted cross-entropy, summed;
                in evaluation it is the cross-entropy of `logits`.
            pixel_values_weak: (M, num_channels, H, W), unlabelled images weakly augmented: they give pseudo-labels.
            pixel_values_strong: the same images strongly augmented, which learn them. All images share one forward pass and
                its batch statistics.
            target_prior: (K,), class probabilities of the data to be classified, see `shift_to_prior`.
            output_group_logits: return the logits of each branch.
            threshold: smallest probability of a pseudo-label that is used.
            lambda_u: weight of the unsupervised loss.
            unsup_reduction: see `classwise_consistency_loss`.
            normalize_across_ranks: see `classwise_consistency_loss`.
            return_dict: `False` returns a tuple.

        Raises:
            TypeError: labels that are not int64.
            ValueError: labels out of range (checked on the CPU only), one view without the other or without labels, or no
                `config.class_counts` to train with.
        """
        self._check_inputs(labels, pixel_values_weak, pixel_values_strong)
        if pixel_values_weak is not None and len(pixel_values_weak):
            output = self._forward_views(
                pixel_values, labels, pixel_values_weak, pixel_values_strong,
                threshold, lambda_u, unsup_reduction, normalize_across_ranks,
            )  # fmt: skip
            return output.to_tuple() if return_dict is False else output
        pooled, normalized = self._normalized_features(pixel_values)
        expert_logits = self._expert_logits(normalized)  # (N, E, K)
        logits = self.fuse(expert_logits)
        loss = supervised_loss = None
        if labels is not None and self.training:
            supervised_loss = self._supervised_loss(expert_logits, labels)
            loss = supervised_loss.sum()
        elif labels is not None:
            loss = F.cross_entropy(logits.float(), labels)
        output = CPEImageClassifierOutput(
            loss=loss,
            logits=logits if target_prior is None else shift_to_prior(logits, target_prior),
            expert_logits=expert_logits,
            group_logits=self._group_logits(normalized) if output_group_logits else None,
            pooled_features=pooled,
            supervised_loss=None if supervised_loss is None else supervised_loss.detach(),
        )
        return output.to_tuple() if return_dict is False else output

    def _forward_views(
        self, pixel_values, labels, weak, strong, threshold, lambda_u, reduction, across_ranks
    ) -> CPEImageClassifierOutput:
        num_labeled, num_unlabeled = len(pixel_values), len(weak)
        pooled, normalized = self._normalized_features(torch.cat([pixel_values, weak, strong]))
        labeled, weak, strong = normalized.split([num_labeled, num_unlabeled, num_unlabeled])
        # Labelled and weak images need the mean branch only, strong ones each branch.
        expert_logits = self._expert_logits(labeled)  # (N, E, K)
        with torch.no_grad():
            pseudo_labels, mask = select_pseudo_labels(self._expert_logits(weak), threshold)  # (M, E)
        group_logits = self._group_logits(strong)  # (M, E, G, K)
        supervised_loss = self._supervised_loss(expert_logits, labels)  # (E,)
        weights = classwise_weights(
            pseudo_labels, mask, self._ranks(mask.device), self.config.cuts, self.config.num_groups
        )
        unsupervised_loss = classwise_consistency_loss(group_logits, pseudo_labels, weights, reduction, across_ranks)
        return CPEImageClassifierOutput(
            loss=(supervised_loss + lambda_u * unsupervised_loss).sum(),
            logits=self.fuse(expert_logits),
            expert_logits=expert_logits,
            group_logits=group_logits,
            pooled_features=pooled[:num_labeled],
            supervised_loss=supervised_loss.detach(),
            unsupervised_loss=unsupervised_loss.detach(),
            pseudo_labels=pseudo_labels,
            pseudo_label_mask=mask,
        )

    def fuse(self, expert_logits: Tensor) -> Tensor:
        """One answer (N, K) of the experts' (N, E, K), as `config.fusion` says."""
        if self.config.fusion == "mean_logit":
            return expert_logits.mean(1)
        if self.config.fusion == "mean_prob":
            return expert_logits.log_softmax(-1).logsumexp(1) - math.log(expert_logits.shape[1])
        return expert_logits[:, self.config.eval_expert]

    def _normalized_features(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features (N, C), and z (N, C) of classwise batch normalisation or the same features without it."""
        features = self.backbone(pixel_values)
        pooled = features.pooler_output
        return pooled, self.classwise_norm(features.last_hidden_state) if self.config.use_cbn else pooled

    def _expert_logits(self, normalized: Tensor) -> Tensor:
        features = self.classwise_norm.mean_branch(normalized) if self.config.use_cbn else normalized
        return self.classifier(features.to(self.classifier.weight.dtype))

    def _group_logits(self, normalized: Tensor) -> Tensor:
        features = self.classwise_norm.branches(normalized) if self.config.use_cbn else normalized[:, None]
        return self.classifier(features.to(self.classifier.weight.dtype)).transpose(1, 2)  # (N, E, G, K)

    def _supervised_loss(self, expert_logits: Tensor, labels: Tensor) -> Tensor:
        return logit_adjusted_cross_entropy(expert_logits, labels, self._log_prior(labels.device), self.config.taus)

    def _log_prior(self, device: torch.device) -> Tensor:
        config = self.config
        if config.class_counts is None and any(config.taus):
            raise ValueError(
                f"`class_counts` is None, but taus={list(config.taus)} need the class prior: set `config.class_counts` to "
                "the counts of the labelled images."
            )
        return self._prior_and_ranks(device)[0]

    def _ranks(self, device: torch.device) -> Tensor:
        if self.config.class_counts is None and self.config.num_groups > 1:
            raise ValueError(
                "`class_counts` is None, but classwise batch normalisation needs the ranks of the classes: set "
                "`config.class_counts` to the counts of the labelled images."
            )
        return self._prior_and_ranks(device)[1]

    def _prior_and_ranks(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Log prior and rank of each class (K,); kept, as copying them to a GPU in each step would wait for it."""
        config = self.config
        counts = [1] * config.num_classes if config.class_counts is None else list(config.class_counts)
        made_for = (counts, config.allow_empty_classes, device)
        if self._made_for != made_for:
            log_prior = log_class_prior(counts, EMPTY_CLASS_PRIOR if config.allow_empty_classes else None)
            self._class_tensors = (log_prior.float().to(device), class_ranks(counts).to(device))
            self._made_for = made_for
        return self._class_tensors

    def _check_inputs(self, labels: Tensor | None, weak: Tensor | None, strong: Tensor | None) -> None:
        if (
            (weak is None) != (strong is None)
            or weak is not None
            and strong is not None
            and weak.shape != strong.shape
        ):
            raise ValueError("`pixel_values_weak` and `pixel_values_strong` must be two views of the same images.")
        if weak is not None and labels is None:
            raise ValueError("unlabelled views need labelled images beside them: give `labels` too.")
        if labels is None:
            return
        if labels.dtype != torch.int64:
            raise TypeError(f"`labels` must be int64 class ids, got {labels.dtype}.")
        num_classes = self.config.num_classes
        # Not on a GPU, where it would wait for the device, nor in a compiled graph, which it would break. `CPETrainer` looks
        # at the data set instead.
        if labels.device.type != "cpu" or torch.compiler.is_compiling():
            return
        if bool(((labels < 0) & (labels != -100) | (labels >= num_classes)).any()):
            raise ValueError(
                f"`labels` must be from 0 to {num_classes - 1}, or -100 to be ignored, got {labels.tolist()}."
            )

    @torch.no_grad()
    def fold_for_inference(self, keep_experts: bool = True) -> "CPEForImageClassification":
        """A copy for inference whose heads have taken in classwise batch normalisation: the same logits, without it.

        Args:
            keep_experts: keep all heads; `False` keeps that of `eval_expert`, and inference costs what a classifier with
                one head costs.

        Returns:
            A model in evaluation mode with `use_cbn=False`, which saves and loads as any other.

        Raises:
            ValueError: `keep_experts=False` where `fusion` needs them all.
        """
        if not keep_experts and self.config.fusion != "expert":
            raise ValueError(f"`keep_experts=False` needs fusion='expert', got {self.config.fusion!r}.")
        config = copy.deepcopy(self.config)
        config.use_cbn = False
        weight, bias = self.classifier.weight.double(), self.classifier.bias.double()
        if self.config.use_cbn:
            norm: ClasswiseBatchNorm = self.classwise_norm
            scale = norm.weight.double().mean(0) * (norm.running_var.double() + norm.eps).rsqrt()
            bias = bias + weight @ (norm.bias.double().mean(0) - scale * norm.running_mean.double())
            weight = weight * scale
        if not keep_experts:
            assert config.eval_expert is not None  # filled in by the configuration
            rows = slice(config.eval_expert * config.num_classes, (config.eval_expert + 1) * config.num_classes)
            weight, bias = weight[rows], bias[rows]
            config.taus, config.eval_expert = (config.taus[config.eval_expert],), 0
        with torch.device("meta"):
            model = type(self)(config)
        model.backbone = copy.deepcopy(self.backbone)
        head = CPEHead(weight.shape[1], config.num_experts, config.num_classes)
        head.weight.copy_(weight)
        head.bias.copy_(bias)
        model.classifier = head.to(self.classifier.weight)
        return model.eval()
