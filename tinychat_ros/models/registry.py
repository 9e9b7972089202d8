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
"""Which function reads the config.json of which ``model_type``; all run as one CausalLM."""

from __future__ import annotations

from typing import Any, Mapping

from tinychat_ros.errors import UnsupportedModelError
from tinychat_ros.models.config import ModelConfig
from tinychat_ros.models.falcon import read_falcon
from tinychat_ros.models.fields import of_type
from tinychat_ros.models.gemma import read_gemma2, read_gemma3, read_gemma3_of_seeing
from tinychat_ros.models.llama import read_llama
from tinychat_ros.models.llava import read_llava
from tinychat_ros.models.mistral import read_mistral
from tinychat_ros.models.mpt import read_mpt
from tinychat_ros.models.phi3 import read_phi3
from tinychat_ros.models.qwen import read_qwen2, read_qwen3

FAMILIES = {
    'RefinedWeb': read_falcon,
    'RefinedWebModel': read_falcon,
    'falcon': read_falcon,
    'gemma2': read_gemma2,
    'gemma3': read_gemma3_of_seeing,
    'gemma3_text': read_gemma3,
    'llama': read_llama,
    'llava': read_llava,
    'mistral': read_mistral,
    'mpt': read_mpt,
    'phi3': read_phi3,
    'qwen2': read_qwen2,
    'qwen3': read_qwen3,
}


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """
    Read the dictionary that config.json holds.

    :raises CheckpointError: a key is missing, of the wrong type or contradicts another.
    :raises UnsupportedModelError: the architecture, or what a value asks for, is not built.
    """
    model_type = of_type(config, 'model_type', str)
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"config.json: model_type: expected one of {', '.join(sorted(FAMILIES))}, "
            f'got {model_type!r}')
    return FAMILIES[model_type](config)
