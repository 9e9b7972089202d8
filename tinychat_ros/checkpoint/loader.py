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
from contextlib import nullcontext
from dataclasses import replace
import logging
import math
from pathlib import Path
from typing import Optional, Sequence

import torch
from torch import Tensor

from tinychat_ros.checkpoint import formats
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.weight_cache import WeightCache
from tinychat_ros.checkpoint.weight_file import PackedWeight
from tinychat_ros.errors import ConfigError, OutOfMemoryError
from tinychat_ros.kernels import cpu, memory
from tinychat_ros.kernels.linear import (
    activation_group, can_concatenate, concatenate, Linear, prepare, reordered, StoredWeight,
    why_reference)
from tinychat_ros.kernels.packing import CpuTiles, Int8Weight, tensors_of, TileOrder
from tinychat_ros.models.config import ModelConfig
from tinychat_ros.models.kv_cache import kv_bytes_per_position
from tinychat_ros.models.causal_lm import CausalLM

# In the cache; no linear of a checkpoint is called so.
_ROUNDED_HEAD = 'lm_head in {}'

_LOGGER = logging.getLogger(__name__)


class WeightLoader:
    """
    The weights of one open checkpoint, moved to a device; see models.layers.WeightSource.

    :param dtype: of activations and norms, and of plain matrices, unless the kernels widen those
        of 16 bits as they read them.
    :param int8_activations: see :func:`load_model`, as lm_head_dtype.
    :param cache: where what is packed for CPU kernels is found, and kept.
    """

    def __init__(self, reader: CheckpointReader, dtype: torch.dtype, device: torch.device,
                 int8_activations: Optional[bool] = False, lm_head_dtype: str = 'auto',
                 cache: Optional[WeightCache] = None) -> None:
        self._reader = reader
        self._dtype = dtype
        self._device = device
        self._int8_activations = int8_activations
        self._lm_head_dtype = lm_head_dtype
        self._cache = cache
        self.formats: Counter[str] = Counter()
        self.on_reference: dict[str, list[str]] = {}

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return a plain tensor of this shape; see above for its dtype."""
        return self._placed(self._reader.floats(name, shape))

    def optional(self, name: str, shape: Sequence[int]) -> Optional[Tensor]:
        """Return a plain tensor, or None where the checkpoint has none."""
        return self.tensor(name, shape) if name in self._reader.names else None

    def linears(self, names: Sequence[str], out_features: Sequence[int], in_features: int,
                order: Optional[TileOrder] = None,
                rows: Optional[Tensor] = None) -> tuple[Linear, ...]:
        """See models.layers.WeightSource."""
        if self._cache is None:
            return self._read_linears(names, out_features, in_features, order, rows)
        name, shape = ' + '.join(names), (sum(out_features), in_features)
        packed = self._cache.take(name, *shape)
        if packed is None and name == self._reader.config.names.lm_head:
            packed = self._cache.take(_ROUNDED_HEAD.format(self._lm_head_dtype), *shape)
        if packed is not None:
            return (self._cached_linear(names, out_features, packed, rows),)
        linears = self._read_linears(names, out_features, in_features, order, rows)
        if len(linears) == 1 and isinstance(linears[0].weight, CpuTiles):
            self._cache.keep(name, linears[0].weight)
        return linears

    def _cached_linear(self, names: Sequence[str], out_features: Sequence[int],
                       weight: PackedWeight, rows: Optional[Tensor]) -> Linear:
        self.formats.update(formats.detect(self._reader, name).name for name in names)
        biases = [self._bias(name, n, rows) for name, n in zip(names, out_features)]
        return Linear(weight, None if biases[0] is None else torch.cat(biases),
                      activation_group(weight, self._int8_activations, self._dtype))

    def _read_linears(self, names: Sequence[str], out_features: Sequence[int], in_features: int,
                      order: Optional[TileOrder],
                      rows: Optional[Tensor]) -> tuple[Linear, ...]:
        weights = [reordered(self._weight(name, n, in_features), rows)
                   for name, n in zip(names, out_features)]
        biases = [self._bias(name, n, rows) for name, n in zip(names, out_features)]
        if len(weights) == 1:
            return (self._linear(names[0], weights[0], biases[0], order),)
        has_bias = {bias is not None for bias in biases}
        if can_concatenate(weights) and len(has_bias) == 1:
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
            return self._placed(weight)
        return replace(weight, **{field: tensor.to(self._device)
                                  for field, tensor in tensors_of(weight).items()})

    def _placed(self, stored: Tensor) -> Tensor:
        if stored.dim() == 2 and cpu.serves(self._dtype, self._device):
            # A copy, since a file that is mapped can be cut while the model runs.
            return memory.copied(stored)
        return stored.to(self._device, self._dtype)

    def _bias(self, name: str, n: int, rows: Optional[Tensor]) -> Optional[Tensor]:
        bias = self.optional(f'{name}.bias', [n])
        return bias if bias is None else reordered(bias, rows)

    def _linear(self, name: str, weight: StoredWeight, bias: Optional[Tensor],
                order: Optional[TileOrder] = None) -> Linear:
        reason = why_reference(weight, self._dtype)
        if reason is not None:
            self.on_reference.setdefault(reason, []).append(name)
        group = activation_group(weight, self._int8_activations, self._dtype)
        return prepare(weight, bias, order, group, self._dtype)


def load_model(reader: CheckpointReader, dtype: torch.dtype, device: torch.device,
               max_seq_len: int,
               int8_activations: Optional[bool] = False, lm_head_dtype: str = 'auto',
               cache_folder: Optional[Path] = None) -> tuple[CausalLM, str]:
    """
    Build the model of an open checkpoint.

    :param int8_activations: see :func:`activation_group`. Linears of int8 round their inputs by
        themselves; the inputs of plain ones stay as they are.
    :param lm_head_dtype: what a plain LM head is rounded to, 'int8' or 'int4'; 'auto' leaves it.
    :param cache_folder: for weights that are packed for CPU kernels, see
        :mod:`~tinychat_ros.checkpoint.weight_cache`; None keeps none.
    :returns: the model, and the name of the format that most of its linears have.
    :raises ConfigError: int8 activations are asked for, and no linear is of 4 bits or less.
    """
    if int8_activations and all(formats.detect(reader, name).bits >= 8
                                for name in formats.layer_names(reader)):
        raise ConfigError(f'activations: expected fp16 for {reader.path}, which has no linear of '
                          '4 bits or less, got int8')
    kept = cache_folder is not None and cpu.serves(torch.float32, device)
    with WeightCache(cache_folder, reader) if kept else nullcontext() as cache:
        weights = WeightLoader(reader, dtype, device, int8_activations, lm_head_dtype, cache)
        model = CausalLM(reader.config, weights, max_seq_len, device)
        if lm_head_dtype != 'auto':
            _round_head(model, lm_head_dtype, int8_activations, cache)
        if cache is not None:
            cache.save()
    weights.log_reference_layers()
    return model, weights.formats.most_common(1)[0][0]


def _round_head(model: CausalLM, dtype: str, int8_activations: Optional[bool],
                cache: Optional[WeightCache]) -> None:
    name, plain = _ROUNDED_HEAD.format(dtype), model.lm_head.weight
    if not isinstance(plain, Tensor):
        return
    packed = None if cache is None else cache.take(name, *plain.shape)
    model.quantize_head(dtype, int8_activations, packed)
    rounded = model.lm_head.weight
    if cache is not None and packed is None and isinstance(rounded, (CpuTiles, Int8Weight)):
        cache.keep(name, rounded)


def weight_bytes(reader: CheckpointReader, dtype: torch.dtype, device: torch.device) -> int:
    """Return what the weights will take in memory at this compute dtype, in bytes."""
    kept = 2 if cpu.serves(dtype, device) else 0

    def converted(name: str) -> bool:
        return (_is_plain(name) and f'{name}_scale' not in reader.names
                and len(reader.shape(name)) != kept)

    return sum(math.prod(reader.shape(name)) * dtype.itemsize if converted(name)
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
                 device: torch.device, num_slots: int, max_seq_len: int, budget: int) -> None:
    """
    Refuse the model of an open checkpoint that does not fit, before any of it is loaded.

    :param budget: bytes that weights and KV cache may take together.
    :raises OutOfMemoryError: naming what is needed, what there is and what would help.
    """
    check_fit(str(reader.path), weight_bytes(reader, dtype, device), reader.config, kv_dtype,
              num_slots, max_seq_len, budget)


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
