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
from typing import Any

from tinychat_ros.checkpoint.loader import num_parameters
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.summary import (
    kv_bytes_fp16, summarize_layers, weight_bytes_per_token)
from tinychat_ros.commands.common import output_options
from tinychat_ros.engine.config import EngineConfig


def add(commands: Any) -> None:
    """Add ``inspect`` to the parser."""
    inspect = commands.add_parser(
        'inspect', parents=[output_options()], help='describe a checkpoint without loading it')
    inspect.add_argument('model', nargs='?', default='', metavar='DIR',
                         help='checkpoint folder (default: the demo model)')
    inspect.set_defaults(run=_inspect)


def _inspect(args: argparse.Namespace) -> int:
    with CheckpointReader(EngineConfig(model=args.model).model_path) as reader:
        layers = summarize_layers(reader)
        counts = {name: sum(layer.format == name for layer in layers)
                  for name in sorted({layer.format for layer in layers})}
        document = {
            'architecture': reader.config.model_type,
            'format': max(counts, key=counts.__getitem__),
            'parameters': num_parameters(reader),
            'weight_bytes_per_token': weight_bytes_per_token(reader),
            'kv_bytes_per_position': kv_bytes_fp16(reader),
            'max_position_embeddings': reader.config.max_position_embeddings,
            'vocab_size': reader.config.vocab_size,
            'layers': [asdict(layer) for layer in layers],
        }
    table = sys.stderr if args.json else sys.stdout
    for key, value in document.items():
        if key != 'layers':
            print(f'{key:24} {value}', file=table)
    for layer in layers:
        group = f'g{layer.group_size}' if layer.group_size else ''
        reason = layer.reference_reason
        note = f'on the torch reference: {reason}' if reason else ''
        print(f'  {layer.name:40} {layer.format:14} {layer.n:6} x {layer.k:<6} {group:5} {note}',
              file=table)
    if args.json:
        print(json.dumps(document))
    return 0
