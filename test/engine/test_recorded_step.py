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
"""On the CPU a step is recorded once; replayed anywhere it gives what its ops give one by one."""

import logging
import os

import pytest
from tiny_models import (  # noqa: F401
    llama_config, llama_tensors, load_folder, one_thread, quantize_folder, write_model)
import torch

from tinychat_ros.engine.graph_runner import GraphRunner, make_runner
from tinychat_ros.engine.model_runner import ModelRunner
from tinychat_ros.engine.sampler import SamplingParams
from tinychat_ros.errors import KernelError
from tinychat_ros.kernels import cpu, extension
from tinychat_ros.models.kv_cache import KVCache

_CPU = torch.device('cpu')
_PROMPT = [5, 9, 70, 31]


@pytest.fixture(autouse=True)
def compiled() -> None:
    if extension.load() is None:
        pytest.skip(extension.why_absent())


def model_of(path, group: int, int8: bool = False, **changes):
    config = llama_config(**changes)
    write_model(path / 'plain', config, llama_tensors(config, dtype=torch.float16))
    folder = quantize_folder(path / 'plain', path / 'w4', group) if group else path / 'plain'
    return load_folder(folder, int8_activations=int8)


def tokens_of(kind, model, kv_dtype=torch.float32, slot=1, sampling=None, count=40):
    runner = kind(model, KVCache(model.config, 2, 64, kv_dtype, _CPU), _CPU)
    last = runner.prefill(_PROMPT, slot, 0)
    answer = runner.tokens(last, slot, len(_PROMPT), sampling or SamplingParams(), _PROMPT)
    return [next(answer) for _ in range(count)]


@pytest.mark.parametrize('group, int8, kv_dtype', [
    (0, False, torch.float32), (32, False, torch.float32), (32, True, torch.float32),
    (32, True, torch.int8), (0, False, torch.float16)])
def test_its_tokens_are_those_of_the_ops_one_by_one(tmp_path, group, int8, kv_dtype):
    model = model_of(tmp_path, group, int8, num_attention_heads=6, attention_bias=True)
    assert tokens_of(GraphRunner, model, kv_dtype) == tokens_of(ModelRunner, model, kv_dtype)


@pytest.mark.parametrize('dtype, int8', [('int8', False), ('int4', False), ('int4', True)])
def test_a_rounded_head_is_recorded_too(tmp_path, dtype, int8):
    model = model_of(tmp_path, 0)
    model.quantize_head(dtype, int8)
    assert tokens_of(GraphRunner, model) == tokens_of(ModelRunner, model)


def test_a_penalty_counts_the_prompt_and_what_was_said(tmp_path):
    model = model_of(tmp_path, 0)
    sampling = SamplingParams(repetition_penalty=1.4)
    assert (tokens_of(GraphRunner, model, sampling=sampling)
            == tokens_of(ModelRunner, model, sampling=sampling)
            != tokens_of(ModelRunner, model))


def test_a_seed_gives_its_tokens_again_in_whatever_slot(tmp_path):
    model, drawn = model_of(tmp_path, 32), SamplingParams(temperature=1.5, top_p=0.9, seed=5)
    first = tokens_of(GraphRunner, model, sampling=drawn)
    assert first == tokens_of(GraphRunner, model, slot=0, sampling=drawn)
    other = SamplingParams(temperature=1.5, top_p=0.9, seed=6)
    assert first != tokens_of(GraphRunner, model, sampling=other)


def test_a_model_with_a_part_that_has_no_kernel_runs_op_by_op(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = model_of(tmp_path, 8, hidden_size=40, intermediate_size=80)
    cache = KVCache(model.config, 1, 64, torch.float32, _CPU)
    assert isinstance(make_runner(model, cache, _CPU), ModelRunner)
    assert 'decoding op by op: linear: K = 40' in caplog.text
    assert len(tokens_of(ModelRunner, model)) == 40


def test_a_model_of_kernels_alone_is_recorded(tmp_path):
    model = model_of(tmp_path, 32)
    cache = KVCache(model.config, 1, 64, torch.float32, _CPU)
    assert isinstance(make_runner(model, cache, _CPU), GraphRunner)


class _Busy:
    """Kernels that take some milliseconds, and a last one that leaves its mark."""

    def __init__(self) -> None:
        self.x, self.weight = torch.randn(64, 512), torch.randn(512, 512)
        self.mark, self._one = torch.zeros(1), torch.ones(1)
        self.replay = cpu.record(self._step)

    def _step(self) -> None:
        for _ in range(100):
            cpu.dense(self.x, self.weight)
        cpu.add(self.mark, self._one)


def test_a_step_can_be_interrupted_between_its_kernels():
    busy = _Busy()
    asked = []
    assert not busy.replay(lambda: asked.append(True) or len(asked) == 2)
    assert len(asked) == 2 and busy.mark == 0
    assert busy.replay(lambda: False) and busy.mark == 1
    assert busy.replay() and busy.mark == 2


def test_the_workers_and_the_caller_keep_to_their_processors():
    before = os.sched_getaffinity(0)
    x, weight = torch.randn(64, 512), torch.randn(512, 512)
    torch.set_num_threads(3)
    with cpu.on_processors({min(before)}):
        assert os.sched_getaffinity(0) == {min(before)}
        expected = cpu.dense(x, weight)
    assert os.sched_getaffinity(0) == before
    kept = [os.sched_getaffinity(int(thread)) for thread in os.listdir('/proc/self/task')]
    assert kept.count({min(before)}) >= 2
    with cpu.on_processors(before):
        assert torch.equal(cpu.dense(x, weight), expected)


@pytest.mark.parametrize('kind', [GraphRunner, ModelRunner])
def test_a_prefill_that_was_interrupted_between_two_blocks_can_be_run_again(tmp_path, kind):
    model, calls = model_of(tmp_path, 0), []
    runner = kind(model, KVCache(model.config, 1, 64, torch.float32, _CPU), _CPU)
    assert runner.prefill(_PROMPT, 0, 0, lambda: calls.append(1) or len(calls) == 2) is None
    fresh = kind(model, KVCache(model.config, 1, 64, torch.float32, _CPU), _CPU)
    assert torch.equal(runner.prefill(_PROMPT, 0, 0), fresh.prefill(_PROMPT, 0, 0))


@pytest.mark.parametrize('kind', [GraphRunner, ModelRunner])
def test_answers_in_two_slots_do_not_see_each_other(tmp_path, kind):
    model = model_of(tmp_path, 32)
    sampling = [SamplingParams(temperature=1.5, seed=5), SamplingParams(repetition_penalty=1.3)]
    alone = [tokens_of(kind, model, slot=slot, sampling=sampling[slot]) for slot in range(2)]
    runner = kind(model, KVCache(model.config, 2, 64, torch.float32, _CPU), _CPU)
    first, second = (
        runner.tokens(runner.prefill(_PROMPT, slot, 0), slot, len(_PROMPT), sampling[slot],
                      _PROMPT) for slot in range(2))
    found = [[next(first)], []]
    for turn in (1, 0, 1, 1, 0) * 7:
        found[turn].append(next((first, second)[turn]))
    second.close()
    found[0] += [next(first) for _ in range(8)]
    assert [tokens[:len(other)] for tokens, other in zip(alone, found)] == found


def test_an_answer_that_was_interrupted_within_a_token_goes_on_where_it_was(tmp_path):
    model = model_of(tmp_path, 0)
    expected = tokens_of(ModelRunner, model, count=6)
    runner = ModelRunner(model, KVCache(model.config, 1, 64, torch.float32, _CPU), _CPU)
    last = runner.prefill(_PROMPT, 0, 0)
    calls = []
    answer = runner.tokens(last, 0, len(_PROMPT), SamplingParams(), _PROMPT,
                           lambda: calls.append(1) or len(calls) == 6)
    found = list(answer)
    # Two blocks ask for each token after the first: the third token's last block never ran.
    assert found == expected[:3]
    last = runner.prefill(found[-1:], 0, len(_PROMPT) + 2)
    rest = runner.tokens(last, 0, len(_PROMPT) + 3, SamplingParams(), _PROMPT)
    assert [next(rest) for _ in range(3)] == expected[3:]


def test_one_step_is_recorded_at_a_time_and_a_failed_one_leaves_nothing_behind():
    with pytest.raises(RuntimeError, match='one to be recorded at a time'):
        cpu.record(lambda: cpu.record(lambda: None))
    with pytest.raises(KernelError, match='a matrix: expected a kernel'):
        cpu.record(lambda: cpu.refuse_recording('a matrix'))
    cpu.refuse_recording('nothing is recorded')
    x = torch.ones(3)
    assert torch.equal(cpu.add(x, torch.ones(3)), torch.full((3,), 2.0))
