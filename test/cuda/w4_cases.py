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
"""W4 weights for the tests of kernels, and how near to the exact product a result has to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from backend import address, Backend, w4_input
import torch
from torch import Tensor

from tinychat_ros.kernels import reference
from tinychat_ros.kernels.packing import (
    natural_order, pack_codes, pack_cuda_tiles, QuantizedWeight, record_group)

EPS = 1e-5


def random_weight(n: int, k: int, group_size: int) -> QuantizedWeight:
    """Return a W4 weight [n, k] in groups of group_size; -1 is one per row."""
    group_size = k if group_size == -1 else group_size
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    zeros = torch.randint(0, 16, (n, k // group_size), dtype=torch.uint8)
    scales = torch.rand(n, k // group_size) * 0.02 + 0.001
    return QuantizedWeight(pack_codes(codes, 4), scales.half(), zeros, group_size)


def random_activations(*shape: int, dtype: torch.dtype) -> Tensor:
    """Return activations whose mean is not 0."""
    return (torch.randn(*shape) + 0.5).to(dtype)


@dataclass
class Products:
    """
    Products in fp32 of activations and a weight, and how much rounding they may show.

    :param sums: [m, n].
    :param slack: [m, n], beside what the rounding of the result to its dtype makes.
    """

    sums: Tensor
    slack: Tensor

    @staticmethod
    def of(x: Tensor, weight: QuantizedWeight, bias: Optional[Tensor] = None,
           norm: Optional[tuple[Tensor, float]] = None) -> Products:
        """Return the products of x [m, k], after the norm where there is one, plus the bias."""
        if norm is not None:
            x = reference.rms_norm(x, *norm)
        w = weight.dequantize().double().to(x.device)
        sums, magnitudes = (a.double() @ b.t() for a, b in ((x, w), (x.abs(), w.abs())))
        if bias is not None:
            sums = sums + bias.double()
        # With a norm one of the activations may be rounded the other way.
        unit = torch.finfo(x.dtype).eps / (8 if norm else 128)
        return Products(sums.float(), magnitudes.float() * unit)


def assert_near(actual: Tensor, expected: Tensor, slack: Tensor | float) -> None:
    """Compare within two roundings of the dtype of ``actual`` and a slack of the same shape."""
    error = (actual.float() - expected).abs()
    limit = 2 * torch.finfo(actual.dtype).eps * expected.abs() + slack
    assert (error <= limit).all(), f'off by {(error / limit).nan_to_num(1e9).max():.3g} limits'


def check_linear(kernels: Backend, m: int, n: int, k: int, group_size: int, dtype: torch.dtype,
                 gemv: bool, bias: bool = False, norm: bool = False, residual: bool = False,
                 in_place: bool = False, following: bool = False) -> None:
    """Run w4_linear and compare; with ``in_place`` the result overwrites the residual."""
    weight = random_weight(n, k, group_size)
    x = kernels.put(random_activations(m, k, dtype=dtype))
    records = kernels.put(pack_cuda_tiles(weight, natural_order(n).rows))
    added_bias = kernels.put(torch.randn(n).to(dtype)) if bias else None
    before = (kernels.put(torch.rand(k).to(dtype)), EPS) if norm else None
    added = kernels.put(torch.randn(m, n).to(dtype)) if residual else None
    products = Products.of(x, weight, added_bias, before)
    expected = products.sums + added.float() if residual else products.sums
    y = added if in_place else kernels.empty(m, n, dtype=dtype)
    kernels.module.w4_linear(
        w4_input(kernels, x, records, n, record_group(weight), added_bias, before,
                 records if following else None),
        gemv=gemv, residual=address(added), y=address(y))
    assert_near(y, expected, products.slack)
