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
"""Joining weights that share an input, and which of them a kernel takes."""

import pytest
import torch

from tinychat_ros.errors import KernelError
from tinychat_ros.kernels import extension
from tinychat_ros.kernels.linear import can_concatenate, concatenate, prepare, why_reference
from tinychat_ros.kernels.packing import (
    CpuTiles, Int8Weight, INT8_MAX_K, pack_codes, QuantizedWeight)
from tinychat_ros.quantization.rtn import quantize_rtn


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _three_bits(n: int) -> QuantizedWeight:
    codes = (_random(n, 64).abs() * 3).clamp(max=7).to(torch.uint8)
    return QuantizedWeight(pack_codes(codes, 3), _random(n, 2).half(), codes[:, :2], 32, bits=3)


def _int8(n: int, k: int) -> Int8Weight:
    return Int8Weight(_random(n, k).mul(40).clamp(-127, 127).to(torch.int8), _random(n).abs())


def test_joined_plain_weights_keep_their_order():
    q, k = _random(6, 32), _random(4, 32)
    assert can_concatenate([q, k])
    assert torch.equal(concatenate([q, k]), torch.cat((q, k)))


def test_joined_quantized_weights_keep_every_bit():
    q, k = quantize_rtn(_random(16, 64), 32), quantize_rtn(_random(8, 64), 32)
    joined = concatenate([q, k])
    assert joined.shape == (24, 64) and joined.group_size == 32
    assert torch.equal(joined.dequantize(), torch.cat((q.dequantize(), k.dequantize())))


def test_joined_weights_of_3_bits_keep_every_bit_and_their_width():
    q, k = _three_bits(16), _three_bits(8)
    joined = concatenate([q, k])
    assert (joined.shape, joined.group_size, joined.bits) == ((24, 64), 32, 3)
    assert torch.equal(joined.dequantize(), torch.cat((q.dequantize(), k.dequantize())))


def test_joined_int8_weights_keep_every_bit():
    q, k = _int8(5, 33), _int8(3, 33)
    assert can_concatenate([q, k])
    joined = concatenate([q, k])
    assert isinstance(joined, Int8Weight) and joined.shape == (8, 33)
    assert torch.equal(joined.dequantize(), torch.cat((q.dequantize(), k.dequantize())))


@pytest.mark.parametrize('weights, kinds', [
    ([quantize_rtn(_random(8, 64), 32), quantize_rtn(_random(8, 64), 64)],
     '4 bits in groups of 32, 4 bits in groups of 64'),
    ([quantize_rtn(_random(8, 64), 32), _three_bits(8)],
     '3 bits in groups of 32, 4 bits in groups of 32'),
    ([quantize_rtn(_random(8, 64), 32), _random(8, 64)], '4 bits in groups of 32, plain'),
    ([quantize_rtn(_random(8, 64), 64), _int8(8, 64)], '4 bits in groups of 64, int8'),
    ([_int8(8, 64), _random(8, 64)], 'int8, plain'),
], ids=['two group sizes', 'two widths', 'one plain', 'one int8', 'one int8, one plain'])
def test_weights_of_different_kinds_are_not_joined(weights, kinds):
    assert not can_concatenate(weights)
    with pytest.raises(KernelError, match=f'expected weights of one kind, got {kinds}'):
        concatenate(weights)


def test_a_plain_weight_is_left_as_it_is():
    weight = _random(8, 64)
    assert why_reference(weight) is None
    assert prepare(weight).weight is weight


def test_a_weight_that_fits_is_packed_for_the_kernel():
    if extension.load() is None:
        pytest.skip(extension.why_absent())
    weight = quantize_rtn(_random(16, 64), 32)
    assert why_reference(weight) is None
    assert isinstance(prepare(weight).weight, CpuTiles)


def test_an_int8_weight_of_any_shape_is_read_by_the_kernel_as_it_is():
    if extension.load() is None:
        pytest.skip(extension.why_absent())
    weight = _int8(5, 33)
    assert why_reference(weight) is None
    assert prepare(weight).weight is weight


def test_an_int8_weight_whose_sums_may_overflow_says_so():
    if extension.load() is None:
        pytest.skip(extension.why_absent())

    def of_width(k: int) -> Int8Weight:
        return Int8Weight(torch.ones(1, dtype=torch.int8).expand(2, k), torch.ones(2))

    assert why_reference(of_width(INT8_MAX_K)) is None
    reason = why_reference(of_width(INT8_MAX_K + 1))
    assert reason == f'K = {INT8_MAX_K + 1} is more than {INT8_MAX_K}'


@pytest.mark.parametrize('n, k, group, reason', [
    (16, 172, 172, 'K = 172'), (12, 64, 32, 'N = 12'), (16, 96, 16, 'group size 16')])
def test_a_weight_that_does_not_fit_says_why_and_stays(n, k, group, reason):
    if extension.load() is None:
        pytest.skip(extension.why_absent())
    weight = quantize_rtn(_random(n, k), group)
    assert reason in why_reference(weight)
    assert prepare(weight).weight is weight


def test_without_the_compiled_module_its_absence_is_the_reason(monkeypatch):
    monkeypatch.setattr(extension, 'load', lambda: None)
    monkeypatch.setattr(extension, 'why_absent', lambda: 'not built')
    for weight in (quantize_rtn(_random(16, 64), 32), _int8(16, 64)):
        assert why_reference(weight) == 'not built'
        assert prepare(weight).weight is weight
