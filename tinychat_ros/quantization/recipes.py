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
"""What differs by architecture: which linears share an input, and where a scale of it can hide."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Callable

import torch
from torch import Tensor

from tinychat_ros.errors import UnsupportedModelError
from tinychat_ros.kernels import reference
from tinychat_ros.kernels.ops import LayerCache, linear_residual
from tinychat_ros.models.block import Block, Positions
from tinychat_ros.models.config import ModelConfig

# What undoes a scale of what the down projection reads: the rows of the up projection, where it
# is linear in them, or a tensor that divides what the activation gives (AutoAWQ's
# ScaledActivation).
UP, ACTIVATION = 'up', 'activation'

RECIPES = {
    'falcon': ACTIVATION,
    'gemma2': UP,
    'gemma3_text': UP,
    'llama': UP,
    'llava': UP,
    'mistral': UP,
    'mpt': ACTIVATION,
    'phi3': UP,
    'qwen2': UP,
    'qwen3': UP,
}


class Scratch:
    """Positions and a cache that any sequence of up to ``length`` tokens can use."""

    def __init__(self, config: ModelConfig, length: int, device: torch.device) -> None:
        shape = (config.num_key_value_heads, length, config.head_dim)
        self.positions = Positions.of(config, length, device)
        self.cache = LayerCache(torch.empty(shape, device=device),
                                torch.empty(shape, device=device))


@dataclass(frozen=True)
class Part:
    """
    One residual branch of a block: a norm, linears that read it, and one that writes the branch.

    :param norm: field of the block, its norm; ``norm_name`` is its module below the block.
    :param first: field with the linears behind the norm, named ``first_names`` in the checkpoint.
    :param last: field with the linear that ends the branch, ``last_name``.
    :param post_norm: field with the norm of what ``last`` writes, or with None.
    :param hidden: (block, x [T, H], scratch) to what ``last`` reads.
    :param norm_offset: what is added to the stored weight of the norm.
    :param unclipped: how many rows of each of ``first``, from the top, AWQ does not cut: queries
        and keys.
    :param source_rows: how many rows at the end of the last of ``first`` give what reaches
        ``last`` channel by channel, so that the inverse of a scale of it fits into them; or 0.
    :param heads: how these rows fall into heads, and how many query heads read each of them.
    :param scales_name: tensor below the block that divides what ``last`` reads, or ''.
    """

    norm: str
    norm_name: str
    first: str
    first_names: tuple[str, ...]
    last: str
    last_name: str
    post_norm: str
    hidden: Callable[[Block, Tensor, Scratch], Tensor]
    norm_offset: float
    unclipped: tuple[int, ...]
    source_rows: int = 0
    heads: tuple[int, int] = (1, 1)
    scales_name: str = ''

    @property
    def takes_scale(self) -> bool:
        """Say whether what ``last`` reads can be scaled."""
        return bool(self.source_rows or self.scales_name)

    def added(self, block: Block, x: Tensor, scratch: Scratch) -> Tensor:
        """Return what this part adds to x [T, H], but for the bias of its last linear."""
        out = reference.linear(self.hidden(block, x, scratch), getattr(block, self.last).weight)
        post_norm = getattr(block, self.post_norm)
        return out if post_norm is None else reference.normalize(out, post_norm)


# The parts of a block that read the same x and are added to it.
Step = tuple[Part, ...]


def by_norm(step: Step) -> list[Step]:
    """Return the parts of a step, those together that share a norm, and with it a scale."""
    return [tuple(parts) for _, parts in groupby(step, lambda part: part.norm_name)]


def output(step: Step, block: Block, x: Tensor, scratch: Scratch) -> Tensor:
    """Return what a step of a block makes of x [T, H]."""
    out = x
    for part in step:
        out = linear_residual(part.hidden(block, x, scratch), getattr(block, part.last), out,
                              getattr(block, part.post_norm))
    return out


def recipe(config: ModelConfig) -> tuple[Step, ...]:
    """
    Return the steps of an architecture's blocks.

    :raises UnsupportedModelError: when it cannot be quantized yet, naming those that can.
    """
    if config.model_type not in RECIPES:
        raise UnsupportedModelError(
            f"config.json: model_type: expected one of {', '.join(sorted(RECIPES))}, "
            f'got {config.model_type!r}')
    parts = (_attention(config), _mlp(config, RECIPES[config.model_type]))
    return (parts,) if config.parallel else tuple((part,) for part in parts)


def _attention(config: ModelConfig) -> Part:
    names, kv_heads = config.names, config.num_key_value_heads
    queries, values = (heads * config.head_dim
                       for heads in (config.num_attention_heads, kv_heads))
    return Part(
        'attention_norm', names.attention_norm, 'qkv', names.qkv, 'o_proj', names.o_proj,
        'attention_post_norm', lambda block, x, scratch: block.attend(x, scratch.cache, 0),
        config.norm_offset,
        unclipped=(queries, values, 0) if len(names.qkv) == 3 else (queries + values,),
        # A bound of the values does not scale with them.
        source_rows=0 if config.clip_qkv else values,
        heads=(kv_heads, config.num_attention_heads // kv_heads))


def _mlp(config: ModelConfig, undone_by: str) -> Part:
    names = config.names
    return Part(
        'mlp_norm', names.mlp_norm, 'gate_up', names.gate_up, 'down_proj', names.down_proj,
        'mlp_post_norm', lambda block, x, scratch: block.activated(x), config.norm_offset,
        unclipped=(0,) * len(names.gate_up),
        source_rows=config.intermediate_size if undone_by == UP else 0,
        scales_name=names.mlp_scales if undone_by == ACTIVATION else '')
