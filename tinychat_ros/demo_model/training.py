# Copyright 2026 tinychat_ros developers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Training of the demo model: a small Llama on dialogues, loss on the robot's words only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
import math
from random import Random
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

BUCKET = 2048


@dataclass(frozen=True)
class Recipe:
    """
    How the model is trained.

    :param tokens_per_batch: padding included; the last batch of a bucket may be smaller.
    :param learning_rate: the peak, reached after ``warmup_steps`` and left along a cosine.
    :param bfloat16: run the matrix products in bfloat16; faster where the CPU has instructions for
        it, slower where it has not.
    """

    tokens_per_batch: int = 2048
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    gradient_norm: float = 1.0
    bfloat16: bool = True


@dataclass(frozen=True)
class Example:
    """One dialogue: its tokens, and which of them the model learns to say."""

    ids: list[int]
    mask: list[bool]


def padded(examples: list[Example]) -> tuple[Tensor, Tensor]:
    """Return tokens int64 [B, T] and mask bool [B, T], padded where causality hides it."""
    longest = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    mask = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, :len(example.ids)] = torch.tensor(example.ids)
        mask[row, :len(example.mask)] = torch.tensor(example.mask)
    return ids, mask


def batches(examples: list[Example], tokens_per_batch: int, seed: int) -> list[list[Example]]:
    """Group dialogues of similar length, and shuffle the groups."""
    random = Random(seed)
    order = random.sample(examples, len(examples))
    groups: list[list[Example]] = []
    for first in range(0, len(order), BUCKET):
        bucket = sorted(order[first:first + BUCKET], key=lambda example: len(example.ids))
        groups += grouped(bucket, tokens_per_batch)
    random.shuffle(groups)
    return groups


def grouped(examples: list[Example], tokens_per_batch: int) -> Iterator[list[Example]]:
    """Cut dialogues of growing length into groups that fit the budget when padded."""
    group: list[Example] = []
    for example in examples:
        if group and (len(group) + 1) * len(example.ids) > tokens_per_batch:
            yield group
            group = []
        group.append(example)
    yield group


def new_model(config: dict[str, Any], seed: int) -> LlamaForCausalLM:
    """Return an untrained model of the shape that a config.json describes."""
    torch.manual_seed(seed)
    # Over short dialogues on a CPU, written out attention is faster than the fused kernel: 14,700
    # against 11,600 tokens of training a second.
    return LlamaForCausalLM(LlamaConfig(**config, attn_implementation='eager')).float()


def loss_of(model: LlamaForCausalLM, ids: Tensor, mask: Tensor, bfloat16: bool) -> Tensor:
    """Return the mean cross entropy of the masked tokens, each predicted from those before it."""
    with torch.autocast('cpu', torch.bfloat16, enabled=bfloat16):
        hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state
        logits = model.lm_head(hidden[mask[:, 1:]])
    return functional.cross_entropy(logits.float(), ids[:, 1:][mask[:, 1:]])


def optimizer_of(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.Optimizer:
    """Return AdamW that decays matrices and leaves the norms alone."""
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    norms = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [{'params': matrices, 'weight_decay': recipe.weight_decay},
              {'params': norms, 'weight_decay': 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def rate(step: int, steps: int, warmup: int) -> float:
    """Return the learning rate as a part of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(model: LlamaForCausalLM, groups: list[list[Example]], recipe: Recipe,
          report: Callable[[str], None]) -> None:
    """Train for one pass over the batches, in their order."""
    optimizer, start, seen, recent = optimizer_of(model, recipe), time.monotonic(), 0, []
    model.train()
    for step, group in enumerate(groups):
        ids, mask = padded(group)
        loss = loss_of(model, ids, mask, recipe.bfloat16)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_norm)
        for parameters in optimizer.param_groups:
            parameters['lr'] = recipe.learning_rate * rate(step, len(groups), recipe.warmup_steps)
        optimizer.step()
        seen += ids.numel()
        recent.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == len(groups):
            seconds = time.monotonic() - start
            report(f'step {step + 1}/{len(groups)}  loss {sum(recent) / len(recent):.4f}  '
                   f'{seen / seconds:.0f} tokens/s  {seconds:.0f} s')
            recent = []
    model.eval()
