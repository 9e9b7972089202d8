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
"""RMSNorm for CUDA gives what the reference gives."""

from backend import address, Backend, dtype_index, DTYPES
import pytest
import torch

from tinychat_ros.kernels import reference

HIDDEN = (8, 64, 80, 128, 4096, 4104)
TOKENS = (1, 3)
EPS = 1e-5


def check(kernels: Backend, hidden: int, tokens: int, dtype: torch.dtype, residual: bool,
          in_place: bool = False) -> None:
    """Compare y, and x where a residual is added to it; one rounding may go the other way."""
    x = kernels.put(torch.randn(tokens, hidden).to(dtype))
    added = kernels.put(torch.randn(tokens, hidden).to(dtype)) if residual else None
    weight = kernels.put(torch.randn(hidden).to(dtype))
    expected_x = x + added if residual else x.clone()
    y = x if in_place else kernels.empty(tokens, hidden, dtype=dtype)
    kernels.module.rms_norm(
        x=address(x), residual=address(added), weight=address(weight), y=address(y),
        tokens=tokens, hidden=hidden, eps=EPS, dtype=dtype_index(dtype), stream=kernels.stream)
    expected = reference.rms_norm(expected_x, weight, EPS)
    torch.testing.assert_close(y, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    if not in_place:
        assert torch.equal(x, expected_x)


@pytest.mark.parametrize('residual', [False, True], ids=['plain', 'residual'])
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('tokens', TOKENS)
@pytest.mark.parametrize('hidden', HIDDEN)
def test_it_agrees_with_the_reference(kernels, hidden, tokens, dtype, residual):
    check(kernels, hidden, tokens, dtype, residual)


def test_the_result_may_overwrite_x(kernels):
    check(kernels, 4096, 3, torch.float16, residual=True, in_place=True)
