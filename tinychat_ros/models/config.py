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
"""What config.json says of a model, checked once and then trusted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Mapping, Optional

from tinychat_ros.errors import CheckpointError, UnsupportedModelError
from tinychat_ros.models.clip import VisionConfig
from tinychat_ros.models.fields import count, LARGEST_COUNT, number, of_type, token_ids
from tinychat_ros.models.names import Names
from tinychat_ros.models.rope import RopeConfig

# Hugging Face's names of activations, and those of kernels/reference.py.
ACTIVATIONS = {'silu': 'silu', 'swish': 'silu', 'gelu': 'gelu', 'gelu_pytorch_tanh': 'gelu_tanh',
               'gelu_new': 'gelu_tanh', 'gelu_fast': 'gelu_tanh'}

_LAYER_TYPES = ('sliding_attention', 'full_attention')


@dataclass(frozen=True)
class ModelConfig:
    """
    A decoder's shape, with Hugging Face's field names, and what its family does otherwise.

    :param layer_norm: norms subtract the mean.
    :param norm_offset: added to the weights of the norms.
    :param gated_mlp: the MLP multiplies the activated gate with the up projection; else it has an
        up projection alone.
    :param parallel: the MLP reads what the attention reads, and both are added to it.
    :param rope: None where positions are not rotated.
    :param local_rope: of the layers with a window, where it differs.
    :param sliding_windows: of each layer, how many positions a token sees, itself among them; 0
        is all.
    :param alibi_bias_max: of ALiBi's slopes; 0 is no ALiBi.
    :param clip_qkv: bounds what queries, keys and values are projected to; 0 leaves it.
    :param qkv_grouped: the rows of the checkpoint's one QKV matrix are, for each KV head, those of
        its query heads, its key and its value.
    :param exceeds_fp16: what flows between its blocks grows beyond the numbers of fp16.
    :param vision: of a model that sees, the tower whose output its prompts hold.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    attention_scale: float
    sliding_windows: tuple[int, ...]
    norm_eps: float = 1e-6
    layer_norm: bool = False
    norm_offset: float = 0.0
    tie_word_embeddings: bool = False
    hidden_act: str = 'silu'
    gated_mlp: bool = True
    parallel: bool = False
    eos_token_ids: tuple[int, ...] = ()
    rope: Optional[RopeConfig] = field(default_factory=RopeConfig)
    local_rope: Optional[RopeConfig] = None
    alibi_bias_max: float = 0.0
    clip_qkv: float = 0.0
    attn_logit_softcapping: float = 0.0
    final_logit_softcapping: float = 0.0
    embedding_scale: float = 1.0
    qkv_grouped: bool = False
    exceeds_fp16: bool = False
    names: Names = field(default_factory=Names)
    vision: Optional[VisionConfig] = None

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], **family: Any) -> ModelConfig:
        """
        Read the dictionary that config.json holds, under the names that most families use.

        :param family: fields that a family knows, which are then not read.
        :raises CheckpointError: a key is missing, of the wrong type or contradicts another.
        :raises UnsupportedModelError: a value is legal but not built.
        """
        heads, layers = count(config, 'num_attention_heads'), count(config, 'num_hidden_layers')
        hidden = count(config, 'hidden_size')
        head_dim = _head_dim(config, hidden, heads)
        values = {
            'rope': family['rope'] if 'rope' in family else RopeConfig.from_dict(config),
            'sliding_windows': (0,) * layers, 'attention_scale': head_dim ** -0.5,
            'norm_eps': number(config, 'rms_norm_eps', cls.norm_eps),
            'hidden_act': activation(config, 'hidden_act'),
            'tie_word_embeddings': of_type(config, 'tie_word_embeddings', bool, False), **family}
        parsed = cls(
            model_type=of_type(config, 'model_type', str),
            vocab_size=count(config, 'vocab_size'),
            hidden_size=hidden,
            intermediate_size=count(config, 'intermediate_size'),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=count(config, 'num_key_value_heads', heads),
            head_dim=head_dim,
            max_position_embeddings=count(config, 'max_position_embeddings', 2048),
            eos_token_ids=token_ids(config.get('eos_token_id')), **values)
        parsed._check()
        return parsed

    @property
    def rotary_dim(self) -> int:
        """Return how many dimensions of a head are rotated, or stay all where they are."""
        return self.head_dim if self.rope is None else self.rope.rotary_dim(self.head_dim)

    def _check(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                'config.json: num_attention_heads: expected a multiple of num_key_value_heads = '
                f'{self.num_key_value_heads}, got {self.num_attention_heads}')
        if self.num_attention_heads * self.head_dim > LARGEST_COUNT:
            raise CheckpointError(
                f'config.json: head_dim: expected at most {LARGEST_COUNT} for all '
                f'{self.num_attention_heads} heads together, got {self.head_dim} for each')
        if self.head_dim % 2:
            raise CheckpointError(f'config.json: head_dim: expected an even number, '
                                  f'got {self.head_dim}')
        for rope in (self.rope, self.local_rope):
            if rope and rope.rotary_dim(self.head_dim) < self.head_dim and len(self.names.qkv) > 1:
                raise UnsupportedModelError(
                    f'config.json: partial_rotary_factor: expected 1 for {self.model_type}, '
                    f'got {rope.rotated}')


def sliding_windows(config: Mapping[str, Any],
                    is_local: Callable[[int], bool]) -> tuple[int, ...]:
    """
    Return the window of each layer.

    :param is_local: whether a layer has one where the config has no ``layer_types``.
    """
    layers = count(config, 'num_hidden_layers')
    if config.get('sliding_window') is None:
        return (0,) * layers
    types = of_type(config, 'layer_types', list, [
        'sliding_attention' if is_local(i) else 'full_attention' for i in range(layers)])
    if len(types) != layers or not all(kind in _LAYER_TYPES for kind in types):
        raise CheckpointError(f"config.json: layer_types: expected {layers} of "
                              f"{' or '.join(_LAYER_TYPES)}, got {types!r}")
    window = count(config, 'sliding_window')
    return tuple(window if kind == 'sliding_attention' else 0 for kind in types)


def activation(config: Mapping[str, Any], key: str, default: str = 'silu') -> str:
    """Return the name that kernels/reference.py has for the activation of a key."""
    name = of_type(config, key, str, default)
    if name not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"config.json: {key}: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]


def refuse(config: Mapping[str, Any], key: str, built: Any) -> None:
    """
    Refuse a value that changes what the model computes, and is not built.

    :param built: the only value that is, the same as that of an absent key.
    """
    if config.get(key) not in (None, built):
        raise UnsupportedModelError(
            f'config.json: {key}: expected {built!r}, got {config[key]!r}')


def _head_dim(config: Mapping[str, Any], hidden: int, heads: int) -> int:
    if config.get('head_dim') is None and hidden % heads:
        raise CheckpointError('config.json: hidden_size: expected a multiple of '
                              f'num_attention_heads = {heads}, got {hidden}')
    return count(config, 'head_dim', hidden // heads)
