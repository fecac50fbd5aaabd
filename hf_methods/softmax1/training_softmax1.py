# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of one training run, and the model that they describe."""

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase, TrainingArguments

from hf_methods.softmax1.configuration_softmax1 import Softmax1GPT2Config
from hf_methods.softmax1.modeling_softmax1 import Softmax1GPT2LMHeadModel


@dataclass
class Softmax1TrainingArguments(TrainingArguments):
    """`TrainingArguments` with OrthoAdam and the recipe's defaults.

    Changed defaults: learning_rate 1e-3, weight_decay 0.1, adam_beta2 0.95, max_grad_norm 1, cosine schedule with
    warm-up. The paper's own values are not all known: `training/README.md` says where each comes from.
    """

    optimizer: str = field(default="orthoadam", metadata={"help": "'orthoadam' or 'adamw'."})
    rotation: str = field(default="auto", metadata={"help": "Rotation of OrthoAdam, see its docstring."})
    embedding_rotation: list[str] | None = field(
        default=None,
        metadata={"help": "Rotation of the embedding's two axes, such as `none auto`; default: rotation."},
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.1, metadata={"help": "Decoupled weight decay of matrices."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Decay rate of the second moment."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})

    def __post_init__(self):
        super().__post_init__()
        if self.optimizer not in ("orthoadam", "adamw"):
            raise ValueError(f"`optimizer` must be 'orthoadam' or 'adamw', got {self.optimizer!r}.")


@dataclass
class ModelArguments:
    """A GPT-2 trained from scratch."""

    attention: str = field(default="softmax1", metadata={"help": "'softmax1' or 'softmax'."})
    norm: str = field(default="rmsnorm_single", metadata={"help": "'layernorm' or 'rmsnorm_single'."})
    hidden_size: int = field(default=512, metadata={"help": "Features of the residual stream."})
    num_layers: int = field(default=12, metadata={"help": "Number of blocks."})
    num_heads: int = field(default=8, metadata={"help": "Attention heads."})


@dataclass
class DataArguments:
    """Text, tokenizer and block length."""

    corpus: str = field(metadata={"help": "'python', 'shakespeare' or a Hub id; see hf_methods.data."})
    seq_len: int = field(default=256, metadata={"help": "Tokens in a block."})
    vocab_size: int = field(default=4096, metadata={"help": "Tokens of the BPE trained on the training split."})
    tokenizer: str | None = field(default=None, metadata={"help": "Use this tokenizer instead of training one."})


def build_model(args: ModelArguments, tokenizer: PreTrainedTokenizerBase, seq_len: int) -> Softmax1GPT2LMHeadModel:
    """A randomly initialised GPT-2 without dropout, with tied embeddings."""
    config = Softmax1GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=seq_len,
        n_embd=args.hidden_size,
        n_layer=args.num_layers,
        n_head=args.num_heads,
        attention_softmax=args.attention,
        norm_type=args.norm,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Softmax1GPT2LMHeadModel(config)
