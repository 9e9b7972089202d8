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
"""Options of the engine: ranges, choices and what is chosen by itself."""

import os
from pathlib import Path

import pytest
from tiny_models import llama_config
import torch

from tinychat_ros.engine.config import DEMO_MODEL, EngineConfig
from tinychat_ros.engine.engine import Engine
from tinychat_ros.errors import CheckpointError, ConfigError
from tinychat_ros.kernels import extension
from tinychat_ros.models.config import ModelConfig


@pytest.mark.parametrize('name, value, expected', [
    ('device', 'gpu', "one of auto, cpu, cuda, got 'gpu'"), ('device', '', 'one of'),
    ('dtype', 'int4', "one of auto, float32, float16, bfloat16, got 'int4'"),
    ('max_seq_len', -1, '0 or more, got -1'), ('num_slots', 0, '1 or more, got 0'),
    ('memory_budget', -1, '0 or more'), ('num_threads', -1, '0 or more'),
    ('prefill_chunk', 0, '1 or more'),
    ('kv_cache_dtype', 'int4', "one of auto, int8, got 'int4'"),
    ('activations', 'int4', "one of auto, fp16, int8, got 'int4'"),
    ('lm_head_dtype', 'fp16', "one of auto, int8, int4, got 'fp16'")])
def test_an_option_out_of_its_range_is_refused_by_name(name, value, expected):
    with pytest.raises(ConfigError, match=f'{name}: expected {expected}'):
        EngineConfig(**{name: value})


def test_cuda_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ConfigError, match='device: expected a GPU'):
        EngineConfig(device='cuda')
    assert EngineConfig().torch_device() == torch.device('cpu')
    assert EngineConfig().torch_dtype() == torch.float32


def test_on_the_cpu_keys_and_values_take_16_bits_where_kernels_read_them(monkeypatch):
    half = torch.float16 if extension.load() is not None else torch.float32
    assert EngineConfig(device='cpu').torch_kv_dtype() == half
    assert EngineConfig(device='cpu', dtype='float32').torch_kv_dtype() == torch.float32
    monkeypatch.setattr(extension, 'load', lambda: None)
    assert EngineConfig(device='cpu').torch_kv_dtype() == torch.float32


def test_processors_are_numbers_and_ranges(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(8)))
    assert EngineConfig(processors='').processor_set() == frozenset()
    config = EngineConfig(processors='0-2,5,7-7')
    assert config.processor_set() == {0, 1, 2, 5, 7}
    assert config.threads(2**30) == 5


@pytest.mark.parametrize('processors', ['8', '0-8', 'all', '1,', ',1', '-1', '3-1', '1 2', '0;1'])
def test_processors_that_there_are_not_are_refused(processors, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(8)))
    with pytest.raises(ConfigError, match='processors: expected a list such as'):
        EngineConfig(processors=processors)


def test_with_a_gpu_it_is_taken_and_computes_in_half(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert EngineConfig().torch_device().type == 'cuda'
    assert EngineConfig().torch_dtype() == torch.float16
    assert EngineConfig(device='cpu').torch_dtype() == torch.float32
    assert EngineConfig(dtype='bfloat16').torch_dtype() == torch.bfloat16
    assert EngineConfig(dtype='bfloat16').torch_kv_dtype() == torch.bfloat16
    assert EngineConfig(kv_cache_dtype='int8').torch_kv_dtype() == torch.int8


@pytest.mark.parametrize('dtype, exceeds_fp16, expected', [
    ('auto', True, torch.bfloat16), ('auto', False, torch.float16),
    ('float16', True, torch.float16)])
def test_a_model_that_exceeds_fp16_is_given_bf16_on_a_gpu_unless_told_otherwise(
        monkeypatch, dtype, exceeds_fp16, expected):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    model = ModelConfig.from_dict(llama_config(), exceeds_fp16=exceeds_fp16)
    config = EngineConfig(dtype=dtype).for_model(model)
    assert config.torch_dtype() == config.torch_kv_dtype() == expected
    on_cpu = EngineConfig(device='cpu', dtype=dtype)
    assert on_cpu.for_model(model) == on_cpu


@pytest.mark.parametrize('asked, trained, length', [(0, 512, 512), (0, 131072, 2048),
                                                    (64, 512, 64), (4096, 8192, 4096)])
def test_the_context_is_what_was_asked_for_or_trained_within_reason(asked, trained, length):
    assert EngineConfig(max_seq_len=asked).seq_len(trained) == length


@pytest.mark.parametrize('name', ['', 'demo'])
def test_the_demo_is_the_default_model(name):
    assert EngineConfig(model=name).model_path == DEMO_MODEL


def test_a_home_folder_is_written_as_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert EngineConfig(model='~/model').model_path == tmp_path / 'model'


@pytest.mark.parametrize('option, environment, expected', [
    ('', {'XDG_CACHE_HOME': '/elsewhere'}, '/elsewhere/tinychat_ros'),
    ('', {'XDG_CACHE_HOME': ''}, '/robot/.cache/tinychat_ros'),
    ('', {'XDG_CACHE_HOME': 'not/absolute'}, None),
    ('off', {}, None), ('/data/weights', {}, '/data/weights'),
    ('~/weights', {}, '/robot/weights')])
def test_packed_weights_stay_in_the_users_cache_unless_said(
        option, environment, expected, monkeypatch):
    for name, value in {'HOME': '/robot', **environment}.items():
        monkeypatch.setenv(name, value)
    folder = EngineConfig(weight_cache=option).weight_cache_path
    assert folder == (expected and Path(expected))


@pytest.mark.parametrize('model', ['nowhere', '~nobody-of-this-name/model', 'a\0b', 'x' * 5000])
def test_a_folder_that_is_not_there_is_refused(model):
    with pytest.raises(CheckpointError, match='expected a checkpoint folder'):
        Engine.load(model)


def test_a_model_as_small_as_the_demo_leaves_no_file(tmp_path):
    Engine.load(device='cpu', weight_cache=str(tmp_path / 'cache'))
    assert not list(tmp_path.iterdir())
