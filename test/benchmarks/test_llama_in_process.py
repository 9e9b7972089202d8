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
"""llama.cpp in this process: what is asked of its library, and that all of it is freed."""

import sys
from types import SimpleNamespace

from benchmarks import llama_in_process, random_gguf
from benchmarks.llama_bench import Phase
from benchmarks.llama_in_process import LlamaCppPython
import pytest

from tinychat_ros.errors import ConfigError
from tinychat_ros.models.config import ModelConfig

_DECODE, _PREFILL = Phase(0, 3), Phase(8, 0)


@pytest.fixture
def library(monkeypatch):
    """Put a library in the place of the package that notes what it is asked to do."""
    done = []

    def decode(context, tokens):
        done.append(len(tokens))
        return library.status

    def load(path, params):
        done.append((path, params.use_extra_bufts))
        return None if path == b'absent' else 'model'

    def context(model, params):
        done.append(vars(params))
        return 'context'

    library = SimpleNamespace(
        done=done, status=0, llama_token=_IntArray, llama_batch_get_one=lambda tokens, n: tokens,
        llama_log_callback=lambda function: function, llama_log_set=lambda *arguments: None,
        llama_model_default_params=SimpleNamespace, llama_context_default_params=SimpleNamespace,
        llama_model_load_from_file=load, llama_init_from_model=context, llama_decode=decode,
        llama_synchronize=lambda context: None, llama_get_memory=lambda context: 'memory',
        llama_memory_clear=lambda memory, data: done.append('clear'),
        llama_free=done.append, llama_model_free=done.append)
    monkeypatch.setitem(sys.modules, 'llama_cpp', library)
    return library


class _Multiplied(type):
    """A type that makes arrays as those of ctypes do."""

    def __mul__(cls, count):
        return lambda *values: list(values)


class _IntArray(metaclass=_Multiplied):
    pass


def test_each_phase_is_warmed_up_in_an_empty_context(library):
    LlamaCppPython().speeds('a.gguf', 'as stored', [_DECODE, _PREFILL], 2)
    assert library.done == [
        (b'a.gguf', False), {'n_ctx': 8, 'n_batch': 8, 'n_threads': 2, 'n_threads_batch': 2},
        'clear', 1, 'clear', 1, 1, 1, 'clear', 8, 'clear', 8, 'context', 'model']


def test_speeds_are_tokens_in_a_second(library, monkeypatch):
    clock = iter([0, 1, 10, 12, 20, 21, 30, 34])
    monkeypatch.setattr(llama_in_process.time, 'perf_counter', lambda: next(clock))
    assert LlamaCppPython().speeds('a.gguf', 'repacked', [_DECODE, _PREFILL], 1) == {
        _DECODE: 1.5, _PREFILL: 2}


def test_a_failure_is_named_and_frees_all(library):
    with pytest.raises(ConfigError, match='expected it to load absent'):
        LlamaCppPython().speeds('absent', 'repacked', [_DECODE], 1)
    library.status = 1
    with pytest.raises(ConfigError, match='expected it to run 8 tokens, got status 1'):
        LlamaCppPython().speeds('a.gguf', 'repacked', [_PREFILL], 1)
    assert library.done[-2:] == ['context', 'model']


def test_the_package_runs_a_model_of_random_weights(tmp_path):
    for package in ('llama_cpp', 'gguf'):
        pytest.importorskip(package, reason=f'the package {package} is not installed')
    path = tmp_path / 'model.gguf'
    random_gguf.write(path, ModelConfig.from_dict({
        'model_type': 'llama', 'max_position_embeddings': 64, 'vocab_size': 320,
        'hidden_size': 256, 'intermediate_size': 512, 'num_hidden_layers': 2,
        'num_attention_heads': 4, 'num_key_value_heads': 2, 'rms_norm_eps': 1e-5}), 'Q4_K_M')
    found = LlamaCppPython().speeds(str(path), 'repacked', [_DECODE, _PREFILL], 1)
    assert min(found.values()) > 0
