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
"""What config.json may say, and what is refused."""

import json

import pytest
from tiny_models import llama_config

from tinychat_ros.errors import CheckpointError, UnsupportedModelError
from tinychat_ros.models.config import ModelConfig
from tinychat_ros.models.registry import read_config
from tinychat_ros.models.rope import RopeConfig

_LLAMA3 = {'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0,
           'high_freq_factor': 4.0, 'original_max_position_embeddings': 8192}


def test_what_is_left_out_has_the_defaults_of_hugging_face():
    config = ModelConfig.from_dict(llama_config(
        num_key_value_heads=None, head_dim=None, rms_norm_eps=None, tie_word_embeddings=None,
        rope_theta=None, max_position_embeddings=None, hidden_act=None))
    assert (config.num_key_value_heads, config.head_dim) == (4, 16)
    assert (config.norm_eps, config.tie_word_embeddings) == (1e-6, False)
    assert (config.max_position_embeddings, config.rope) == (2048, RopeConfig())


@pytest.mark.parametrize('old, new', [
    ({'rope_theta': 7.0}, {'rope_parameters': {'rope_type': 'default', 'rope_theta': 7.0}}),
    ({'rope_theta': 7.0, 'rope_scaling': {'type': 'linear', 'factor': 2.0}},
     {'rope_parameters': {'rope_type': 'linear', 'rope_theta': 7.0, 'factor': 2.0}}),
    ({'rope_theta': 7.0, 'rope_scaling': _LLAMA3},
     {'rope_parameters': {**_LLAMA3, 'rope_theta': 7.0}}),
    ({'rope_theta': 7.0, 'rope_scaling': None},
     {'rope_theta': 7.0, 'rope_parameters': {'rope_type': 'default'}}),
])
def test_rope_is_read_as_transformers_4_and_5_write_it(old, new):
    assert RopeConfig.from_dict(old) == RopeConfig.from_dict(new)


@pytest.mark.parametrize('value, ids', [(None, ()), (2, (2,)), (0, (0,)), ([1, 2], (1, 2))])
def test_eos_may_be_absent_one_or_several(value, ids):
    assert ModelConfig.from_dict(llama_config(eos_token_id=value)).eos_token_ids == ids


@pytest.mark.parametrize('key', ['model_type', 'vocab_size', 'hidden_size', 'intermediate_size',
                                 'num_hidden_layers', 'num_attention_heads'])
def test_a_missing_key_is_named(key):
    with pytest.raises(CheckpointError, match=f"'{key}'"):
        ModelConfig.from_dict(llama_config(**{key: None}))


@pytest.mark.parametrize('key', ['vocab_size', 'hidden_size', 'num_attention_heads', 'head_dim',
                                 'num_key_value_heads', 'max_position_embeddings'])
@pytest.mark.parametrize('value', [0, -1, '64', 1.5, True, [64], {}])
def test_a_count_must_be_a_positive_integer(key, value):
    with pytest.raises(CheckpointError, match=f'{key}: expected a positive integer, got'):
        ModelConfig.from_dict(llama_config(**{key: value}))


@pytest.mark.parametrize('key', ['rms_norm_eps', 'rope_theta'])
@pytest.mark.parametrize('value', ['0', '-1', '"1e-5"', 'NaN', 'Infinity', 'true', '9' * 400])
def test_a_number_must_be_positive_and_finite(key, value):
    config = llama_config(**{key: json.loads(value)})
    with pytest.raises(CheckpointError, match=f'{key}: expected a positive number'):
        ModelConfig.from_dict(config)


@pytest.mark.parametrize('changes, named', [
    ({'num_attention_heads': 5, 'num_key_value_heads': 2}, 'num_key_value_heads = 2, got 5'),
    ({'num_attention_heads': 5, 'num_key_value_heads': 1, 'head_dim': None},
     'multiple of num_attention_heads = 5, got 64'),
    ({'head_dim': 15}, 'head_dim: expected an even number, got 15'),
    ({'tie_word_embeddings': 'false'}, 'tie_word_embeddings: expected bool'),
    ({'model_type': ['llama']}, 'model_type: expected str'),
    ({'eos_token_id': 'two'}, 'eos_token_id'),
    ({'eos_token_id': [-1]}, 'eos_token_id'),
    ({'rope_scaling': 'linear'}, 'rope_scaling: expected dict'),
    ({'rope_parameters': [1]}, 'rope_parameters: expected dict'),
    ({'rope_scaling': {'type': 'linear'}}, "'factor'"),
    ({'rope_scaling': {'type': 'linear', 'factor': 0}}, 'factor: expected a positive'),
    ({'rope_scaling': {**_LLAMA3, 'low_freq_factor': None}}, "'low_freq_factor'"),
    ({'rope_scaling': {**_LLAMA3, 'low_freq_factor': 4.0}}, 'high_freq_factor: expected more'),
])
def test_keys_that_contradict_each_other_are_refused(changes, named):
    with pytest.raises(CheckpointError, match=named):
        ModelConfig.from_dict(llama_config(**changes))


@pytest.mark.parametrize('changes, named', [
    ({'hidden_act': 'relu'}, "hidden_act: expected one of silu, .*got 'relu'"),
    ({'rope_scaling': {'rope_type': 'spiral', 'factor': 2.0}}, "got 'spiral'"),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor: expected 1'),
    ({'rope_scaling': {'rope_type': ['linear'], 'factor': 2.0}}, 'rope_type'),
])
def test_what_is_not_built_is_refused_by_name(changes, named):
    with pytest.raises(UnsupportedModelError, match=named):
        ModelConfig.from_dict(llama_config(**changes))


def test_an_unknown_architecture_is_refused_with_those_there_are():
    with pytest.raises(UnsupportedModelError, match="expected one of .*llama, .*, got 'mamba'"):
        read_config(llama_config(model_type='mamba'))
