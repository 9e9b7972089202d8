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
import test_layer_norm
import test_lm_head
from test_primitives import check_matmul, check_ring_copy
import test_sampler
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


def on_cpu(emulator) -> Backend:
    return Backend(emulator, torch.device('cpu'))


def check_rms_norm(emulator) -> None:
    rms_norm_cases.check(on_cpu(emulator), 4096, 3, torch.float16, residual=False)


def check_layer_norm(emulator) -> None:
    test_layer_norm.check(on_cpu(emulator), 4096, 1, torch.float32, biased=True)


def check_lm_head(emulator) -> None:
    test_lm_head.check(on_cpu(emulator), 105, 1040, torch.float16, int8=False)


def check_filters(emulator) -> None:
    params = test_sampler.params_of('all')
    for step in range(4):
        test_sampler.check(on_cpu(emulator), test_sampler.random_logits(512), params, step=step)


def check_many_best(emulator) -> None:
    test_sampler.check_many_best(on_cpu(emulator))


def check_product(emulator) -> None:
    check_matmul(emulator, torch.float16)


def check_copy(emulator) -> None:
    check_ring_copy(emulator, 8)


@pytest.mark.parametrize('path, right, wrong, check', [
    ('csrc/cuda/norm.cu', '  __syncthreads();\n', '', check_rms_norm),
    ('csrc/cuda/norm.cu', 'partial[lane] :', 'partial[0] :', check_rms_norm),
    ('csrc/cuda/norm.cu', 'distance = kWarp / 2', 'distance = kWarp / 4', check_rms_norm),
    ('test/cuda/primitives.cu', 'lane % 16 * 2 + lane / 16', 'lane', check_product),
    ('test/cuda/primitives.cu', 'cp_async_wait<kStages - 2>', 'cp_async_wait<kStages - 1>',
     check_copy),
    ('test/cuda/primitives.cu', '    __syncthreads();\n    begin_step', '    begin_step',
     check_copy),
    ('csrc/cuda/norm.cu', '.values[i]) - mean;', '.values[i]);', check_layer_norm),
    ('csrc/cuda/lm_head.cu', '    __syncthreads();\n    if (thread', '    if (thread',
     check_lm_head),
    ('csrc/cuda/lm_head.cu', 'cp_async_wait<kStages - 1>', 'cp_async_wait<kStages>',
     check_lm_head),
    ('csrc/cuda/sampler.cu', '    __syncthreads();  // All have read the bins.\n', '',
     check_filters),
    ('csrc/cuda/sampler.cu', 'high[bin], 1u', 'high[bin], 0u', check_many_best),
], ids=['barrier', 'sum', 'shuffle', 'index', 'wait', 'ring barrier', 'deviation',
        'logits barrier', 'weights wait', 'bins barrier', 'carry'])
def test_a_planted_fault_is_found(buildable, emulator, tmp_path, path, right, wrong, check):
    assert not fails(check, emulator)
    for folder in ('csrc', 'test/cuda'):
        shutil.copytree(emulator_build.ROOT / folder, tmp_path / folder)
    source = (tmp_path / path).read_text()
    assert right in source
    (tmp_path / path).write_text(source.replace(right, wrong))
    assert fails(check, emulator_build.build_module(tmp_path))
