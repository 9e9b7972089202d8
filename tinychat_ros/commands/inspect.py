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
"""The command `tinychat inspect`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
import json
import sys
from typing import Any, Sequence

import torch

from tinychat_ros.bench.bandwidth import Bandwidth
from tinychat_ros.bench.estimate import Device, estimate, JETSONS
from tinychat_ros.checkpoint.loader import available_memory, num_parameters, weight_bytes
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.summary import (
    cpu_attention_refusal, grouped, kv_bytes_fp16, kv_bytes_read, LayerSummary, summarize_layers,
    weight_bytes_per_token, why_not_recorded)
from tinychat_ros.commands.common import output_options
from tinychat_ros.commands.inspect_table import table
from tinychat_ros.engine.config import EngineConfig
from tinychat_ros.errors import ConfigError
from tinychat_ros.kernels import cuda

_DEFAULT_CONTEXT = 4096


def add(commands: Any) -> None:
    """Add ``inspect`` to the parser."""
    inspect = commands.add_parser(
        'inspect', parents=[output_options()], help='describe a checkpoint without loading it')
    inspect.add_argument('model', nargs='?', default='', metavar='DIR',
                         help='checkpoint folder (default: the demo model)')
    inspect.add_argument('--context', type=int, default=0, metavar='N',
                         help='positions that memory and speed are estimated for (default: '
                         f'{_DEFAULT_CONTEXT}, or what the model was trained for)')
    inspect.set_defaults(run=_inspect)


def _inspect(args: argparse.Namespace) -> int:
    with CheckpointReader(EngineConfig(model=args.model).model_path) as reader:
        layers = summarize_layers(reader)
        document = {**_describe(reader, layers), **_estimate(reader, args.context)}
    lines = table(document, grouped(layers))
    print('\n'.join(lines), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps({**document, 'layers': [asdict(layer) for layer in layers]}))
    return 0


def _describe(reader: CheckpointReader, layers: Sequence[LayerSummary]) -> dict[str, Any]:
    config = reader.config
    formats = [layer.format for layer in layers]
    return {
        'architecture': config.model_type,
        'format': max(sorted(set(formats)), key=formats.count),
        'parameters': num_parameters(reader),
        'weight_bytes_per_token': weight_bytes_per_token(reader),
        'kv_bytes_per_position': kv_bytes_fp16(reader),
        'max_position_embeddings': config.max_position_embeddings,
        'vocab_size': config.vocab_size,
        'why_no_attention_kernel': {'cpu': cpu_attention_refusal(config.head_dim),
                                    'cuda': cuda.attention_refusal(config.head_dim) or None},
        'why_not_recorded': why_not_recorded(config, layers),
    }


def _estimate(reader: CheckpointReader, context: int) -> dict[str, Any]:
    config, longest = reader.config, reader.config.max_position_embeddings
    if not 0 <= context <= longest:
        raise ConfigError(f'context: expected 1 to {longest}, what the model was trained for, '
                          f'got {context}')
    context = context or min(_DEFAULT_CONTEXT, longest)
    memory = (weight_bytes(reader, torch.float16, torch.device('cuda'))
              + kv_bytes_fp16(reader) * context)
    read = weight_bytes_per_token(reader) + kv_bytes_read(config, context)
    devices = [*JETSONS, _this_machine()]
    return {'context': context, 'memory_bytes': memory, 'bytes_per_token': read,
            'devices': [estimate(device, memory, read) for device in devices]}


def _this_machine() -> Device:
    device = EngineConfig().torch_device()
    return Device(f'this machine, {device.type}', available_memory(device),
                  Bandwidth(device).read(), measured=True)
