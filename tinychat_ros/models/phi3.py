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
"""Phi-3: Llama whose checkpoint joins queries, keys and values, and gate and up."""

from __future__ import annotations

from typing import Any, Mapping

from tinychat_ros.models.config import ModelConfig, sliding_windows
from tinychat_ros.models.names import Names
from tinychat_ros.models.rope import RopeConfig

NAMES = Names(qkv=('self_attn.qkv_proj',), gate_up=('mlp.gate_up_proj',))


def read_phi3(config: Mapping[str, Any]) -> ModelConfig:
    """Read config.json."""
    config = {'rms_norm_eps': 1e-5, 'original_max_position_embeddings': 4096, **config}
    return ModelConfig.from_dict(
        config, names=NAMES, rope=RopeConfig.from_dict(_renamed(config)),
        sliding_windows=sliding_windows(config, lambda i: True))


def _renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Call the stretching of the first Phi-3 files, "su", by the name that it has since."""
    def renamed(rope: Any) -> Any:
        if not isinstance(rope, dict):
            return rope
        return {key: 'longrope' if key in ('type', 'rope_type') and value == 'su' else value
                for key, value in rope.items()}

    return {key: renamed(value) if key in ('rope_scaling', 'rope_parameters') else value
            for key, value in config.items()}
