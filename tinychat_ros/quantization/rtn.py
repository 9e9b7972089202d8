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
"""Round-to-nearest quantization: the baseline, and the last step of every other method."""

from __future__ import annotations

import torch
from torch import Tensor

from tinychat_ros.kernels.packing import pack_codes, QuantizedWeight


def quantize_rtn(weight: Tensor, group_size: int) -> QuantizedWeight:
    """
    Quantize a weight to 4 bits with one scale and zero point per group (asymmetric min-max).

    The scale is rounded to fp16 before the weights are divided by it, so that what is stored and
    what was rounded against are the same number.

    :param weight: [N, K], any float dtype, finite.
    :param group_size: G; -1 is one group per row. K must be a multiple of it.
    :raises ValueError: when K is not a multiple of G, the weight is not finite, or a group spans
        more than fp16 scales hold.
    """
    n, k = weight.shape
    group = k if group_size == -1 else group_size
    if group <= 0 or k % group:
        raise ValueError(f'group size: expected a divisor of K = {k} or -1, got {group_size}')
    w = weight.detach().float().view(n, k // group, group)
    if not torch.isfinite(w).all():
        raise ValueError('weight: expected finite values, got NaN or infinity')
    # Zero must be representable: a group of one sign would need a zero point outside 0..15.
    low, high = w.amin(-1).clamp(max=0), w.amax(-1).clamp(min=0)
    scales = ((high - low) / 15).clamp(min=1e-5).half()
    if not torch.isfinite(scales).all():
        raise ValueError('weight: expected groups whose scale fp16 holds, got one that spans '
                         f'{float((high - low).max()):g}')
    step = scales.float()
    zeros = torch.round(-low / step).clamp(0, 15)
    q = (torch.round(w / step[..., None]) + zeros[..., None]).clamp(0, 15)
    return QuantizedWeight(pack_codes(q.to(torch.uint8).view(n, k), 4), scales,
                           zeros.to(torch.uint8), group)
