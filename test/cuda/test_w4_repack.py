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
"""The repacking kernel writes the bytes that packing.py writes."""

from backend import address
import pytest
import torch
from w4_cases import random_weight

from tinychat_ros.kernels.packing import (
    gate_up_order, natural_order, pack_cuda_tiles, rotary_order)


@pytest.mark.parametrize('k, group_size', [
    (32, 32), (64, 64), (128, 128), (192, 64), (160, 32), (512, 256), (8, -1), (96, -1),
    (200, -1)])
@pytest.mark.parametrize('n, rows', [
    (8, natural_order(8).rows), (40, natural_order(40).rows), (48, gate_up_order(24).rows),
    (80, rotary_order(3, 2, 16).rows), (16, torch.tensor([-1, 3, -1, -1] * 8, dtype=torch.int32)),
], ids=['half a tile', 'natural', 'gate up', 'rotary', 'few'])
def test_it_writes_what_torch_writes(one_order, n, rows, k, group_size):
    weight = random_weight(n, k, group_size)
    expected = pack_cuda_tiles(weight, rows)
    records = one_order.empty(*expected.shape, dtype=torch.uint8)
    tensors = [one_order.put(t) for t in (weight.qweight, weight.scales, weight.zeros, rows)]
    qweight, scales, zeros, rows = map(address, tensors)
    one_order.module.w4_repack(
        qweight=qweight, scales=scales, zeros=zeros, rows=rows, records=address(records),
        tiles=expected.shape[0], k=k, source_group=weight.group_size, stream=one_order.stream)
    assert torch.equal(records.cpu(), expected)
