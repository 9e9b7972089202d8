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
"""Weights and activations for the tests of the CPU kernels, and what W4A8 makes of them."""

from __future__ import annotations

import torch
from torch import Tensor

from tinychat_ros.kernels import reference
from tinychat_ros.kernels.packing import Int8Weight, pack_codes, QuantizedWeight, unpack_codes


def seeded(*numbers: int) -> torch.Generator:
    """Return random numbers that are the same in every test."""
    return torch.Generator().manual_seed(hash(numbers) % 2**31)


def random_weight(n: int, k: int, group_size: int = -1, bits: int = 4, q: int | None = None,
                  zero: int | None = None, scale: float | None = None) -> QuantizedWeight:
    """Build a weight of random values, or of the ones that are given."""
    group = k if group_size == -1 else group_size
    generator = seeded(n, k, group)

    def values(shape, value):
        random = torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8)
        return random if value is None else torch.full_like(random, value)

    scales = torch.rand(n, k // group, generator=generator) * 0.1
    if scale is not None:
        scales = torch.full_like(scales, scale)
    return QuantizedWeight(pack_codes(values((n, k), q), bits), scales.half(),
                           values((n, k // group), zero), group, bits)


def random_int8_weight(n: int, k: int) -> Int8Weight:
    """Build a weight of random values."""
    q = torch.randint(-128, 128, (n, k), generator=seeded(n, k), dtype=torch.int8)
    return Int8Weight(q, torch.rand(n, generator=seeded(n)) * 0.01)


def random_x(m: int, k: int) -> Tensor:
    """Return random activations [m, k]."""
    return torch.randn(m, k, generator=seeded(m, k))


def with_outliers(x: Tensor, block: int) -> Tensor:
    """Give a third of the blocks a value that leaves the others of them few steps."""
    groups = x.clone().view(len(x), -1, block)
    has_outlier = torch.rand(groups.shape[:2], generator=seeded(block)) < 1 / 3
    groups[..., 5] = torch.where(has_outlier, 300.0, groups[..., 5])
    return groups.view(x.shape)


def assert_matches_w4a8(out: Tensor, x: Tensor, weight: QuantizedWeight, block: int) -> None:
    """Check to a few fp32 roundings of the sum of |x| |w|; where that is 0, to the bit."""
    # fp32 holds a rounded activation to half a unit.
    x = reference.fake_quantize_activations(x, block).double()
    _assert_close_to_sums(out, x, weight, 1e-6)


def assert_matches_wna16(out: Tensor, x: Tensor, weight: QuantizedWeight) -> None:
    """Check to a few fp32 roundings of the sum of |x| |w|; where that is 0, to the bit."""
    _assert_close_to_sums(out, x.double(), weight, 2e-6)


def _assert_close_to_sums(out: Tensor, x: Tensor, weight: QuantizedWeight, bound: float) -> None:
    w = weight.dequantize(torch.float64)
    error = (out.double() - reference.linear(x, w)).abs()
    assert (error <= bound * reference.linear(x.abs(), w.abs())).all(), error.max()


def fused_w4a8(x: Tensor, weight: QuantizedWeight, block: int) -> Tensor:
    """Return the bits of W4A8 in all instruction sets but the generic one, as w4a8.h says."""
    (n, _), m = weight.shape, x.shape[0]
    planes = [(q.view(m, -1, block).double(), d.view(m, -1, 1).double())
              for q, d in reference.quantize_groups(x, block)]
    scales, zeros = (t.repeat_interleave(weight.group_size // block, 1)
                     for t in (weight.scales.float(), weight.zeros.double()))
    codes = unpack_codes(weight.qweight, weight.bits).view(n, -1, block) - zeros[..., None]
    total = torch.zeros(m, n)
    for b in range(scales.shape[1]):
        for q, d in planes:
            scaled = (q[:, b] @ codes[:, b].t()).float() * scales[:, b]
            # fp64 holds the product, and so many digits of the sum that it is as if rounded once.
            total = (total.double() + scaled.double() * d[:, b]).float()
    return total
