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
"""The model that a benchmark runs, with random weights or from a checkpoint."""

from __future__ import annotations

import time
from typing import NamedTuple, Union

import torch

from tinychat_ros.bench.shapes import RandomWeights, shape_bytes, shape_config
from tinychat_ros.checkpoint.loader import check_fit, load_model, weight_bytes
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.engine.config import ACTIVATIONS, EngineConfig
from tinychat_ros.engine.graph_runner import GraphRunner, make_runner
from tinychat_ros.engine.model_runner import ModelRunner
from tinychat_ros.kernels import cpu, cuda
from tinychat_ros.models.kv_cache import KVCache
from tinychat_ros.models.causal_lm import CausalLM


class Subject(NamedTuple):
    """A loaded model with a KV cache of one slot, which a prefill fills in one piece."""

    model: CausalLM
    cache: KVCache
    kv_dtype: torch.dtype
    runner: Union[ModelRunner, GraphRunner]
    device: torch.device
    load_seconds: float


def of_shape(name: str, group_size: int, config: EngineConfig, max_seq_len: int) -> Subject:
    """
    Make a model of random weights.

    :raises ConfigError: there is no shape of this name.
    :raises OutOfMemoryError: it does not fit.
    """
    shape, device, dtype = shape_config(name), config.torch_device(), config.torch_dtype()
    # As checkpoints have it, which CPU kernels read as it is.
    plain = torch.float16 if cpu.serves(dtype, device) else dtype
    size = shape_bytes(shape, plain, group_size)
    torch.set_num_threads(config.threads(size))
    check_fit(name, size, shape, config.torch_kv_dtype(), 1, max_seq_len, config.budget())
    begin = time.perf_counter()
    weights = RandomWeights(device, dtype, group_size, ACTIVATIONS[config.activations], plain)
    model = CausalLM(shape, weights, max_seq_len, device)
    if config.lm_head_dtype != 'auto':
        model.quantize_head(config.lm_head_dtype, ACTIVATIONS[config.activations])
    return _with_runner(model, config, max_seq_len, begin)


def of_checkpoint(config: EngineConfig, max_seq_len: int) -> Subject:
    """
    Load the model of a checkpoint folder.

    :raises TinychatError: it cannot be loaded; see errors.py for the kinds.
    """
    with CheckpointReader(config.model_path) as reader:
        config = config.for_model(reader.config)
        device, dtype = config.torch_device(), config.torch_dtype()
        size = weight_bytes(reader, dtype, device)
        torch.set_num_threads(config.threads(size))
        check_fit(str(reader.path), size, reader.config, config.torch_kv_dtype(), 1, max_seq_len,
                  config.budget())
        begin = time.perf_counter()
        model, _ = load_model(reader, dtype, device, max_seq_len, ACTIVATIONS[config.activations],
                              config.lm_head_dtype, config.weight_cache_path)
    return _with_runner(model, config, max_seq_len, begin)


def _with_runner(model: CausalLM, config: EngineConfig, max_seq_len: int,
                 begin: float) -> Subject:
    device, kv_dtype = config.torch_device(), config.torch_kv_dtype()
    cache = KVCache(model.config, 1, max_seq_len, kv_dtype, device)
    runner = make_runner(model, cache, device)
    cuda.synchronize(device)
    return Subject(model, cache, kv_dtype, runner, device, time.perf_counter() - begin)
