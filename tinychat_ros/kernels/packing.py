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
"""
The layouts of quantized weights in memory, each defined here and nowhere else.

``QuantizedWeight`` is the canonical form of 3-bit and 4-bit weights, which every checkpoint format
of theirs is read into; ``Int8Weight`` is that of 8-bit ones, and kernels read it as it is.
N = output features, K = input features, G = group size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
import math
from typing import Optional

import torch
from torch import Tensor
import torch.nn.functional as F

from tinychat_ros.errors import KernelError
from tinychat_ros.kernels import memory


@dataclass(frozen=True)
class QuantizedWeight:
    """
    A W3 or W4 weight, w[n, k] = (q[n, k] - zeros[n, k // G]) * scales[n, k // G].

    :param qweight: uint8 [N, K * bits / 8]; q[n, k] is in the bits [k * bits, (k + 1) * bits) of
        row n, counted from the lowest of its first byte.
    :param scales: fp16 [N, K/G].
    :param zeros: uint8 [N, K/G], 0 to 2^bits - 1.
    :param group_size: G, never -1: one group per row is G = K.
    :param bits: 3, where K is a multiple of 8, or 4, where it is even.
    """

    qweight: Tensor
    scales: Tensor
    zeros: Tensor
    group_size: int
    bits: int = 4

    @property
    def shape(self) -> tuple[int, int]:
        """Return (N, K)."""
        return self.qweight.shape[0], self.qweight.shape[1] * 8 // self.bits

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight [N, K] in ``dtype``."""
        n, k = self.shape
        q = unpack_codes(self.qweight, self.bits).view(n, -1, self.group_size)
        w = (q.to(torch.float32) - self.zeros[..., None]) * self.scales[..., None].float()
        return w.view(n, k).to(dtype)


@dataclass(frozen=True)
class Int8Weight:
    """
    A W8A8 weight, w[n, k] = qweight[n, k] * scales[n]; its linear quantizes activations as well.

    :param qweight: int8 [N, K].
    :param scales: fp32 [N].
    """

    qweight: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Return (N, K)."""
        return self.qweight.shape[0], self.qweight.shape[1]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight [N, K] in ``dtype``."""
        return (self.qweight * self.scales[:, None]).to(dtype)


def tensors_of(weight: QuantizedWeight | Int8Weight | CpuTiles) -> dict[str, Tensor]:
    """Return the tensors of a weight by the names of their fields; but in tiles, of N rows."""
    return {field: value for field, value in vars(weight).items() if isinstance(value, Tensor)}


# Beyond it, int32 sums of 127 * 128 may overflow; csrc/cpu/w8a8.h holds its twin.
INT8_MAX_K = (2**31 - 1) // (127 * 128)


def int8_refusal(weight: Int8Weight) -> str | None:
    """Return why the compiled CPU kernels cannot take a weight, or None when they can."""
    k = weight.shape[1]
    return f'K = {k} is more than {INT8_MAX_K}' if k > INT8_MAX_K else None


def pack_codes(q: Tensor, bits: int) -> Tensor:
    """
    Pack uint8 [..., K] of values 0 to 2^bits - 1 into uint8 [..., K * bits / 8], lowest bit first.

    :raises KernelError: when q is not uint8, or K codes do not fill whole bytes.
    """
    unit = math.lcm(8, bits) // bits
    if q.dtype != torch.uint8 or q.shape[-1] % unit:
        raise KernelError(f'pack_codes: expected uint8 with a last dimension that is a multiple '
                          f'of {unit}, got {q.dtype} {list(q.shape)}')
    codes = q.unflatten(-1, (-1, unit))
    packed = q.new_zeros(*codes.shape[:-1], unit * bits // 8)
    for i in range(unit):
        byte, shift = divmod(i * bits, 8)
        packed[..., byte] |= codes[..., i] << shift
        if shift + bits > 8:
            packed[..., byte + 1] |= codes[..., i] >> (8 - shift)
    return packed.flatten(-2)


def unpack_codes(packed: Tensor, bits: int) -> Tensor:
    """Unpack uint8 [..., K * bits / 8] into uint8 [..., K], the inverse of :func:`pack_codes`."""
    unit = math.lcm(8, bits) // bits
    units = packed.unflatten(-1, (-1, unit * bits // 8))
    codes = []
    for i in range(unit):
        byte, shift = divmod(i * bits, 8)
        code = units[..., byte] >> shift
        if shift + bits > 8:
            code |= units[..., byte + 1] << (8 - shift)
        codes.append(code & (2**bits - 1))
    return torch.stack(codes, dim=-1).flatten(-2)


# Raised whenever a run-time layout below changes; csrc/common.h holds its twin.
LAYOUT_VERSION = 2

TILE_ROWS = 16
_ROWS_AT_ONCE = 1024


def tile_columns(group_size: int) -> int:
    """Return the columns of a tile, 128, 64 or 32; G itself where no tile fits."""
    return next((block for block in (128, 64, 32) if group_size % block == 0), group_size)


@dataclass(frozen=True)
class CpuTiles:
    """
    A W3 or W4 weight as the compiled CPU kernels read it; csrc/cpu/wna16.h draws the layout.

    :param data: uint8 [ceil(N / 16), K / block, block * bits * 2 + 48], contiguous, on the CPU.
    :param n: N, the rows that are not padding.
    :param k: K.
    :param bits: 3 or 4.
    :param block: columns per tile, 128, 64 or 32. A larger group repeats its scales in each tile.
    """

    data: Tensor
    n: int
    k: int
    bits: int
    block: int

    @property
    def shape(self) -> tuple[int, int]:
        """Return (N, K)."""
        return self.n, self.k


def cpu_tiles_refusal(weight: QuantizedWeight) -> str | None:
    """Return why the compiled CPU kernels cannot take a weight, or None when they can."""
    n, k = weight.shape
    if k % 32:
        return f'K = {k} is not a multiple of 32'
    if n % 8:
        return f'N = {n} is not a multiple of 8'
    if weight.group_size % 32:
        return f'group size {weight.group_size} is not a multiple of 32'
    return None


def pack_cpu_tiles(weight: QuantizedWeight) -> CpuTiles:
    """
    Pack a weight into tiles of 16 rows, needing little memory beyond the result.

    :raises KernelError: when :func:`cpu_tiles_refusal` has a reason.
    """
    refusal = cpu_tiles_refusal(weight)
    if refusal is not None:
        raise KernelError(f'pack_cpu_tiles: {refusal}')
    n, k = weight.shape
    block = tile_columns(weight.group_size)
    data = memory.zeros((math.ceil(n / TILE_ROWS), k // block, block * weight.bits * 2 + 48),
                        torch.uint8)
    for begin in range(0, n, _ROWS_AT_ONCE):
        rows = slice(begin, begin + _ROWS_AT_ONCE)
        part = replace(weight, **{field: tensor[rows]
                                  for field, tensor in tensors_of(weight).items()})
        tile_rows = slice(begin // TILE_ROWS, (begin + _ROWS_AT_ONCE) // TILE_ROWS)
        data[tile_rows] = _pack_tile_rows(part, block)
    return CpuTiles(data, n, k, weight.bits, block)


def _pack_tile_rows(weight: QuantizedWeight, block: int) -> Tensor:
    """Pack some rows of a weight into uint8 [ceil(rows / 16), K / block, tile bytes]."""
    n, k = weight.shape
    octets = unpack_codes(weight.qweight, weight.bits).view(n, k // block, block // 8, 2, 4)
    words = (_words_of_3_bits if weight.bits == 3 else _words_of_4_bits)(octets)
    repeats = weight.group_size // block
    scales = weight.scales.repeat_interleave(repeats, dim=1)
    zeros = weight.zeros.repeat_interleave(repeats, dim=1)
    chunks = _into_tiles(words).permute(0, 2, 3, 1, 4)
    per_row = [_into_tiles(t).transpose(1, 2).contiguous() for t in (scales, zeros)]
    return torch.cat([chunks.flatten(2), *(t.view(torch.uint8) for t in per_row)], dim=2)


def _words_of_4_bits(octets: Tensor) -> Tensor:
    """Pack codes [..., octets, 2, 4] into words uint8 [..., octets, 4]."""
    return octets[..., 0, :] | (octets[..., 1, :] << 4)


def _words_of_3_bits(octets: Tensor) -> Tensor:
    """Pack codes [..., octets, 2, 4] into words uint8 [..., octets * 3 / 4, 4]."""
    chunks = octets.unflatten(-3, (-1, 4))
    words = chunks[..., :3, 0, :] | (chunks[..., :3, 1, :] << 3)
    low, high = chunks[..., 3, :, :].unbind(-2)
    words[..., 0, :] |= (low & 3) << 6
    words[..., 1, :] |= (high & 3) << 6
    words[..., 2, :] |= (low >> 2 << 6) | (high >> 2 << 7)
    return words.flatten(-3, -2)


def _into_tiles(rows: Tensor) -> Tensor:
    """Split [N, ...] into [ceil(N / 16), 16, ...], the last rows padded with zeros."""
    padding = rows.new_zeros(-rows.shape[0] % TILE_ROWS, *rows.shape[1:])
    return torch.cat((rows, padding)).unflatten(0, (-1, TILE_ROWS))


RECORD_ROWS = 16
RECORD_COLUMNS = 128

NATURAL, ROTARY, GATE_UP = 'natural', 'rotary', 'gate_up'


@dataclass(frozen=True)
class TileOrder:
    """
    How the rows of a weight stand in the tiles of CudaTiles.

    :param name: NATURAL; ROTARY, where a tile holds both dimensions that a rotation mixes; or
        GATE_UP, where it holds rows of the gate and the same ones of up.
    :param rows: int32 [tiles * 16], the row that goes there, or -1 for none.
    """

    name: str
    rows: Tensor


@dataclass
class CudaTiles:
    """
    A W4 weight as the CUDA kernels read it; csrc/cuda/w4_record.cuh draws the layout.

    :param records: uint8 [ceil(N / 16), ceil(K / 128), record_bytes(group_size)], contiguous.
    :param n: N, the rows that are not padding.
    :param k: K.
    :param group_size: of the records, 32, 64 or 128. A larger group repeats its scales.
    :param order: NATURAL, ROTARY or GATE_UP.
    :param next: the records that are read behind these, or None.
    """

    records: Tensor
    n: int
    k: int
    group_size: int
    order: str = NATURAL
    next: Optional[Tensor] = None

    @property
    def shape(self) -> tuple[int, int]:
        """Return (N, K)."""
        return self.n, self.k


def record_bytes(group_size: int) -> int:
    """Return the bytes of a record of 16 rows by 128 columns in groups of 32, 64 or 128."""
    groups = RECORD_COLUMNS // group_size
    return RECORD_ROWS * RECORD_COLUMNS // 2 + 32 * groups + max(16, 8 * groups)


def record_group(weight: QuantizedWeight) -> int:
    """Return the group size of the records that a weight is packed into."""
    return weight.group_size if weight.group_size in (32, 64) else RECORD_COLUMNS


def cuda_tiles_refusal(weight: QuantizedWeight) -> str | None:
    """Return why the CUDA kernels cannot take a weight, or None when they can."""
    n, k = weight.shape
    if weight.bits != 4:
        return f'{weight.bits} bits, not 4'
    if n % 8 or k % 8:
        return f'N, K = {n}, {k} are not both multiples of 8'
    if weight.group_size not in (32, 64, k) and weight.group_size % RECORD_COLUMNS:
        return f'group size {weight.group_size} is not 32, 64, a multiple of 128 or K'
    return None


def natural_order(n: int) -> TileOrder:
    """Return the order of N rows as they are."""
    rows = torch.arange(-(-n // RECORD_ROWS) * RECORD_ROWS, dtype=torch.int32)
    return TileOrder(NATURAL, rows.masked_fill(rows >= n, -1))


def rotary_order(rotated_heads: int, value_heads: int, head_dim: int) -> TileOrder | None:
    """
    Return the order of a QKV weight in which dimensions d and d + D/2 share a tile.

    :param rotated_heads: query and key heads together.
    :param head_dim: D; None is returned unless it is a multiple of 16.
    """
    if head_dim % RECORD_ROWS:
        return None
    low = torch.arange(head_dim // 2, dtype=torch.int32).view(-1, 8)
    head = torch.cat((low, low + head_dim // 2), dim=1).flatten()
    rotated = torch.arange(rotated_heads, dtype=torch.int32)[:, None] * head_dim + head
    values = torch.arange(value_heads * head_dim, dtype=torch.int32)
    return TileOrder(ROTARY, torch.cat((rotated.flatten(), rotated_heads * head_dim + values)))


def gate_up_order(intermediate: int) -> TileOrder | None:
    """Return the order of gate and up with 8 rows of each in turn, or None unless 8 divides I."""
    if intermediate % 8:
        return None
    gate = torch.arange(intermediate, dtype=torch.int32).view(-1, 8)
    return TileOrder(GATE_UP, torch.cat((gate, gate + intermediate), dim=1).flatten())


def pack_cuda_tiles(weight: QuantizedWeight, rows: Tensor) -> Tensor:
    """
    Pack a weight into records with torch alone: the oracle of the repacking kernel.

    :param rows: int32 [tiles * 16], the row that goes there, or -1 for none.
    :returns: uint8 [tiles, ceil(K / 128), record bytes].
    :raises KernelError: when :func:`cuda_tiles_refusal` has a reason.
    """
    refusal = cuda_tiles_refusal(weight)
    if refusal is not None:
        raise KernelError(f'pack_cuda_tiles: {refusal}')
    k, group = weight.shape[1], record_group(weight)
    columns = -(-k // RECORD_COLUMNS) * RECORD_COLUMNS
    starts = torch.arange(0, columns, group)
    index, padding = rows.long().clamp(min=0), (rows < 0)[:, None]
    groups = (starts // weight.group_size).clamp(max=weight.scales.shape[1] - 1)
    codes = F.pad(unpack_codes(weight.qweight[index], 4).masked_fill(padding, 0), (0, columns - k))
    scales, zeros = (t[index][:, groups].masked_fill(padding | (starts >= k), 0)
                     for t in (weight.scales, weight.zeros))
    return torch.cat((_operands(codes), *_per_group(scales, zeros, RECORD_COLUMNS // group)), -1)


def _operands(codes: Tensor) -> Tensor:
    """Arrange codes [tiles * 16, columns] as uint8 [tiles, records, 1024]."""
    # As w4_record.cuh names them: a row is 8 (i % 2) + g, a column has the bits of the word
    # 64, 32 (s / 2), 8 t, 4 (s % 2), 2 (i % 4 / 2) and i / 4.
    split = codes.view(-1, 2, 8, codes.shape[1] // RECORD_COLUMNS, 2, 2, 4, 2, 2, 2)
    nibbles = split.permute(0, 3, 4, 2, 6, 5, 7, 9, 8, 1)
    return (nibbles[..., 0] | nibbles[..., 1] << 4).flatten(2)


def _per_group(scales: Tensor, zeros: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Arrange [tiles * 16, K / group_size] as uint8 [tiles, records, ...]: fp16, and nibbles."""
    by_record = [t.view(-1, RECORD_ROWS, t.shape[1] // groups, groups).permute(0, 2, 3, 1)
                 for t in (scales, zeros)]
    nibbles = pack_codes(by_record[1].contiguous(), 4).flatten(2)
    return (by_record[0].contiguous().view(torch.uint8).flatten(2),
            F.pad(nibbles, (0, max(0, RECORD_ROWS - nibbles.shape[-1]))))
