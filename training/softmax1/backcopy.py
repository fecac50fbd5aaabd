# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Bigram-backcopy: attention is needed at a few bytes only, so where does it rest otherwise?

python training/softmax1/backcopy.py --config training/softmax1/backcopy.yaml --results results.json

After Guo et al., arXiv 2410.13835. A sequence begins with BOS and follows the bigram table of a text, except that
behind a trigger byte the byte before the trigger is repeated. Writes the figures of both arms and a plot beside them.
"""

import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from hf_methods.args import parse_args_and_config
from hf_methods.checkpoints import write_results
from hf_methods.data import load_text_corpus, text_digest
from hf_methods.plotting import BLUE, ORANGE, new_figure
from hf_methods.softmax1 import Softmax1GPT2Config, Softmax1GPT2LMHeadModel


BOS = 0  # the bytes of the text are 1, 2, ... in their order
ARMS = {"softmax": dict(color=ORANGE, label="softmax"), "softmax1": dict(color=BLUE, label="softmax-1")}
HISTORY = ("step", "accuracy_copy_pct", "first_token_mass_pct", "null_mass_pct")


@dataclass
class BackcopyArguments:
    """What `backcopy.py` runs. Every setting holds for both arms; names are those of train.py."""

    corpus: str = field(metadata={"help": "'python', 'shakespeare' or a Hub id; see hf_methods.data."})
    learning_rate: float = field(metadata={"help": "Peak learning rate; warm-up, then cosine to 0."})
    max_steps: int = field(metadata={"help": "Training steps."})
    results: str = field(metadata={"help": "JSON file to write; the figure gets its name with .png."})
    warmup_steps: int = field(default=100, metadata={"help": "Steps to the peak learning rate."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Sequences in a step, each seen once."})
    adam_beta2: float = field(default=0.99, metadata={"help": "Decay rate of the second moment."})
    seq_len: int = field(default=64, metadata={"help": "Tokens in a sequence, BOS included."})
    # Frequent in the default corpus (12 % of its bytes) but rarely next to each other (3 %; `t`, `a` and `,`: 10 %): two
    # triggers in a row repeat each other to the end of the sequence.
    triggers: str = field(default="ei,", metadata={"help": "Bytes behind which the byte before them is repeated."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of each arm."})
    eval_steps: int = field(default=100, metadata={"help": "Steps between the points of the plot."})
    eval_sequences: int = field(default=256, metadata={"help": "Fresh sequences of the figures."})


def bigram_table(text: bytes, triggers: bytes) -> tuple[Tensor, Tensor]:
    """The next-token probabilities, float64 (tokens, tokens), and which tokens are triggers, bool (tokens,).

    The row of BOS holds the byte frequencies without the triggers: there is no byte before one at the start.
    """
    alphabet, tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).unique(return_inverse=True)
    tokens, size = tokens + 1, len(alphabet) + 1
    is_trigger = F.pad(torch.isin(alphabet, torch.tensor(list(triggers), dtype=torch.uint8)), (1, 0))
    # The first byte follows the last one, so that every byte is followed by one.
    counts = torch.bincount(tokens * size + tokens.roll(-1), minlength=size**2).view(size, size).double()
    counts[BOS] = torch.bincount(tokens, minlength=size).masked_fill(is_trigger, 0)
    return counts / counts.sum(1, keepdim=True), is_trigger


def draw_sequences(table: Tensor, is_trigger: Tensor, count: int, seq_len: int, generator: torch.Generator) -> Tensor:
    """Sequences of the task, int64 (count, seq_len)."""
    # The rows' cumulative probabilities end to end: a search for `token + u` is a draw from the row of `token`.
    ends = table.cumsum(1)
    ends = (ends / ends[:, -1:] + torch.arange(len(table))[:, None]).flatten()
    sequences = torch.full((count, seq_len), BOS)
    for i in range(1, seq_len):
        token = sequences[:, i - 1]
        u = torch.rand(count, dtype=torch.float64, generator=generator)
        drawn = torch.searchsorted(ends, token + u, right=True) - token * len(table)
        sequences[:, i] = torch.where(is_trigger[token], sequences[:, i - 2], drawn)
    return sequences


def train(attention: str, training: Tensor, fresh: Tensor, is_trigger: Tensor, seed: int, args: BackcopyArguments):
    """Train a one-layer, one-head GPT-2 once over `training`, in its order; the figures on `fresh`, over the steps."""
    torch.manual_seed(seed)
    sizes = dict(vocab_size=len(is_trigger), n_positions=args.seq_len, n_embd=64, n_layer=1, n_head=1)
    dropout = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    config = Softmax1GPT2Config(attention_softmax=attention, bos_token_id=BOS, eos_token_id=None, **sizes, **dropout)
    model = Softmax1GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), args.learning_rate, (0.9, args.adam_beta2), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, args.warmup_steps, args.max_steps)
    batches, history = training.split(args.per_device_train_batch_size), []
    for step, batch in enumerate(tqdm(batches, desc=attention, mininterval=5), start=1):
        model(batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % args.eval_steps == 0 or step == len(batches):
            history.append({"step": step, **measure(model, fresh, is_trigger)})
    return history


@torch.no_grad()
def measure(model: Softmax1GPT2LMHeadModel, sequences: Tensor, is_trigger: Tensor) -> dict[str, float]:
    """Losses at all positions; attention of the queries at positions >= 4, of triggers (copy weight) and of others."""
    fast = model.config._attn_implementation
    model.set_attn_implementation("eager")
    output = model(sequences, output_attentions=True)
    model.set_attn_implementation(fast)
    targets, logits = sequences[:, 1:], output.logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    copied = is_trigger[sequences[:, :-1]]  # (sequences, seq_len - 1): the next byte is a copy
    weights = output.attentions[0][:, 0]  # (sequences, queries, keys)
    busy = is_trigger[sequences[:, 4:]]
    idle, before = weights[:, 4:][~busy], weights.diagonal(-1, 1, 2)[:, 3:][busy]  # before: query i on key i - 1
    return {
        "loss": losses.mean().item(),
        "loss_copy": losses[copied].mean().item(),
        "loss_other": losses[~copied].mean().item(),
        "accuracy_copy_pct": 100 * (logits.argmax(-1) == targets)[copied].float().mean().item(),
        "copy_weight_pct": 100 * before.mean().item(),
        "row_sum": idle.sum(-1).mean().item(),
        "null_mass_pct": 100 * (1 - idle.sum(-1)).mean().item(),
        "first_token_mass_pct": 100 * idle[:, 0].mean().item(),
        "first_token_argmax_pct": 100 * (idle.argmax(-1) == 0).float().mean().item(),
    }


def plot_steps(runs: list[dict]):
    """A line a run over the steps: copies that are right, then the mass on the first token."""
    figure, axes = new_figure(8, 3, columns=2)
    names = {"accuracy_copy_pct": "copies that are right, %", "first_token_mass_pct": "mass on the first token, %"}
    for (axis, (name, label)), run in product(zip(axes, names.items(), strict=True), runs):
        axis.plot(run["history"]["step"], run["history"][name], linewidth=1, **ARMS[run["attention"]])
        axis.set(xlabel="step", ylabel=label, ylim=(0, 101))
    axes[0].legend(handles=axes[0].lines[:2], frameon=False)
    return figure


def main(args: BackcopyArguments) -> None:
    start = time.time()
    corpus = load_text_corpus(args.corpus)["train"]
    table, is_trigger = bigram_table("".join(corpus["text"]).encode()[:2_000_000], args.triggers.encode())
    num_training = args.max_steps * args.per_device_train_batch_size
    runs: list[dict] = []
    for seed in args.seeds:
        generator = torch.Generator().manual_seed(seed)
        sequences = draw_sequences(table, is_trigger, num_training + args.eval_sequences, args.seq_len, generator)
        training, fresh = sequences.split([num_training, args.eval_sequences])
        # Losses of a model that knows the table and copies without error.
        losses = -table[fresh[:, :-1], fresh[:, 1:]].log().masked_fill(is_trigger[fresh[:, :-1]], 0)
        for attention in ARMS:
            history = train(attention, training, fresh, is_trigger, seed, args)
            final = {**history[-1], "loss_optimum": losses.mean().item()}
            history = {name: [round(figures[name], 3) for figures in history] for name in HISTORY}
            runs.append({"attention": attention, "seed": seed, **final, "history": history})
    summary: dict[str, dict] = {attention: {} for attention in ARMS}
    for attention, name in product(ARMS, list(final)[1:]):  # all but the step
        values = [run[name] for run in runs if run["attention"] == attention]
        summary[attention][name] = [mean(values), stdev(values) if len(values) > 1 else 0.0]
        print(f"{attention:8} {name:24}{summary[attention][name][0]:10.4f} ± {summary[attention][name][1]:.4f}")
    head = dict(seeds=args.seeds, data={"train": text_digest(corpus)}, wall_seconds=time.time() - start)
    write_results(args.results, **head, settings=vars(args), summary_mean_and_sd=summary, runs=runs)
    plot_steps(runs).savefig(Path(args.results).with_suffix(".png"))


if __name__ == "__main__":
    main(*parse_args_and_config((BackcopyArguments,)))
