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
"""What architectures share: where weights come from, and the rotary tables."""

from __future__ import annotations

import math
from typing import Optional, Protocol, Sequence

import torch
from torch import Tensor

from tinychat_ros.kernels.linear import Linear
from tinychat_ros.kernels.operands import RotaryTable
from tinychat_ros.kernels.packing import TileOrder
from tinychat_ros.models.config import ModelConfig, RopeConfig


class WeightSource(Protocol):
    """Hands out a checkpoint's weights one at a time, ready for the device they run on."""

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return a plain tensor in the compute dtype, or a matrix as kernels widen it."""

    def linears(self, names: Sequence[str], out_features: Sequence[int], in_features: int,
                order: Optional[TileOrder] = None) -> tuple[Linear, ...]:
        """
        Return linears that share an input, joined into one where their kinds allow it.

        :param order: of the rows of all, for the kernels that can make use of it.
        """


def _default_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return 1.0 / rope.theta ** exponents


def _linear_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    return _default_frequencies(rope, head_dim) / rope.factor


def _llama3_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Stretch long wavelengths, keep short ones, blend between (Llama 3.1)."""
    frequencies = _default_frequencies(rope, head_dim)
    rotations = rope.original_max_position_embeddings * frequencies / (2 * math.pi)
    blend = (rotations - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = blend.clamp(0, 1)
    return (1 - blend) * frequencies / rope.factor + blend * frequencies


ROPE_FREQUENCIES = {
    'default': _default_frequencies,
    'linear': _linear_frequencies,
    'llama3': _llama3_frequencies,
}


def rotary_table(config: ModelConfig, max_seq_len: int, device: torch.device) -> RotaryTable:
    """Return cosines and sines of every position, each fp32 [max_seq_len, D/2]."""
    frequencies = ROPE_FREQUENCIES[config.rope.rope_type](config.rope, config.head_dim)
    angles = torch.arange(max_seq_len, dtype=torch.float32)[:, None] * frequencies
    return RotaryTable(angles.cos().to(device), angles.sin().to(device))
