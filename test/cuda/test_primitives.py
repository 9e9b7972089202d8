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
"""Each primitive of prim.cuh does on the emulator what its definition says."""

from __future__ import annotations

from backend import dtype_index, HALVES
import pytest
import torch
from torch import Tensor


def chunks(*shape: int) -> Tensor:
    """Return random 16-byte chunks: int32 [*shape, 4]."""
    return torch.randint(-2**31, 2**31, (*shape, 4), dtype=torch.int32)


def check_matmul(emulator, dtype: torch.dtype) -> None:
    """Compare with torch; integers up to 8 multiply and add without rounding."""
    a, b = torch.randint(-8, 9, (2, 16, 16)).to(dtype)
    d = torch.empty(16, 16)
    emulator.matmul_16(a.data_ptr(), b.data_ptr(), d.data_ptr(), dtype_index(dtype))
    assert torch.equal(d, a.float() @ b.float())


def check_ring_copy(emulator, steps: int) -> None:
    """Copy through three stages of shared memory."""
    values = chunks(steps, 256)
    out = torch.zeros_like(values)
    emulator.ring_copy(values.data_ptr(), out.data_ptr(), steps)
    assert torch.equal(out, values.flip(1))


@pytest.mark.parametrize('dtype', HALVES, ids=str)
def test_ldmatrix_and_mma_multiply_matrices(shuffled, dtype):
    check_matmul(shuffled, dtype)


@pytest.mark.parametrize('transposed', [False, True])
def test_ldmatrix_gives_each_lane_its_two_values_of_each_matrix(shuffled, transposed):
    matrices = torch.arange(256, dtype=torch.int16).view(4, 8, 8)
    fragments = torch.zeros(32, 4, 2, dtype=torch.int16)
    shuffled.load_matrices(matrices.data_ptr(), fragments.data_ptr(), transposed)
    if transposed:
        matrices = matrices.mT
    for lane in range(32):
        column = lane % 4 * 2
        assert torch.equal(fragments[lane], matrices[:, lane // 4, column:column + 2])


@pytest.mark.parametrize('steps', [1, 2, 3, 8])
def test_a_ring_of_asynchronous_copies_moves_every_byte(shuffled, steps):
    check_ring_copy(shuffled, steps)


def test_an_asynchronous_copy_is_not_there_before_the_wait(emulator):
    values = chunks(32)
    before, after = torch.zeros_like(values), torch.zeros_like(values)
    emulator.copy_and_look(values.data_ptr(), before.data_ptr(), after.data_ptr())
    assert (before == -1).all()
    assert torch.equal(after, values)


def test_named_barriers_hand_over_what_streaming_loads_brought(shuffled):
    values = chunks(3, 128)
    out = torch.zeros_like(values)
    shuffled.handed_over_copy(values.data_ptr(), out.data_ptr(), 3)
    assert torch.equal(out, values)


def test_shuffles_and_ballots_reach_the_lanes_they_name(shuffled):
    values = torch.randint(0, 1000, (32,), dtype=torch.int32)
    out = torch.zeros(5, 32, dtype=torch.int32)
    shuffled.shuffle_32(values.data_ptr(), out.data_ptr())
    lanes = torch.arange(32)
    odd = int(((values % 2).long() << lanes).sum())
    assert torch.equal(out[0], values[3].expand(32))
    assert torch.equal(out[1], values[lanes ^ 5])
    assert torch.equal(out[2], values[torch.where(lanes + 2 < 32, lanes + 2, lanes)])
    assert torch.equal(out[3], values[torch.where(lanes % 8 + 2 < 8, lanes + 2, lanes)])
    assert {lane & 2**32 - 1 for lane in out[4].tolist()} == {odd}


@pytest.mark.parametrize('dtype, name', [(torch.float16, 'half'), (torch.bfloat16, 'bfloat16')])
def test_16_bit_floats_convert_as_in_torch(emulator, dtype, name):
    """All of them to fp32; back from them, their middles, what is beside those, and NaN."""
    values = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    widened = torch.zeros(2**16)
    getattr(emulator, f'widen_{name}')(values.data_ptr(), widened.data_ptr(), 2**16)
    assert torch.equal(widened.nan_to_num(12345.0), values.float().nan_to_num(12345.0))

    step = 1 << (12 if dtype == torch.float16 else 15)
    bits = widened.view(torch.int32)
    near = torch.cat([bits, bits + step, bits + step - 1, bits + step + 1]).view(torch.float32)
    rounded = torch.zeros(len(near), dtype=dtype)
    getattr(emulator, f'round_to_{name}')(near.data_ptr(), rounded.data_ptr(), len(near))
    expected = near.to(dtype)
    assert torch.equal(rounded.isnan(), expected.isnan())
    numbers = ~expected.isnan()
    assert torch.equal(rounded[numbers].view(torch.int16), expected[numbers].view(torch.int16))
