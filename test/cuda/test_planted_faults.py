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
"""Planted faults are found, or these tests would pass whatever the kernels do."""

import shutil

from backend import Backend
import emulator_build
import pytest
import rms_norm_cases
import test_bandwidth
from test_primitives import check_matmul, check_ring_copy
import torch


def fails(check, emulator) -> bool:
    """Say whether a check fails with one of five orders of the threads."""
    for seed in range(5):
        emulator.set_seed(seed)
        try:
            check(emulator)
        except (AssertionError, RuntimeError):
            return True
    return False


def check_rms_norm(emulator) -> None:
    rms_norm_cases.check(Backend(emulator, torch.device('cpu')), 4096, 3, torch.float16,
                         residual=False)


def check_bandwidth(emulator) -> None:
    for place in (test_bandwidth.TILE - 1, 4 * test_bandwidth.TILE + 19):
        test_bandwidth.test_a_mark_anywhere_is_found(
            Backend(emulator, torch.device('cpu')), place)


def check_product(emulator) -> None:
    check_matmul(emulator, torch.float16)


def check_copy(emulator) -> None:
    check_ring_copy(emulator, 8)


@pytest.mark.parametrize('path, right, wrong, check', [
    ('csrc/cuda/rms_norm.cu', '  __syncthreads();\n', '', check_rms_norm),
    ('csrc/cuda/rms_norm.cu', 'partial[lane] :', 'partial[0] :', check_rms_norm),
    ('csrc/cuda/rms_norm.cu', 'distance = kWarp / 2', 'distance = kWarp / 4', check_rms_norm),
    ('test/cuda/primitives.cu', 'lane % 16 * 2 + lane / 16', 'lane', check_product),
    ('test/cuda/primitives.cu', 'cp_async_wait<kStages - 2>', 'cp_async_wait<kStages - 1>',
     check_copy),
    ('test/cuda/primitives.cu', '    __syncthreads();\n    begin_step', '    begin_step',
     check_copy),
    ('csrc/cuda/bandwidth.cu', 'i < packs', 'i + 1 < packs', check_bandwidth),
    ('csrc/cuda/bandwidth.cu', 'i * kThreads', 'i', check_bandwidth),
], ids=['barrier', 'sum', 'shuffle', 'index', 'wait', 'ring barrier', 'end', 'stride'])
def test_a_planted_fault_is_found(buildable, emulator, tmp_path, path, right, wrong, check):
    assert not fails(check, emulator)
    for folder in ('csrc', 'test/cuda'):
        shutil.copytree(emulator_build.ROOT / folder, tmp_path / folder)
    source = (tmp_path / path).read_text()
    assert right in source
    (tmp_path / path).write_text(source.replace(right, wrong))
    assert fails(check, emulator_build.build_module(tmp_path))
