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
"""Gemma 2 and 3 (text): norms around both branches, GELU, capped scores, alternating windows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Mapping

from tinychat_ros.models.config import activation, ModelConfig, refuse, sliding_windows
from tinychat_ros.models.fields import count, number, of_type, optional_number, table
from tinychat_ros.models.names import Names
from tinychat_ros.models.rope import RopeConfig

_GEMMA2 = {'attention_post_norm': 'post_attention_layernorm',
           'mlp_norm': 'pre_feedforward_layernorm', 'mlp_post_norm': 'post_feedforward_layernorm'}
# What the checkpoints on the hub leave out, since it is what transformers takes.
_SHARED = {'head_dim': 256, 'num_attention_heads': 8, 'num_key_value_heads': 4,
           'sliding_window': 4096}


def read_gemma2(config: Mapping[str, Any]) -> ModelConfig:
    """Read config.json."""
    config = {**_SHARED, 'max_position_embeddings': 8192, 'attn_logit_softcapping': 50.0,
              'final_logit_softcapping': 30.0, **config}
    return _read(config, Names(**_GEMMA2), sliding_windows(config, lambda i: i % 2 == 0))


def read_gemma3(config: Mapping[str, Any]) -> ModelConfig:
    """Read config.json of a text model, or the text part of one that sees."""
    config = {**_SHARED, 'max_position_embeddings': 131072, 'vocab_size': 262208, **config}
    names = Names(**_GEMMA2, q_norm='self_attn.q_norm', k_norm='self_attn.k_norm')
    pattern = count(config, 'sliding_window_pattern', 6)
    windows = sliding_windows(config, lambda i: (i + 1) % pattern != 0)
    return _read(config, names, windows, **_ropes(config))


def read_gemma3_of_seeing(config: Mapping[str, Any]) -> ModelConfig:
    """Read config.json of a model that sees, whose text part alone is run."""
    text = of_type(config, 'text_config', dict)
    language = read_gemma3({**text, 'model_type': 'gemma3',
                            'eos_token_id': config.get('eos_token_id', text.get('eos_token_id'))})
    return replace(language, names=language.names.below('language_model.model',
                                                        'language_model.lm_head'))


def _ropes(config: Mapping[str, Any]) -> dict[str, RopeConfig]:
    """Read the embeddings of the layers without and with a window."""
    nested = table(config, 'rope_parameters')
    if 'full_attention' in nested:
        return {'rope': RopeConfig.from_parameters(table(nested, 'full_attention'), config, 1e6),
                'local_rope': RopeConfig.from_parameters(
                    table(nested, 'sliding_attention'), config)}
    return {'rope': RopeConfig.from_dict(config, 1e6),
            'local_rope': RopeConfig(theta=number(config, 'rope_local_base_freq', 10000.0))}


def _read(config: Mapping[str, Any], names: Names, windows: tuple[int, ...],
          **ropes: RopeConfig) -> ModelConfig:
    refuse(config, 'use_bidirectional_attention', False)
    return ModelConfig.from_dict(
        config, **ropes, names=names, sliding_windows=windows, norm_offset=1.0,
        exceeds_fp16=True,
        hidden_act=activation(config, 'hidden_activation', 'gelu_pytorch_tanh'),
        attention_scale=number(config, 'query_pre_attn_scalar', 256) ** -0.5,
        attn_logit_softcapping=optional_number(config, 'attn_logit_softcapping'),
        final_logit_softcapping=optional_number(config, 'final_logit_softcapping'),
        embedding_scale=count(config, 'hidden_size') ** 0.5,
        tie_word_embeddings=of_type(config, 'tie_word_embeddings', bool, True))
