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
"""What architectures share: where weights come from, ALiBi's slopes, the order of QKV rows."""

from __future__ import annotations

import math
from typing import Optional, Protocol, Sequence

import torch
from torch import Tensor

from tinychat_ros.kernels.linear import Linear
from tinychat_ros.kernels.packing import TileOrder


class WeightSource(Protocol):
    """Hands out a checkpoint's weights one at a time, ready for the device they run on."""

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return a plain tensor in the compute dtype, or a matrix as kernels widen it."""

    def optional(self, name: str, shape: Sequence[int]) -> Optional[Tensor]:
        """Return a plain tensor, or None where the checkpoint has none."""

    def linears(self, names: Sequence[str], out_features: Sequence[int], in_features: int,
                order: Optional[TileOrder] = None,
                rows: Optional[Tensor] = None) -> tuple[Linear, ...]:
        """
        Return linears that share an input, joined into one where their kinds allow it.

        :param order: of the rows of all, for the kernels that can make use of it.
        :param rows: int64 [N], where each row of a single linear stands in the checkpoint; None
            for the same place.
        """


def alibi_slopes(heads: int, bias_max: float) -> Tensor:
    """
    Return the slope of each head, fp32 [Hq] (Press et al., ALiBi, 2022).

    Heads beyond a power of two take every other slope of the next one, as MPT does.
    """
    power = 2 ** math.ceil(math.log2(heads))
    slopes = 2.0 ** -(torch.arange(1, power + 1, dtype=torch.float32) * (bias_max / power))
    return slopes if power == heads else torch.cat([slopes[1::2], slopes[::2]])[:heads]


def qkv_rows(heads: int, kv_heads: int, head_dim: int, rotary_dim: int,
             grouped: bool) -> Optional[Tensor]:
    """
    Return where the rows of queries, keys and values stand in a checkpoint's one matrix.

    :param rotary_dim: how many dimensions of a head are rotated, its first ones. Rows that rotate
        together then stand half of that apart; ours are half a head apart.
    :param grouped: the checkpoint's rows are grouped by KV head.
    :returns: int64 [N], or None where both have the same order.
    """
    if not grouped and rotary_dim == head_dim:
        return None
    rows = torch.arange((heads + 2 * kv_heads) * head_dim).view(-1, head_dim)
    q, k, v = rows.split([heads, kv_heads, kv_heads])
    if grouped:
        groups = rows.view(kv_heads, -1, head_dim)
        q, k, v = groups[:, :-2].flatten(0, 1), groups[:, -2], groups[:, -1]
    if rotary_dim < head_dim:
        first, second, *rest = torch.arange(head_dim).split(
            [rotary_dim // 2] * 2 + [(head_dim - rotary_dim) // 2] * 2)
        order = torch.cat([first, rest[0], second, rest[1]])
        q, k = q[:, order], k[:, order]
    return torch.cat([q, k, v]).flatten()
