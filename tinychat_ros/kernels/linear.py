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
"""A linear layer's weight as it lies in memory at run time, made once at load."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional, Sequence, Union

import torch
from torch import Tensor

from tinychat_ros.errors import KernelError
from tinychat_ros.kernels import cuda, extension, memory, reference
from tinychat_ros.kernels.packing import (
    cpu_tiles_refusal, CpuTiles, cuda_tiles_refusal, CudaTiles, int8_refusal, Int8Weight,
    NATURAL, natural_order, pack_cpu_tiles, QuantizedWeight, tensors_of, tile_columns, TileOrder)
from tinychat_ros.kernels.rtn import quantize_rtn

StoredWeight = Union[Tensor, QuantizedWeight, Int8Weight]
# fp32 copies of so many do not show beside a model.
_ROWS_AT_ONCE = 4096

RuntimeWeight = Union[Tensor, QuantizedWeight, Int8Weight, CpuTiles, CudaTiles]


@dataclass(frozen=True)
class Linear:
    """
    A weight of N output and K input features, with an optional bias.

    :param weight: a plain tensor [N, K], or a quantized weight, canonical or in a kernel's layout.
    :param bias: [N] or None.
    :param activation_group: values along K that share the scale with which the input is rounded
        to int8, as W4A8 kernels do; 0 leaves the input as it is.
    """

    weight: RuntimeWeight
    bias: Optional[Tensor] = None
    activation_group: int = 0


def activation_group(weight: RuntimeWeight, int8_activations: Optional[bool],
                     dtype: torch.dtype = torch.float16) -> int:
    """
    Return the ``activation_group`` of a linear with this weight.

    :param int8_activations: round the input of a weight of 4 bits or less, by the tiles of the CPU
        kernels: a group, at most 128 along K. None rounds where that is faster: where those run.
    :param dtype: of the activations.
    """
    if isinstance(weight, CpuTiles):
        return 0 if int8_activations is False else weight.block
    if not isinstance(weight, QuantizedWeight):
        return 0
    if int8_activations is None:
        device = weight.qweight.device
        int8_activations = (device.type == 'cpu' and extension.cuda(device) is None
                            and why_reference(weight, dtype) is None)
    return tile_columns(weight.group_size) if int8_activations else 0


def int8_rows(weight: Tensor) -> Int8Weight:
    """Round a plain weight [N, K] to int8 with a scale per row, some rows at a time."""
    qweight = memory.zeros(weight.shape, torch.int8, weight.device)
    scales = []
    for rows, rounded in zip(weight.split(_ROWS_AT_ONCE), qweight.split(_ROWS_AT_ONCE)):
        values, scale = reference.quantize_per_token(rows)
        rounded.copy_(values)
        scales.append(scale)
    return Int8Weight(qweight, torch.cat(scales))


def int4_groups(weight: Tensor) -> QuantizedWeight:
    """
    Round a plain weight [N, K] to 4 bits in groups of 128, of 64 or 32 where K demands it.

    :raises KernelError: K is not a multiple of 32.
    :raises ValueError: see :func:`quantize_rtn`.
    """
    k = weight.shape[1]
    if k % 32:
        raise KernelError(f'int4_groups: expected K to be a multiple of 32, got {k}')
    return concatenate([quantize_rtn(rows, tile_columns(k))
                        for rows in weight.split(_ROWS_AT_ONCE)])


def concatenate(weights: Sequence[StoredWeight]) -> StoredWeight:
    """
    Stack weights that share an input along N, so that one call computes them all.

    :raises KernelError: when they are not all plain, or not all quantized alike.
    """
    if not can_concatenate(weights):
        raise KernelError('concatenate: expected weights of one kind, got '
                          + ', '.join(sorted({_kind(w) for w in weights})))
    if isinstance(weights[0], Tensor):
        return torch.cat(list(weights))
    return replace(weights[0], **{field: torch.cat([getattr(w, field) for w in weights])
                                  for field in tensors_of(weights[0])})


def can_concatenate(weights: Sequence[StoredWeight]) -> bool:
    """Say whether :func:`concatenate` takes these weights."""
    return len({_kind(w) for w in weights}) == 1


def reordered(weight: StoredWeight, rows: Optional[Tensor]) -> StoredWeight:
    """Return a weight, or a bias [N], whose row i is row rows[i] of the given one; None: it."""
    if rows is None:
        return weight
    if isinstance(weight, Tensor):
        return weight[rows.to(weight.device)]
    return replace(weight, **{field: tensor[rows.to(tensor.device)]
                              for field, tensor in tensors_of(weight).items()})


def why_reference(weight: StoredWeight, dtype: torch.dtype = torch.float16) -> Optional[str]:
    """
    Return why a quantized weight runs on the reference, or None where a kernel takes it.

    :param dtype: of the activations; the CPU kernels take any.
    """
    if isinstance(weight, Tensor):
        return None
    device = weight.qweight.device
    if extension.cuda(device) is None:
        return extension.why_no_cuda(device) if device.type != 'cpu' else _why_not_on_cpu(weight)
    if isinstance(weight, QuantizedWeight) and dtype not in cuda.DTYPES:
        return f'no CUDA kernel for {dtype} activations'
    return why_not_on_cuda(weight)


def why_not_on_cuda(weight: Union[QuantizedWeight, Int8Weight]) -> Optional[str]:
    """Return why no CUDA kernel takes a weight with activations of 16 bits, or None."""
    return ('no CUDA kernel for int8' if isinstance(weight, Int8Weight)
            else cuda_tiles_refusal(weight))


def prepare(weight: StoredWeight, bias: Optional[Tensor] = None,
            order: Optional[TileOrder] = None, activation_group: int = 0,
            dtype: torch.dtype = torch.float16) -> Linear:
    """
    Bring a weight into the layout of the kernel that will read it.

    :param order: of the rows, for CUDA kernels that do more with the product, which leave no place
        to round its input; None is as they are.
    :param dtype: of the activations.
    """
    if not isinstance(weight, QuantizedWeight) or why_reference(weight, dtype) is not None:
        return Linear(weight, bias, activation_group)
    if extension.cuda(weight.qweight.device) is None:
        return Linear(pack_cpu_tiles(weight), bias, activation_group)
    if order is None or activation_group:
        order = natural_order(weight.shape[0])
    if bias is not None and order.name != NATURAL:
        bias = bias[order.rows.long().to(bias.device)]
    return Linear(cuda.pack_tiles(weight, order), bias, activation_group)


def _why_not_on_cpu(weight: Union[QuantizedWeight, Int8Weight]) -> Optional[str]:
    if extension.load() is None:
        return extension.why_absent()
    return int8_refusal(weight) if isinstance(weight, Int8Weight) else cpu_tiles_refusal(weight)


def _kind(weight: StoredWeight) -> str:
    if isinstance(weight, QuantizedWeight):
        return f'{weight.bits} bits in groups of {weight.group_size}'
    return 'int8' if isinstance(weight, Int8Weight) else 'plain'
