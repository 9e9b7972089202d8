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
"""int8 weights as compressed-tensors stores them, for W8A8."""

from __future__ import annotations

import torch

from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.errors import CheckpointError, UnsupportedModelError
from tinychat_ros.kernels.packing import Int8Weight


def read_w8a8(reader: CheckpointReader, name: str, n: int, k: int) -> Int8Weight:
    """Read compressed-tensors' int-quantized ``weight`` int8 [N, K], ``weight_scale`` [N, 1]."""
    zero_point = f'{name}.weight_zero_point'
    if zero_point in reader.names:
        raise UnsupportedModelError(f'{zero_point}: expected a symmetric int8 weight, without it')
    qweight = reader.raw(f'{name}.weight', [n, k], torch.int8)
    scales = reader.floats(f'{name}.weight_scale', [n, 1]).float().view(n)
    if (scales < 0).any():
        raise CheckpointError(f'{name}.weight_scale: expected values of 0 or more, '
                              f'got {float(scales.min()):g}')
    return Int8Weight(qweight, scales)
