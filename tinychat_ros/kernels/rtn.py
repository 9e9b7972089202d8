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
"""Grids of low-bit weights and round-to-nearest, the baseline of every other method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Union

import torch
from torch import Tensor

from tinychat_ros.errors import ConfigError
from tinychat_ros.kernels.packing import pack_codes, QuantizedWeight

BITS = (4, 3)
# fp16 has less than 8 bits left for a smaller scale.
_SMALLEST_SCALE = 1e-5


@dataclass(frozen=True)
class WeightSpec:
    """
    How weights are stored: bits, columns per group (-1: a whole row), with or without zero point.

    A symmetric grid has its zero point in the middle, 2^(bits - 1), everywhere.
    """

    bits: int = 4
    group_size: int = 128
    symmetric: bool = False

    def __post_init__(self) -> None:
        """Refuse what no format here can hold."""
        if self.bits not in BITS:
            raise ConfigError(f'bits: expected 4 or 3, got {self.bits}')
        if self.group_size != -1 and (self.group_size < 8 or self.group_size % 8):
            raise ConfigError('group size: expected a multiple of 8 or -1, one group per row, '
                              f'got {self.group_size}')

    @property
    def largest_code(self) -> int:
        """Return 2^bits - 1."""
        return 2 ** self.bits - 1

    def group(self, k: int) -> int:
        """Return the columns in a group of a weight with K = k."""
        return k if self.group_size == -1 else self.group_size


class Grid(NamedTuple):
    """The values that a weight [N, K] can take: fp32 [N, K/G] each, scales that fp16 holds."""

    scales: Tensor
    zeros: Tensor


def fit_grid(weight: Tensor, spec: WeightSpec, clip: Union[float, Tensor] = 1.0) -> Grid:
    """
    Span each group's smallest to largest value, cut at ``clip`` times its largest magnitude.

    The scale is rounded to fp16 before the weights are divided by it, so that what is stored and
    what was rounded against are the same number.

    :param weight: fp32 [N, K], finite.
    :param clip: 0 to 1, a number or [N, K/G].
    :raises ValueError: a group spans more than fp16 scales hold.
    """
    groups = _grouped(weight, spec)
    # Zero must be representable: a group of one sign would need a zero point off the grid.
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    limit = torch.maximum(-low, high) * clip
    if spec.symmetric:
        middle = 2 ** (spec.bits - 1)
        span, steps = limit, middle - 1
    else:
        low, high = torch.maximum(low, -limit), torch.minimum(high, limit)
        span, steps = high - low, spec.largest_code
    scales = (span / steps).clamp(min=_SMALLEST_SCALE).half().float()
    if not torch.isfinite(scales).all():
        raise ValueError('weight: expected groups whose scale fp16 holds, got one that spans '
                         f'{float(span.max()):g}')
    if spec.symmetric:
        return Grid(scales, torch.full_like(scales, middle))
    return Grid(scales, torch.round(-low / scales).clamp(0, spec.largest_code))


def nearest_codes(weight: Tensor, grid: Grid, spec: WeightSpec) -> Tensor:
    """Return the code nearest to each weight, fp32 [N, K] of 0 to 2^bits - 1."""
    steps = torch.round(_grouped(weight, spec) / grid.scales[..., None])
    return (steps + grid.zeros[..., None]).clamp(0, spec.largest_code).view(weight.shape)


def values(codes: Tensor, grid: Grid, spec: WeightSpec) -> Tensor:
    """Return the weights fp32 [N, K] that codes stand for."""
    steps = _grouped(codes, spec) - grid.zeros[..., None]
    return (steps * grid.scales[..., None]).view(codes.shape)


def rounded(weight: Tensor, spec: WeightSpec) -> Tensor:
    """Return a weight fp32 [N, K] after plain rounding."""
    grid = fit_grid(weight, spec)
    return values(nearest_codes(weight, grid, spec), grid, spec)


def packed(codes: Tensor, grid: Grid, spec: WeightSpec) -> QuantizedWeight:
    """Bring codes fp32 [N, K] and their grid into the form that is stored."""
    return QuantizedWeight(pack_codes(codes.to(torch.uint8), spec.bits), grid.scales.half(),
                           grid.zeros.to(torch.uint8), spec.group(codes.shape[1]), spec.bits)


def quantize_rtn(weight: Tensor, group_size: int, bits: int = 4,
                 symmetric: bool = False) -> QuantizedWeight:
    """
    Round a weight to the nearest of a grid with one scale and zero point per group.

    :param weight: [N, K], any float dtype, finite.
    :param group_size: G; -1 is one group per row. K must be a multiple of it.
    :raises ValueError: when K is not a multiple of G, the weight is not finite, or a group spans
        more than fp16 scales hold.
    """
    k = weight.shape[1]
    if group_size != -1 and (group_size <= 0 or k % group_size):
        raise ValueError(f'group size: expected a divisor of K = {k} or -1, got {group_size}')
    w = weight.detach().float()
    if not torch.isfinite(w).all():
        raise ValueError('weight: expected finite values, got NaN or infinity')
    spec = WeightSpec(bits, -1 if group_size == k else group_size, symmetric)
    grid = fit_grid(w, spec)
    return packed(nearest_codes(w, grid, spec), grid, spec)


def _grouped(weight: Tensor, spec: WeightSpec) -> Tensor:
    n, k = weight.shape
    return weight.reshape(n, -1, spec.group(k))
