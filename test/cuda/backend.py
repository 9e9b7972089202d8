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
"""Where the CUDA kernels run in a test: on the emulator, or on a GPU with --device cuda."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, Optional

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (*HALVES, torch.float32)


@dataclass(frozen=True)
class Backend:
    """
    The launchers of csrc/cuda/launchers.h and the device that their tensors are on.

    :param module: tinychat_emu with tensors on the CPU, or tinychat_kernels with a GPU's.
    """

    module: ModuleType
    device: torch.device

    @property
    def stream(self) -> int:
        """Return the stream that kernels are to run on."""
        return torch.cuda.current_stream().cuda_stream if self.device.type == 'cuda' else 0

    def put(self, tensor: Tensor) -> Tensor:
        """Return a contiguous copy of a tensor on the device."""
        return tensor.detach().clone().contiguous().to(self.device)

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return a tensor of the device whose every byte is 0xff: NaN in every float format."""
        made = torch.empty(shape, dtype=dtype, device=self.device)
        made.view(torch.uint8).fill_(0xff)
        return made

    def shuffle(self, order: int) -> None:
        """Take another order of the emulator's threads; a GPU has its own."""
        if self.device.type == 'cpu':
            self.module.set_seed(order)

    def state(self, slot: int = 0, position: int = 0, token: int = 0, step: int = 0) -> Tensor:
        """Return a StepState."""
        return torch.tensor([slot, position, token, step], dtype=torch.int32, device=self.device)


def address(tensor: Optional[Tensor]) -> int:
    """Return where a tensor lies; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def dtype_index(dtype: torch.dtype) -> int:
    """Return a dtype as the launchers take it."""
    return DTYPES.index(dtype)


def w4_input(backend: Backend, x: Tensor, records: Tensor, n: int, group_size: int,
             bias: Optional[Tensor] = None, norm: Optional[tuple[Tensor, float]] = None,
             following: Optional[Tensor] = None) -> Any:
    """Return a W4Input for x [m, k]; the tensors must outlive it."""
    norm_weight, norm_eps = norm or (None, 0.0)
    return backend.module.W4Input(
        x=address(x), records=address(records), bias=address(bias),
        norm_weight=address(norm_weight), norm_eps=norm_eps, m=x.shape[0], n=n, k=x.shape[1],
        group_size=group_size, next=address(following),
        next_bytes=0 if following is None else following.nbytes, dtype=dtype_index(x.dtype),
        stream=backend.stream)
