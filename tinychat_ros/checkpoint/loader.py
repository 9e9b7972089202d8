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
"""Brings a checkpoint into memory, tensor by tensor, for the device that will run it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
import logging
import math
from pathlib import Path
from typing import Optional, Sequence

import torch
from torch import Tensor

from tinychat_ros.checkpoint import formats
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.errors import ConfigError, OutOfMemoryError
from tinychat_ros.kernels.linear import (
    can_concatenate, concatenate, Linear, prepare, rounding_is_faster, StoredWeight,
    why_reference)
from tinychat_ros.kernels.packing import (
    QuantizedWeight, tensors_of, tile_columns, TileOrder)
from tinychat_ros.models.config import ModelConfig
from tinychat_ros.models.kv_cache import kv_bytes_per_position
from tinychat_ros.models.llama import LlamaModel
from tinychat_ros.models.registry import model_class

_LOGGER = logging.getLogger(__name__)


class WeightLoader:
    """
    The weights of one open checkpoint, moved to a device; see models.layers.WeightSource.

    :param dtype: of plain weights, norms and activations.
    :param int8_activations: see :func:`load_model`.
    """

    def __init__(self, reader: CheckpointReader, dtype: torch.dtype, device: torch.device,
                 int8_activations: Optional[bool] = False) -> None:
        self._reader = reader
        self._dtype = dtype
        self._device = device
        self._int8_activations = int8_activations
        self.formats: Counter[str] = Counter()
        self.on_reference: dict[str, list[str]] = {}

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return a plain tensor of this shape in the compute dtype."""
        return self._reader.floats(name, shape).to(self._device, self._dtype)

    def linears(self, names: Sequence[str], out_features: Sequence[int], in_features: int,
                order: Optional[TileOrder] = None) -> tuple[Linear, ...]:
        """Return linears that share an input, joined into one where their kinds allow it."""
        weights = [self._weight(name, n, in_features) for name, n in zip(names, out_features)]
        biases = [self._bias(name, n) for name, n in zip(names, out_features)]
        has_bias = {bias is not None for bias in biases}
        if len(weights) > 1 and can_concatenate(weights) and len(has_bias) == 1:
            return (self._linear(' + '.join(names), concatenate(weights),
                                 torch.cat(biases) if has_bias == {True} else None, order),)
        return tuple(map(self._linear, names, weights, biases))

    def log_reference_layers(self) -> None:
        """Log in one line which layers no kernel takes, and why."""
        if self.on_reference:
            reasons = '; '.join(f'{len(names)} layers such as {names[0]}: {reason}'
                                for reason, names in self.on_reference.items())
            _LOGGER.warning('running on the torch reference, slowly: %s', reasons)

    def _weight(self, name: str, n: int, k: int) -> StoredWeight:
        weight_format = formats.detect(self._reader, name)
        self.formats[weight_format.name] += 1
        weight = weight_format.read(self._reader, name, n, k)
        if isinstance(weight, Tensor):
            return weight.to(self._device, self._dtype)
        return replace(weight, **{field: tensor.to(self._device)
                                  for field, tensor in tensors_of(weight).items()})

    def _bias(self, name: str, n: int) -> Optional[Tensor]:
        bias = f'{name}.bias'
        return self.tensor(bias, [n]) if bias in self._reader.names else None

    def _linear(self, name: str, weight: StoredWeight, bias: Optional[Tensor],
                order: Optional[TileOrder] = None) -> Linear:
        reason = why_reference(weight, self._dtype)
        if reason is not None:
            self.on_reference.setdefault(reason, []).append(name)
        if not isinstance(weight, QuantizedWeight) or not self._rounds_input_of(weight, reason):
            return prepare(weight, bias, order, dtype=self._dtype)
        # Kernels that do more with the product leave no place to round its input.
        return prepare(weight, bias, None, tile_columns(weight.group_size), self._dtype)

    def _rounds_input_of(self, weight: QuantizedWeight, refusal: Optional[str]) -> bool:
        if self._int8_activations is not None:
            return self._int8_activations
        return rounding_is_faster(self._device) and refusal is None


def load_model(reader: CheckpointReader, dtype: torch.dtype, device: torch.device,
               max_seq_len: int,
               int8_activations: Optional[bool] = False) -> tuple[LlamaModel, str]:
    """
    Build the model of an open checkpoint.

    :param int8_activations: round the input of every linear of 4 bits or less to int8, one scale
        for each token and tile of the CPU kernels: a weight's group, at most 128 along K. Linears
        of int8 round theirs by themselves; the inputs of plain ones stay as they are. None rounds
        where that is faster: at the CPU kernels of such weights.
    :returns: the model, and the name of the format that most of its linears have.
    :raises ConfigError: int8 activations are asked for, and no linear is of 4 bits or less.
    """
    if int8_activations and all(formats.detect(reader, name).bits >= 8
                                for name in formats.layer_names(reader)):
        raise ConfigError(f'activations: expected fp16 for {reader.path}, which has no linear of '
                          '4 bits or less, got int8')
    weights = WeightLoader(reader, dtype, device, int8_activations)
    model = model_class(reader.config.model_type)(reader.config, weights, max_seq_len, device)
    weights.log_reference_layers()
    return model, weights.formats.most_common(1)[0][0]


def weight_bytes(reader: CheckpointReader, dtype: torch.dtype) -> int:
    """Return what the weights will take in memory at this compute dtype, in bytes."""
    element = torch.empty((), dtype=dtype).element_size()
    return sum(math.prod(reader.shape(name)) * element
               if _is_plain(name) and f'{name}_scale' not in reader.names
               else reader.num_bytes(name) for name in reader.names)


def num_parameters(reader: CheckpointReader) -> int:
    """Return how many numbers the model has; a quantized weight counts as N * K."""
    matrices = (formats.detect(reader, name).shape(reader, name)
                for name in formats.layer_names(reader))
    vectors = (shape for shape in map(reader.shape, filter(_is_plain, reader.names))
               if len(shape) != 2)
    return sum(n * k for n, k, _ in matrices) + sum(map(math.prod, vectors))


def _is_plain(name: str) -> bool:
    return name.rsplit('.', 1)[-1] in ('weight', 'bias')


def check_memory(reader: CheckpointReader, dtype: torch.dtype, kv_dtype: torch.dtype,
                 num_slots: int, max_seq_len: int, budget: int) -> None:
    """
    Refuse the model of an open checkpoint that does not fit, before any of it is loaded.

    :param budget: bytes that weights and KV cache may take together.
    :raises OutOfMemoryError: naming what is needed, what there is and what would help.
    """
    check_fit(str(reader.path), weight_bytes(reader, dtype), reader.config, kv_dtype, num_slots,
              max_seq_len, budget)


def check_fit(name: str, weights: int, config: ModelConfig, kv_dtype: torch.dtype,
              num_slots: int, max_seq_len: int, budget: int) -> None:
    """See :func:`check_memory`; the weights take so many bytes."""
    cache = kv_bytes_per_position(config, kv_dtype) * num_slots * max_seq_len
    if weights + cache > budget:
        raise OutOfMemoryError(
            f'{name}: expected at most {budget / 2**20:.0f} MiB, got weights of '
            f'{weights / 2**20:.0f} MiB and a KV cache of {cache / 2**20:.0f} MiB '
            f'({num_slots} slots of {max_seq_len} positions); fewer slots or a smaller '
            'max_seq_len take less')


def available_memory(device: torch.device) -> int:
    """Return the bytes that can still be allocated on a device."""
    # A Jetson's GPU shares the memory, and CUDA counts files that are cached there as taken.
    if device.type == 'cuda' and not torch.cuda.get_device_properties(device).is_integrated:
        return torch.cuda.mem_get_info(device)[0]
    for line in Path('/proc/meminfo').read_text().splitlines():
        if line.startswith('MemAvailable:'):
            return int(line.split()[1]) * 1024
    raise OSError('/proc/meminfo: expected a line MemAvailable, and there is none')
