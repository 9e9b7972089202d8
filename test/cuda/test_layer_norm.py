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
"""LayerNorm for CUDA gives what the reference gives."""

from __future__ import annotations

from backend import address, Backend, dtype_index, DTYPES
import pytest
import torch
from torch import Tensor

from tinychat_ros.kernels import reference

EPS = 1e-5


def layer_norm(kernels: Backend, x: Tensor, weight: Tensor, bias: Tensor | None,
               y: Tensor) -> Tensor:
    """Run the kernel and return y."""
    kernels.module.layer_norm(
        x=address(x), weight=address(weight), bias=address(bias), y=address(y),
        tokens=x.shape[0], hidden=x.shape[1], eps=EPS, dtype=dtype_index(x.dtype),
        stream=kernels.stream)
    return y


def check(kernels: Backend, hidden: int, tokens: int, dtype: torch.dtype, biased: bool,
          in_place: bool = False) -> None:
    """Compare y; one rounding may go the other way."""
    x = kernels.put(torch.randn(tokens, hidden).to(dtype))
    weight, bias = (kernels.put(torch.randn(hidden).to(dtype)) for _ in range(2))
    bias = bias if biased else None
    expected = reference.layer_norm(x, weight, bias, EPS)
    y = layer_norm(kernels, x, weight, bias,
                   x if in_place else kernels.empty(tokens, hidden, dtype=dtype))
    torch.testing.assert_close(y, expected, rtol=2 * torch.finfo(dtype).eps, atol=2e-6)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('hidden, tokens, biased', [
    (8, 3, True), (64, 1, False), (80, 3, False), (128, 1, True), (4096, 3, True),
    (4104, 1, False)])
def test_it_agrees_with_the_reference(kernels, hidden, tokens, dtype, biased):
    check(kernels, hidden, tokens, dtype, biased)


def test_the_result_may_overwrite_x(kernels):
    check(kernels, 4096, 3, torch.float16, biased=True, in_place=True)


def test_values_far_from_zero_keep_their_variance(kernels):
    x = kernels.put(torch.randn(1, 128) + 3000)
    weight = kernels.put(torch.ones(128))
    y = layer_norm(kernels, x, weight, None, kernels.empty(1, 128, dtype=torch.float32))
    expected = torch.nn.functional.layer_norm(x.double(), [128], eps=EPS).float()
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-3)
