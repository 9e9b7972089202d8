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
from typing import Iterator

import pytest
from tinychat_ros.examples.loopback import isolate
import torch

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser):
    """Let the tests of the CUDA kernels run on a GPU instead of the emulator."""
    parser.addoption('--device', choices=('emulator', 'cuda'), default='emulator',
                     help='where the CUDA kernels run')


@pytest.fixture(scope='session')
def ros_domain_id() -> int:
    """Keep the nodes that the tests start to themselves, and return their domain."""
    return isolate()


@pytest.fixture(scope='session')
def repository() -> Path:
    """Return the root of the source tree."""
    return ROOT


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """Return the folder of checkpoints, tokenizers and golden texts; skip where it is not."""
    path = Path(os.environ.get('TINYCHAT_TEST_DATA', ROOT.parent / 'shared' / 'data'))
    if not path.is_dir():
        pytest.skip(f'{path} is not there')
    return path


@pytest.fixture(scope='session', autouse=True)
def no_home_is_written_to(tmp_path_factory) -> Iterator[None]:
    """Keep packed weights out of the user's cache folder, those of started processes too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give every test the same random numbers, in whatever order the tests run."""
    torch.manual_seed(0)
