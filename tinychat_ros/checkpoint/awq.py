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
The formats of AutoAWQ and llm-awq, read into canonical form.

N = output features, K = input features, G = group size. ``gemv`` and ``gemv_fast`` pad the groups
K/G of a row with zeros to P, see :func:`~tinychat_ros.checkpoint.scales.padded_groups`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinychat_ros.checkpoint.awq_layouts import rows_of_gemv_fast, transpose_awq, unpack_awq
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.scales import group_size_of, padded_group_size_of, to_fp16
from tinychat_ros.errors import CheckpointError
from tinychat_ros.kernels.packing import QuantizedWeight, unpack_codes


def shape_of_gemm(reader: CheckpointReader, name: str) -> tuple[int, int, int]:
    """Return (N, K, G) of an AutoAWQ ``gemm`` layer."""
    k, _ = reader.matrix_shape(f'{name}.qweight')
    _, n = reader.matrix_shape(f'{name}.scales')
    return n, k, group_size_of(reader, f'{name}.scales', 0, k)


def read_awq_gemm(reader: CheckpointReader, name: str, n: int, k: int) -> QuantizedWeight:
    """Read ``qweight`` int32 [K, N/8], ``qzeros`` int32 [K/G, N/8], ``scales`` fp16 [K/G, N]."""
    group_size = group_size_of(reader, f'{name}.scales', 0, k)
    _check_multiple(name, 'N', n, 8)
    qweight = reader.raw(f'{name}.qweight', [k, n // 8], torch.int32)
    qzeros = reader.raw(f'{name}.qzeros', [k // group_size, n // 8], torch.int32)
    scales = reader.floats(f'{name}.scales', [k // group_size, n])
    return QuantizedWeight(
        qweight=transpose_awq(qweight),
        scales=to_fp16(f'{name}.scales', scales).t().contiguous(),
        zeros=unpack_awq(qzeros).t().contiguous(),
        group_size=group_size)


def is_gemm(reader: CheckpointReader, name: str) -> bool:
    """Tell ``gemm`` from GPTQ, which has a ``g_idx`` beside tensors of the same names."""
    return f'{name}.g_idx' not in reader.names


def is_gemv(reader: CheckpointReader, name: str) -> bool:
    """
    Tell ``gemv``, whose tensors all have N rows, from ``gemm``, whose names are the same.

    In ``gemm`` the rows of qweight are K, those of scales K/G, which is at most K/2.
    """
    return reader.shape(f'{name}.qweight')[:1] == reader.shape(f'{name}.scales')[:1]


def shape_of_gemv(reader: CheckpointReader, name: str) -> tuple[int, int, int]:
    """Return (N, K, G) of an AutoAWQ ``gemv`` layer."""
    n, words = reader.matrix_shape(f'{name}.qweight')
    return n, 8 * words, padded_group_size_of(reader, f'{name}.scales', 1, 8 * words)


def read_awq_gemv(reader: CheckpointReader, name: str, n: int, k: int) -> QuantizedWeight:
    """Read ``qweight`` int32 [N, K/8], ``qzeros`` int32 [N, P/8], ``scales`` fp16 [N, P]."""
    _check_multiple(name, 'K', k, 8)
    qweight = reader.raw(f'{name}.qweight', [n, k // 8], torch.int32)
    group_size = padded_group_size_of(reader, f'{name}.scales', 1, k)
    padded = reader.shape(f'{name}.scales')[1]
    qzeros = reader.raw(f'{name}.qzeros', [n, padded // 8], torch.int32)
    scales = to_fp16(f'{name}.scales', reader.floats(f'{name}.scales', [n, padded]))
    groups = k // group_size
    return QuantizedWeight(
        qweight=qweight.view(torch.uint8),
        scales=scales[:, :groups].contiguous(),
        zeros=unpack_codes(qzeros.view(torch.uint8), 4)[:, :groups].contiguous(),
        group_size=group_size)


def is_gemv_fast(reader: CheckpointReader, name: str) -> bool:
    """Tell ``gemv_fast`` by its zero points, which are not packed: as many as scales."""
    return reader.shape(f'{name}.qzeros') == reader.shape(f'{name}.scales')


def shape_of_gemv_fast(reader: CheckpointReader, name: str) -> tuple[int, int, int]:
    """Return (N, K, G) of an AutoAWQ ``gemv_fast`` or llm-awq v2 layer."""
    _, k = reader.matrix_shape(f'{name}.qweight')
    _, n = reader.matrix_shape(f'{name}.scales')
    return n, k, padded_group_size_of(reader, f'{name}.scales', 0, k)


def read_awq_gemv_fast(reader: CheckpointReader, name: str, n: int, k: int) -> QuantizedWeight:
    """
    Read ``qweight`` int16 [N/4, K], ``scales`` [P, N], ``scaled_zeros`` or ``qzeros`` [P, N].

    The last holds -scale * zero, so that w = q * scale + scaled zero.
    """
    _check_multiple(name, 'N', n, 4)
    _check_multiple(name, 'K', k, 64)
    qweight = reader.raw(f'{name}.qweight', [n // 4, k], torch.int16)
    group_size = padded_group_size_of(reader, f'{name}.scales', 0, k)
    groups, padded = k // group_size, reader.shape(f'{name}.scales')[0]
    scales = reader.floats(f'{name}.scales', [padded, n])[:groups]
    zeros = f'{name}.scaled_zeros' if f'{name}.scaled_zeros' in reader.names else f'{name}.qzeros'
    scaled_zeros = reader.floats(zeros, [padded, n])[:groups]
    return QuantizedWeight(
        qweight=rows_of_gemv_fast(qweight),
        scales=to_fp16(f'{name}.scales', scales).t().contiguous(),
        zeros=_integer_zeros(zeros, scales, scaled_zeros).t().contiguous(),
        group_size=group_size)


def _integer_zeros(name: str, scales: Tensor, scaled_zeros: Tensor) -> Tensor:
    """Return the zero points uint8 [K/G, N] that gave these ``scaled_zeros`` before rounding."""
    s, scaled = scales.float(), scaled_zeros.float()
    zeros = torch.where(s == 0, 0, -scaled / s).round()
    # The product was rounded to the stored type, and maybe by way of fp16.
    eps = max(torch.finfo(dtype).eps for dtype in (torch.float16, scales.dtype,
                                                   scaled_zeros.dtype))
    exact = (scaled + zeros * s).abs() <= eps * scaled.abs()
    wrong = ~(exact & (zeros >= 0) & (zeros <= 15))
    if wrong.any():
        group, output = wrong.nonzero()[0].tolist()
        raise CheckpointError(
            f'{name}: expected -scale * zero with a zero of 0 to 15, got '
            f'{scaled[group, output]:g} beside the scale {s[group, output]:g} at '
            f'[{group}, {output}] and {int(wrong.sum()) - 1} more')
    return zeros.to(torch.uint8)


def _check_multiple(name: str, dimension: str, value: int, of: int) -> None:
    if value % of:
        raise CheckpointError(f'{name}.qweight: expected {dimension} to be a multiple of {of}, '
                              f'got {value}')
