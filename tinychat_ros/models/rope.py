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
"""The rotary embedding: what config.json says of it, and the tables it becomes."""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import Any, Callable, Mapping

import torch
from torch import Tensor
import torch.nn.functional as F

from tinychat_ros.errors import CheckpointError, UnsupportedModelError
from tinychat_ros.kernels.operands import RotaryTable
from tinychat_ros.models.fields import number, numbers, of_type, optional_number, table


@dataclass(frozen=True)
class RopeConfig:
    """
    The rotary embedding: base frequency and how long contexts stretch it.

    The fields after ``rotated`` are read for the types that have them, see ROPE_TYPES.

    :param rotated: the share of each head that is rotated, its first dimensions.
    :param trained_len: positions that the model was trained with before it was stretched.
    :param magnitude: of cosines and sines.
    """

    rope_type: str = 'default'
    theta: float = 10000.0
    rotated: float = 1.0
    factor: float = 1.0
    trained_len: float = 0.0
    magnitude: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], theta: float = theta) -> RopeConfig:
        """
        Read ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling``.

        :param theta: what the family takes where the config names none.
        """
        given = {'rope_theta': config.get('rope_theta'), **table(config, 'rope_scaling'),
                 **table(config, 'rope_parameters')}
        return cls.from_parameters(given, config, theta)

    @classmethod
    def from_parameters(cls, given: Mapping[str, Any], config: Mapping[str, Any],
                        theta: float = theta) -> RopeConfig:
        """Read the parameters of one embedding; ``config`` is what stands around them."""
        rope_type = given.get('rope_type', given.get('type', 'default'))
        if not isinstance(rope_type, str) or rope_type not in ROPE_TYPES:
            raise UnsupportedModelError(
                f"config.json: rope_type: expected one of {', '.join(ROPE_TYPES)}, "
                f'got {rope_type!r}')
        key = 'partial_rotary_factor'
        rotated = number(given, key, number(config, key, 1.0))
        if rotated > 1:
            raise CheckpointError(f'config.json: {key}: expected at most 1, got {rotated}')
        theta = number(given, 'rope_theta', theta)
        if theta <= 1:
            raise CheckpointError(f'config.json: rope_theta: expected more than 1, got {theta}')
        return cls(rope_type, theta, rotated, **ROPE_TYPES[rope_type].read(given, config))

    def rotary_dim(self, head_dim: int) -> int:
        """
        Return how many dimensions of a head are rotated.

        :raises CheckpointError: they do not go in pairs.
        """
        dim = int(head_dim * self.rotated)
        if dim < 2 or dim % 2:
            raise CheckpointError('config.json: partial_rotary_factor: expected an even number of '
                                  f'the {head_dim} dimensions of a head, got {dim}')
        return dim


@dataclass(frozen=True)
class RopeType:
    """
    A way to stretch a rotary embedding.

    :param read: (parameters, config.json) to the fields of a RopeConfig after ``rotated``.
    :param frequencies: (rope, rotary_dim, max_seq_len) to radians per position, fp32
        [rotary_dim / 2].
    """

    read: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
    frequencies: Callable[[RopeConfig, int, int], Tensor]


def rotary_table(rope: RopeConfig, head_dim: int, max_seq_len: int,
                 device: torch.device) -> RotaryTable:
    """
    Return cosines and sines of every position, each fp32 [max_seq_len, D/2].

    The dimensions that are not rotated stand behind the others in both halves of a head; see
    layers.qkv_rows.

    The types ``dynamic`` and ``longrope`` depend on how long a text is. One table serves them
    all, that of a text of max_seq_len.
    """
    dim = rope.rotary_dim(head_dim)
    frequencies = ROPE_TYPES[rope.rope_type].frequencies(rope, dim, max_seq_len)
    angles = torch.arange(max_seq_len, dtype=torch.float32)[:, None] * frequencies
    still = (0, (head_dim - dim) // 2)
    return RotaryTable(F.pad(angles.cos() * rope.magnitude, still, value=1.0).to(device),
                       F.pad(angles.sin() * rope.magnitude, still).to(device))


def _default_frequencies(rope: RopeConfig, head_dim: int, max_seq_len: int) -> Tensor:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return 1.0 / rope.theta ** exponents


def _read_linear(given: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    return {'factor': number(given, 'factor')}


def _linear_frequencies(rope: RopeConfig, head_dim: int, max_seq_len: int) -> Tensor:
    return _default_frequencies(rope, head_dim, max_seq_len) / rope.factor


def _read_dynamic(given: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    return {'factor': number(given, 'factor'), 'trained_len': _max_positions(config)}


def _dynamic_frequencies(rope: RopeConfig, head_dim: int, max_seq_len: int) -> Tensor:
    """Raise the base with the length of the text (NTK-aware scaling)."""
    length = max(max_seq_len, rope.trained_len)
    stretch = rope.factor * length / rope.trained_len - (rope.factor - 1)
    # A head of 2 has one frequency, whatever the base.
    theta = rope.theta * stretch ** (head_dim / max(head_dim - 2, 1))
    return _default_frequencies(RopeConfig(theta=theta), head_dim, max_seq_len)


def _read_llama3(given: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    low, high = number(given, 'low_freq_factor'), number(given, 'high_freq_factor')
    if low >= high:
        raise CheckpointError(f'config.json: high_freq_factor: expected more than low_freq_factor '
                              f'= {low}, got {high}')
    return {'factor': number(given, 'factor'), 'low_freq_factor': low, 'high_freq_factor': high,
            'trained_len': _trained_len(given, config)}


def _llama3_frequencies(rope: RopeConfig, head_dim: int, max_seq_len: int) -> Tensor:
    """Stretch long wavelengths, keep short ones, blend between (Llama 3.1)."""
    frequencies = _default_frequencies(rope, head_dim, max_seq_len)
    rotations = rope.trained_len * frequencies / (2 * math.pi)
    blend = (rotations - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = blend.clamp(0, 1)
    return (1 - blend) * frequencies / rope.factor + blend * frequencies


def _read_yarn(given: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    factor = number(given, 'factor')
    mscales = [optional_number(given, key) for key in ('mscale', 'mscale_all_dim')]
    magnitude = (_mscale(factor, mscales[0]) / _mscale(factor, mscales[1]) if all(mscales)
                 else _mscale(factor, 1.0))
    return {'factor': factor, 'magnitude': number(given, 'attention_factor', magnitude),
            'trained_len': _trained_len(given, config),
            'beta_fast': number(given, 'beta_fast', RopeConfig.beta_fast),
            'beta_slow': number(given, 'beta_slow', RopeConfig.beta_slow),
            'truncate': of_type(given, 'truncate', bool, True)}


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn_frequencies(rope: RopeConfig, head_dim: int, max_seq_len: int) -> Tensor:
    """Stretch by wavelength, with a ramp between kept and stretched (Peng et al., YaRN, 2023)."""
    def dimension(rotations: float) -> float:
        """Return the dimension that turns so often within the trained length."""
        return (head_dim * math.log(rope.trained_len / (rotations * 2 * math.pi))
                / (2 * math.log(rope.theta)))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    stretched = ramp.clamp(0, 1)
    frequencies = _default_frequencies(rope, head_dim, max_seq_len)
    return frequencies / rope.factor * stretched + frequencies * (1 - stretched)


def _read_longrope(given: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    trained = _trained_len(given, config)
    if trained <= 1:
        raise CheckpointError('config.json: original_max_position_embeddings: expected more than '
                              f'1, got {trained}')
    factor = number(given, 'factor', _max_positions(config) / trained)
    magnitude = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    return {'trained_len': trained, 'magnitude': number(given, 'attention_factor', magnitude),
            'short_factor': numbers(given, 'short_factor'),
            'long_factor': numbers(given, 'long_factor')}


def _longrope_frequencies(rope: RopeConfig, head_dim: int, max_seq_len: int) -> Tensor:
    """Stretch each frequency by a factor of its own (Ding et al., LongRoPE, 2024)."""
    name = 'long_factor' if max_seq_len > rope.trained_len else 'short_factor'
    factors = torch.tensor(getattr(rope, name))
    if len(factors) != head_dim // 2:
        raise CheckpointError(f'config.json: {name}: expected {head_dim // 2} numbers, '
                              f'got {len(factors)}')
    return _default_frequencies(rope, head_dim, max_seq_len) / factors


def _trained_len(given: Mapping[str, Any], config: Mapping[str, Any]) -> float:
    """Return the positions of the training; what stands around the parameters comes first."""
    key = 'original_max_position_embeddings'
    found = given if config.get(key) is None else config
    return _max_positions(config) if found.get(key) is None else number(found, key)


def _max_positions(config: Mapping[str, Any]) -> float:
    return number(config, 'max_position_embeddings')


ROPE_TYPES = {
    'default': RopeType(lambda given, config: {}, _default_frequencies),
    'linear': RopeType(_read_linear, _linear_frequencies),
    'dynamic': RopeType(_read_dynamic, _dynamic_frequencies),
    'llama3': RopeType(_read_llama3, _llama3_frequencies),
    'yarn': RopeType(_read_yarn, _yarn_frequencies),
    'longrope': RopeType(_read_longrope, _longrope_frequencies),
}
