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
"""What the tests share: the data beside the repository, seeds and a ROS domain of their own."""

import os
from pathlib import Path
import random
import socket

import pytest
import torch

# Set before any test starts a node: no packet leaves this machine. Humble knows only the second.
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
if os.environ.get('ROS_DISTRO') == 'humble':
    os.environ['ROS_LOCALHOST_ONLY'] = '1'

ROOT = Path(__file__).resolve().parents[1]


def domain_is_free(domain_id: int) -> bool:
    """Tell whether no DDS participant of this machine listens in the domain."""
    # The port for discovery, and that of the first participant, which alone is taken on loopback.
    for port in (7400 + 250 * domain_id, 7410 + 250 * domain_id):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(('', port))
            except OSError:
                return False
    return True


@pytest.fixture(scope='session')
def ros_domain_id() -> int:
    """Pick a free ROS domain, and set it for the processes that the tests start."""
    # In random order, so that two test runs that start together pick two domains.
    candidates = random.SystemRandom().sample(range(1, 102), 101)
    domain_id = next(filter(domain_is_free, candidates))
    os.environ['ROS_DOMAIN_ID'] = str(domain_id)
    return domain_id


@pytest.fixture(scope='session')
def repository() -> Path:
    """Return the root of the source tree."""
    return ROOT


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """Return the folder of checkpoints, tokenizers and golden texts; skip where it is not."""
    path = ROOT.parent / 'shared' / 'data'
    if not path.is_dir():
        pytest.skip(f'{path} is not there')
    return path


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give every test the same random numbers, in whatever order the tests run."""
    torch.manual_seed(0)
