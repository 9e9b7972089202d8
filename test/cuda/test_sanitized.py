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
"""The kernels keep inside their arrays; the emulator works without its assembly too."""

import os
import subprocess

from backend import Backend
import emulator_build
import pytest
from test_planted_faults import check_copy, check_rms_norm
import torch

# The last two find what a GPU traps on, and what overruns a static array.
SANITIZERS = ('-g1', '-fsanitize=address,alignment,bounds', '-fno-sanitize-recover=all')


@pytest.fixture(scope='module')
def sanitized(buildable, tmp_path_factory) -> str:
    """Return the path of an executable that runs all kernels under AddressSanitizer."""
    probe = tmp_path_factory.mktemp('probe') / 'probe.cpp'
    probe.write_text('int main() {}\n')
    command = [emulator_build.compiler(), *SANITIZERS, str(probe), '-o', str(probe.parent / 'out')]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip('the compiler has no AddressSanitizer')
    sources = [*emulator_build.kernel_sources(), emulator_build.ROOT / 'test/cuda/sanitized.cpp']
    return str(emulator_build.build(sources, 'sanitized', *SANITIZERS))


def run(*command: str) -> subprocess.CompletedProcess:
    # Stacks that the sanitizer moves to the heap would be lost with an abandoned fiber.
    options = {'ASAN_OPTIONS': 'detect_stack_use_after_return=0:detect_leaks=0'}
    return subprocess.run(command, env={**os.environ, **options}, capture_output=True, text=True)


def test_no_kernel_leaves_its_arrays(sanitized):
    result = run(sanitized)
    assert (result.returncode, result.stdout) == (0, 'clean\n'), result.stderr


def test_a_row_that_is_longer_than_its_array_is_found(sanitized):
    result = run(sanitized, 'overrun')
    assert result.returncode != 0
    assert 'heap-buffer-overflow' in result.stderr
    assert 'norm.cu' in result.stderr


def test_kernels_run_where_the_stack_switch_is_not_written_for_the_processor(buildable):
    emulator = emulator_build.build_module(emulator_build.ROOT / 'csrc/emu/cuda_emu.cpp', '-O1',
                                           '-DTINYCHAT_EMU_UCONTEXT')
    kernels = Backend(emulator, torch.device('cpu'))
    check_rms_norm(kernels)
    check_copy(kernels)
    with pytest.raises(RuntimeError, match='for ever: 63 of 64 threads came'):
        emulator.run_fault('early_return')
