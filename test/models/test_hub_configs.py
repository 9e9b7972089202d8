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
"""The config.json of published models, old and new, say what transformers takes them for."""

import json

from family_models import FAMILIES, hf_config
import pytest
from transformers import AutoConfig

from tinychat_ros.errors import CheckpointError, UnsupportedModelError
from tinychat_ros.models.registry import read_config

_FACTORS = [1.0 + i / 16 for i in range(48)]
_SHAPE = {'hidden_size': 4096, 'intermediate_size': 14336, 'num_attention_heads': 32,
          'num_hidden_layers': 32, 'num_key_value_heads': 8, 'vocab_size': 32000,
          'rms_norm_eps': 1e-05, 'bos_token_id': 1, 'eos_token_id': 2}
_LLAMA = {**_SHAPE, 'model_type': 'llama', 'hidden_act': 'silu', 'attention_bias': False,
          'rope_theta': 500000.0, 'max_position_embeddings': 131072, 'mlp_bias': False}
_LLAMA3 = {'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
           'original_max_position_embeddings': 8192}
_QWEN = {**_SHAPE, 'model_type': 'qwen2', 'max_position_embeddings': 32768,
         'max_window_layers': 28, 'rope_theta': 1000000.0, 'use_sliding_window': False,
         'sliding_window': 131072, 'tie_word_embeddings': False}
_PHI3 = {**_SHAPE, 'model_type': 'phi3', 'hidden_size': 3072, 'num_key_value_heads': 32,
         'max_position_embeddings': 131072, 'original_max_position_embeddings': 4096,
         'rope_theta': 10000.0, 'sliding_window': 262144, 'pad_token_id': 32000}
_GEMMA3 = {'model_type': 'gemma3_text', 'hidden_size': 1152, 'intermediate_size': 6912,
           'head_dim': 256, 'hidden_activation': 'gelu_pytorch_tanh', 'eos_token_id': [1, 106],
           'attn_logit_softcapping': None, 'final_logit_softcapping': None,
           'max_position_embeddings': 32768, 'num_attention_heads': 4, 'num_hidden_layers': 26,
           'num_key_value_heads': 1, 'query_pre_attn_scalar': 256, 'rms_norm_eps': 1e-06,
           'sliding_window': 512, 'vocab_size': 262144}
_FALCON = {'hidden_size': 4544, 'layer_norm_epsilon': 1e-05, 'alibi': False, 'bias': False,
           'bos_token_id': 11, 'eos_token_id': 11, 'vocab_size': 65024, 'parallel_attn': True}
_FALCON_7B = {**_FALCON, 'multi_query': True, 'n_head': 71, 'n_layer': 32}
_FALCON_40B = {**_FALCON, 'hidden_size': 8192, 'n_head': 128, 'n_head_kv': 8, 'n_layer': 60}

# As they are or were on the hub, without what no reader needs.
PUBLISHED = {
    'llama 2': {**_LLAMA, 'max_position_embeddings': 4096, 'rope_scaling': None},
    'llama 3.1': {**_LLAMA, 'rope_scaling': {**_LLAMA3, 'rope_type': 'llama3'},
                  'eos_token_id': [128001, 128008, 128009]},
    'codellama, linear': {**_LLAMA, 'rope_scaling': {'type': 'linear', 'factor': 4.0}},
    'mistral 0.1': {**_SHAPE, 'model_type': 'mistral', 'sliding_window': 4096,
                    'max_position_embeddings': 32768, 'rope_theta': 10000.0},
    'mistral 0.2': {**_SHAPE, 'model_type': 'mistral', 'sliding_window': None,
                    'max_position_embeddings': 32768, 'rope_theta': 1000000.0},
    'qwen2.5': _QWEN,
    'qwen2.5, stretched': {**_QWEN, 'rope_scaling': {
        'factor': 4.0, 'original_max_position_embeddings': 32768, 'type': 'yarn'}},
    'qwen2, windows': {**_QWEN, 'use_sliding_window': True},
    'qwen3': {**_QWEN, 'model_type': 'qwen3', 'head_dim': 128, 'sliding_window': None,
              'hidden_size': 2560, 'tie_word_embeddings': True},
    'phi3 128k': {**_PHI3, 'rope_scaling': {
        'long_factor': _FACTORS, 'short_factor': _FACTORS[::-1], 'type': 'longrope'}},
    'phi3 4k': {**_PHI3, 'sliding_window': 2047, 'max_position_embeddings': 4096,
                'rope_scaling': None},
    'gemma2 2b': {
        **_GEMMA3, 'model_type': 'gemma2', 'attn_logit_softcapping': 50.0, 'hidden_size': 2304,
        'final_logit_softcapping': 30.0, 'hidden_act': 'gelu_pytorch_tanh', 'num_hidden_layers': 5,
        'num_attention_heads': 8, 'num_key_value_heads': 4, 'sliding_window': 4096},
    'gemma3 1b': {**_GEMMA3, 'rope_local_base_freq': 10000, 'rope_scaling': None,
                  'rope_theta': 1000000, 'sliding_window_pattern': 6},
    'gemma3 4b, text': {
        'hidden_size': 2560, 'intermediate_size': 10240, 'model_type': 'gemma3_text',
        'num_hidden_layers': 34, 'sliding_window': 1024, 'eos_token_id': 1,
        'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'}},
    'mpt 7b': {
        'model_type': 'mpt', 'd_model': 4096, 'expansion_ratio': 4, 'logit_scale': None,
        'max_seq_len': 2048, 'n_heads': 32, 'n_layers': 32, 'no_bias': True,
        'norm_type': 'low_precision_layernorm', 'vocab_size': 50432, 'attn_config': {
            'alibi': True, 'alibi_bias_max': 8, 'attn_impl': 'torch', 'attn_pdrop': 0,
            'attn_type': 'multihead_attention', 'attn_uses_sequence_id': False, 'clip_qkv': None,
            'prefix_lm': False, 'qk_ln': False, 'softmax_scale': None}},
    'mpt storywriter': {
        'model_type': 'mpt', 'd_model': 4096, 'max_seq_len': 65536, 'n_heads': 32,
        'n_layers': 32, 'no_bias': True, 'vocab_size': 50432,
        'attn_config': {'alibi': True, 'alibi_bias_max': 16, 'clip_qkv': 6.0}},
    'falcon 11b': {
        **_FALCON, 'model_type': 'falcon', 'hidden_size': 4096, 'new_decoder_architecture': True,
        'num_attention_heads': 32, 'num_hidden_layers': 60, 'num_kv_heads': 8,
        'num_ln_in_parallel_attn': 1, 'ffn_hidden_size': 16384, 'max_position_embeddings': 8192,
        'rope_theta': 500042, 'multi_query': True, 'tie_word_embeddings': False},
}


def _rewritten(config):
    """Return what transformers 5 writes for a config.json."""
    return json.loads(AutoConfig.for_model(**json.loads(json.dumps(config))).to_json_string(False))


@pytest.mark.parametrize('name', PUBLISHED)
def test_a_published_config_is_read_as_what_transformers_rewrites_it_to(name):
    assert read_config(PUBLISHED[name]) == read_config(_rewritten(PUBLISHED[name]))


@pytest.mark.parametrize('old, new', [
    ({**_FALCON_7B, 'model_type': 'RefinedWebModel'},
     {**_FALCON, 'multi_query': True, 'num_attention_heads': 71, 'num_hidden_layers': 32}),
    ({**_FALCON_40B, 'model_type': 'RefinedWeb'},
     {**_FALCON, 'hidden_size': 8192, 'num_attention_heads': 128, 'num_kv_heads': 8,
      'num_hidden_layers': 60, 'new_decoder_architecture': True}),
], ids=['7b', '40b'])
def test_the_first_falcons_are_read_as_what_they_are_called_now(old, new):
    assert read_config(old) == read_config(_rewritten({**new, 'model_type': 'falcon'}))


def test_the_first_name_of_longrope_is_known():
    new = PUBLISHED['phi3 128k']
    old = {**new, 'rope_scaling': {**new['rope_scaling'], 'type': 'su'}}
    assert read_config(old) == read_config(new)


@pytest.mark.parametrize('name, facts', [
    ('llama 3.1', {'head_dim': 128, 'num_key_value_heads': 8,
                   'eos_token_ids': (128001, 128008, 128009)}),
    ('mistral 0.1', {'sliding_windows': (4096,) * 32}),
    ('mistral 0.2', {'sliding_windows': (0,) * 32}),
    ('qwen2.5', {'sliding_windows': (0,) * 32}),
    ('qwen2, windows', {'sliding_windows': (0,) * 28 + (131072,) * 4}),
    ('qwen3', {'head_dim': 128, 'tie_word_embeddings': True, 'exceeds_fp16': False}),
    ('gemma2 2b', {'sliding_windows': (4096, 0, 4096, 0, 4096), 'embedding_scale': 48.0,
                   'attention_scale': 1 / 16, 'norm_offset': 1.0, 'hidden_act': 'gelu_tanh',
                   'exceeds_fp16': True}),
    ('gemma3 4b, text', {'num_attention_heads': 8, 'num_key_value_heads': 4, 'head_dim': 256,
                         'vocab_size': 262208, 'tie_word_embeddings': True,
                         'exceeds_fp16': True}),
    ('mpt storywriter', {'clip_qkv': 6, 'alibi_bias_max': 16, 'rope': None,
                         'intermediate_size': 16384, 'max_position_embeddings': 65536}),
    ('falcon 11b', {'parallel': True, 'qkv_grouped': True, 'num_key_value_heads': 8,
                    'head_dim': 128}),
])
def test_a_published_config_has_the_facts_of_its_model_card(name, facts):
    config = read_config(PUBLISHED[name])
    assert {key: getattr(config, key) for key in facts} == facts


# What a family's config class makes up, and a checkpoint has to say.
_STATED = {'eos_token_id', 'max_position_embeddings'}


@pytest.mark.parametrize('name', FAMILIES)
def test_a_key_that_is_left_out_means_what_it_means_in_transformers(name):
    config = hf_config(name)
    compared = 0
    for key in config.keys() - _STATED:
        rest = {other: value for other, value in config.items() if other != key}
        try:
            found, expected = read_config(rest), read_config(_rewritten(rest))
        # It is asked for, here or there.
        except (CheckpointError, UnsupportedModelError, ValueError):
            continue
        assert found == expected, key
        compared += 1
    assert compared > 10


@pytest.mark.parametrize('name, changes, named', [
    ('mpt 7b', {'attn_config': {'alibi': False}}, 'alibi: expected True'),
    ('mpt 7b', {'attn_config': {'qk_ln': True}}, 'qk_ln: expected False'),
    ('mpt 7b', {'attn_config': {'attn_type': 'multiquery_attention'}}, 'attn_type'),
    ('mpt 7b', {'norm_type': 'rmsnorm'}, 'norm_type'),
    ('falcon 11b', {'alibi': True}, 'alibi: expected False'),
    ('falcon 11b', {'activation': 'relu'}, "activation: .*got 'relu'"),
    ('gemma3 1b', {'use_bidirectional_attention': True}, 'use_bidirectional_attention'),
    ('gemma3 1b', {'partial_rotary_factor': 0.75}, 'partial_rotary_factor: expected 1 for gem'),
    ('gemma2 2b', {'hidden_activation': 'relu'}, 'hidden_activation'),
])
def test_what_a_family_can_do_and_is_not_built_is_refused_by_name(name, changes, named):
    with pytest.raises(UnsupportedModelError, match=named):
        read_config({**PUBLISHED[name], **changes})


@pytest.mark.parametrize('name, changes, named', [
    ('qwen2, windows', {'layer_types': ['full_attention']}, 'layer_types: expected 32 of'),
    ('qwen2, windows', {'layer_types': [['full_attention']] * 32}, 'layer_types: expected 32'),
    ('qwen2.5', {'use_sliding_window': 'no'}, 'use_sliding_window: expected bool'),
    ('qwen2.5, stretched', {'rope_theta': 1}, 'rope_theta: expected more than 1, got 1'),
    ('mistral 0.1', {'sliding_window': 0}, 'sliding_window: expected a positive integer'),
    ('phi3 128k', {'original_max_position_embeddings': 1}, 'expected more than 1, got 1'),
    ('phi3 128k', {'rope_scaling': {'type': 'su', 'long_factor': [1, 'x'],
                                    'short_factor': [1]}}, 'long_factor: expected positive'),
    ('gemma2 2b', {'attn_logit_softcapping': -1}, 'attn_logit_softcapping: expected a positive'),
    ('gemma3 1b', {'sliding_window_pattern': 0}, 'sliding_window_pattern'),
    ('gemma3 1b', {'rope_local_base_freq': 'low'}, 'rope_local_base_freq'),
    ('mpt 7b', {'attn_config': [8]}, 'attn_config: expected dict'),
    ('mpt 7b', {'attn_config': {'clip_qkv': '6'}}, 'clip_qkv: expected a positive number'),
    ('falcon 11b', {'num_kv_heads': 7}, 'num_key_value_heads = 7, got 32'),
    ('falcon 11b', {'num_hidden_layers': 10**12}, 'num_hidden_layers: expected at most'),
    ('llama 2', {'head_dim': 2**20}, 'head_dim: expected at most 16777216 for all 32 heads'),
])
def test_a_value_that_cannot_be_right_is_named(name, changes, named):
    with pytest.raises(CheckpointError, match=named):
        read_config({**PUBLISHED[name], **changes})
