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
"""The embedding for CUDA looks up rows, and knows an id that has none."""

from __future__ import annotations

from backend import address, Backend, dtype_index, DTYPES
import pytest
import torch


def check(kernels: Backend, hidden: int, dtype: torch.dtype, ids: list[int], vocab: int,
          scale: float = 1.0) -> None:
    """Compare the rows with those of the table, or with zeros."""
    table = kernels.put(torch.randn(vocab, hidden).to(dtype))
    x = kernels.empty(len(ids), hidden, dtype=dtype)
    token_ids = kernels.put(torch.tensor(ids, dtype=torch.int32))
    kernels.module.embedding(
        token_ids=address(token_ids), table=address(table), x=address(x), tokens=len(ids),
        vocab=vocab, hidden=hidden, scale=scale, dtype=dtype_index(dtype), stream=kernels.stream)
    for row, token in zip(x, ids):
        known = 0 <= token < vocab
        assert torch.equal(row, table[token] * scale if known else torch.zeros_like(row))


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('hidden', [8, 64, 80, 4096, 8200])
def test_it_copies_the_rows_of_the_ids(kernels, hidden, dtype):
    check(kernels, hidden, dtype, [4, 0, 4, 1], vocab=5)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_a_scale_is_applied_and_rounded_once(kernels, dtype):
    check(kernels, 80, dtype, [4, 0, 9], vocab=5, scale=2304 ** 0.5)


def test_an_id_that_is_not_in_the_table_gives_zeros(kernels):
    check(kernels, 64, torch.float16, [-1, 4, 5, 2**31 - 1, -2**31], vocab=5)
