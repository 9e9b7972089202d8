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
"""What a device can do at most: read and copy its memory, and multiply matrices."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from tinychat_ros.bench.timing import timed
from tinychat_ros.checkpoint.loader import available_memory
from tinychat_ros.kernels import cpu, cuda, extension, memory

# Far more than a cache holds, and at most this part of the memory that is free.
_BUFFER_BYTES = {'cuda': 4 * 2**30, 'cpu': 2**29}
_FREE_MEMORY_PART = 4

_MATRIX_SIZES = {'cuda': (4096, 8192), 'cpu': (1024,)}


def memory_bandwidth(device: torch.device) -> tuple[float, float]:
    """Return the bytes per second that are read, and that a copy reads and writes together."""
    size = min(_BUFFER_BYTES[device.type], available_memory(device) // _FREE_MEMORY_PART)
    # Ones, since a page of the host that nothing was written to is not there.
    buffer = memory.zeros([size // 32 * 8], torch.float32, device).fill_(1)
    source, target = buffer.chunk(2)
    read = timed(partial(_read, buffer), device, graph=True)
    copied = timed(partial(target.copy_, source), device, graph=True)
    return buffer.nbytes / read.median, buffer.nbytes / copied.median


def matrix_rate(device: torch.device) -> float:
    """
    Return the operations per second of torch.matmul at its best size.

    On a GPU in fp16; on a CPU in fp32, in which its models run.
    """
    dtype = torch.float16 if device.type == 'cuda' else torch.float32
    return max(_square_rate(n, dtype, device) for n in _MATRIX_SIZES[device.type])


def _read(buffer: Tensor) -> None:
    if extension.cuda(buffer.device) is not None:
        cuda.read(buffer)
    elif cpu.takes(buffer):
        cpu.read(buffer)
    else:
        buffer.sum()


def _square_rate(n: int, dtype: torch.dtype, device: torch.device) -> float:
    left, right = torch.randn(2, n, n, dtype=dtype, device=device)
    return 2 * n**3 / timed(partial(torch.matmul, left, right), device).median
