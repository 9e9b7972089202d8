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
"""LLaVA 1.5: what CLIP sees, projected into the prompt of a Llama or Mistral."""

from __future__ import annotations

from dataclasses import replace
from typing import AbstractSet, Any, Callable, Mapping

from tinychat_ros.errors import CheckpointError, UnsupportedModelError
from tinychat_ros.models.clip import VisionConfig
from tinychat_ros.models.config import ModelConfig, refuse
from tinychat_ros.models.fields import count, number, of_type
from tinychat_ros.models.llama import read_llama
from tinychat_ros.models.mistral import read_mistral
from tinychat_ros.models.names import Names

# Of each language model, what the checkpoints on the hub leave out, since transformers takes it.
_SHARED = {'hidden_size': 4096, 'num_attention_heads': 32, 'num_hidden_layers': 32}
_LANGUAGE: dict[str, tuple[Callable[[Mapping[str, Any]], ModelConfig], dict[str, Any]]] = {
    'llama': (read_llama, {**_SHARED, 'intermediate_size': 11008, 'vocab_size': 32000}),
    'mistral': (read_mistral, {
        **_SHARED, 'intermediate_size': 14336, 'num_key_value_heads': 8, 'vocab_size': 32000,
        'max_position_embeddings': 131072, 'sliding_window': 4096}),
}


def read_llava(config: Mapping[str, Any]) -> ModelConfig:
    """Read config.json; its tensors have the names of the hub's first checkpoints."""
    refuse(config, 'projector_hidden_act', 'gelu')
    refuse(config, 'image_grid_pinpoints', None)
    text = of_type(config, 'text_config', dict)
    kind = of_type(text, 'model_type', str, 'llama')
    if kind not in _LANGUAGE:
        raise UnsupportedModelError(f"config.json: text_config: model_type: expected one of "
                                    f"{', '.join(_LANGUAGE)}, got {kind!r}")
    read, defaults = _LANGUAGE[kind]
    tied = any(of_type(each, 'tie_word_embeddings', bool, False) for each in (config, text))
    language = read({**defaults, **text, 'model_type': kind, 'tie_word_embeddings': tied})
    return replace(language, model_type='llava', names=Names().below(
        'language_model.model', 'language_model.lm_head'), vision=_read_vision(config))


def placed(config: ModelConfig, tensors: AbstractSet[str]) -> ModelConfig:
    """Return a config with the names that a checkpoint's tensors have: versions differ."""
    nested = any(name.startswith('model.') for name in tensors)
    names = config.names.below('model.language_model') if nested else config.names
    if config.vision is None:
        return replace(config, names=names)
    root = 'model.' if nested else ''
    tower = f'{root}vision_tower'
    if any(name.startswith(f'{tower}.vision_model.') for name in tensors):
        tower = f'{tower}.vision_model'
    vision = replace(config.vision, tower=tower, projector=f'{root}multi_modal_projector')
    return replace(config, vision=vision, names=names)


def _read_vision(config: Mapping[str, Any]) -> VisionConfig:
    vision = of_type(config, 'vision_config', dict)
    refuse(vision, 'model_type', 'clip_vision_model')
    refuse(vision, 'hidden_act', 'quick_gelu')
    refuse(vision, 'num_channels', 3)
    hidden, heads = count(vision, 'hidden_size'), count(vision, 'num_attention_heads')
    if hidden % heads:
        raise CheckpointError('config.json: vision_config: hidden_size: expected a multiple of '
                              f'num_attention_heads = {heads}, got {hidden}')
    size, patch = count(vision, 'image_size'), count(vision, 'patch_size')
    if patch > size:
        raise CheckpointError('config.json: vision_config: patch_size: expected at most '
                              f'image_size = {size}, got {patch}')
    return VisionConfig(
        hidden_size=hidden, intermediate_size=count(vision, 'intermediate_size'),
        num_hidden_layers=_layers_that_run(config, count(vision, 'num_hidden_layers')),
        num_attention_heads=heads, image_size=size, patch_size=patch,
        layer_norm_eps=number(vision, 'layer_norm_eps', 1e-5),
        keeps_class_token=_keeps_class_token(config),
        image_token_index=count(config, 'image_token_index', 32000))


def _layers_that_run(config: Mapping[str, Any], layers: int) -> int:
    """Return how many: the feature layer counts from 0, in front of the first, or from behind."""
    feature = config.get('vision_feature_layer', -2)
    if isinstance(feature, list):
        raise UnsupportedModelError(
            f'config.json: vision_feature_layer: expected one layer, got {feature!r}')
    if not isinstance(feature, int) or not -layers - 1 <= feature <= layers:
        raise CheckpointError(f'config.json: vision_feature_layer: expected {-layers - 1} to '
                              f'{layers}, got {feature!r}')
    return feature % (layers + 1)


def _keeps_class_token(config: Mapping[str, Any]) -> bool:
    strategy = of_type(config, 'vision_feature_select_strategy', str, 'default')
    if strategy not in ('default', 'full'):
        raise UnsupportedModelError('config.json: vision_feature_select_strategy: expected '
                                    f'default or full, got {strategy!r}')
    return strategy == 'full'
