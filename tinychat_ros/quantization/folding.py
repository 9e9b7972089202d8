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
"""Where the inverse of a scale goes: a norm's tensors, rows of a linear, in what fp16 holds."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from tinychat_ros.kernels.ops import AnyNorm, LayerNorm


def fold_into_norm(norm: AnyNorm, factors: Tensor,
                   offset: float = 0.0) -> tuple[AnyNorm, Tensor]:
    """
    Divide a norm by factors [H]; return it and the factors that its fp16 tensors stand for.

    :param offset: what is added to the stored weight.
    """
    weight = (norm.weight / factors - offset).half().float() + offset
    usable = (weight != 0) & torch.isfinite(weight) & (norm.weight != 0)
    exact = torch.where(usable, norm.weight / weight, torch.ones_like(weight))
    bias = _bias(norm)
    if bias is not None:
        usable &= torch.isfinite((bias / exact).half())
        exact = torch.where(usable, exact, torch.ones_like(exact))
        norm = norm._replace(bias=bias / exact)
    return norm._replace(weight=torch.where(usable, weight, norm.weight)), exact


def norm_tensors(name: str, norm: AnyNorm, offset: float) -> dict[str, Tensor]:
    """Return a norm as it is stored, in fp16."""
    bias = _bias(norm)
    return {f'{name}.weight': (norm.weight - offset).half(),
            **({} if bias is None else {f'{name}.bias': bias.half()})}


def as_stored(norm: AnyNorm, offset: float) -> AnyNorm:
    """Return what is left of a norm in fp16."""
    rounded = norm._replace(weight=(norm.weight - offset).half().float() + offset)
    bias = _bias(norm)
    return rounded if bias is None else rounded._replace(bias=bias.half().float())


def fp16_holds(values: Tensor, bias: Optional[Tensor], factors: Tensor) -> Tensor:
    """Say for each row of values [N, C] whether fp16 has 8 bits of it divided by its factor."""
    folded = values / factors[:, None]
    error = (folded.half().float() - folded).abs().amax(1)
    holds = error <= folded.abs().amax(1) * 2**-8
    return holds if bias is None else holds & torch.isfinite((bias / factors).half())


def _bias(norm: AnyNorm) -> Optional[Tensor]:
    return norm.bias if isinstance(norm, LayerNorm) else None
