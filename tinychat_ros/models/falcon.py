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
"""Falcon 7B and 40B: attention and MLP side by side, one or few KV heads, LayerNorm, GELU."""

from __future__ import annotations

from typing import Any, Mapping

from tinychat_ros.models.config import activation, ModelConfig, refuse
from tinychat_ros.models.fields import count, number, of_type
from tinychat_ros.models.names import Names

_NAMES = {'blocks': 'transformer.h', 'embedding': 'transformer.word_embeddings',
          'norm': 'transformer.ln_f', 'qkv': ('self_attention.query_key_value',),
          'o_proj': 'self_attention.dense', 'gate_up': ('mlp.dense_h_to_4h',),
          'mlp_scales': 'mlp.act.scales', 'down_proj': 'mlp.dense_4h_to_h'}


def read_falcon(config: Mapping[str, Any]) -> ModelConfig:
    """Read config.json."""
    refuse(config, 'alibi', False)
    new = of_type(config, 'new_decoder_architecture', bool, config['model_type'] == 'RefinedWeb')
    multi_query = of_type(config, 'multi_query', bool, True)
    parallel = new or of_type(config, 'parallel_attn', bool, True)
    # The first files have the names of the model that Falcon's code came from, and for a type that
    # of its data: RefinedWebModel is 7B, RefinedWeb 40B.
    heads = count(config, 'num_attention_heads' if 'num_attention_heads' in config else 'n_head')
    kv_heads = (count(config, 'num_kv_heads', count(config, 'n_head_kv', heads))
                if new or not multi_query else 1)
    hidden = count(config, 'hidden_size')
    layers = 'num_hidden_layers' if 'num_hidden_layers' in config else 'n_layer'
    usual = {'model_type': 'falcon', 'num_attention_heads': heads, 'num_key_value_heads': kv_heads,
             'num_hidden_layers': count(config, layers),
             'intermediate_size': count(config, 'ffn_hidden_size', 4 * hidden)}
    return ModelConfig.from_dict(
        {**config, **usual}, names=_names(config, new, parallel), parallel=parallel,
        layer_norm=True, gated_mlp=False, hidden_act=activation(config, 'activation', 'gelu'),
        norm_eps=number(config, 'layer_norm_epsilon', 1e-5), qkv_grouped=kv_heads > 1,
        tie_word_embeddings=of_type(config, 'tie_word_embeddings', bool, True))


def _names(config: Mapping[str, Any], new: bool, parallel: bool) -> Names:
    if new and count(config, 'num_ln_in_parallel_attn', 2) == 2:
        return Names(**_NAMES, attention_norm='ln_attn', mlp_norm='ln_mlp')
    return Names(**_NAMES,
                 mlp_norm='input_layernorm' if parallel else 'post_attention_layernorm')
