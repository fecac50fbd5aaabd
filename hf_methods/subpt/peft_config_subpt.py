# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""What an adapter stores beside its context, and the new member of PEFT's enums."""

import enum
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig, PeftType, TaskType

from hf_methods.subpt.prompts_subpt import check_class_names, context_positions, prompt_template


PEFT_NAME = "subpt"
TASK = "IMAGE_PROMPT_CLS"
CTX_SLOTS = ("virtual", "reserved")
MAX_RESERVED_SLOTS = 32


def ensure_member(enum_class: type[enum.Enum], name: str) -> enum.Enum:
    """The member `name` = "name" of a closed str-enum, made if it isn't there: at the second call, in a reloaded module
    or in a PEFT that has it already, nothing changes.

    PEFT knows its methods by the members of `PeftType` and its tasks by those of `TaskType`, and has no way to add one
    (peft 0.21). Members made here survive pickling, JSON, lookup by value and iteration like the others.
    """
    if name in enum_class.__members__:
        return enum_class[name]
    member: Any = str.__new__(enum_class, name)  # type: ignore[type-var]
    member._name_ = member._value_ = name
    member.__objclass__ = enum_class
    member._sort_order_ = len(enum_class)
    enum_class._member_names_.append(name)
    enum_class._member_map_[name] = member
    enum_class._value2member_map_[name] = member
    type.__setattr__(enum_class, name, member)
    return member


ensure_member(PeftType, PEFT_NAME.upper())
ensure_member(TaskType, TASK)


@dataclass
class SubPTConfig(PeftConfig):
    """Configuration of a learned prompt context for a CLIP-like model: CoOp's context as a PEFT adapter.

    How the context is trained (CoOp, SubPT, NFL) belongs to the run: see `SubPTTrainingArguments`.

    Args:
        n_ctx (`int`, *optional*, defaults to 16): context tokens M; with `ctx_init` its number of tokens, or a multiple
            of it (the words are repeated).
        ctx_init (`str`, *optional*): words to start from, such as "a photo of a". They are tokenised, not counted as
            words. The default is random values.
        init_std (`float`, *optional*, defaults to 0.02): standard deviation of random values (CoOp).
        class_token_position (`str`, *optional*, defaults to `"end"`): where the class name stands: "end", "middle" or
            "front" (CoOp, Section 3.2).
        template (`str`, *optional*): a free template instead of `class_token_position`, with every `<|ctx_i|>` of
            0..M-1 and one `{}`, such as "<|ctx_0|> {} on <|ctx_1|>.".
        class_specific (`bool`, *optional*, defaults to `False`): a context of its own for each class (CSC); needs
            `class_names`. Words of `ctx_init` start every class.
        class_names (`list[str]`, *optional*): names that the context was trained with. Other names may be used later,
            except with `class_specific`.
        ctx_slots (`str`, *optional*, defaults to `"virtual"`): "virtual" gives context tokens ids behind the
            vocabulary; "reserved" takes ids that clean text never produces (CLIP's control bytes 188..219, at most 32),
            for models that pool at the largest id whatever the configuration says (OwlViT, Owlv2).
        first_ctx_token_id (`int`, *optional*): id of `<|ctx_0|>`, filled in when the adapter is made: the length of the
            embedding, or 188. It is stored, never guessed again: an embedding may be resized later.
        eos_token_id (`int`, *optional*): end-of-text id at which the model pools, filled in likewise. OpenAI's
            checkpoints say 2, which CLIP takes as "pool at the largest id"; the adapter needs the real one (49407).
        tokenizer_name_or_path (`str`, *optional*): where the tokenizer is; defaults to the base model's.
        ctx_init_token_ids (`list[int]`, *optional*): the tokens of `ctx_init`, filled in.
        target_modules (`list[str]`, *optional*, defaults to `["token_embedding"]`): the token embedding.

    Raises:
        ValueError: a value out of range, fields that don't go together, or a template that misses a token.
    """

    n_ctx: int | None = field(default=None, metadata={"help": "Context tokens M; 16, or the tokens of `ctx_init`."})
    ctx_init: str | None = field(default=None, metadata={"help": "Words to start from; the default is random."})
    init_std: float = field(default=0.02, metadata={"help": "Standard deviation of random initial values."})
    class_token_position: str = field(default="end", metadata={"help": "'end', 'middle' or 'front'."})
    template: str | None = field(default=None, metadata={"help": "Free template with every <|ctx_i|> and one {}."})
    class_specific: bool = field(default=False, metadata={"help": "A context for each class (CSC)."})
    class_names: list[str] | None = field(default=None, metadata={"help": "Names that the context was trained with."})
    ctx_slots: str = field(default="virtual", metadata={"help": "'virtual' or 'reserved' ids."})
    first_ctx_token_id: int | None = field(default=None, metadata={"help": "Id of <|ctx_0|>; filled in."})
    eos_token_id: int | None = field(default=None, metadata={"help": "End-of-text id; filled in."})
    tokenizer_name_or_path: str | None = field(default=None, metadata={"help": "Tokenizer, if not the base model's."})
    ctx_init_token_ids: list[int] | None = field(default=None, metadata={"help": "Tokens of `ctx_init`; filled in."})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "The token embedding."})
    # What PEFT's functions look for in each tuner's configuration.
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to leave out."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Further modules to train and save."})

    def __post_init__(self):
        self.task_type = self.task_type if self.task_type is not None else TASK
        super().__post_init__()
        self.peft_type = PeftType[PEFT_NAME.upper()]
        if isinstance(self.target_modules, set):
            self.target_modules = sorted(self.target_modules)
        if self.ctx_init is not None and not self.ctx_init.strip():
            raise ValueError(f"`ctx_init` has no words: {self.ctx_init!r}; leave it out for random values.")
        if self.n_ctx is None and self.ctx_init is None:
            self.n_ctx = 16
        if self.n_ctx is not None and self.n_ctx < 1:
            raise ValueError(f"`n_ctx` must be at least 1, got {self.n_ctx}.")
        if not self.init_std >= 0:
            raise ValueError(f"`init_std` must be 0 or more, got {self.init_std}.")
        if self.ctx_slots not in CTX_SLOTS:
            raise ValueError(f"`ctx_slots` must be one of {', '.join(CTX_SLOTS)}, got {self.ctx_slots!r}.")
        if self.class_names is not None:
            self.class_names = check_class_names(self.class_names, "class_names")
        if self.class_specific and self.class_names is None:
            raise ValueError("`class_specific=True` needs `class_names`: each class gets its own context.")
        if self.n_ctx is not None:
            self.check_context()

    def check_context(self) -> None:
        """Checks that need the final `n_ctx`, which words of `ctx_init` give only once they are tokenised."""
        assert self.n_ctx is not None
        context_positions(prompt_template(self), self.n_ctx)
        if self.ctx_slots == "reserved" and self.num_ctx_tokens > MAX_RESERVED_SLOTS:
            raise ValueError(
                f"`ctx_slots='reserved'` has {MAX_RESERVED_SLOTS} ids, {self.num_ctx_tokens} are needed; lower `n_ctx`."
            )

    @property
    def num_ctx_tokens(self) -> int:
        """Rows K of the context table: M, or C * M with `class_specific`."""
        assert self.n_ctx is not None
        return self.n_ctx * (len(self.class_names or ()) if self.class_specific else 1)
