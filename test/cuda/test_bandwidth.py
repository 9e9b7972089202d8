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
"""The kernel that measures bandwidth reads every byte."""

from backend import address, Backend
import pytest
import torch
from torch import Tensor

from tinychat_ros.kernels import cuda, extension

TILE = 512 * 8 * 4


def is_found(kernels: Backend, words: Tensor) -> bool:
    """Say whether the mark was seen in int32 [N]."""
    sink = kernels.put(torch.zeros(4, dtype=torch.int32))
    kernels.module.read_bytes(data=address(words), bytes=words.nbytes, sink=address(sink),
                              stream=kernels.stream)
    assert sink[0] in (0, kernels.module.READ_MARK) and not sink[1:].any()
    return bool(sink[0])


@pytest.mark.parametrize('place', [0, 3, 513 * 4, TILE - 1, TILE, 4 * TILE + 1, 4 * TILE + 19])
def test_a_mark_anywhere_is_found(kernels, place):
    words = kernels.put(torch.zeros(4 * TILE + 20, dtype=torch.int32))
    assert not is_found(kernels, words)
    words[place] = kernels.module.READ_MARK
    assert is_found(kernels, words)


def test_less_than_a_tile_is_read_too(kernels):
    words = kernels.put(torch.zeros(4, dtype=torch.int32))
    words[3] = kernels.module.READ_MARK
    assert is_found(kernels, words)


def test_nothing_behind_the_end_is_read(kernels):
    words = kernels.put(torch.zeros(TILE + 8, dtype=torch.int32))
    words[-4:] = kernels.module.READ_MARK
    words[-1] = 0
    assert not is_found(kernels, words[:-4])


def test_the_package_reads_through_it(kernels, monkeypatch):
    monkeypatch.setattr(extension, 'cuda', lambda device: kernels.module)
    cuda.read(kernels.put(torch.zeros(TILE + 4, dtype=torch.int32)))
    cuda.synchronize(kernels.device)
