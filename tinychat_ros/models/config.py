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
from typing import Any, Mapping, Optional

from tinychat_ros.errors import CheckpointError, UnsupportedModelError

# Torch computes with these numbers in fp32.
_LARGEST_NUMBER = 1e30

# Each type, and the keys that it needs.
ROPE_TYPES = {
    'default': (),
    'linear': ('factor',),
    'llama3': ('factor', 'low_freq_factor', 'high_freq_factor',
               'original_max_position_embeddings'),
}


@dataclass(frozen=True)
class RopeConfig:
    """
    The rotary embedding: base frequency and how long contexts stretch it.

    The fields after ``factor`` are read for the type ``llama3`` only.
    """

    rope_type: str = 'default'
    theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> RopeConfig:
        """Read ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling``."""
        rope = {'rope_theta': config.get('rope_theta'), **_object(config, 'rope_scaling'),
                **_object(config, 'rope_parameters')}
        rope_type = rope.get('rope_type', rope.get('type', 'default'))
        if not isinstance(rope_type, str) or rope_type not in ROPE_TYPES:
            raise UnsupportedModelError(
                f"config.json: rope_type: expected one of {', '.join(ROPE_TYPES)}, "
                f'got {rope_type!r}')
        for key in ROPE_TYPES[rope_type]:
            if rope.get(key) is None:
                raise CheckpointError(f'config.json: rope_type {rope_type!r}: expected the key '
                                      f'{key!r} beside it')
        values = {key: _number(rope, key, 1.0) for key in ROPE_TYPES[rope_type]}
        parsed = cls(rope_type, _number(rope, 'rope_theta', cls.theta), **values)
        if parsed.low_freq_factor >= parsed.high_freq_factor:
            raise CheckpointError(
                'config.json: high_freq_factor: expected more than low_freq_factor = '
                f'{parsed.low_freq_factor}, got {parsed.high_freq_factor}')
        return parsed


@dataclass(frozen=True)
class ModelConfig:
    """A decoder's shape, with Hugging Face's field names."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    hidden_act: str = 'silu'
    eos_token_ids: tuple[int, ...] = ()
    rope: RopeConfig = field(default_factory=RopeConfig)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ModelConfig:
        """
        Read the dictionary that config.json holds.

        :raises CheckpointError: a key is missing, of the wrong type or contradicts another.
        :raises UnsupportedModelError: a value is legal but not built.
        """
        heads = _count(config, 'num_attention_heads')
        hidden = _count(config, 'hidden_size')
        parsed = cls(
            model_type=_of_type(config, 'model_type', str),
            vocab_size=_count(config, 'vocab_size'),
            hidden_size=hidden,
            intermediate_size=_count(config, 'intermediate_size'),
            num_hidden_layers=_count(config, 'num_hidden_layers'),
            num_attention_heads=heads,
            num_key_value_heads=_count(config, 'num_key_value_heads', heads),
            head_dim=_head_dim(config, hidden, heads),
            max_position_embeddings=_count(config, 'max_position_embeddings', 2048),
            rms_norm_eps=_number(config, 'rms_norm_eps', 1e-6),
            tie_word_embeddings=_of_type(config, 'tie_word_embeddings', bool, False),
            hidden_act=config.get('hidden_act', 'silu'),
            eos_token_ids=token_ids(config.get('eos_token_id')),
            rope=RopeConfig.from_dict(config))
        parsed._check()
        return parsed

    def _check(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                'config.json: num_attention_heads: expected a multiple of num_key_value_heads = '
                f'{self.num_key_value_heads}, got {self.num_attention_heads}')
        if self.head_dim % 2:
            raise CheckpointError(f'config.json: head_dim: expected an even number, '
                                  f'got {self.head_dim}')
        if self.hidden_act != 'silu':
            raise UnsupportedModelError(f'config.json: hidden_act: expected silu, '
                                        f'got {self.hidden_act!r}')


def token_ids(value: Any) -> tuple[int, ...]:
    """Read a token id field, which Hugging Face lets be absent, one number or a list."""
    if value is None:
        return ()
    ids = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(i, int) and i >= 0 for i in ids):
        raise CheckpointError(f'eos_token_id: expected token ids, got {value!r}')
    return tuple(ids)


def _require(config: Mapping[str, Any], key: str) -> Any:
    if config.get(key) is None:
        raise CheckpointError(f'config.json: expected the key {key!r}, and it is missing')
    return config[key]


def _of_type(config: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = config.get(key, default)
    value = _require(config, key) if value is None else value
    if not isinstance(value, kind):
        raise CheckpointError(
            f'config.json: {key}: expected {kind.__name__}, got {type(value).__name__} {value!r}')
    return value


def _object(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return {} if config.get(key) is None else _of_type(config, key, dict)


def _head_dim(config: Mapping[str, Any], hidden: int, heads: int) -> int:
    if config.get('head_dim') is None and hidden % heads:
        raise CheckpointError('config.json: hidden_size: expected a multiple of '
                              f'num_attention_heads = {heads}, got {hidden}')
    return _count(config, 'head_dim', hidden // heads)


def _count(config: Mapping[str, Any], key: str, default: Optional[int] = None) -> int:
    value = config.get(key)
    value = default if value is None and default is not None else _require(config, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f'config.json: {key}: expected a positive integer, got {value!r}')
    return value


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = default if config.get(key) is None else config[key]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value <= _LARGEST_NUMBER:
        raise CheckpointError(f'config.json: {key}: expected a positive number, got {value!r}')
    return value
