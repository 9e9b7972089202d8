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
"""Mistral: Llama with a sliding window in its first version, without in later ones."""

from __future__ import annotations

from typing import Any, Mapping

from tinychat_ros.models.config import ModelConfig, sliding_windows


def read_mistral(config: Mapping[str, Any]) -> ModelConfig:
    """Read config.json; where it does not say, there is a window."""
    config = {'sliding_window': 4096, **config}
    return ModelConfig.from_dict(config, sliding_windows=sliding_windows(config, lambda i: True))
