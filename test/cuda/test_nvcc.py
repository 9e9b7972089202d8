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
"""Where nvcc is, the module has the CUDA kernels, and each keeps its values in registers."""

from __future__ import annotations

import os
from pathlib import Path
import shutil
import subprocess
import sys

from emulator_build import ROOT
import pytest

from tinychat_ros.kernels import extension

# A thread of 1024 has 64 registers.
CROWDED = '''
__global__ void __launch_bounds__(1024) crowded(float* x) {
  float held[100];
  for (int i = 0; i < 100; ++i) held[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
  for (int i = 0; i < 100; ++i) x[(99 - i) * 1024 + threadIdx.x] = held[i];
}
'''

pytestmark = pytest.mark.skipif(shutil.which('nvcc') is None, reason='nvcc is not on PATH')


def build(tree: Path) -> subprocess.CompletedProcess:
    """Run setup.py in a tree that has no other source than tree/csrc/cuda."""
    shutil.copy(ROOT / 'setup.py', tree)
    command = [sys.executable, 'setup.py', 'build_ext', '--inplace']
    return subprocess.run(command, cwd=tree, env={**os.environ, 'TINYCHAT_REQUIRE_EXT': '1'},
                          capture_output=True, text=True)


def test_the_installed_module_has_the_cuda_kernels():
    """All of them: one that were missing would be an undefined symbol."""
    assert extension.load() is not None, extension.why_absent()
    assert extension.load().build_info()['cuda'], 'built without nvcc, which is on PATH'


def test_a_kernel_that_spills_registers_stops_the_build(tmp_path):
    (tmp_path / 'csrc/cuda').mkdir(parents=True)
    (tmp_path / 'csrc/cuda/crowded.cu').write_text(CROWDED)
    result = build(tmp_path)
    assert result.returncode != 0
    assert 'Registers are spilled' in result.stderr and 'crowded' in result.stderr


def test_the_ptx_of_the_primitives_is_built(tmp_path):
    shutil.copytree(ROOT / 'csrc/cuda', tmp_path / 'csrc/cuda',
                    ignore=shutil.ignore_patterns('*.cu'))
    shutil.copy(ROOT / 'csrc/common.h', tmp_path / 'csrc')
    shutil.copy(ROOT / 'test/cuda/primitives.h', tmp_path / 'csrc')
    shutil.copy(ROOT / 'test/cuda/primitives.cu', tmp_path / 'csrc/cuda')
    result = build(tmp_path)
    assert result.returncode == 0, result.stderr
