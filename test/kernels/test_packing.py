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
"""The layouts of quantized weights, against loops that follow their drawings."""

import struct

import pytest
import torch

from tinychat_ros.errors import KernelError
from tinychat_ros.kernels.packing import (
    cpu_tiles_refusal, Int8Weight, pack_cpu_tiles, pack_nibbles, QuantizedWeight, unpack_nibbles)


def random_weight(n, k, group_size):
    generator = torch.Generator().manual_seed(n * k + group_size)
    q = torch.randint(0, 16, (n, k), generator=generator, dtype=torch.uint8)
    scales = torch.rand(n, k // group_size, generator=generator).half()
    zeros = torch.randint(0, 16, (n, k // group_size), generator=generator, dtype=torch.uint8)
    return QuantizedWeight(pack_nibbles(q), scales, zeros, group_size)


def tile_by_its_drawing(weight, first_row, first_k, block):
    """Build the bytes of one tile; rows past the last are zero."""
    n, _ = weight.shape
    rows = range(first_row, first_row + 16)
    group = first_k // weight.group_size
    q = unpack_nibbles(weight.qweight)
    tile = bytearray()
    for k in range(first_k, first_k + block, 8):
        for row in rows:
            for i in range(4):
                tile.append(int(q[row, k + i] | q[row, k + 4 + i] << 4) if row < n else 0)
    for row in rows:
        tile += struct.pack('<e', float(weight.scales[row, group]) if row < n else 0)
    return tile + bytes(int(weight.zeros[row, group]) if row < n else 0 for row in rows)


def test_nibbles_come_back_as_they_went_in():
    q = torch.arange(16, dtype=torch.uint8).repeat(3, 2)
    packed = pack_nibbles(q)
    assert packed[0, :2].tolist() == [0x10, 0x32]
    assert torch.equal(unpack_nibbles(packed), q)


@pytest.mark.parametrize('q', [torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2, 4)])
def test_nibbles_of_an_odd_width_or_another_dtype_are_refused(q):
    with pytest.raises(KernelError, match='expected uint8 with an even last dimension'):
        pack_nibbles(q)


def test_dequantizing_subtracts_the_zero_and_multiplies_by_the_scale_of_the_group():
    weight = QuantizedWeight(
        qweight=torch.tensor([[0x21, 0x43]], dtype=torch.uint8),
        scales=torch.tensor([[0.5, 2.0]], dtype=torch.float16),
        zeros=torch.tensor([[1, 15]], dtype=torch.uint8), group_size=2)
    assert weight.shape == (1, 4)
    assert weight.dequantize().tolist() == [[0.0, 0.5, -24.0, -22.0]]


def test_an_int8_weight_is_dequantized_by_the_scale_of_its_row():
    weight = Int8Weight(torch.tensor([[-127, 0, 3], [127, -1, 2]], dtype=torch.int8),
                        torch.tensor([0.5, 2.0]))
    assert weight.shape == (2, 3)
    assert weight.dequantize().tolist() == [[-63.5, 0.0, 1.5], [254.0, -2.0, 4.0]]
    assert weight.dequantize(torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(('n', 'k', 'group_size', 'block'), [
    (16, 32, 32, 32), (8, 64, 64, 64), (24, 128, 128, 128), (32, 96, 96, 32), (40, 256, 256, 128),
    (8, 192, 192, 64), (16, 256, 32, 32), (16, 384, 128, 128),
])
def test_tiles_follow_their_drawing(n, k, group_size, block):
    weight = random_weight(n, k, group_size)
    tiles = pack_cpu_tiles(weight)
    assert (tiles.n, tiles.k, tiles.block) == (n, k, block)
    assert tiles.data.is_contiguous()
    expected = b''.join(tile_by_its_drawing(weight, row, column, block)
                        for row in range(0, n, 16) for column in range(0, k, block))
    assert tiles.data.numpy().tobytes() == expected


def test_a_weight_packed_in_several_parts_equals_its_parts():
    weight = random_weight(2072, 64, 32)
    data = pack_cpu_tiles(weight).data
    assert data.shape[0] == 130
    for first in (0, 1024, 2048):
        rows = slice(first, first + 1024)
        part = QuantizedWeight(weight.qweight[rows], weight.scales[rows], weight.zeros[rows], 32)
        expected = pack_cpu_tiles(part).data
        assert torch.equal(data[first // 16:first // 16 + len(expected)], expected)


@pytest.mark.parametrize(('n', 'k', 'group_size', 'reason'), [
    (16, 172, 172, 'K = 172 is not a multiple of 32'),
    (12, 64, 64, 'N = 12 is not a multiple of 8'),
    (16, 96, 48, 'group size 48 is not a multiple of 32'),
])
def test_a_weight_that_no_tile_fits_is_refused_with_the_reason(n, k, group_size, reason):
    weight = random_weight(n, k, group_size)
    assert cpu_tiles_refusal(weight) == reason
    with pytest.raises(KernelError, match=reason):
        pack_cpu_tiles(weight)


def test_a_weight_that_fits_is_not_refused():
    assert cpu_tiles_refusal(random_weight(8, 32, 32)) is None
