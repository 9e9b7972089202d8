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

import itertools
import struct

import pytest
import torch

from tinychat_ros.errors import KernelError
from tinychat_ros.kernels.packing import (
    cpu_tiles_refusal, cuda_tiles_refusal, gate_up_order, Int8Weight, natural_order, pack_codes,
    pack_cpu_tiles, pack_cuda_tiles, QuantizedWeight, record_bytes, record_group, rotary_order,
    unpack_codes)

both_widths = pytest.mark.parametrize('bits', [3, 4])


def random_weight(n, k, group_size, bits):
    generator = torch.Generator().manual_seed(n * k + group_size)

    def codes(*shape):
        return torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8)

    scales = torch.rand(n, k // group_size, generator=generator).half()
    return QuantizedWeight(pack_codes(codes(n, k), bits), scales, codes(n, k // group_size),
                           group_size, bits)


def chunk_of_4_bits(rows):
    """Build the bytes of a chunk from its rows of 8 codes."""
    return bytes(row[i] | row[4 + i] << 4 for row in rows for i in range(4))


def chunk_of_3_bits(rows):
    """Build the bytes of a chunk from its rows of 32 codes."""
    sets = ([row[i] | row[4 + i] << 3 | (row[24 + i] & 3) << 6 for row in rows for i in range(4)],
            [row[8 + i] | row[12 + i] << 3 | (row[28 + i] & 3) << 6
             for row in rows for i in range(4)],
            [row[16 + i] | row[20 + i] << 3 | row[24 + i] >> 2 << 6 | row[28 + i] >> 2 << 7
             for row in rows for i in range(4)])
    return b''.join(map(bytes, sets))


def tile_by_its_drawing(weight, first_row, first_k, block):
    """Build the bytes of one tile; rows past the last are zero."""
    n, _ = weight.shape
    rows = range(first_row, first_row + 16)
    group = first_k // weight.group_size
    q = unpack_codes(weight.qweight, weight.bits).tolist() + [[0] * weight.shape[1]] * 16
    columns, chunk = (32, chunk_of_3_bits) if weight.bits == 3 else (8, chunk_of_4_bits)
    tile = bytearray()
    for k in range(first_k, first_k + block, columns):
        tile += chunk([q[row][k:k + columns] for row in rows])
    for row in rows:
        tile += struct.pack('<e', float(weight.scales[row, group]) if row < n else 0)
    return tile + bytes(int(weight.zeros[row, group]) if row < n else 0 for row in rows)


@pytest.mark.parametrize(('bits', 'q', 'packed'), [
    (4, [0, 1, 2, 3], [0x10, 0x32]),
    # The bits of 0 to 7, the last code first: 111 110 10|1 100 011 0|10 001 000.
    (3, [0, 1, 2, 3, 4, 5, 6, 7], [0b10001000, 0b11000110, 0b11111010]),
    (3, [7, 0, 0, 0, 0, 0, 0, 4, 0, 0, 5, 0, 0, 0, 0, 0], [0x07, 0, 0x80, 0x40, 0x01, 0]),
])
def test_codes_lie_one_after_another_from_the_lowest_bit(bits, q, packed):
    assert pack_codes(torch.tensor([q], dtype=torch.uint8), bits).tolist() == [packed]
    assert unpack_codes(torch.tensor([packed], dtype=torch.uint8), bits).tolist() == [q]


@both_widths
def test_codes_are_the_bit_stream_of_their_row_and_come_back_as_they_went_in(bits):
    q = torch.randint(0, 2**bits, (3, 40), generator=torch.Generator().manual_seed(bits),
                      dtype=torch.uint8)
    packed = pack_codes(q, bits)
    for row, row_bytes in zip(q.tolist(), packed.tolist()):
        stream = sum(code << bits * k for k, code in enumerate(row))
        assert bytes(row_bytes) == stream.to_bytes(40 * bits // 8, 'little')
    assert torch.equal(unpack_codes(packed, bits), q)


@pytest.mark.parametrize(('bits', 'q', 'multiple'), [
    (4, torch.zeros(2, 3, dtype=torch.uint8), 2), (4, torch.zeros(2, 4), 2),
    (3, torch.zeros(2, 12, dtype=torch.uint8), 8), (3, torch.zeros(2, 8), 8)])
def test_codes_that_fill_no_whole_bytes_or_of_another_dtype_are_refused(bits, q, multiple):
    with pytest.raises(KernelError, match=f'uint8 with .* a multiple of {multiple}, got torch.'):
        pack_codes(q, bits)


def test_dequantizing_subtracts_the_zero_and_multiplies_by_the_scale_of_the_group():
    weight = QuantizedWeight(
        qweight=torch.tensor([[0x21, 0x43]], dtype=torch.uint8),
        scales=torch.tensor([[0.5, 2.0]], dtype=torch.float16),
        zeros=torch.tensor([[1, 15]], dtype=torch.uint8), group_size=2)
    assert weight.shape == (1, 4)
    assert weight.dequantize().tolist() == [[0.0, 0.5, -24.0, -22.0]]


def test_a_weight_of_3_bits_is_dequantized_by_the_same_formula():
    weight = QuantizedWeight(
        qweight=torch.tensor([[0b10001000, 0b11000110, 0b11111010]], dtype=torch.uint8),
        scales=torch.tensor([[0.5, 2.0]], dtype=torch.float16),
        zeros=torch.tensor([[1, 7]], dtype=torch.uint8), group_size=4, bits=3)
    assert weight.shape == (1, 8)
    assert weight.dequantize().tolist() == [[-0.5, 0.0, 0.5, 1.0, -6.0, -4.0, -2.0, 0.0]]


def test_an_int8_weight_is_dequantized_by_the_scale_of_its_row():
    weight = Int8Weight(torch.tensor([[-127, 0, 3], [127, -1, 2]], dtype=torch.int8),
                        torch.tensor([0.5, 2.0]))
    assert weight.shape == (2, 3)
    assert weight.dequantize().tolist() == [[-63.5, 0.0, 1.5], [254.0, -2.0, 4.0]]
    assert weight.dequantize(torch.bfloat16).dtype == torch.bfloat16


@both_widths
@pytest.mark.parametrize(('n', 'k', 'group_size', 'block'), [
    (16, 32, 32, 32), (8, 64, 64, 64), (24, 128, 128, 128), (32, 96, 96, 32), (40, 256, 256, 128),
    (8, 192, 192, 64), (16, 256, 32, 32), (16, 384, 128, 128),
])
def test_tiles_follow_their_drawing(n, k, group_size, block, bits):
    weight = random_weight(n, k, group_size, bits)
    tiles = pack_cpu_tiles(weight)
    assert (tiles.n, tiles.k, tiles.bits, tiles.block) == (n, k, bits, block)
    assert tiles.data.is_contiguous()
    expected = b''.join(tile_by_its_drawing(weight, row, column, block)
                        for row in range(0, n, 16) for column in range(0, k, block))
    assert tiles.data.numpy().tobytes() == expected


@both_widths
def test_a_weight_packed_in_several_parts_equals_its_parts(bits):
    weight = random_weight(2072, 64, 32, bits)
    data = pack_cpu_tiles(weight).data
    assert data.shape[0] == 130
    for first in (0, 1024, 2048):
        rows = slice(first, first + 1024)
        part = QuantizedWeight(weight.qweight[rows], weight.scales[rows], weight.zeros[rows], 32,
                               bits)
        expected = pack_cpu_tiles(part).data
        assert torch.equal(data[first // 16:first // 16 + len(expected)], expected)


@pytest.mark.parametrize(('n', 'k', 'group_size', 'reason'), [
    (16, 172, 172, 'K = 172 is not a multiple of 32'),
    (12, 64, 64, 'N = 12 is not a multiple of 8'),
    (16, 96, 48, 'group size 48 is not a multiple of 32'),
])
def test_a_weight_that_no_tile_fits_is_refused_with_the_reason(n, k, group_size, reason):
    weight = random_weight(n, k, group_size, 4)
    assert cpu_tiles_refusal(weight) == reason
    with pytest.raises(KernelError, match=reason):
        pack_cpu_tiles(weight)


def test_a_weight_that_fits_is_not_refused():
    assert cpu_tiles_refusal(random_weight(8, 32, 32, 3)) is None


def _nibble(records, tile, record, half, lane, word, i):
    """Return nibble i of a word of a lane, as csrc/cuda/w4_record.cuh counts them."""
    byte = records[tile, record, 512 * half + 16 * lane + 4 * word + i // 2].item()
    return byte >> 4 * (i % 2) & 15


@pytest.mark.parametrize('n, k, group', [
    (24, 192, 64), (16, 128, 32), (8, 200, 200), (16, 256, 256)])
def test_cuda_records_hold_every_weight_where_the_drawing_says(n, k, group):
    weight = random_weight(n, k, group, 4)
    q = unpack_codes(weight.qweight, 4)
    order = natural_order(n)
    records = pack_cuda_tiles(weight, order.rows)
    assert records.shape == (-(-n // 16), -(-k // 128), record_bytes(record_group(weight)))
    for tile, record, half, lane, word, i in itertools.product(
            *map(range, (*records.shape[:2], 2, 32, 4, 8))):
        row = 16 * tile + lane // 4 + 8 * (i % 2)
        column = (128 * record + 64 * half + 32 * (word // 2) + 8 * (lane % 4) + 4 * (word % 2)
                  + 2 * (i % 4 // 2) + i // 4)
        if row < n and column < k:
            assert _nibble(records, tile, record, half, lane, word, i) == q[row, column]


@pytest.mark.parametrize('n, k, group', [
    (24, 192, 64), (16, 96, 32), (8, 200, 200), (16, 256, 256)])
def test_cuda_records_hold_scales_and_zeros_and_nothing_counts_in_the_padding(n, k, group):
    weight = random_weight(n, k, group, 4)
    size = record_group(weight)
    records = pack_cuda_tiles(weight, natural_order(n).rows)
    groups = 128 // size
    for tile, record, g, r in itertools.product(*map(range, (*records.shape[:2], groups, 16))):
        data = records[tile, record, 1024:]
        scale = data[32 * g + 2 * r:][:2].clone().view(torch.float16).item()
        zero = data[32 * groups + 8 * g + r // 2].item() >> 4 * (r % 2) & 15
        row, column = 16 * tile + r, 128 * record + size * g
        if row < n and column < k:
            assert scale == weight.scales[row, column // group]
            assert zero == weight.zeros[row, column // group]
        else:
            assert scale == 0


def test_in_rotary_order_a_tile_holds_both_dimensions_of_a_rotation():
    rows = rotary_order(3, 1, 32).rows.view(-1, 2, 8)
    assert torch.equal(rows[:6, 1], rows[:6, 0] + 16)
    assert torch.equal(rows[6:].flatten(), torch.arange(96, 128, dtype=torch.int32))
    assert torch.equal(rows.flatten().sort().values, torch.arange(128, dtype=torch.int32))
    assert rotary_order(3, 1, 24) is None


def test_in_gate_up_order_a_tile_holds_a_gate_and_its_up():
    rows = gate_up_order(24).rows.view(-1, 2, 8)
    assert torch.equal(rows[:, 1], rows[:, 0] + 24)
    assert torch.equal(rows[:, 0].flatten(), torch.arange(24, dtype=torch.int32))
    assert gate_up_order(20) is None


@pytest.mark.parametrize('n, k, group, bits, reason', [
    (16, 64, 32, 3, '3 bits, not 4'), (12, 64, 32, 4, 'N, K = 12, 64'),
    (16, 192, 96, 4, 'group size 96')])
def test_cuda_records_refuse_what_the_kernels_cannot_take(n, k, group, bits, reason):
    weight = random_weight(n, k, group, bits)
    assert cuda_tiles_refusal(weight).startswith(reason)
    with pytest.raises(KernelError, match='^pack_cuda_tiles: '):
        pack_cuda_tiles(weight, natural_order(n).rows)
