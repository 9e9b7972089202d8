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
"""What is measured where there are kernels: each of them, on every layer, within the KV cache."""

from collections import Counter
import ctypes
from typing import Any, Callable

import pytest

from tinychat_ros.bench.bandwidth import Bandwidth
from tinychat_ros.bench import measure as module
from tinychat_ros.bench.measure import measure, ROOM
from tinychat_ros.bench.subject import of_shape, Subject
from tinychat_ros.engine.config import EngineConfig
from tinychat_ros.kernels import cuda, extension

CONTEXTS = (4, 20)


class FakeKernels:
    """Stands for the compiled module: counts launches, and steps on as the sampler does."""

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()
        self.positions: Counter[int] = Counter()
        self.read: list[int] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: self.launches.update([name])

    def KvCache(self, state: int, max_seq_len: int, **kwargs: Any) -> None:  # noqa: N802
        position = ctypes.c_int32.from_address(state + 4).value
        assert 0 <= position < max_seq_len
        self.positions[position] += 1

    def read_bytes(self, bytes: int, **kwargs: Any) -> None:  # noqa: A002
        self.read.append(bytes)

    def decode_attention_workspace(self, **kwargs: Any) -> int:
        return 16

    def sample(self, state: int, **kwargs: Any) -> None:
        self.launches['sample'] += 1
        ctypes.c_int32.from_address(state + 4).value += 1

    def wait_for_token(self, **kwargs: Any) -> int:
        return 0


@pytest.fixture
def fake(monkeypatch) -> FakeKernels:
    """Give tensors of the CPU kernels that compute nothing, and measure as much as on a GPU."""
    kernels = FakeKernels()
    monkeypatch.setattr(extension, 'cuda', lambda device: kernels)
    monkeypatch.setattr(cuda, 'record', lambda step: step)
    monkeypatch.setitem(module._EFFORTS, 'cpu', module._EFFORTS['cuda'])
    return kernels


def subject(kv_cache_dtype: str = 'auto') -> Subject:
    config = EngineConfig(device='cpu', dtype='float16', kv_cache_dtype=kv_cache_dtype,
                          num_threads=1)
    return of_shape('tiny', 32, config, max(CONTEXTS) + ROOM)


@pytest.mark.parametrize('kv_cache_dtype, kernel, bytes_per_position', [
    ('auto', 'w4_qkv', 3 * 2 * 2 * 32), ('int8', 'rope_append', 3 * 2 * 2 * 18)])
def test_every_kernel_of_the_step_is_timed(fake, kv_cache_dtype, kernel, bytes_per_position):
    measured = measure(subject(kv_cache_dtype), CONTEXTS, [8])
    assert [kernel.name for kernel, _, _ in measured.kernels] == [
        'embedding', 'qkv', 'attention@4', 'attention@20', 'o', 'gate_up', 'down', 'lm_head',
        'sampler']
    assert fake.launches[kernel] > 0 and fake.launches['prefill_attention'] > 0
    assert measured.kv_bytes == bytes_per_position
    assert all(decode.step.median > 0 for decode in measured.decode)


def test_bytes_are_those_of_the_records(fake):
    measured = measure(subject(), CONTEXTS, [8])
    # Records of 16 rows by 128 columns in groups of 32.
    record = 1024 + 4 * 32 + 32
    found = {kernel.name: kernel.bytes for kernel, _, _ in measured.kernels}
    assert found == {
        'embedding': 64 * 2, 'qkv': 8 * record, 'attention@4': 4 * 128, 'attention@20': 20 * 128,
        'o': 4 * record, 'gate_up': 16 * record, 'down': 4 * record, 'lm_head': 96 * 64 * 2,
        'sampler': 96 // 16 * 8}
    assert measured.weight_bytes == 3 * 32 * record + 96 * 64 * 2


def test_decoding_goes_on_from_its_context(fake):
    model = subject()
    fake.positions.clear()
    module._decode(model, 20, module._EFFORTS['cuda'], Bandwidth(model.device))
    # Its last prefilled token, its tokens, and the repeats of the step.
    assert min(fake.positions) == 19 and max(fake.positions) < 20 + ROOM
    assert set(range(19, 20 + 64)) <= set(fake.positions)


def test_while_they_are_timed_kernels_prefetch_for_their_like(fake):
    model = subject()
    first, second, third = model.model.blocks
    assert first.qkv[0].weight.next is first.o_proj.weight.records
    measure(model, CONTEXTS, [8])
    for block, following in ((first, second), (second, third), (third, first)):
        assert block.qkv[0].weight.next is following.qkv[0].weight.records
        assert block.o_proj.weight.next is following.o_proj.weight.records


def test_the_whole_buffer_is_read(fake):
    measure(subject(), CONTEXTS, [8])
    assert set(fake.read) == {2**20}
