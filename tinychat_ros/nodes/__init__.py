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
"""The ROS side: roles of a node, and nothing that decides what is said."""

import os

_SHARED_MEMORY = '/dev/shm'


def _check_shared_memory() -> None:
    """End where the tracer that rclpy loads would be killed as it writes to its page."""
    if os.path.isdir(_SHARED_MEMORY) and not os.statvfs(_SHARED_MEMORY).f_bavail:
        raise SystemExit(f'tinychat: {_SHARED_MEMORY}: expected a free page for ROS, got none: it '
                         'is full')


_check_shared_memory()
