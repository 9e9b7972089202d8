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
"""The command `tinychat quantize`."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
import json
from pathlib import Path
import sys
from typing import Any, Union

import torch

from tinychat_ros.checkpoint.loader import weight_bytes
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.commands.common import device_options, FAILED, output_options, print_error
from tinychat_ros.engine.config import EngineConfig
from tinychat_ros.engine.engine import load_tokenizer
from tinychat_ros.errors import ConfigError
from tinychat_ros.quantization.calibration import read_texts, token_samples
from tinychat_ros.quantization.method import INPUTS, METHODS
from tinychat_ros.quantization.quantize import (
    Job, Outcome, quantize_checkpoint, SmoothQuant, WeightOnly)
from tinychat_ros.quantization.report import require_matplotlib, write_report
from tinychat_ros.quantization.rtn import BITS, WeightSpec

_SMOOTHQUANT = 'smoothquant'


def add(commands: Any) -> None:
    """Add ``quantize`` to the parser."""
    parser = commands.add_parser(
        'quantize', parents=[output_options(), device_options(dtype=False)],
        help='make a model 3, 4 or 8 bits small',
        description='Quantize a checkpoint folder SRC (safetensors in fp32, fp16 or bf16) into a '
        'new folder OUT. While it runs, OUT.partial holds what is finished; after Ctrl-C or a '
        'power cut, the same command with --resume goes on there and writes the same bytes.')
    parser.add_argument('source', metavar='SRC', help='checkpoint folder')
    parser.add_argument('out', metavar='OUT', help='folder to write, which must not exist')
    parser.add_argument('--method', default='awq', choices=(*METHODS, _SMOOTHQUANT),
                        help='awq is the default and the best measured; awq-paper is AWQ as '
                        'published; smoothquant is W8A8')
    parser.add_argument('--bits', type=int, default=4, choices=BITS,
                        help='default: 4, in AutoAWQ gemm; 3 is a format of our own')
    parser.add_argument('--group-size', type=int, default=128, metavar='N',
                        help='inputs that share a scale, -1 for all of a row (default: 128)')
    parser.add_argument('--symmetric', action='store_true', help='one zero point for all groups')
    parser.add_argument('--resume', action='store_true', help='go on with OUT.partial')
    parser.add_argument('--report', metavar='DIR',
                        help='write a page with plots there (needs matplotlib)')
    _add_calibration(parser.add_argument_group('calibration'))
    _add_choices(parser.add_argument_group('choices of a method, for comparisons'))
    parser.set_defaults(run=_quantize)


def _add_calibration(group: Any) -> None:
    group.add_argument('--calibration', metavar='FILE',
                       help='plain text in UTF-8 or .jsonl with a "text" in each line (default: '
                       'the text that comes with this package)')
    group.add_argument('--separator', default='', metavar='S',
                       help='cut a plain file here and make each text a sample of its own; '
                       'otherwise all text is joined and cut into samples')
    group.add_argument('--skip', type=int, default=0, metavar='N',
                       help='leave out the first N texts (default: 0)')
    group.add_argument('--limit', type=int, default=0, metavar='N',
                       help='use at most N texts (default: 0, all)')
    group.add_argument('--samples', type=int, default=128, metavar='N',
                       help='use at most N samples (default: 128)')
    group.add_argument('--sample-length', type=int, default=512, metavar='N',
                       help="tokens of a sample, at most the model's context (default: 512)")
    group.add_argument('--search-samples', type=int, default=8, metavar='N',
                       help='try scales on N of them (default: 8)')
    group.add_argument('--seed', type=int, default=0, metavar='S',
                       help='of the order of the texts (default: 0)')


def _add_choices(group: Any) -> None:
    group.add_argument('--inputs', choices=INPUTS,
                       help='what a block sees while it is quantized: the original activations, '
                       'those behind the quantized blocks, or these with weights corrected for '
                       'them')
    group.add_argument('--rounding', choices=('nearest', 'feedback'),
                       help='feedback lets later columns make up for the error of earlier ones')
    flag = argparse.BooleanOptionalAction
    group.add_argument('--act-order', action=flag, default=None,
                       help='with feedback, largest inputs first')
    group.add_argument('--clip-all', action=flag, default=None,
                       help='search the clip of query and key projections too')
    group.add_argument('--alpha-one', action=flag, default=None, help='try alpha = 1 too')
    group.add_argument('--weight-magnitude', action=flag, default=None,
                       help='try scales with the magnitude of the weights too')
    group.add_argument('--alpha', type=float, metavar='A',
                       help='of smoothquant (default: searched)')


def _quantize(args: argparse.Namespace) -> int:
    if args.report:
        require_matplotlib()
    scheme = _scheme(args)
    config = EngineConfig(device=args.device, num_threads=args.threads)
    source, out = Path(args.source), Path(args.out)
    with CheckpointReader(source) as reader:
        torch.set_num_threads(config.threads(weight_bytes(reader, torch.float16)))
        job = Job(source, out, scheme, search_samples=args.search_samples,
                  device=config.torch_device())
        if job.calibrated:
            job = replace(job, samples=_samples(args, reader))
    try:
        outcome = quantize_checkpoint(job, args.resume)
    except (KeyboardInterrupt, OSError) as error:
        print_error(error)
        print(f'tinychat: what is finished stays in {out}.partial; go on with --resume',
              file=sys.stderr)
        return FAILED
    _report(args, job, outcome)
    return 0


def _scheme(args: argparse.Namespace) -> Union[WeightOnly, SmoothQuant]:
    if args.method == _SMOOTHQUANT:
        return SmoothQuant(args.alpha)
    chosen = {name: value for name in ('inputs', 'act_order', 'clip_all', 'alpha_one',
                                       'weight_magnitude')
              if (value := getattr(args, name)) is not None}
    if args.rounding:
        chosen['feedback'] = args.rounding == 'feedback'
    return WeightOnly(replace(METHODS[args.method], **chosen),
                      WeightSpec(args.bits, args.group_size, args.symmetric))


def _samples(args: argparse.Namespace, reader: CheckpointReader) -> list[torch.Tensor]:
    for name in ('samples', 'sample_length', 'search_samples'):
        if getattr(args, name) < 1:
            raise ConfigError(f"{name.replace('_', '-')}: expected 1 or more, "
                              f'got {getattr(args, name)}')
    for name in ('skip', 'limit'):
        if getattr(args, name) < 0:
            raise ConfigError(f'{name}: expected 0 or more, got {getattr(args, name)}')
    path = Path(args.calibration) if args.calibration else None
    texts = read_texts(path, args.separator)[args.skip:][:args.limit or None]
    length = min(args.sample_length, reader.config.max_position_embeddings)
    return token_samples(texts, load_tokenizer(reader).encode, args.samples, length, args.seed,
                         separate=bool(args.separator))


def _report(args: argparse.Namespace, job: Job, outcome: Outcome) -> None:
    tokens = sum(map(len, job.samples))
    smooth = isinstance(job.scheme, SmoothQuant)
    document = {
        'method': args.method, 'bits': 8 if smooth else args.bits,
        'group_size': None if smooth else args.group_size, 'source': args.source, 'out': args.out,
        'samples': len(job.samples), 'tokens': tokens, 'blocks': outcome.blocks,
        'blocks_per_minute': outcome.blocks_per_minute, 'seconds': outcome.seconds,
        'peak_memory_bytes': outcome.peak_memory_bytes,
        'bytes_before': sum(layer.bytes_before for layer in outcome.layers),
        'bytes_after': sum(layer.bytes_after for layer in outcome.layers),
    }
    for key, value in document.items():
        print(f'{key:18} {value}', file=sys.stderr if args.json else sys.stdout)
    for layer in outcome.layers:
        if layer.note:
            print(f'{layer.name}: {layer.note}', file=sys.stderr)
    if args.report:
        write_report(Path(args.report), f'{Path(args.out).name}: {args.method}',
                     {key: str(value) for key, value in document.items()}, outcome.layers)
    if args.json:
        print(json.dumps({**document, 'layers': [asdict(layer) for layer in outcome.layers]}))
