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
"""Memory in large pages: zero, aligned, shared by small tensors, and given back."""

import gc
import mmap

import pytest
import torch

from tinychat_ros.kernels import extension, memory

MAPPED = pytest.mark.skipif(not hasattr(mmap, 'MADV_HUGEPAGE'), reason='no large pages here')


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.int8, torch.uint8])
@pytest.mark.parametrize('shape', [(1,), (3, 5, 7), (0, 4), (9, 2**20), torch.Size([2, 2])])
def test_zeros_are_zeros_of_a_shape_and_dtype_that_can_be_written(shape, dtype):
    tensor = memory.zeros(shape, dtype)
    assert tensor.shape == shape and tensor.dtype == dtype and tensor.is_contiguous()
    assert not tensor.any()
    assert (tensor.fill_(1) == 1).all()


@MAPPED
def test_small_tensors_share_pages_and_no_byte(monkeypatch):
    monkeypatch.setattr(memory, '_arena', memory._Arena())
    tensors = [memory.zeros([size], torch.uint8).fill_(i)
               for i, size in enumerate((100, 1, 64, 5000))]
    begins = [tensor.data_ptr() for tensor in tensors]
    assert begins[0] % 2**21 == 0 and [b - begins[0] for b in begins] == [0, 128, 192, 256]
    assert all((tensor == i).all() for i, tensor in enumerate(tensors))


@MAPPED
def test_a_large_tensor_begins_with_a_page():
    assert memory.zeros([33 * 2**20], torch.uint8).data_ptr() % 2**21 == 0


@MAPPED
def test_a_chunk_is_given_back_with_the_last_tensor_in_it(monkeypatch):
    arena = memory._Arena()
    monkeypatch.setattr(memory, '_arena', arena)
    one, other = (memory.zeros([1000], torch.float32) for _ in range(2))
    view = one[5:]
    del one, other
    gc.collect()
    assert arena._chunk() is not None
    del view
    gc.collect()
    assert arena._chunk() is None
    assert not memory.zeros([1000], torch.float32).any()


@MAPPED
def test_a_full_chunk_is_followed_by_another(monkeypatch):
    monkeypatch.setattr(memory, '_arena', memory._Arena())
    tensors = [memory.zeros([20 * 2**20], torch.uint8) for _ in range(5)]
    mappings = {tensor.data_ptr() // 2**20 for tensor in tensors}
    assert len(mappings) == 5
    for i, tensor in enumerate(tensors):
        tensor[-1] = tensor[0] = i + 1
    assert [int(tensor[0]) for tensor in tensors] == [1, 2, 3, 4, 5]


def test_where_the_system_refuses_memory_is_as_usual(monkeypatch):
    def refuse(num_bytes):
        raise OSError('no')

    monkeypatch.setattr(memory, '_map', refuse)
    monkeypatch.setattr(memory, '_arena', memory._Arena())
    assert not memory.zeros([3, 4], torch.float16).any()


def test_a_copy_is_apart_from_what_it_was_made_of():
    tensor = torch.arange(12).view(3, 4).t()
    copy = memory.copied(tensor)
    assert torch.equal(copy, tensor) and copy.is_contiguous()
    tensor.zero_()
    assert copy.any()


def test_a_buffer_is_the_tensors_bytes():
    tensor = torch.tensor([1, 2], dtype=torch.int16)
    view = memory.buffer(tensor)
    assert bytes(view) == b'\1\0\2\0'
    view[2] = 7
    assert tensor.tolist() == [1, 7]


@pytest.fixture
def kernels():
    """Return the compiled module, or skip."""
    if extension.load() is None:
        pytest.skip(extension.why_absent())
    return extension.load()


def _checksum(kernels, data, num_threads=1, isa='auto'):
    return kernels.cpu_checksum(data=data.data_ptr(), bytes=data.nbytes, num_threads=num_threads,
                                isa=isa)


@pytest.mark.parametrize('size', [1, 63, 128, 1000, 2**20, 2**20 + 1, 3 * 2**20 - 5])
def test_instruction_sets_and_threads_agree_on_a_checksum(size, kernels):
    data = torch.randint(0, 256, (size,), dtype=torch.uint8)
    found = {_checksum(kernels, data, threads, isa)
             for isa in kernels.cpu_isas() for threads in (1, 2)}
    assert len(found) == 1


@pytest.mark.parametrize('size', [1, 200, 2**20 + 300])
def test_a_checksum_sees_each_changed_byte_and_the_length(size, kernels):
    data = torch.randint(0, 256, (size,), dtype=torch.uint8)
    seen = {_checksum(kernels, data), _checksum(kernels, torch.cat((data, data.new_zeros(1))))}
    places = {0, size // 2, size - 1}
    for place in places:
        changed = data.clone()
        changed[place] ^= 0x80
        seen.add(_checksum(kernels, changed))
    assert len(seen) == 2 + len(places)


def test_a_checksum_sees_what_has_changed_places(kernels):
    data = torch.arange(2**19, dtype=torch.int64)
    swapped = data.clone()
    swapped[[0, 16]] = data[[16, 0]]
    rolled = data.roll(2**17)
    assert len({_checksum(kernels, t) for t in (data, swapped, rolled)}) == 3


def test_a_checksum_of_nothing_is_refused(kernels):
    with pytest.raises(ValueError, match='cpu_checksum: bytes: expected at least 1, got 0'):
        kernels.cpu_checksum(data=64, bytes=0, num_threads=1)
