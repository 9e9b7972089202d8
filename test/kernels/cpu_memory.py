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
"""Memory that the CPU kernels of csrc/cpu/ops.h write, and what they are called with."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

_FENCE = 32
_UNTOUCHED = -7.0


class Result:
    """
    Memory for fp32 results, with a fence behind it.

    :param shape: of the results.
    """

    def __init__(self, *shape: int) -> None:
        self._memory = torch.full((torch.Size(shape).numel() + _FENCE,), _UNTOUCHED)
        self._values = self._memory[:-_FENCE].view(shape)

    @property
    def address(self) -> int:
        """Return where the results go."""
        return self._memory.data_ptr()

    def read(self) -> Tensor:
        """Return the results; nothing behind them may have been written."""
        assert (self._memory[-_FENCE:] == _UNTOUCHED).all()
        return self._values


def state_of(slot: int = 0, position: int = 0, token: int = 0, step: int = 0) -> Tensor:
    """Return a StepState."""
    return torch.tensor([slot, position, token, step], dtype=torch.int32)
