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

from backend import DTYPES
import pytest
from rms_norm_cases import check, HIDDEN, TOKENS
import torch


@pytest.mark.parametrize('residual', [False, True], ids=['plain', 'residual'])
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('tokens', TOKENS)
@pytest.mark.parametrize('hidden', HIDDEN)
def test_it_agrees_with_the_reference(kernels, hidden, tokens, dtype, residual):
    check(kernels, hidden, tokens, dtype, residual)


def test_the_result_may_overwrite_x(kernels):
    check(kernels, 4096, 3, torch.float16, residual=True, in_place=True)
