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

from typing import Any

import torch
from torch import Tensor

from tinychat_ros.kernels import extension, reference

FP16, INT8, FP32 = torch.float16, torch.int8, torch.float32
DTYPES = (FP16, torch.bfloat16, FP32)
SLOT = 1

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


def rms_norm(x: Tensor, weight: Tensor, isa: str, eps: float = 1e-5,
             num_threads: int = 1) -> Tensor:
    """Return what cpu_rms_norm makes of x [T, H]."""
    y = Result(*x.shape)
    extension.load().cpu_rms_norm(
        x=x.data_ptr(), weight=weight.data_ptr(), y=y.address, tokens=x.shape[0],
        hidden=x.shape[1], eps=eps, dtype=DTYPES.index(weight.dtype), num_threads=num_threads,
        isa=isa)
    return y.read()


def state_of(slot: int = 0, position: int = 0, token: int = 0, step: int = 0) -> Tensor:
    """Return a StepState."""
    return torch.tensor([slot, position, token, step], dtype=torch.int32)


def between_halves(head_dim: int) -> Tensor:
    """Return what is in the middle of two halves or beside it, fp32 [T, 1, head_dim]."""
    bits = torch.arange(0, 0x7c01, dtype=torch.int16)
    halves = bits.view(FP16).float()
    halves[-1] = 2.0 ** 16  # What would follow the largest one.
    middle = (halves[:-1] + halves[1:]) / 2
    up, down = (torch.nextafter(middle, torch.tensor(to)) for to in (1e9, -1e9))
    return torch.stack([middle, up, down, -middle]).view(-1, 1, head_dim)


class Cache:
    """
    A cache of two slots that hold nothing but NaN; int8 codes are all -1.

    :param kind: the dtype of keys and values.
    """

    def __init__(self, kv_heads: int, max_seq_len: int, head_dim: int, kind: torch.dtype) -> None:
        def empty(*shape, dtype):
            made = torch.empty(shape, dtype=dtype)
            made.view(torch.uint8).fill_(0xff)
            return made
        shape = (2, kv_heads, max_seq_len)
        self.kind = kind
        self.k, self.v = (empty(*shape, head_dim, dtype=kind) for _ in range(2))
        self.k_scale, self.v_scale = (
            empty(*shape, dtype=FP16) if kind == INT8 else None for _ in range(2))

    def put(self, start: int, k: Tensor, v: Tensor) -> None:
        """Append k and v [T, kv_heads, head_dim] at a position of slot 1."""
        at = slice(start, start + len(k))
        for x, values, scales in ((k, self.k, self.k_scale), (v, self.v, self.v_scale)):
            x = x.transpose(0, 1)
            if scales is not None:
                x, scales[SLOT, :, at] = reference.quantize_kv(x)
            values[SLOT, :, at] = x.to(self.kind)

    def fill(self, length: int) -> Cache:
        """Put random numbers at the first positions of slot 1."""
        shape = (length, self.k.shape[1], self.k.shape[3])
        self.put(0, torch.randn(shape), torch.randn(shape))
        return self

    def rows(self, length: int) -> list[Tensor]:
        """Return the first keys and values of slot 1, fp32 [kv_heads, length, head_dim]."""
        return [values[SLOT, :, :length].float() if scales is None
                else reference.dequantize_kv(values[SLOT, :, :length], scales[SLOT, :, :length])
                for values, scales in ((self.k, self.k_scale), (self.v, self.v_scale))]

    def arguments(self) -> dict[str, Any]:
        """Return what a KvCache of csrc/cpu/ops.h holds, in its order, without the state."""
        _, kv_heads, max_seq_len, head_dim = self.k.shape
        return {'k': self.k, 'v': self.v, 'k_scale': self.k_scale, 'v_scale': self.v_scale,
                'dtype': DTYPES.index(FP32 if self.kind == INT8 else self.kind),
                'kv_heads': kv_heads, 'max_seq_len': max_seq_len, 'head_dim': head_dim}

    def tensors(self) -> list[Tensor]:
        """Return all that is in memory."""
        return [x for x in (self.k, self.v, self.k_scale, self.v_scale) if x is not None]
