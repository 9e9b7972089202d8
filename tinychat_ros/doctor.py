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
"""Says what this machine has and what it lacks."""

from __future__ import annotations

from importlib.util import find_spec
import os
import platform
from typing import Any

import torch

from tinychat_ros.engine.config import DEMO_MODEL
from tinychat_ros.kernels import extension


def examine() -> dict[str, Any]:
    """
    Return versions, capabilities and problems.

    A problem is something that is expected on this machine and does not work; a laptop without
    ROS or GPU has none for that reason.
    """
    module = extension.load()
    return {
        'python': platform.python_version(),
        'torch': torch.__version__,
        'extension': module.__file__ if module else None,
        'cpu_isa': module.cpu_isas() if module else [],
        'cpu_threads': torch.get_num_threads(),
        'cuda': _cuda(),
        'ros_distro': os.environ.get('ROS_DISTRO'),
        'rclpy': find_spec('rclpy') is not None,
        'demo_model': DEMO_MODEL.joinpath('model.safetensors').exists(),
        'problems': _problems(),
    }


def _cuda() -> dict[str, Any] | None:
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {'device': properties.name, 'compute_capability': f'{properties.major}.'
            f'{properties.minor}', 'memory_bytes': properties.total_memory,
            'version': torch.version.cuda}


def _problems() -> list[str]:
    problems = []
    if extension.load() is None:
        problems.append(f'the CPU kernels are missing, generation is slow: '
                        f'{extension.why_absent()}')
    elif torch.cuda.is_available() and (reason := extension.why_no_cuda(torch.device('cuda'))):
        problems.append(f'the GPU kernels cannot run, generation is slow: {reason}')
    if find_spec('rclpy') is None and os.environ.get('ROS_DISTRO'):
        problems.append(f"ROS {os.environ['ROS_DISTRO']} is sourced, and this Python cannot "
                        'import rclpy: it may be of another version than the ROS one')
    messages = find_spec('tinychat_msgs')
    # Without an origin it is only the folder of the sources, found because it is named the same.
    if find_spec('rclpy') is not None and (messages is None or messages.origin is None):
        problems.append('tinychat_msgs is not built or not sourced, the node cannot start: run '
                        '`colcon build` from the root of the repository, then source '
                        'install/setup.bash')
    if not DEMO_MODEL.joinpath('model.safetensors').exists():
        problems.append(f'the demo model is missing: expected {DEMO_MODEL}/model.safetensors')
    return problems
