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
"""The static KV cache: a pool of slots, allocated once and never grown."""

from __future__ import annotations

import torch

from tinychat_ros.kernels.ops import LayerCache
from tinychat_ros.models.config import ModelConfig


def kv_bytes_per_position(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return what one position of one slot takes in all layers, in bytes."""
    element = torch.empty((), dtype=dtype).element_size()
    return (2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * element)


class KVCache:
    """
    Keys and values of every layer and slot, each [layers, slots, Hkv, max_seq_len, D].

    Who owns a slot, and which tokens lie in it, is the engine's business.
    """

    def __init__(self, config: ModelConfig, num_slots: int, max_seq_len: int,
                 dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.num_hidden_layers, num_slots, config.num_key_value_heads, max_seq_len,
                 config.head_dim)
        self._k = torch.zeros(shape, dtype=dtype, device=device)
        self._v = torch.zeros(shape, dtype=dtype, device=device)
        self.num_slots = num_slots
        self.max_seq_len = max_seq_len

    def layer(self, index: int, slot: int) -> LayerCache:
        """Return views of one layer's keys and values in one slot, each [Hkv, max_seq_len, D]."""
        return LayerCache(self._k[index, slot], self._v[index, slot])
