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
from statistics import median
from typing import Callable, TypeVar

import torch

from tinychat_ros.bench.timing import timed
from tinychat_ros.checkpoint.loader import available_memory
from tinychat_ros.kernels import cpu, cuda, extension, memory

# Far more than a cache holds, and at most this part of the memory that is free.
_BUFFER_BYTES = {'cuda': 4 * 2**30, 'cpu': 2**29}
_FREE_MEMORY_PART = 4
_READS = 5

_MATRIX_SIZES = {'cuda': (4096, 8192), 'cpu': (1024,)}


_Found = TypeVar('_Found')


class Bandwidth:
    """
    What the memory of a device gives, read again and again.

    Of a machine that others use as well it changes within seconds: what is held against it needs a
    reading of the same moment.
    """

    def __init__(self, device: torch.device) -> None:
        size = min(_BUFFER_BYTES[device.type], available_memory(device) // _FREE_MEMORY_PART)
        self._device = device
        # Ones, since a page of the host that nothing was written to is not there.
        self._buffer = memory.zeros([size // 32 * 8], torch.float32, device).fill_(1)
        self._read = cuda.record(self._pass) if device.type == 'cuda' else self._pass
        self._readings: list[float] = []

    def beside(self, work: Callable[[], _Found]) -> tuple[_Found, float]:
        """Return what work gives, and the bytes per second that were read before and behind."""
        before = self.read()
        found = work()
        return found, (before + self.read()) / 2

    def read(self) -> float:
        """Return the bytes per second that are read now."""
        timing = timed(self._read, self._device, _READS)
        self._readings.append(self._buffer.nbytes / timing.median)
        return self._readings[-1]

    def median(self) -> float:
        """Return the median of all readings."""
        return median(self._readings)

    def copy(self) -> float:
        """Return the bytes per second that a copy reads and writes together."""
        source, target = self._buffer.chunk(2)
        copied = timed(partial(target.copy_, source), self._device, graph=True)
        return self._buffer.nbytes / copied.median

    def _pass(self) -> None:
        if extension.cuda(self._device) is not None:
            cuda.read(self._buffer)
        elif cpu.takes(self._buffer):
            cpu.read(self._buffer)
        else:
            self._buffer.sum()


def matrix_rate(device: torch.device) -> float:
    """
    Return the operations per second of torch.matmul at its best size.

    On a GPU in fp16; on a CPU in fp32, in which its models run.
    """
    dtype = torch.float16 if device.type == 'cuda' else torch.float32
    return max(_square_rate(n, dtype, device) for n in _MATRIX_SIZES[device.type])


def _square_rate(n: int, dtype: torch.dtype, device: torch.device) -> float:
    left, right = torch.randn(2, n, n, dtype=dtype, device=device)
    return 2 * n**3 / timed(partial(torch.matmul, left, right), device).median
