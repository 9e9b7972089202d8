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

import functools
import shutil

from attention_cases import check_decode, check_prefill, filled_cache
from backend import Backend
import emulator_build
import pytest
import test_bandwidth
import test_layer_norm
import test_lm_head
from test_primitives import check_matmul, check_ring_copy
import test_rms_norm
import test_sampler_kernel
import torch
import w4_cases

FP16 = torch.float16


@functools.cache
def fails(check, emulator) -> bool:
    """Say whether a check fails with one of five orders of the threads."""
    kernels = Backend(emulator, torch.device('cpu'))
    for order in range(5):
        kernels.shuffle(order)
        try:
            check(kernels)
        except (AssertionError, RuntimeError):
            return True
    return False


def check_rms_norm(kernels) -> None:
    test_rms_norm.check(kernels, 4096, 3, FP16, residual=False)


def check_layer_norm(kernels) -> None:
    test_layer_norm.check(kernels, 4096, 1, torch.float32, biased=True)


def check_lm_head(kernels) -> None:
    test_lm_head.check(kernels, 105, 1040, FP16, int8=False)


def check_filters(kernels) -> None:
    params = test_sampler_kernel.params_of('all')
    for step in range(4):
        logits = test_sampler_kernel.random_logits(512)
        test_sampler_kernel.check(kernels, logits, params, step=step)


def check_bandwidth(kernels) -> None:
    for place in (test_bandwidth.TILE - 1, 4 * test_bandwidth.TILE + 19):
        test_bandwidth.test_a_mark_anywhere_is_found(kernels, place)


def check_product(kernels) -> None:
    check_matmul(kernels.module, FP16)


def check_copy(kernels) -> None:
    check_ring_copy(kernels.module, 8)


def check_w4_gemv(kernels) -> None:
    """Use more records than a ring holds, and fewer than warps."""
    for n, k in ((96, 4096), (144, 640)):
        w4_cases.check_linear(kernels, 2, n, k, 32, FP16, gemv=True)


def check_w4_gemm(kernels) -> None:
    w4_cases.check_linear(kernels, 33, 24, 456, -1, FP16, gemv=False)


def check_decode_attention(kernels) -> None:
    cache = filled_cache(kernels, 1, 701, 16, FP16, True, 700)
    check_decode(kernels, cache, 2, 700, FP16)


def check_decode_rules(kernels) -> None:
    """Begin windows at and in tiles, of more than a split and of less than a token's tile."""
    cache = filled_cache(kernels, 1, 701, 16, FP16, True, 700)
    for window, length, slopes in ((300, 700, True), (300, 690, False), (3, 700, False)):
        check_decode(kernels, cache, 2, length, FP16, window=window, slopes=slopes)


def check_prefill_rules(kernels) -> None:
    """Have tiles of which some rows of a warp see nothing."""
    cache = filled_cache(kernels, 1, 201, 16, FP16, True, 200)
    for window in (9, 75):
        check_prefill(kernels, cache, 3, 130, 70, FP16, window=window, slopes=True)


def check_prefill_attention(kernels) -> None:
    cache = filled_cache(kernels, 1, 201, 16, FP16, True, 200)
    check_prefill(kernels, cache, 1, 130, 70, FP16)


# source, check, what is planted: (right, wrong), or (right, wrong, the header that it is in)
FAULTS = (
    ('csrc/cuda/norm.cu', check_rms_norm, {
        'barrier': ('  __syncthreads();\n', '', 'csrc/cuda/warp.cuh'),
        'sum': ('partial[lane()] :', 'partial[0] :', 'csrc/cuda/warp.cuh'),
        'shuffle': ('distance = kWarp / 2', 'distance = kWarp / 4', 'csrc/cuda/warp.cuh')}),
    ('csrc/cuda/norm.cu', check_layer_norm, {
        'deviation': ('.values[i]) - mean;', '.values[i]);', 'csrc/cuda/rms_norm.cuh')}),
    ('test/cuda/primitives.cu', check_product, {
        'index': ('lane % 16 * 2 + lane / 16', 'lane')}),
    ('test/cuda/primitives.cu', check_copy, {
        'wait': ('cp_async_wait<kStages - 2>', 'cp_async_wait<kStages - 1>'),
        'barrier': ('    __syncthreads();\n    begin_step', '    begin_step')}),
    ('csrc/cuda/w4_gemv.cu', check_w4_gemv, {
        'wait': ('cp_async_wait<kStages - 2>', 'cp_async_wait<kStages - 1>'),
        'record barrier': ('    __syncwarp();\n', ''),
        'tile barrier': ('  __syncthreads();\n  const int finisher', '  const int finisher'),
        'tile buffer': ('turn ^= 1', 'turn ^= 0')}),
    ('csrc/cuda/w4_gemm.cu', check_w4_gemm, {
        'barrier': ('    __syncthreads();\n    const int next', '    const int next'),
        'wait': ('cp_async_wait<S::kStages - 2>', 'cp_async_wait<S::kStages - 1>'),
        'warp barrier': ('  __syncwarp();\n', ''),
        'padding': ('column < product.k ?', 'true ?')}),
    ('csrc/cuda/decode_attention.cu', check_decode_attention, {
        'wait': ('2 * kStages - 1', '2 * kStages'),
        'barrier': ('    __syncwarp();\n  };', '  };'),
        'last split': ('splits - 1;', 'splits - 2;'),
        'merge': ('exp2f(max - top)', '1.0f')}),
    ('csrc/cuda/decode_attention.cu', check_decode_rules, {
        'window': ('behind >= window', 'behind > window', 'csrc/cuda/attention.cuh'),
        'tile of the window': ('own[1] >= rules.window', 'false', 'csrc/cuda/attention.cuh'),
        'window alignment': ('window) / kPositions * kPositions', 'window)'),
        'first split': ('first + blockIdx.x * chunk', 'blockIdx.x * chunk'),
        'distance': ('task.length - 1 - begin', 'task.end - 1 - begin'),
        'slope': ('min(task.head + row, last_head)', 'task.head')}),
    ('csrc/cuda/prefill_attention.cu', check_prefill_rules, {
        'row that sees nothing': ('-FLT_MAX, -FLT_MAX', '-INFINITY, -INFINITY',
                                  'csrc/cuda/attention.cuh'),
        'first tile': ('task.begin / kPositions', 'task.begin / kPositions + 1'),
        'tile of a warp': (' - (kPositions - 1) >= prefill', ' >= prefill'),
        'slope': ('head[2] = {static_cast<int>(blockIdx.y)', 'head[2] = {0')}),
    ('csrc/cuda/prefill_attention.cu', check_prefill_attention, {
        'barrier': ('    __syncthreads();\n    load(', '    load('),
        'mask': ('row + 8, first', 'row, first')}),
    ('csrc/cuda/lm_head.cu', check_lm_head, {
        'barrier': ('    __syncthreads();\n    if (thread', '    if (thread'),
        'wait': ('cp_async_wait<kStages - 1>', 'cp_async_wait<kStages>')}),
    ('csrc/cuda/sampler.cu', check_filters, {
        'barrier': ('    __syncthreads();  // All have read the bins.\n', '')}),
    ('csrc/cuda/sampler.cu', test_sampler_kernel.check_many_best, {
        'carry': ('high[bin], 1u', 'high[bin], 0u')}),
    ('csrc/cuda/bandwidth.cu', check_bandwidth, {
        'end': ('i < packs', 'i + 1 < packs'),
        'stride': ('i * kThreads', 'i')}),
)


@pytest.mark.parametrize('source, check, fault', [
    pytest.param(source, check, fault, id=f'{source.split("/")[-1]} {name}')
    for source, check, faults in FAULTS for name, fault in faults.items()])
def test_a_planted_fault_is_found(buildable, emulator, tmp_path, source, check, fault):
    assert not fails(check, emulator)
    for folder in ('csrc', 'test/cuda'):
        shutil.copytree(emulator_build.ROOT / folder, tmp_path / folder)
    right, wrong, *header = fault
    path = tmp_path / (header[0] if header else source)
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    assert fails(check, emulator_build.build_module(tmp_path / source, '-O0'))
