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
"""The engine on the CUDA kernels, emulated: its text is that of the CPU."""

import weakref

import pytest
from tiny_models import (
    data_path, llama_config, llama_tensors, load_folder, quantize_folder, write_model)
import torch

from tinychat_ros.engine.engine import Engine
from tinychat_ros.engine.request import FinishReason, Request
from tinychat_ros.engine.sampler import SamplingParams
from tinychat_ros.errors import CheckpointError
from tinychat_ros.kernels import cuda
from tinychat_ros.kernels.packing import CudaTiles
from tinychat_ros.models.kv_cache import KVCache

PROMPT = 'Once upon a time'


def load(model: str, max_seq_len: int = 64, **options) -> Engine:
    return Engine.load(data_path(f'models/{model}'), device='cpu', num_slots=2,
                       max_seq_len=max_seq_len, num_threads=1, **options)


def greedy(engine: Engine, tokens: int, **options) -> list[int]:
    request = Request(text=PROMPT, raw=True, max_new_tokens=tokens,
                      sampling=SamplingParams(**options))
    return [i for chunk in engine.generate(request) for i in chunk.token_ids]


@pytest.fixture(scope='module')
def expected() -> list[int]:
    return greedy(load('stories260K', dtype='float32'), 24)


def test_a_plain_model_tells_the_story_that_the_cpu_tells(expected, emulated):
    assert greedy(load('stories260K', dtype='float16'), 24) == expected


@pytest.mark.parametrize('chunk', [3, 256], ids=['gemv prefill', 'gemm prefill'])
def test_a_4_bit_model_says_what_its_oracle_says(tmp_path, request, chunk):
    path = quantize_folder(data_path('models/stories260K-pad192'), tmp_path / 'w4', 64)
    expected = greedy(Engine.load(path, device='cpu', max_seq_len=64, num_threads=1), 16)
    request.getfixturevalue('emulated')
    engine = Engine.load(path, device='cpu', dtype='float16', max_seq_len=64, prefill_chunk=chunk)
    assert greedy(engine, 16) == expected


class Logits:
    """A model with every fusion, as the CPU and as the emulated GPU compute it."""

    def __init__(self, path, request) -> None:
        config = llama_config(head_dim=16, num_attention_heads=6, num_key_value_heads=2,
                              attention_bias=True)
        write_model(path / 'fp16', config, llama_tensors(config, dtype=torch.float16))
        quantized = quantize_folder(path / 'fp16', path / 'w4', 32)
        self.oracle = load_folder(quantized)
        request.getfixturevalue('emulated')
        self.model = load_folder(quantized, torch.float16)

    def compare(self, pieces: list[int], kv_dtype: torch.dtype, tolerance: float) -> None:
        """Feed a text in pieces; the oracle has it whole."""
        ids, start = torch.arange(5, 5 + sum(pieces)) * 7 % 96, 0
        expected = self.oracle.forward(ids, self._cache(torch.float32), 1, 0, all_logits=True)
        cache = self._cache(kv_dtype)
        for piece in pieces:
            found = self.model.forward(ids[start:start + piece], cache, 1, start, all_logits=True)
            error = (found - expected[start:start + piece]).abs().max() / expected.abs().max()
            assert error < tolerance
            start += piece

    def _cache(self, dtype: torch.dtype) -> KVCache:
        return KVCache(self.model.config, 2, 41, dtype, torch.device('cpu'))


@pytest.mark.parametrize('kv_dtype, tolerance', [(torch.float16, 5e-3), (torch.int8, 2e-2)])
def test_whatever_the_pieces_the_logits_are_those_of_the_oracle(
        tmp_path, request, kv_dtype, tolerance):
    logits = Logits(tmp_path, request)
    assert all(isinstance(linear.weight, CudaTiles)
               for block in logits.model.blocks for linear in block.linears())
    logits.compare([9, 1, 8, 1, 1, 17], kv_dtype, tolerance)


@pytest.mark.parametrize('max_seq_len', [64, 61])
def test_an_int8_cache_of_any_length_tells_the_same_story(expected, emulated, max_seq_len):
    engine = load('stories260K', max_seq_len, dtype='float16', kv_cache_dtype='int8')
    assert greedy(engine, 16) == expected[:16]


def test_an_int8_head_tells_the_same_story(expected, emulated):
    engine = load('stories260K', dtype='float16', lm_head_dtype='int8')
    assert engine._runner._model.lm_head.weight.qweight.dtype == torch.int8
    assert greedy(engine, 24) == expected


@pytest.mark.parametrize('chunk', [3, 256], ids=['gemv prefill', 'gemm prefill'])
def test_an_int4_head_tells_the_story_of_the_cpu_with_one(request, chunk):
    options = {'lm_head_dtype': 'int4', 'prefill_chunk': chunk}
    expected = greedy(load('stories260K', dtype='float32', activations='fp16', **options), 24)
    request.getfixturevalue('emulated')
    engine = load('stories260K', dtype='float16', **options)
    assert isinstance(engine._runner._model.lm_head.weight, CudaTiles)
    assert greedy(engine, 24) == expected


def test_a_sampled_answer_repeats_with_its_seed_and_only_with_it(emulated):
    engine = load('stories260K', dtype='float16')
    first, other, again = (greedy(engine, 12, temperature=1.0, top_k=40, seed=seed)
                           for seed in (7, 8, 7))
    assert first == again != other


def test_a_repetition_penalty_is_the_cpu_s(emulated, monkeypatch):
    found = greedy(load('stories260K', dtype='float16'), 16, repetition_penalty=1.3)
    monkeypatch.undo()
    assert found == greedy(load('stories260K', dtype='float32'), 16, repetition_penalty=1.3)


def test_conversations_in_turn_keep_what_is_in_their_slots(emulated):
    engine = load('stories260K', dtype='float16')
    prompts = [Request(text=text, raw=True, max_new_tokens=4, conversation_id=text,
                       sampling=SamplingParams())
               for text in ('Once', 'Tim', 'Once', 'Tim')]
    answers = [[chunk for chunk in engine.generate(prompt)] for prompt in prompts]
    texts = [''.join(chunk.text for chunk in answer) for answer in answers]
    assert texts[:2] == texts[2:] and texts[0] != texts[1]
    assert answers[2][-1].result.cached_tokens > 0


def test_a_context_that_fills_up_ends_the_answer(emulated):
    engine = load('stories260K', dtype='float16')
    chunks = list(engine.generate(Request(text=PROMPT, raw=True, sampling=SamplingParams())))
    result = chunks[-1].result
    assert result.finish_reason == FinishReason.LENGTH
    assert result.prompt_tokens + result.completion_tokens == 64


def test_logits_that_are_no_numbers_are_an_error(emulated):
    engine = load('stories260K', dtype='float16')
    engine._runner._model._norm.weight.fill_(float('nan'))
    with pytest.raises(CheckpointError, match='expected finite numbers'):
        greedy(engine, 4)


def test_only_one_linear_at_a_time_is_in_memory_in_both_layouts(tmp_path, emulated, monkeypatch):
    path = quantize_folder(data_path('models/stories260K-pad192'), tmp_path / 'w4', 64)
    pack, seen = cuda.pack_tiles, []

    def watched(weight, order):
        seen.append(weakref.ref(weight.qweight))
        assert [found() is not None for found in seen] == [False] * (len(seen) - 1) + [True]
        return pack(weight, order)

    monkeypatch.setattr(cuda, 'pack_tiles', watched)
    load_folder(path, torch.float16)
    assert len(seen) == 5 * 4
