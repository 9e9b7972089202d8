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

from typing import Optional

import torch
from torch import Tensor

from tinychat_ros.kernels import cuda, memory
from tinychat_ros.kernels.operands import LayerCache
from tinychat_ros.models.config import ModelConfig


def kv_bytes_per_position(config: ModelConfig, dtype: torch.dtype) -> int:
    """
    Return what one position of one slot takes in all layers, in bytes.

    :param dtype: of keys and values; int8 ones have a scale of fp16 for each head.
    """
    row = config.head_dim * dtype.itemsize + (2 if dtype == torch.int8 else 0)
    return 2 * config.num_hidden_layers * config.num_key_value_heads * row


class KVCache:
    """
    Keys and values of every layer and slot, each [layers, slots, Hkv, max_seq_len, D].

    Who owns a slot, and which tokens lie in it, is the engine's business.

    :param dtype: of keys and values: that of the activations, or int8.
    """

    def __init__(self, config: ModelConfig, num_slots: int, max_seq_len: int,
                 dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.num_hidden_layers, num_slots, config.num_key_value_heads, max_seq_len)
        self._k, self._v = (memory.zeros((*shape, config.head_dim), dtype, device)
                            for _ in range(2))
        self._k_scale, self._v_scale = (
            memory.zeros(shape, torch.float16, device) if dtype == torch.int8
            else None for _ in range(2))
        self._workspace = cuda.attention_workspace(
            config.num_attention_heads, config.num_key_value_heads, config.head_dim, max_seq_len,
            device)
        self.num_slots = num_slots
        self.max_seq_len = max_seq_len

    def layer(self, index: int, slot: int) -> LayerCache:
        """Return views of one layer's keys and values in one slot."""
        def view(pool: Optional[Tensor]) -> Optional[Tensor]:
            return None if pool is None else pool[index, slot]

        return LayerCache(view(self._k), view(self._v), view(self._k_scale), view(self._v_scale),
                          self._workspace)
