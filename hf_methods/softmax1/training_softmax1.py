# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of one training run, the model that they describe, and the figures of what was trained."""

from dataclasses import dataclass, field

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from hf_methods.processes import check_processes
from hf_methods.softmax1.configuration_softmax1 import Softmax1GPT2Config, Softmax1LlamaConfig
from hf_methods.softmax1.inspection_softmax1 import inspect_model
from hf_methods.softmax1.modeling_softmax1 import Softmax1GPT2LMHeadModel, Softmax1LlamaForCausalLM
from hf_methods.softmax1.quantization_softmax1 import quantization_report


@dataclass
class Softmax1TrainingArguments(TrainingArguments):
    """`TrainingArguments` with OrthoAdam and the recipe's defaults.

    Changed defaults: learning_rate 1e-3, weight_decay 0.1, adam_beta2 0.95, cosine schedule. The paper's own values are
    not all known: `training/README.md` says where each comes from.
    """

    optimizer: str = field(default="orthoadam", metadata={"help": "'orthoadam' or 'adamw'."})
    rotation: str = field(default="auto", metadata={"help": "Rotation of OrthoAdam, see its docstring."})
    rotated_axes: str = field(
        default="all", metadata={"help": "'all', or 'residual': only the residual stream's axis of each parameter."}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.1, metadata={"help": "Decoupled weight decay of matrices."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Decay rate of the second moment."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})

    def __post_init__(self):
        super().__post_init__()
        if self.optimizer not in ("orthoadam", "adamw"):
            raise ValueError(f"`optimizer` must be 'orthoadam' or 'adamw', got {self.optimizer!r}.")
        if self.rotated_axes not in ("all", "residual"):
            raise ValueError(f"`rotated_axes` must be 'all' or 'residual', got {self.rotated_axes!r}.")
        check_processes(self)


@dataclass
class ModelArguments:
    """A GPT-2 or Llama trained from scratch."""

    architecture: str = field(default="gpt2", metadata={"help": "'gpt2' or 'llama'."})
    attention: str = field(default="softmax1", metadata={"help": "'softmax1' or 'softmax'."})
    norm: str = field(
        default="rmsnorm_single", metadata={"help": "'rmsnorm_single', or 'layernorm' (gpt2), 'rmsnorm' (llama)."}
    )
    hidden_size: int = field(default=512, metadata={"help": "Features of the residual stream."})
    intermediate_size: int | None = field(default=None, metadata={"help": "Features inside the MLP; default 4x."})
    num_layers: int = field(default=12, metadata={"help": "Number of blocks."})
    num_heads: int = field(default=8, metadata={"help": "Attention heads."})

    def __post_init__(self):
        if self.architecture not in ("gpt2", "llama"):
            raise ValueError(f"`architecture` must be 'gpt2' or 'llama', got {self.architecture!r}.")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_heads`, got {self.hidden_size} and {self.num_heads}."
            )


@dataclass
class DataArguments:
    """Text, tokenizer and block length."""

    corpus: str = field(metadata={"help": "'python', 'shakespeare', a Hub id or a folder; see hf_methods.data."})
    corpus_config: str | None = field(default=None, metadata={"help": "Configuration of the Hub data set."})
    streaming: bool = field(default=False, metadata={"help": "Read the Hub data set while training; needs max_steps."})
    seq_len: int = field(default=256, metadata={"help": "Tokens in a block."})
    vocab_size: int = field(default=4096, metadata={"help": "Tokens of the BPE trained on the training split."})
    tokenizer: str | None = field(default=None, metadata={"help": "Use this tokenizer instead of training one."})
    eval_blocks: int = field(default=512, metadata={"help": "Blocks of the validation split to evaluate on."})

    def __post_init__(self):
        if self.streaming and not self.tokenizer:
            raise ValueError("`streaming=True` needs `tokenizer`: none can be trained on a stream.")


def build_model(
    args: ModelArguments, tokenizer: PreTrainedTokenizerBase, seq_len: int
) -> Softmax1GPT2LMHeadModel | Softmax1LlamaForCausalLM:
    """A randomly initialised model without dropout, with tied embeddings."""
    intermediate_size = args.intermediate_size or 4 * args.hidden_size
    common = {
        "vocab_size": len(tokenizer),
        "attention_softmax": args.attention,
        "norm_type": args.norm,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model: Softmax1GPT2LMHeadModel | Softmax1LlamaForCausalLM
    if args.architecture == "llama":
        model = Softmax1LlamaForCausalLM(
            Softmax1LlamaConfig(
                hidden_size=args.hidden_size,
                intermediate_size=intermediate_size,
                num_hidden_layers=args.num_layers,
                num_attention_heads=args.num_heads,
                max_position_embeddings=seq_len,
                **common,
            )
        )
    else:
        model = Softmax1GPT2LMHeadModel(
            Softmax1GPT2Config(
                n_embd=args.hidden_size,
                n_inner=intermediate_size,
                n_layer=args.num_layers,
                n_head=args.num_heads,
                n_positions=seq_len,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                **common,
            )
        )
    # `pipeline` generates 256 tokens by default, past the end of short models
    model.generation_config.max_new_tokens = min(256, seq_len // 2)  # type: ignore[union-attr]
    return model


FIGURES = (
    "perplexity", "first_token_mass_pct", "null_mass_pct", "first_token_argmax_pct", "heads_first_token_max_pct",
    "kurtosis_first", "kurtosis_rest", "maxabs_first", "maxabs_rest", "maxabs_global",
)  # fmt: skip


def compute_figures(model: PreTrainedModel, blocks: Tensor, calibration_blocks: Tensor) -> dict[str, float]:
    """The figures that results.json and the cards give of a trained model.

    Args:
        model: any causal language model.
        blocks: token ids (blocks, seq_len) of held-out text.
        calibration_blocks: token ids of training text, for the scales of quantised activations.

    Returns:
        The fields `FIGURES` of `ModelReport`, and the perplexity that each quantisation scheme adds, as `delta_<scheme>`.
    """
    report = inspect_model(model, blocks, max_blocks=len(blocks), batch_size=64)
    rows = quantization_report(model, blocks, calibration_blocks, batch_size=64)
    figures = {name: getattr(report, name) for name in FIGURES}
    return {**figures, **{f"delta_{row['scheme']}": row["delta"] for row in rows}}
