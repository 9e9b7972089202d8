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
"""Where nvcc is, all kernels compile for Orin and Hopper, and keep their values in registers."""

from __future__ import annotations

from pathlib import Path
import re
import shutil
import subprocess

import emulator_build
import pytest

ARCHITECTURES = ('-gencode=arch=compute_87,code=sm_87', '-gencode=arch=compute_90,code=sm_90')

# A thread of 1024 has 64 registers.
CROWDED = '''
__global__ void __launch_bounds__(1024) crowded(float* x) {
  float held[100];
  for (int i = 0; i < 100; ++i) held[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
  for (int i = 0; i < 100; ++i) x[(99 - i) * 1024 + threadIdx.x] = held[i];
}
'''

needs_nvcc = pytest.mark.skipif(shutil.which('nvcc') is None, reason='nvcc is not on PATH')


def spills(source: Path, folder: Path, *flags: str) -> list[str]:
    """Compile, and return a line for each kernel with what it spills."""
    root = emulator_build.ROOT
    command = ['nvcc', '-std=c++17', *ARCHITECTURES, '-Xptxas=-v', *flags, f'-I{root}/csrc',
               f'-I{root}/test/cuda', '-c', str(source), '-o', str(folder / 'kernels.o')]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = re.findall(r'\d+ bytes spill stores, \d+ bytes spill loads', result.stderr)
    assert len(lines) >= len(ARCHITECTURES), result.stderr
    return lines


@needs_nvcc
@pytest.mark.parametrize('source', emulator_build.cuda_sources(), ids=lambda path: path.stem)
def test_no_kernel_spills_registers(source, tmp_path):
    assert set(spills(source, tmp_path)) == {'0 bytes spill stores, 0 bytes spill loads'}


@needs_nvcc
def test_a_kernel_with_too_few_registers_is_seen_to_spill(tmp_path):
    (tmp_path / 'crowded.cu').write_text(CROWDED)
    assert '0 bytes spill stores, 0 bytes spill loads' not in spills(
        tmp_path / 'crowded.cu', tmp_path)
