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
"""What the quantized formats share: scales in fp16, and the group size that their shape tells."""

from __future__ import annotations

import torch
from torch import Tensor

from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.errors import CheckpointError


def to_fp16(name: str, scales: Tensor) -> Tensor:
    """
    Return scales in fp16.

    :raises CheckpointError: a value is beyond fp16.
    """
    half = scales.half()
    if not torch.isfinite(half).all():
        raise CheckpointError(f'{name}: expected values that fp16 holds, got larger ones')
    return half


def group_size_of(reader: CheckpointReader, scales: str, dim: int, k: int) -> int:
    """
    Return G of a tensor that has K/G entries along ``dim``.

    :raises CheckpointError: no even G has them.
    """
    shape = reader.shape(scales)
    groups = shape[dim] if len(shape) == 2 else 0
    if groups < 1 or k % groups or (k // groups) % 2:
        raise CheckpointError(f'{scales}: expected K/G as dimension {dim}, with an even group '
                              f'size G that divides K = {k}, got {shape}')
    return k // groups


def padded_groups(k: int, group_size: int) -> int:
    """Return how many groups of a row llm-awq and AutoAWQ's gemv formats store: 8 * Zw."""
    multiple = {32: 32, 64: 16}.get(group_size, 8)
    return -(-(k // group_size) // multiple) * multiple


def padded_group_size_of(reader: CheckpointReader, scales: str, dim: int, k: int) -> int:
    """
    Return G of a tensor that has :func:`padded_groups` entries along ``dim``.

    They tell 32, 64 and 128 apart. Where they leave open whether a row of up to 1024 has groups
    of 128 or is one group, the configuration decides, but among sizes that fit them only.

    :raises CheckpointError: no group size fits, or several do and none of them is claimed.
    """
    entries = reader.matrix_shape(scales)[dim]
    claimed = k if reader.claimed_group_size == -1 else reader.claimed_group_size
    fitting = {size for size in (32, 64, 128, k, claimed) if _fits(size, k, entries)}
    if claimed in fitting:
        return claimed
    if len(fitting) != 1:
        raise CheckpointError(
            f'{scales}: expected a dimension {dim} that tells the group size of K = {k}, got '
            f"{entries}, which fits {sorted(fitting) or 'none'}; config.json says {claimed}")
    return fitting.pop()


def _fits(size: int | None, k: int, entries: int) -> bool:
    # The formats pad no other sizes than these.
    if size is None or not (size in (32, 64) or size >= 128):
        return False
    return k % size == 0 and padded_groups(k, size) == entries
