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
"""The kernels on the emulator, built once per version of their sources."""

from types import ModuleType

import emulator_build
import pytest

ORDERS = range(5)


@pytest.fixture(scope='session')
def buildable() -> None:
    """Skip where g++ or a header is absent."""
    reason = emulator_build.why_impossible()
    if reason:
        pytest.skip(f'the emulator cannot be built: {reason}')


@pytest.fixture(scope='session')
def emulator(buildable) -> ModuleType:
    """Return the module tinychat_emu."""
    return emulator_build.build_module()


@pytest.fixture(params=ORDERS, ids='order{}'.format)
def shuffled(request, emulator) -> ModuleType:
    """Return the module with each of five orders of the threads."""
    emulator.set_seed(request.param)
    return emulator
