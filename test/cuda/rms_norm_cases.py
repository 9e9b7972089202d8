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
"""RMSNorm on the emulator against the reference; the planted faults use it too."""

from types import ModuleType

import torch

from tinychat_ros.kernels import reference

HIDDEN = (8, 64, 80, 128, 4096, 4104)
TOKENS = (1, 3)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
EPS = 1e-5


def check(emulator: ModuleType, hidden: int, tokens: int, dtype: torch.dtype, residual: bool,
          in_place: bool = False) -> None:
    """Compare y, and x where a residual is added to it; one rounding may go the other way."""
    x = torch.randn(tokens, hidden).to(dtype)
    added = torch.randn(tokens, hidden).to(dtype)
    weight = torch.randn(hidden).to(dtype)
    expected_x = x + added if residual else x.clone()
    y = x if in_place else torch.full_like(x, torch.nan)
    emulator.rms_norm(x.data_ptr(), added.data_ptr() if residual else 0, weight.data_ptr(),
                      y.data_ptr(), tokens, hidden, EPS, DTYPES.index(dtype))
    expected = reference.rms_norm(expected_x, weight, EPS)
    torch.testing.assert_close(y, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    if not in_place:
        assert torch.equal(x, expected_x)
