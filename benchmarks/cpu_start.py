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
"""
Prints what it takes a fresh process to load a shape on the CPU and say its first token.

A checkpoint of random weights is written once. The first process finds no packed weights and
leaves them behind, the others find them; its files are in the page cache for all of them. What a
process takes is counted over what it took after ``import torch``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
import subprocess
import sys
from tempfile import TemporaryDirectory
import time
from typing import Any

import torch

_MEMORY = ('VmRSS', 'RssAnon', 'VmHWM')
_PROMPT_TOKENS = 32
_GROUP_SIZE = 128
_MEBIBYTE = 2**20


def memory() -> dict[str, int]:
    """Return what this process takes, in bytes, by the names of /proc/self/status."""
    fields = (line.split() for line in Path('/proc/self/status').read_text().splitlines())
    return {name[:-1]: int(values[0]) * 1024 for name, *values in fields if name[:-1] in _MEMORY}


def start(args: argparse.Namespace) -> dict[str, Any]:
    """Load the checkpoint in this process and return what that took."""
    before = memory()
    # Not before: what these take counts as well.
    from tinychat_ros.bench.kernels import weight_bytes
    from tinychat_ros.bench.subject import of_checkpoint
    from tinychat_ros.engine.config import EngineConfig
    from tinychat_ros.engine.sampler import SamplingParams
    from tinychat_ros.models.kv_cache import kv_bytes_per_position
    config = EngineConfig(model=args.checkpoint, device='cpu', num_threads=args.threads,
                          lm_head_dtype=args.lm_head_dtype, weight_cache=args.weight_cache)
    begin = time.perf_counter()
    subject = of_checkpoint(config, args.max_seq_len)
    loaded = time.perf_counter()
    last = subject.runner.prefill(list(range(_PROMPT_TOKENS)), 0, 0)
    tokens = subject.runner.tokens(last, 0, _PROMPT_TOKENS, SamplingParams(), ())
    next(tokens)
    first_token = time.perf_counter()
    for _ in range(4):
        next(tokens)
    model, after = subject.model, memory()
    linears = [*(linear for block in model.blocks for linear in block.linears()), model.lm_head]
    weights = model.embedding.nbytes + sum(map(weight_bytes, linears))
    cache = args.max_seq_len * kv_bytes_per_position(model.config, subject.kv_dtype)
    return {'load_seconds': loaded - begin, 'first_token_seconds': first_token - begin,
            'weight_bytes': weights, 'kv_bytes': cache,
            'resident_bytes': after['VmRSS'] - before['VmRSS'],
            'anonymous_bytes': after['RssAnon'] - before['RssAnon'],
            'peak_bytes': after['VmHWM'] - before['VmRSS'],
            'peak_beyond_weights_and_cache_bytes':
                after['VmHWM'] - before['VmRSS'] - weights - cache}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write a checkpoint, start processes, and return what each took."""
    from benchmarks.random_checkpoint import write_random_checkpoint
    with TemporaryDirectory(dir=args.folder) as folder:
        checkpoint, cache = Path(folder) / 'model', Path(folder) / 'cache'
        write_random_checkpoint(checkpoint, args.shape, _GROUP_SIZE)
        command = [sys.executable, '-m', 'benchmarks.cpu_start', '--checkpoint', str(checkpoint),
                   '--weight-cache', str(cache), '--threads', str(args.threads),
                   '--lm-head-dtype', args.lm_head_dtype, '--max-seq-len', str(args.max_seq_len)]
        starts = [json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                  for _ in range(1 + args.starts)]
    return {'shape': args.shape, 'threads': args.threads, 'lm_head_dtype': args.lm_head_dtype,
            'cold': starts[0], 'warm': starts[1:]}


def table(document: dict[str, Any]) -> str:
    """Return the lines of a table: a start without packed weights, and the median with them."""
    warm = {key: median(start[key] for start in document['warm']) for key in document['cold']}
    lines = [f'{"":38}{"cold":>10}{"warm":>10}']
    for key, cold in document['cold'].items():
        name, scale = (key, 1) if key.endswith('seconds') else (
            key.replace('bytes', 'MiB'), _MEBIBYTE)
        lines.append(f'{name:38}{cold / scale:10.2f}{warm[key] / scale:10.2f}')
    return '\n'.join(lines)


def main(argv: list[str] | None = None) -> None:
    """Print the table and, as the last line, the document."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.cpu_start', description=__doc__)
    parser.add_argument('--shape', default='tinyllama-1.1b', metavar='NAME')
    parser.add_argument('--threads', type=int, default=1, metavar='N')
    parser.add_argument('--starts', type=int, default=5, metavar='N',
                        help='with packed weights (default: 5)')
    parser.add_argument('--lm-head-dtype', default='int8', choices=('auto', 'int8', 'int4'))
    parser.add_argument('--max-seq-len', type=int, default=2048, metavar='N')
    parser.add_argument('--folder', metavar='DIR', help='for the checkpoint (default: temporary)')
    parser.add_argument('--checkpoint', help=argparse.SUPPRESS)
    parser.add_argument('--weight-cache', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.checkpoint:
        torch.set_num_threads(args.threads)
        print(json.dumps(start(args)))
        return
    document = run(args)
    print(table(document))
    print(json.dumps(document))


if __name__ == '__main__':
    main()
