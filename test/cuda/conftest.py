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
"""The kernels on the emulator, built once per version of their sources, or on a GPU."""

from types import ModuleType

from backend import Backend
import emulator_build
import pytest
import torch

from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.kernels import cuda, extension

ORDERS = 5


def pytest_generate_tests(metafunc):
    """Run a test of a kernel with five orders of the emulator's threads, or once on the GPU."""
    if 'kernels' in metafunc.fixturenames:
        on_gpu = metafunc.config.getoption('--device') == 'cuda'
        metafunc.parametrize('kernels', ['cuda'] if on_gpu else range(ORDERS), indirect=True,
                             ids=None if on_gpu else 'order{}'.format)


@pytest.fixture(scope='session')
def buildable(request) -> None:
    """Skip where g++ or a header is absent, or a GPU is asked for."""
    if request.config.getoption('--device') == 'cuda':
        pytest.skip('a test of the emulator')
    reason = emulator_build.why_impossible()
    if reason:
        pytest.skip(f'the emulator cannot be built: {reason}')


@pytest.fixture(scope='session')
def emulator(buildable) -> ModuleType:
    """Return the module tinychat_emu."""
    return emulator_build.build_module()


@pytest.fixture
def one_order(request) -> Backend:
    """Return the kernels, with one order of the threads: for what costs much."""
    if request.config.getoption('--device') == 'cuda':
        import tinychat_kernels
        return Backend(tinychat_kernels, torch.device('cuda'))
    return Backend(request.getfixturevalue('emulator'), torch.device('cpu'))


@pytest.fixture
def kernels(request, one_order) -> Backend:
    """Return the kernels, each with five orders of the threads where they are emulated."""
    one_order.shuffle(request.param)
    return one_order


@pytest.fixture
def emulated(emulator, monkeypatch) -> None:
    """Give tensors of the CPU the emulated kernels; a recorded step runs anew each time."""
    monkeypatch.setattr(extension, 'cuda', lambda device: emulator)
    monkeypatch.setattr(cuda, 'record', lambda step: step)
    # On a GPU every tensor is a copy; one that lies in the file need not be aligned.
    floats = CheckpointReader.floats
    monkeypatch.setattr(CheckpointReader, 'floats', lambda *args: floats(*args).clone())


@pytest.fixture(params=range(ORDERS), ids='order{}'.format)
def shuffled(request, emulator) -> ModuleType:
    """Return the emulator with each of five orders of the threads."""
    emulator.set_seed(request.param)
    return emulator
