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
What the ops take beside activations and weights.

H = hidden size, Hq / Hkv = query / key-value heads, D = head size, V = vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor

from tinychat_ros.errors import KernelError


class Norm(NamedTuple):
    """An RMSNorm: weight [H] and epsilon."""

    weight: Tensor
    eps: float


class LayerNorm(NamedTuple):
    """A LayerNorm: weight [H], bias [H] or None, and epsilon."""

    weight: Tensor
    bias: Optional[Tensor]
    eps: float


AnyNorm = Union[Norm, LayerNorm]


class HeadNorm(NamedTuple):
    """The RMSNorm of each query and each key head, before rotation: weights [D] and epsilon."""

    q: Tensor
    k: Tensor
    eps: float


class Scores(NamedTuple):
    """
    What attention makes of the products of a query with the keys.

    :param scale: of the products, 1 / sqrt(D) as a rule.
    :param window: positions that a token sees, itself among them; 0 is all before it.
    :param softcap: bounds the scaled products, cap * tanh(product / cap); 0 leaves them.
    :param slopes: of ALiBi, fp32 [Hq]: a key so many positions back loses so many slopes; or None.
    """

    scale: float
    window: int = 0
    softcap: float = 0.0
    slopes: Optional[Tensor] = None


class RotaryTable(NamedTuple):
    """Cosines and sines of every position, each fp32 [max_seq_len, D/2]."""

    cos: Tensor
    sin: Tensor


class LayerCache(NamedTuple):
    """
    One layer's keys and values of one slot.

    :param k: [Hkv, max_seq_len, D], in the dtype of the activations or int8; likewise ``v``.
    :param k_scale: fp16 [Hkv, max_seq_len] with int8 keys, else None; likewise ``v_scale``.
    :param workspace: what cuda.attention_workspace gives, for all layers; None without kernels.
    """

    k: Tensor
    v: Tensor
    k_scale: Optional[Tensor] = None
    v_scale: Optional[Tensor] = None
    workspace: Optional[Tensor] = None


class StepState:
    """
    Where a decode step's token goes, in the memory of the device that reads it.

    :param tensor: int32 [4]: slots from the one of the LayerCache, position, token, step; see
        StepState in csrc/step.h.
    :param start: the position, where it is known on the host as well.
    """

    def __init__(self, tensor: Tensor, start: Optional[int] = None) -> None:
        self.tensor = tensor
        self.start = start

    @classmethod
    def at(cls, start: int, device: torch.device) -> StepState:
        """Return the state of a token at a position that is known."""
        return cls(torch.tensor([0, start, 0, 0], dtype=torch.int32).to(device), start)


Start = Union[int, StepState]


def on_host(start: Start) -> int:
    """
    Return a position as the reference takes it.

    :raises KernelError: only the device knows it.
    """
    if isinstance(start, int):
        return start
    if start.start is None:
        raise KernelError('position: expected a number, got one that only the device knows: the '
                          'reference cannot be part of a recorded step')
    return start.start


def on_device(start: Start, device: torch.device) -> Tensor:
    """Return a position as the CUDA kernels take it, int32 [4]."""
    return start.tensor if isinstance(start, StepState) else StepState.at(start, device).tensor


class Candidates(NamedTuple):
    """
    What may come next, as an LM head leaves it for the sampler on the device.

    :param logits: fp32 [V].
    :param best: int32 [ceil(V / 16), 2]: the bits of each tile's best logit, and its token; None
        on the CPU, whose sampler does not need them.
    """

    logits: Tensor
    best: Optional[Tensor]
