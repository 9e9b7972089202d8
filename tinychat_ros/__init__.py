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
"""Run a 4-bit large language model on the robot itself, with or without ROS."""

from __future__ import annotations

from typing import Any

__version__ = '0.1.0'
__all__ = ['Engine', 'EngineConfig', 'Message', 'Request', 'SamplingParams']

_HOMES = {
    'Engine': 'tinychat_ros.engine.engine',
    'EngineConfig': 'tinychat_ros.engine.config',
    'Message': 'tinychat_ros.engine.request',
    'Request': 'tinychat_ros.engine.request',
    'SamplingParams': 'tinychat_ros.engine.sampler',
}


def __getattr__(name: str) -> Any:
    """Import the library's face on first use, since torch takes a second to load."""
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(_HOMES[name]), name)
