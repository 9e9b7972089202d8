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


def domain_is_free(domain_id: int) -> bool:
    """Say whether no DDS participant of this machine listens in the domain."""
    # The port for discovery, and that of the first participant, which alone is taken on loopback.
    for port in (7400 + 250 * domain_id, 7410 + 250 * domain_id):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(('', port))
            except OSError:
                return False
    return True


def free_domain_id() -> int:
    """
    Return a ROS domain id that no process of this machine uses now.

    :raises OSError: all of them are in use.
    """
    # In random order, so that two that start together pick two domains, whatever their seed.
    for domain_id in random.SystemRandom().sample(range(1, _MAX_DOMAIN_ID + 1), _MAX_DOMAIN_ID):
        if domain_is_free(domain_id):
            return domain_id
    raise OSError(f'ROS domain ids: expected a free one up to {_MAX_DOMAIN_ID}, got none')


def isolate() -> int:
    """
    Set the environment of this process and its children, before rclpy is initialized.

    :returns: the domain id.
    """
    domain_id = free_domain_id()
    os.environ['ROS_DOMAIN_ID'] = str(domain_id)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    if os.environ.get('ROS_DISTRO') == 'humble':
        # It does not know the variable above, and its successors complain about this one.
        os.environ['ROS_LOCALHOST_ONLY'] = '1'
    return domain_id
