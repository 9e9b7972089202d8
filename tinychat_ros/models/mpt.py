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
"""MPT: ALiBi instead of rotation, LayerNorm, one QKV matrix, a GELU MLP without a gate."""

from __future__ import annotations

from typing import Any, Mapping

from tinychat_ros.models.config import ModelConfig, refuse
from tinychat_ros.models.fields import count, number, of_type, optional_number, table
from tinychat_ros.models.names import Names

NAMES = Names(
    blocks='transformer.blocks', embedding='transformer.wte', norm='transformer.norm_f',
    attention_norm='norm_1', qkv=('attn.Wqkv',), o_proj='attn.out_proj', mlp_norm='norm_2',
    gate_up=('ffn.up_proj',), mlp_scales='ffn.act.scales', down_proj='ffn.down_proj')

# What the families that are trained with MPT's code can change, and this one is built for.
_BUILT = {'norm_type': 'low_precision_layernorm', 'logit_scale': None}
_BUILT_ATTENTION = {'attn_type': 'multihead_attention', 'prefix_lm': False, 'qk_ln': False,
                    'alibi': True}


def read_mpt(config: Mapping[str, Any]) -> ModelConfig:
    """Read config.json."""
    attention = table(config, 'attn_config')
    for given, built in ((config, _BUILT), (attention, _BUILT_ATTENTION)):
        for key, value in built.items():
            refuse(given, key, value)
    hidden, heads = count(config, 'd_model', 2048), count(config, 'n_heads', 16)
    usual = {'hidden_size': hidden, 'num_attention_heads': heads,
             'num_hidden_layers': count(config, 'n_layers', 24),
             'intermediate_size': count(config, 'expansion_ratio', 4) * hidden,
             'max_position_embeddings': count(config, 'max_seq_len', 2048)}
    scales = {}
    if attention.get('softmax_scale') is not None:
        scales['attention_scale'] = number(attention, 'softmax_scale')
    return ModelConfig.from_dict(
        {**config, **usual}, **scales, names=NAMES, rope=None, layer_norm=True, gated_mlp=False,
        hidden_act='gelu', norm_eps=number(config, 'layer_norm_epsilon', 1e-5),
        alibi_bias_max=number(attention, 'alibi_bias_max', 8),
        clip_qkv=optional_number(attention, 'clip_qkv'),
        tie_word_embeddings=of_type(config, 'tie_word_embeddings', bool, True))
