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
from tinychat_ros.kernels.packing import CpuTiles, pack_codes, QuantizedWeight
from tinychat_ros.quantization.rtn import quantize_rtn


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _three_bits(n: int) -> QuantizedWeight:
    codes = (_random(n, 64).abs() * 3).clamp(max=7).to(torch.uint8)
    return QuantizedWeight(pack_codes(codes, 3), _random(n, 2).half(), codes[:, :2], 32, bits=3)


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


@pytest.mark.parametrize('weights, kinds', [
    ([quantize_rtn(_random(8, 64), 32), quantize_rtn(_random(8, 64), 64)],
     '4 bits in groups of 32, 4 bits in groups of 64'),
    ([quantize_rtn(_random(8, 64), 32), _three_bits(8)],
     '3 bits in groups of 32, 4 bits in groups of 32'),
    ([quantize_rtn(_random(8, 64), 32), _random(8, 64)], '4 bits in groups of 32, plain'),
], ids=['two group sizes', 'two widths', 'one plain'])
def test_weights_of_different_kinds_are_not_joined(weights, kinds):
    assert not can_concatenate(weights)
    with pytest.raises(KernelError, match=f'expected weights of one kind, got {kinds}'):
        concatenate(weights)


def test_a_plain_weight_is_left_as_it_is():
    weight = _random(8, 64)
    assert why_reference(weight) is None
    assert prepare(weight) is weight


def test_a_weight_that_fits_is_packed_for_the_kernel():
    if extension.load() is None:
        pytest.skip(extension.why_absent())
    weight = quantize_rtn(_random(16, 64), 32)
    assert why_reference(weight) is None
    assert isinstance(prepare(weight), CpuTiles)


@pytest.mark.parametrize('n, k, group, reason', [
    (16, 172, 172, 'K = 172'), (12, 64, 32, 'N = 12'), (16, 96, 16, 'group size 16')])
def test_a_weight_that_does_not_fit_says_why_and_stays(n, k, group, reason):
    if extension.load() is None:
        pytest.skip(extension.why_absent())
    weight = quantize_rtn(_random(n, k), group)
    assert reason in why_reference(weight)
    assert prepare(weight) is weight


def test_without_the_compiled_module_its_absence_is_the_reason(monkeypatch):
    monkeypatch.setattr(extension, 'load', lambda: None)
    monkeypatch.setattr(extension, 'why_absent', lambda: 'not built')
    weight = quantize_rtn(_random(16, 64), 32)
    assert why_reference(weight) == 'not built'
    assert isinstance(prepare(weight), QuantizedWeight)
