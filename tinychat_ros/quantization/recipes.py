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
from typing import Callable

import torch
from torch import Tensor

from tinychat_ros.errors import UnsupportedModelError
from tinychat_ros.kernels.ops import LayerCache, linear_residual
from tinychat_ros.models.block import Block, Positions
from tinychat_ros.models.config import ModelConfig


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

    :param norm: field of the block, its norm; ``norm_name`` is its tensor below the block.
    :param first: field with the linears behind the norm, named ``first_names`` in the checkpoint.
    :param last: field with the linear that ends the branch, ``last_name``.
    :param hidden: (block, x [T, H], scratch) to what ``last`` reads.
    :param source: index in ``first`` of the linear whose outputs reach ``last`` channel by
        channel, so that the inverse of a scale of them fits into its rows.
    :param shared_heads: whether query heads of one KV head read the same outputs of ``source``.
    :param unclipped: indices in ``first`` whose range AWQ does not cut.
    """

    norm: str
    norm_name: str
    first: str
    first_names: tuple[str, ...]
    last: str
    last_name: str
    hidden: Callable[[Block, Tensor, Scratch], Tensor]
    source: int
    shared_heads: bool = False
    unclipped: tuple[int, ...] = ()

    def output(self, block: Block, x: Tensor, scratch: Scratch) -> Tensor:
        """Return what this part of a block makes of x [T, H]."""
        return linear_residual(self.hidden(block, x, scratch), getattr(block, self.last), x)


LLAMA = (
    Part('attention_norm', 'input_layernorm',
         'qkv', ('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'),
         'o_proj', 'self_attn.o_proj',
         lambda block, x, scratch: block.attend(x, scratch.cache, 0),
         source=2, shared_heads=True, unclipped=(0, 1)),
    Part('mlp_norm', 'post_attention_layernorm',
         'gate_up', ('mlp.gate_proj', 'mlp.up_proj'),
         'down_proj', 'mlp.down_proj',
         lambda block, x, scratch: block.activated(x), source=1),
)

RECIPES = {'llama': LLAMA}


def recipe(model_type: str) -> tuple[Part, ...]:
    """
    Return the parts of an architecture's block.

    :raises UnsupportedModelError: when it cannot be quantized yet, naming those that can.
    """
    if model_type not in RECIPES:
        raise UnsupportedModelError(
            f"config.json: model_type: expected one of {', '.join(sorted(RECIPES))}, "
            f'got {model_type!r}')
    return RECIPES[model_type]
