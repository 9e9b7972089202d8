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
"""Keeps a demo or a test to itself: DDS on loopback only, with a domain id of its own."""

from __future__ import annotations

import os
import random
import socket

# The highest id whose ports stay below Linux's ephemeral ones.
_MAX_DOMAIN_ID = 101


def free_domain_id() -> int:
    """
    Return a ROS domain id that no process of this machine uses now.

    :raises OSError: all of them are in use.
    """
    for domain_id in random.sample(range(1, _MAX_DOMAIN_ID + 1), _MAX_DOMAIN_ID):
        # DDS: 250 ports a domain from 7400 on; its first participant listens on number 10.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(('', 7400 + 250 * domain_id + 10))
            except OSError:
                continue
            return domain_id
    raise OSError(f'ROS domain ids: expected a free one up to {_MAX_DOMAIN_ID}, got none')


def isolate() -> None:
    """Set the environment of this process and its children, before rclpy is initialized."""
    os.environ['ROS_DOMAIN_ID'] = str(free_domain_id())
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    if os.environ.get('ROS_DISTRO') == 'humble':
        # It does not know the variable above, and its successors complain about this one.
        os.environ['ROS_LOCALHOST_ONLY'] = '1'
