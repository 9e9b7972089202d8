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
"""
Large tensors of the CPU in pages of 2 MiB, where the system gives such pages.

A matrix-vector product reads all of its weight once, and no processor remembers the addresses of
so many pages of 4 KiB: with them it took up to 1.12 times as long, though it asks for them ahead.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import threading
from typing import Optional, Sequence
import weakref

import torch
from torch import Tensor

_PAGE_BYTES = 2 * 2**20
# Of tensors that share pages. What nobody writes to takes no memory.
_CHUNK_BYTES = 64 * 2**20
_ALIGNMENT = 64


class _Arena:
    """Hands out parts of mappings; one is unmapped with the last tensor in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunk: Optional[weakref.ref[mmap.mmap]] = None
        self._end = 0

    def take(self, num_bytes: int) -> tuple[mmap.mmap, int]:
        """
        Return a mapping and an offset in it, from where so many bytes are zero and unused.

        :raises OSError: the system gives no such mapping.
        """
        if 2 * num_bytes > _CHUNK_BYTES:
            return _map(num_bytes)
        with self._lock:
            chunk, begin = self._chunk and self._chunk(), self._end
            if chunk is None or begin + num_bytes > len(chunk):
                chunk, begin = _map(_CHUNK_BYTES)
                self._chunk = weakref.ref(chunk)
            self._end = begin + math.ceil(num_bytes / _ALIGNMENT) * _ALIGNMENT
        return chunk, begin


_arena = _Arena()


def zeros(shape: Sequence[int], dtype: torch.dtype,
          device: torch.device = torch.device('cpu')) -> Tensor:
    """Return zeros, on the CPU of memory that is not taken before something is written to it."""
    num_bytes = math.prod(shape) * dtype.itemsize
    if device.type != 'cpu' or num_bytes == 0 or not hasattr(mmap, 'MADV_HUGEPAGE'):
        return torch.zeros(*shape, dtype=dtype, device=device)
    try:
        mapping, begin = _arena.take(num_bytes)
    except OSError:
        return torch.zeros(*shape, dtype=dtype)
    return torch.frombuffer(mapping, dtype=dtype, count=math.prod(shape),
                            offset=begin).view(*shape)


def copied(tensor: Tensor) -> Tensor:
    """Return a copy in such memory."""
    return zeros(tensor.shape, tensor.dtype, tensor.device).copy_(tensor)


def buffer(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU, which must outlive them."""
    array = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
    return memoryview(array).cast('B')


def _map(num_bytes: int) -> tuple[mmap.mmap, int]:
    mapping = mmap.mmap(-1, num_bytes + _PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    address = torch.frombuffer(mapping, dtype=torch.uint8, count=1).data_ptr()
    return mapping, -address % _PAGE_BYTES
