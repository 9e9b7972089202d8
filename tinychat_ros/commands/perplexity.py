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
"""The command `tinychat perplexity`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import sys
from typing import Any

import torch

from tinychat_ros.checkpoint.loader import check_memory, load_model, weight_bytes
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.commands.common import device_options, output_options
from tinychat_ros.engine.config import EngineConfig
from tinychat_ros.engine.engine import load_tokenizer
from tinychat_ros.engine.tokenizer import Tokenizer
from tinychat_ros.errors import ConfigError
from tinychat_ros.quantization.calibration import JSON_LINES, read_texts
from tinychat_ros.quantization.evaluate import perplexity, token_lists


def add(commands: Any) -> None:
    """Add ``perplexity`` to the parser."""
    parser = commands.add_parser(
        'perplexity', parents=[output_options(), device_options()],
        help='measure how well a model predicts a text', description='Print the perplexity of a '
        'model on a text: exp of the mean negative log-likelihood of its tokens. A plain file is '
        'tokenized whole and cut into windows of the context, each a text of its own.')
    parser.add_argument('model', metavar='MODEL', help='checkpoint folder, or demo')
    parser.add_argument('--text', required=True, metavar='FILE',
                        help='plain text in UTF-8, or .jsonl with a "text" in each line, which is '
                        'then a text of its own, cut to the context')
    parser.add_argument('--separator', default='', metavar='S',
                        help='cut a plain file here, into texts of their own that are cut to the '
                        'context')
    parser.add_argument('--context', type=int, default=0, metavar='N',
                        help="tokens of the longest text (default: 0, the model's, at most 2048)")
    parser.add_argument('--skip', type=int, default=0, metavar='N',
                        help='leave out the first N texts, or with -N all but the last N, so that '
                        'one file can serve calibration and evaluation (default: 0)')
    parser.add_argument('--limit', type=int, default=0, metavar='N',
                        help='use at most N texts (default: 0, all)')
    parser.add_argument('--activations', default='fp16', choices=('fp16', 'int8'),
                        help='int8 rounds the input of layers of 4 bits or less as W4A8 kernels '
                        'do (default: fp16, it stays in --dtype)')
    parser.set_defaults(run=_perplexity)


def _perplexity(args: argparse.Namespace) -> int:
    config = EngineConfig(model=args.model, device=args.device, dtype=args.dtype,
                          num_threads=args.threads)
    with CheckpointReader(config.model_path) as reader:
        config = config.for_model(reader.config)
        device, dtype = config.torch_device(), config.torch_dtype()
        context = _context(args, config, reader.config.max_position_embeddings)
        texts = _texts(args, load_tokenizer(reader), context)
        torch.set_num_threads(config.threads(weight_bytes(reader, dtype, device)))
        check_memory(reader, dtype, dtype, device, 1, context, config.budget())
        model, method = load_model(reader, dtype, device, context, args.activations == 'int8')
    found = perplexity(model, texts, device)
    document = {
        'model': str(config.model_path), 'method': method, 'activations': args.activations,
        'context': context, 'texts': len(texts), 'tokens': found.tokens,
        'perplexity': found.perplexity,
    }
    for key, value in document.items():
        print(f'{key:12} {value}', file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(document))
    return 0


def _context(args: argparse.Namespace, config: EngineConfig, longest: int) -> int:
    if args.context and not 2 <= args.context <= longest:
        raise ConfigError(f'context: expected 2 to {longest}, what the model was trained for, '
                          f'got {args.context}')
    return args.context or config.seq_len(longest)


def _texts(args: argparse.Namespace, tokenizer: Tokenizer, context: int) -> list[list[int]]:
    if args.limit < 0:
        raise ConfigError(f'limit: expected 0 or more, got {args.limit}')
    path = Path(args.text)
    texts = token_lists(read_texts(path, args.separator), tokenizer.encode, context,
                        separate=bool(args.separator) or path.suffix in JSON_LINES)
    return texts[args.skip:][:args.limit or None]
