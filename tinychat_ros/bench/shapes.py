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
"""Well-known model shapes with random weights: speed does not depend on the values."""

from __future__ import annotations

from typing import Any, Mapping, Optional, Sequence

import torch
from torch import Tensor

from tinychat_ros.errors import ConfigError
from tinychat_ros.kernels import memory
from tinychat_ros.kernels.linear import activation_group, Linear, prepare
from tinychat_ros.kernels.packing import (
    QuantizedWeight, record_bytes, RECORD_COLUMNS, RECORD_ROWS, TileOrder)
from tinychat_ros.models.config import ModelConfig
from tinychat_ros.models.registry import read_config

_LLAMA: Mapping[str, Any] = {'model_type': 'llama', 'max_position_embeddings': 4096,
                             'vocab_size': 32000, 'rms_norm_eps': 1e-5}

# As their config.json has them.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    'tinyllama-1.1b': {**_LLAMA, 'hidden_size': 2048, 'intermediate_size': 5632,
                       'num_hidden_layers': 22, 'num_attention_heads': 32,
                       'num_key_value_heads': 4, 'max_position_embeddings': 2048},
    'llama-2-7b': {**_LLAMA, 'hidden_size': 4096, 'intermediate_size': 11008,
                   'num_hidden_layers': 32, 'num_attention_heads': 32},
    'llama-2-13b': {**_LLAMA, 'hidden_size': 5120, 'intermediate_size': 13824,
                    'num_hidden_layers': 40, 'num_attention_heads': 40},
    'llama-3-8b': {**_LLAMA, 'hidden_size': 4096, 'intermediate_size': 14336,
                   'num_hidden_layers': 32, 'num_attention_heads': 32,
                   'num_key_value_heads': 8, 'vocab_size': 128256,
                   'max_position_embeddings': 8192, 'rope_theta': 500000.0},
    'qwen2.5-1.5b': {'model_type': 'qwen2', 'hidden_size': 1536, 'intermediate_size': 8960,
                     'num_hidden_layers': 28, 'num_attention_heads': 12, 'num_key_value_heads': 2,
                     'vocab_size': 151936, 'max_position_embeddings': 32768,
                     'rope_theta': 1000000.0, 'tie_word_embeddings': True},
    'qwen3-4b': {'model_type': 'qwen3', 'hidden_size': 2560, 'intermediate_size': 9728,
                 'num_hidden_layers': 36, 'num_attention_heads': 32, 'num_key_value_heads': 8,
                 'head_dim': 128, 'vocab_size': 151936, 'max_position_embeddings': 40960,
                 'rope_theta': 1000000.0, 'tie_word_embeddings': True},
    'gemma-2-2b': {'model_type': 'gemma2', 'hidden_size': 2304, 'intermediate_size': 9216,
                   'num_hidden_layers': 26, 'num_attention_heads': 8, 'num_key_value_heads': 4,
                   'head_dim': 256, 'vocab_size': 256000},
    'phi-3-mini': {'model_type': 'phi3', 'hidden_size': 3072, 'intermediate_size': 8192,
                   'num_hidden_layers': 32, 'num_attention_heads': 32, 'vocab_size': 32064,
                   'max_position_embeddings': 4096, 'sliding_window': 2047},
    'mpt-7b': {'model_type': 'mpt', 'd_model': 4096, 'n_heads': 32, 'n_layers': 32,
               'vocab_size': 50432, 'max_seq_len': 2048},
}

# Those that the benchmarks beside other programs build.
LLAMA_SHAPES = [name for name, shape in SHAPES.items() if shape['model_type'] == 'llama']

# Codes are uniform in 0 to 15, and this is their standard deviation.
_CODE_DEVIATION = 4.6


def shape_config(name: str) -> ModelConfig:
    """
    Return the config of a shape.

    :raises ConfigError: there is none of this name.
    """
    if name not in SHAPES:
        raise ConfigError(f"shape: expected one of {', '.join(SHAPES)}, got {name!r}")
    return read_config(SHAPES[name])


def shape_bytes(config: ModelConfig, dtype: torch.dtype, group_size: Optional[int]) -> int:
    """
    Return about what the weights of a shape take, in bytes.

    :param group_size: of W4 linears; None for plain ones.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads + config.num_key_value_heads
    mlp = (3 if config.gated_mlp else 2) * hidden * config.intermediate_size
    linears = 2 * hidden * heads * config.head_dim + mlp
    per_weight = (dtype.itemsize if group_size is None else
                  record_bytes(group_size) / (RECORD_ROWS * RECORD_COLUMNS))
    plain = (1 if config.tie_word_embeddings else 2) * config.vocab_size * hidden
    return int(linears * config.num_hidden_layers * per_weight) + plain * dtype.itemsize


class RandomWeights:
    """
    A models.layers.WeightSource of W4 linears and a plain LM head, made on the device.

    :param dtype: of plain weights and activations.
    :param int8_activations: as load_model has it.
    :param matrix_dtype: of plain matrices, where it is another.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, group_size: int = 128,
                 int8_activations: Optional[bool] = False,
                 matrix_dtype: Optional[torch.dtype] = None) -> None:
        self._device = device
        self._dtype = dtype
        self._matrix_dtype = matrix_dtype or dtype
        self._group_size = group_size
        self._int8_activations = int8_activations

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return ones for a norm, else values that keep the deviation of what they multiply."""
        if len(shape) == 1:
            return torch.ones(*shape, dtype=self._dtype, device=self._device)
        values = memory.zeros(shape, self._matrix_dtype, self._device)
        return values.normal_(std=shape[-1] ** -0.5)

    def optional(self, name: str, shape: Sequence[int]) -> None:
        """Return None: there are no biases."""

    def linears(self, names: Sequence[str], out_features: Sequence[int], in_features: int,
                order: Optional[TileOrder] = None,
                rows: Optional[Tensor] = None) -> tuple[Linear, ...]:
        """Return one linear of all the rows."""
        n = sum(out_features)
        if names == ['lm_head']:
            return (Linear(self.tensor('lm_head', [n, in_features])),)
        weight = self._quantized(n, in_features)
        group = activation_group(weight, self._int8_activations, self._dtype)
        return (prepare(weight, None, order, group, self._dtype),)

    def _quantized(self, n: int, k: int) -> QuantizedWeight:
        groups = k // self._group_size
        scale = k ** -0.5 / _CODE_DEVIATION
        return QuantizedWeight(
            torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device=self._device),
            torch.full((n, groups), scale, dtype=torch.float16, device=self._device),
            torch.full((n, groups), 8, dtype=torch.uint8, device=self._device), self._group_size)
