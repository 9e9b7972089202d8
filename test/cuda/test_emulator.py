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
"""The emulator reports what a GPU would answer with a hang, a trap or garbage."""

import pytest
import torch


@pytest.mark.parametrize('fault, thread, reason', [
    ('early_return', r'\d+, 0, 0', r'waits at line \d+ for ever: 63 of 64 threads came'),
    ('two_barriers', r'\d+, 0, 0', r'came to line \d+, .* while others wait at line \d+'),
    ('diverging_shuffle', r'\d+, 0, 0', r'came to line \d+, .* while others wait at line \d+'),
    ('lonely_shuffle', r'\d+, 0, 0', r'waits at line \d+ for ever: 31 of 32 threads came'),
    ('half_mask', r'\d+, 0, 0', r'line \d+: the mask does not name all 32 lanes'),
    ('misaligned_copy', '1, 0, 0', 'expected an address that is a multiple of 16'),
])
def test_a_fault_is_reported_with_kernel_block_and_thread(shuffled, fault, thread, reason):
    with pytest.raises(RuntimeError, match=(
            rf'^kernel {fault}, block \(0, [01], 0\), thread \({thread}\): {reason}')):
        shuffled.run_fault(fault)


def test_a_write_behind_the_dynamic_shared_memory_names_the_thread(shuffled):
    thread = r'kernel overrun, block \(0, 1, 0\), thread \(9, 0, 0\)'
    with pytest.raises(RuntimeError, match=f'^{thread}: wrote beside its 100 bytes'):
        shuffled.run_fault('overrun')


def test_after_a_fault_kernels_run_as_before(emulator):
    with pytest.raises(RuntimeError):
        emulator.run_fault('early_return')
    emulator.launch_nothing(1, 32, 0)


@pytest.mark.parametrize('grid_y, threads, shared_bytes, reason', [
    (1, 0, 0, 'expected a block of a multiple of 32 up to 1024 threads, got (0, 1, 1)'),
    (1, 48, 0, 'expected a block of a multiple of 32 up to 1024 threads, got (48, 1, 1)'),
    (1, 1056, 0, 'expected a block of a multiple of 32 up to 1024 threads, got (1056, 1, 1)'),
    (0, 32, 0, 'expected a grid of at least 1 block, y and z up to 65535, got (1, 0, 1)'),
    (65536, 32, 0, 'expected a grid of at least 1 block, y and z up to 65535, got (1, 65536, 1)'),
    (1, 32, 166913, 'expected at most 166912 bytes of dynamic shared memory, got 166913'),
])
def test_a_launch_that_no_gpu_takes_is_refused(emulator, grid_y, threads, shared_bytes, reason):
    with pytest.raises(RuntimeError) as refused:
        emulator.launch_nothing(grid_y, threads, shared_bytes)
    assert str(refused.value) == f'kernel nothing: {reason}'


def test_every_block_finds_its_shared_memory_poisoned(emulator):
    found = torch.zeros(3, 64, 2)
    emulator.uninitialized(found.data_ptr(), 3)
    assert found.isnan().all()


def test_atomics_count_every_thread_and_the_seed_decides_their_order(emulator):
    orders = set()
    for seed in (0, 1, 2, 0):
        count, order = torch.zeros(1, dtype=torch.int32), torch.zeros(256, dtype=torch.int32)
        emulator.set_seed(seed)
        emulator.count(count.data_ptr(), order.data_ptr(), 2, 128)
        assert count.item() == 256
        assert torch.equal(order.sort().values, torch.arange(256, dtype=torch.int32))
        orders.add(tuple(order.tolist()))
    assert len(orders) == 3
