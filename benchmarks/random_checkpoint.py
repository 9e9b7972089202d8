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
"""Writes a checkpoint of random AWQ weights in the shape of a known model, without a tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tinychat_ros.bench.shapes import SHAPES
from tinychat_ros.checkpoint.writer import save_checkpoint
from tinychat_ros.kernels.packing import QuantizedWeight
from tinychat_ros.models.config import ModelConfig


def write_random_checkpoint(folder: Path, shape: str, group_size: int) -> None:
    """Write all tensors of a shape, linears in groups of ``group_size``, the rest in fp16."""
    raw = SHAPES[shape]
    config, tensors = ModelConfig.from_dict(raw), {}
    hidden = config.hidden_size
    for name in ('model.embed_tokens', 'lm_head'):
        tensors[f'{name}.weight'] = _halves(config.vocab_size, hidden)
    tensors['model.norm.weight'] = torch.ones(hidden).half()
    for index in range(config.num_hidden_layers):
        prefix = f'model.layers.{index}'
        for name in ('input_layernorm', 'post_attention_layernorm'):
            tensors[f'{prefix}.{name}.weight'] = torch.ones(hidden).half()
        for name, n, k in _linears(config):
            tensors[f'{prefix}.{name}'] = _quantized(n, k, group_size)
    quantization = {'quant_method': 'awq', 'bits': 4, 'group_size': group_size,
                    'zero_point': True, 'version': 'gemm'}
    save_checkpoint(folder, {**raw, 'quantization_config': quantization}, tensors)


def _linears(config: ModelConfig) -> list[tuple[str, int, int]]:
    hidden, inter = config.hidden_size, config.intermediate_size
    queries, keys = (heads * config.head_dim for heads in (
        config.num_attention_heads, config.num_key_value_heads))
    return [('self_attn.q_proj', queries, hidden), ('self_attn.k_proj', keys, hidden),
            ('self_attn.v_proj', keys, hidden), ('self_attn.o_proj', hidden, queries),
            ('mlp.gate_proj', inter, hidden), ('mlp.up_proj', inter, hidden),
            ('mlp.down_proj', hidden, inter)]


def _halves(n: int, k: int) -> Tensor:
    return torch.empty(n, k, dtype=torch.float16).normal_(std=k ** -0.5)


def _quantized(n: int, k: int, group_size: int) -> QuantizedWeight:
    groups = k // group_size
    return QuantizedWeight(
        torch.randint(0, 256, (n, k // 2), dtype=torch.uint8),
        torch.full((n, groups), k ** -0.5 / 4.6, dtype=torch.float16),
        torch.full((n, groups), 8, dtype=torch.uint8), group_size)
