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
"""Qwen: Llama with biases of queries, keys and values (2, 2.5) or norms of them (3)."""

from __future__ import annotations

from typing import Any, Mapping

from tinychat_ros.models.config import ModelConfig, sliding_windows
from tinychat_ros.models.fields import of_type
from tinychat_ros.models.names import Names

# Layers without a window where the config does not say how many.
_FULL_LAYERS = 28


def read_qwen2(config: Mapping[str, Any]) -> ModelConfig:
    """Read config.json; the biases are read where the checkpoint has them."""
    return ModelConfig.from_dict(config, sliding_windows=_windows(config))


def read_qwen3(config: Mapping[str, Any]) -> ModelConfig:
    """Read config.json."""
    names = Names(q_norm='self_attn.q_norm', k_norm='self_attn.k_norm')
    # Unlike the others, it does not derive the size of a head from the hidden size.
    return ModelConfig.from_dict({'head_dim': 128, **config}, sliding_windows=_windows(config),
                                 names=names)


def _windows(config: Mapping[str, Any]) -> tuple[int, ...]:
    if not of_type(config, 'use_sliding_window', bool, False):
        config = {**config, 'sliding_window': None}
    config = {'sliding_window': 4096, **config}
    full = config.get('max_window_layers')
    full = _FULL_LAYERS if full is None else of_type(config, 'max_window_layers', int)
    return sliding_windows(config, lambda i: i >= full)
