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
"""The command `tinychat bench`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
import json
from pathlib import Path
import sys
from typing import Any, Optional

import torch

from tinychat_ros.bench.figures import figures
from tinychat_ros.bench.ladder import ladder, table as ladder_table
from tinychat_ros.bench.measure import measure, ROOM
from tinychat_ros.bench.shapes import shape_bytes, shape_config, SHAPES
from tinychat_ros.bench.subject import of_checkpoint, of_shape
from tinychat_ros.bench.table import plot, table
from tinychat_ros.checkpoint.loader import check_fit
from tinychat_ros.checkpoint.writer import replace_file
from tinychat_ros.commands.common import (
    device_options, output_options, PROCESSORS_HELP, WEIGHT_CACHE_HELP)
from tinychat_ros.engine.config import (
    ACTIVATIONS, EngineConfig, KV_CACHE_DTYPES, LM_HEAD_DTYPES)
from tinychat_ros.errors import ConfigError
from tinychat_ros.kernels import extension
from tinychat_ros.kernels.cpu import on_processors
from tinychat_ros.quantization.report import require_matplotlib

_GROUP_SIZE = 128
_LADDER_CONTEXT = 512


def add(commands: Any) -> None:
    """Add ``bench`` to the parser."""
    parser = commands.add_parser(
        'bench', parents=[output_options(), device_options()],
        help='measure how fast a model runs on this machine', description='Measure decode, '
        'prefill, the first token and each kernel, against the read bandwidth and the matrix '
        'product that the same run measures.')
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--shape', metavar='NAME',
                      help=f"random 4-bit weights in the shape of {', '.join(SHAPES)}")
    what.add_argument('--model', metavar='DIR', help='checkpoint folder, or demo')
    parser.add_argument('--group-size', type=int, choices=(32, 64, 128),
                        help=f'of a shape (default: {_GROUP_SIZE})')
    parser.add_argument('--context', type=int, nargs='+', default=[16, 512, 2048], metavar='N',
                        help='tokens in the KV cache while it decodes (default: 16 512 2048)')
    parser.add_argument('--prefill', type=int, nargs='+', default=[128, 512], metavar='N',
                        help='tokens of a prompt (default: 128 512)')
    parser.add_argument('--kv-cache-dtype', default='auto', choices=KV_CACHE_DTYPES,
                        help='default: auto, of 16 bits unless --dtype says 32')
    parser.add_argument('--processors', default='', metavar='LIST', help=PROCESSORS_HELP)
    parser.add_argument('--activations', default='auto', choices=tuple(ACTIVATIONS),
                        help='of 4-bit linears (default: auto, int8 on the CPU)')
    parser.add_argument('--lm-head-dtype', default='auto', choices=LM_HEAD_DTYPES,
                        help='default: auto, as it is stored')
    parser.add_argument('--weight-cache', default='', metavar='DIR', help=WEIGHT_CACHE_HELP)
    parser.add_argument('--isa', metavar='NAME',
                        help='instruction set of CPU kernels, such as avx2 (default: the best)')
    parser.add_argument('--plot', metavar='FILE',
                        help='draw the fractions of the limits, a PNG (needs matplotlib)')
    parser.add_argument('--ladder', action='store_true',
                        help='instead, go from eager PyTorch to all fused in a CUDA graph, one '
                        f'technique at a time, at a context of {_LADDER_CONTEXT}')
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    return _ladder(args) if args.ladder else _bench(args)


def _ladder(args: argparse.Namespace) -> int:
    if args.shape is None:
        raise ConfigError('ladder: expected a shape, got a model')
    config = EngineConfig(device=args.device, dtype=args.dtype, num_threads=args.threads)
    shape, dtype = shape_config(args.shape), config.torch_dtype()
    size = shape_bytes(shape, dtype, None)
    torch.set_num_threads(config.threads(size))
    check_fit(f'{args.shape}, not quantized', size, shape, dtype, 1, 2 * _LADDER_CONTEXT,
              config.budget())
    rungs = ladder(shape, config.torch_device(), dtype, _LADDER_CONTEXT)
    print(ladder_table(rungs), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps({**_machine(config), 'shape': args.shape, 'context': _LADDER_CONTEXT,
                          'ladder': [asdict(rung) for rung in rungs]}))
    return 0


def _bench(args: argparse.Namespace) -> int:
    config = EngineConfig(model=args.model or '', device=args.device, dtype=args.dtype,
                          kv_cache_dtype=args.kv_cache_dtype,
                          lm_head_dtype=args.lm_head_dtype, activations=args.activations,
                          weight_cache=args.weight_cache, num_threads=args.threads,
                          processors=args.processors)
    _check(args)
    isa = _use_isa(args.isa)
    max_seq_len = max(max(args.context) + ROOM, *args.prefill)
    if args.model:
        subject = of_checkpoint(config, max_seq_len)
    else:
        subject = of_shape(args.shape, args.group_size or _GROUP_SIZE, config, max_seq_len)
    with on_processors(config.processor_set()):
        measured = measure(subject, args.context, args.prefill)
    machine = _machine(config.for_model(subject.model.config))
    document = {**machine, 'isa': isa, 'shape': args.shape, 'model': args.model,
                **figures(measured)}
    for line in table(document):
        print(line, file=sys.stderr if args.json else sys.stdout)
    if args.plot:
        png = plot(document, f"{args.shape or args.model} on {document['gpu'] or 'the CPU'}")
        replace_file(Path(args.plot), lambda path: path.write_bytes(png))
    if args.json:
        print(json.dumps(document))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what would fail after the work."""
    for name in ('context', 'prefill'):
        if min(getattr(args, name)) < 1:
            raise ConfigError(f'{name}: expected 1 or more, got {min(getattr(args, name))}')
    if args.model and args.group_size:
        raise ConfigError('group-size: expected with it a shape, got a model, which has its own')
    if args.plot:
        require_matplotlib('plot')
        path = Path(args.plot).absolute()
        if path.is_dir() or not path.parent.is_dir():
            raise ConfigError(f'plot: expected a file in a folder that exists, got {args.plot}')


def _use_isa(asked: Optional[str]) -> Optional[str]:
    """Return the instruction set of the CPU kernels, after setting the one asked for."""
    kernels = extension.load()
    supported = [] if kernels is None else kernels.cpu_isas()
    if asked is None:
        return supported[0] if supported else None
    if asked not in supported:
        raise ConfigError(f'isa: expected one of {", ".join(supported)}, got {asked!r}'
                          if supported else f'isa: {extension.why_absent()}')
    kernels.cpu_use_isa(asked)
    return asked


def _machine(config: EngineConfig) -> dict[str, Any]:
    device = config.torch_device()
    on_gpu = device.type == 'cuda'
    return {'device': device.type, 'gpu': torch.cuda.get_device_name(device) if on_gpu else None,
            'threads': torch.get_num_threads(), 'torch': torch.__version__,
            'dtype': str(config.torch_dtype()).removeprefix('torch.'),
            'kv_cache_dtype': str(config.torch_kv_dtype()).removeprefix('torch.'),
            'lm_head_dtype': config.lm_head_dtype, 'activations': config.activations}
