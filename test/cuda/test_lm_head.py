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
"""The LM head for CUDA gives the reference's logits, and the best of each tile of its own."""

from __future__ import annotations

from backend import address, Backend, dtype_index, HALVES
import pytest
from sampler_oracle import candidates
import torch
from torch import Tensor

from tinychat_ros.kernels import reference
from tinychat_ros.kernels.packing import Int8Weight

EPS = 1e-5

# All n and all k; the weights of the last ones fill the ring several times.
SHAPES = [(1, 16), (15, 64), (16, 128), (17, 288), (105, 64), (105, 288), (512, 16), (17, 4096),
          (105, 1040)]


def lm_head(kernels: Backend, x: Tensor, norm_weight: Tensor | None, weight: Tensor | Int8Weight,
            softcap: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the logits fp32 [n] and the candidates int32 [ceil(n / 16), 2] of x [k]."""
    n, k = weight.shape
    logits = kernels.empty(n, dtype=torch.float32)
    best = kernels.empty(-(-n // 16), 2, dtype=torch.int32)
    values, scales = (weight.qweight, weight.scales) if isinstance(weight, Int8Weight) else (
        weight, None)
    kernels.module.lm_head(
        x=address(x), norm_weight=address(norm_weight), norm_eps=EPS, weight=address(values),
        scales=address(scales), logits=address(logits), best=address(best), softcap=softcap, n=n,
        k=k, dtype=dtype_index(x.dtype), stream=kernels.stream)
    return logits, best


def check(kernels: Backend, n: int, k: int, dtype: torch.dtype, int8: bool, norm: bool = True,
          softcap: float = 0.0) -> None:
    """Compare logits of about 1; of x a few roundings may go the other way."""
    x = kernels.put(torch.randn(k).to(dtype))
    norm_weight = kernels.put(torch.randn(k).to(dtype)) if norm else None
    if int8:
        weight = Int8Weight(
            kernels.put(torch.randint(-128, 128, (n, k), dtype=torch.int8)),
            kernels.put((torch.rand(n) + 0.5) / 64 * k ** -0.5))
    else:
        weight = kernels.put((torch.randn(n, k) * k ** -0.5).to(dtype))
    logits, best = lm_head(kernels, x, norm_weight, weight, softcap)
    exact = weight.dequantize(torch.float64) if int8 else weight.double()
    expected = exact @ (reference.rms_norm(x[None], norm_weight, EPS)[0] if norm else x).double()
    if softcap:
        expected = reference.softcap(expected, softcap)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5,
                               atol=8 * torch.finfo(dtype).eps * k ** -0.5 + 2e-6)
    assert torch.equal(best.cpu(), candidates(logits))


@pytest.mark.parametrize('int8', [False, True], ids=['plain', 'int8'])
@pytest.mark.parametrize('dtype', HALVES, ids=str)
@pytest.mark.parametrize('n, k', SHAPES)
def test_it_agrees_with_the_reference(kernels, n, k, dtype, int8):
    check(kernels, n, k, dtype, int8)


@pytest.mark.parametrize('int8', [False, True], ids=['plain', 'int8'])
@pytest.mark.parametrize('dtype', HALVES, ids=str)
def test_it_needs_no_norm_and_may_cap_what_it_found(kernels, dtype, int8):
    check(kernels, 105, 288, dtype, int8, norm=False)
    check(kernels, 105, 288, dtype, int8, softcap=0.7)


def logits_of_rows(kernels: Backend, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return what lm_head makes of weights [n] that are repeated over k = 16, with x of ones."""
    ones = kernels.put(torch.ones(16, dtype=torch.float16))
    weight = kernels.put(rows.half()[:, None].expand(-1, 16))
    return lm_head(kernels, ones, ones, weight)


def test_of_equal_logits_the_first_is_the_best(kernels):
    rows = torch.zeros(33)
    rows[[5, 7, 15, 18, 31]] = 2.0
    _, best = logits_of_rows(kernels, rows)
    assert best[:, 1].tolist() == [5, 18, 32]


def test_the_best_of_a_tile_tells_of_nan_and_infinity(kernels):
    rows = torch.ones(100)
    rows[[3, 20, 22, 40, 64]] = torch.tensor(
        [float('nan'), float('inf'), 5.0, float('-inf'), float('nan')])
    rows[65:80] = float('inf')
    rows[80:96] = float('-inf')
    _, best = logits_of_rows(kernels, rows)
    found = best.cpu()[:, 0].contiguous().view(torch.float32)
    assert found[[0, 4]].isnan().all()
    assert found[[1, 5]].tolist() == [float('inf'), float('-inf')]
    assert best[[1, 2, 5, 6], 1].tolist() == [20, 32, 80, 96]


def test_logits_are_the_same_from_run_to_run(one_order):
    x = one_order.put(torch.randn(288).half())
    weight = one_order.put(torch.randn(105, 288).half())
    runs = [lm_head(one_order, x, x, weight)[0] for _ in range(2)]
    assert torch.equal(*runs)
