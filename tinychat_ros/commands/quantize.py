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
from tempfile import TemporaryFile
from typing import AbstractSet, Any, Union

import torch

from tinychat_ros.checkpoint.loader import weight_bytes
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.commands.common import device_options, FAILED, output_options
from tinychat_ros.engine.config import EngineConfig
from tinychat_ros.engine.engine import load_tokenizer
from tinychat_ros.errors import ConfigError, TinychatError
from tinychat_ros.quantization.calibration import read_texts, token_samples
from tinychat_ros.quantization.job import Job, SmoothQuant, WeightOnly
from tinychat_ros.quantization.method import INPUTS, METHODS
from tinychat_ros.quantization.quantize import Outcome, quantize_checkpoint
from tinychat_ros.quantization.report import require_matplotlib, write_report
from tinychat_ros.quantization.rtn import BITS, WeightSpec
from tinychat_ros.quantization.work_folder import partial_path

_SMOOTHQUANT = 'smoothquant'
# Of options that are None where they are not given, to tell those that a method does not read.
_DEFAULTS = {'bits': 4, 'group_size': 128, 'symmetric': False, 'separator': '', 'skip': 0,
             'limit': 0, 'samples': 128, 'sample_length': 512, 'search_samples': 8, 'seed': 0}
_OF_METHODS = ('inputs', 'act_order', 'clip_all', 'alpha_one', 'weight_magnitude')
_OF_WEIGHTS = ('bits', 'group_size', 'symmetric', 'rounding', *_OF_METHODS)
_OF_CALIBRATION = ('calibration', 'separator', 'skip', 'limit', 'samples', 'sample_length', 'seed')


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
    parser.add_argument('--bits', type=int, choices=BITS,
                        help='default: 4, in AutoAWQ gemm; 3 is a format of our own')
    parser.add_argument('--group-size', type=int, metavar='N',
                        help='inputs that share a scale, -1 for all of a row (default: 128)')
    parser.add_argument('--symmetric', action='store_true', default=None,
                        help='one zero point for all groups')
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
    group.add_argument('--separator', metavar='S',
                       help='cut a plain file here and make each text a sample of its own; '
                       'otherwise all text is joined and cut into samples')
    group.add_argument('--skip', type=int, metavar='N',
                       help='leave out the first N texts (default: 0)')
    group.add_argument('--limit', type=int, metavar='N',
                       help='use at most N texts (default: 0, all)')
    group.add_argument('--samples', type=int, metavar='N',
                       help='use at most N samples (default: 128)')
    group.add_argument('--sample-length', type=int, metavar='N',
                       help="tokens of a sample, at most the model's context (default: 512)")
    group.add_argument('--search-samples', type=int, metavar='N',
                       help='try scales on N of them (default: 8)')
    group.add_argument('--seed', type=int, metavar='S',
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
    given = {name for name, value in vars(args).items() if value is not None}
    args = argparse.Namespace(**vars(args) | {
        name: value for name, value in _DEFAULTS.items() if name not in given})
    scheme = _scheme(args)
    _refuse_ignored(given, args.method, scheme)
    config = EngineConfig(device=args.device, num_threads=args.threads)
    source, out, device = Path(args.source), Path(args.out), config.torch_device()
    with CheckpointReader(source) as reader:
        torch.set_num_threads(config.threads(weight_bytes(reader, torch.float16, device)))
        job = Job(source, out, scheme, search_samples=args.search_samples, device=device)
        if job.calibrated:
            job = replace(job, samples=_samples(args, reader))
    if args.report:
        _check_report(Path(args.report), out)
    try:
        outcome = quantize_checkpoint(job, args.resume)
    except TinychatError:
        raise
    except (KeyboardInterrupt, Exception) as error:
        if not partial_path(out).exists():
            raise
        what = f'error: {type(error).__name__}: {error}' if str(error) else 'interrupted'
        print(f'tinychat: {what}; what is finished stays in {partial_path(out)}, go on with '
              '--resume', file=sys.stderr)
        if args.verbose:
            raise
        return FAILED
    _report(args, job, outcome)
    return 0


def _scheme(args: argparse.Namespace) -> Union[WeightOnly, SmoothQuant]:
    if args.method == _SMOOTHQUANT:
        return SmoothQuant(args.alpha)
    chosen = {name: value for name in _OF_METHODS
              if (value := getattr(args, name)) is not None}
    if args.rounding:
        chosen['feedback'] = args.rounding == 'feedback'
    return WeightOnly(replace(METHODS[args.method], **chosen),
                      WeightSpec(args.bits, args.group_size, args.symmetric))


def _refuse_ignored(given: AbstractSet[str], method: str,
                    scheme: Union[WeightOnly, SmoothQuant]) -> None:
    """Refuse an option that would change nothing."""
    smooth = isinstance(scheme, SmoothQuant)
    for names, is_read, kind in (
            (_OF_WEIGHTS, not smooth, 'for weights of 3 or 4 bits'),
            (('alpha',), smooth, 'for weights of 8 bits'),
            (_OF_CALIBRATION, smooth or scheme.method.calibrated, 'with calibration'),
            (('search_samples',), smooth or scheme.method.scales, 'that searches scales')):
        if not is_read and (ignored := given.intersection(names)):
            raise ConfigError(f"{min(ignored).replace('_', '-')}: expected with it a method "
                              f'{kind}, got {method}')


def _check_report(folder: Path, out: Path) -> None:
    """Refuse a report that could not be written after the work."""
    require_matplotlib()
    if folder.absolute().is_relative_to(out.absolute()):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(f'report: expected a folder that can be written, got {folder}: '
                          f'{error.strerror}') from None


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
