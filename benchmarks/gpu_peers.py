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
Prints side by side what a shape's linears take for one token: ours, PyTorch's int4 and fp16.

Each runs as a CUDA graph over so many copies of a matrix that the L2 cache cannot hold them, in
turn with the others.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
import json
from math import ceil
import sys
from typing import Callable, Mapping, Optional, Sequence

from benchmarks.comparison import (
    matrices, Matrix, medians, OURS, Ratio, ratio_cell, ratio_titles, ratios)
from benchmarks.llama_bench import Phase, speeds
import torch
from torch import Tensor
import torch.nn.functional as F

from tinychat_ros.bench.ladder import GRAPH, product, random_past
from tinychat_ros.bench.shapes import LLAMA_SHAPES, RandomWeights, shape_config
from tinychat_ros.bench.table import aligned
from tinychat_ros.bench.timing import timed
from tinychat_ros.commands.common import FAILED, print_error
from tinychat_ros.engine.config import EngineConfig
from tinychat_ros.errors import ConfigError, TinychatError
from tinychat_ros.kernels import cuda, extension
from tinychat_ros.kernels.operands import Norm
from tinychat_ros.models.config import ModelConfig

INT4PACK, FP16 = 'int4pack', 'fp16'
ROUNDS = 5
GROUP_SIZE = 128
_INNER_K_TILES = 8
# So much more than the L2 cache all copies of a matrix are together.
_L2_FACTOR = 4
_DECODE = Phase(0, 64)
_REPETITIONS = 3

# (n, k, device) to a product of one token with new weights.
Build = Callable[[int, int, torch.device], Callable[[], object]]


@dataclass(frozen=True)
class Row:
    """
    A line of the table.

    :param milliseconds: of each contender for one product, median of the rounds; in the row
        'total', for all products of a token.
    :param ratios: of our time to that of each peer.
    """

    name: str
    n: int
    k: int
    milliseconds: dict[str, float]
    ratios: dict[str, Ratio]


def rows(found: Mapping[Matrix, Mapping[str, Sequence[float]]]) -> list[Row]:
    """Return a row of each matrix and the total, from the milliseconds of each round."""
    contenders = next(iter(found.values()))
    total = {name: [sum(times) for times in zip(*(
        [matrix.count * time for time in times[name]] for matrix, times in found.items()))]
        for name in contenders}
    return [*(_row(m.name, m.n, m.k, times) for m, times in found.items()),
            _row('total', 0, 0, total)]


def _row(name: str, n: int, k: int, times: Mapping[str, Sequence[float]]) -> Row:
    return Row(name, n, k, medians(times), ratios(times))


def table(found: Sequence[Row]) -> str:
    """Return the rows as lines of text."""
    contenders, peers = list(found[0].milliseconds), list(found[0].ratios)
    cells = [['matrix', 'n', 'k', *(f'{c} ms' for c in contenders), *ratio_titles(peers)]]
    cells += [[row.name, str(row.n or ''), str(row.k or ''),
               *(f'{row.milliseconds[c]:.5f}' for c in contenders),
               *(ratio_cell(row.ratios[peer]) for peer in peers)] for row in found]
    return '\n'.join(aligned(cells))


def _ours(n: int, k: int, device: torch.device) -> Callable[[], object]:
    source = RandomWeights(device, torch.float16, GROUP_SIZE)
    tiles, x = source.linears(['weight'], [n], k)[0].weight, _activations(k, device)
    return lambda: cuda.linear(x, tiles)


def _our_lm_head(n: int, k: int, device: torch.device) -> Callable[[], object]:
    weight, x = _plain(n, k, device), _activations(k, device)
    norm = Norm(torch.ones(k, dtype=torch.float16, device=device), 1e-5)
    return lambda: cuda.lm_head(x, weight, norm)


def _fp16(n: int, k: int, device: torch.device) -> Callable[[], object]:
    weight, x = _plain(n, k, device), _activations(k, device)
    return lambda: F.linear(x, weight)


def _int4pack(n: int, k: int, device: torch.device) -> Callable[[], object]:
    x = _activations(k, device).to(torch.bfloat16)
    packed = pack_int4(torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device=device))
    scales = torch.full((k // GROUP_SIZE, n, 2), k ** -0.5, dtype=torch.bfloat16, device=device)
    return lambda: torch.ops.aten._weight_int4pack_mm(x, packed, GROUP_SIZE, scales)


def pack_int4(codes: Tensor) -> Tensor:
    """Pack uint8 [n, k / 2] for PyTorch's int4 product; before 2.5 it took int32 [n, k]."""
    try:
        return torch.ops.aten._convert_weight_to_int4pack(codes, _INNER_K_TILES)
    except RuntimeError:
        wide = torch.stack((codes >> 4, codes & 15), dim=-1).flatten(1).to(torch.int32)
        return torch.ops.aten._convert_weight_to_int4pack(wide, _INNER_K_TILES)


def _plain(n: int, k: int, device: torch.device) -> Tensor:
    return RandomWeights(device, torch.float16).tensor('weight', [n, k])


def _activations(k: int, device: torch.device) -> Tensor:
    return torch.randn(1, k, dtype=torch.float16, device=device)


# The bytes of a weight, and how to build a product. The LM head is fp16 for all.
CONTENDERS: Mapping[str, tuple[float, Build]] = {
    OURS: (0.5, _ours), INT4PACK: (0.5, _int4pack), FP16: (2, _fp16)}
LM_HEADS: Mapping[str, tuple[float, Build]] = {
    OURS: (2, _our_lm_head), INT4PACK: (2, _fp16), FP16: (2, _fp16)}


def measure(matrix: Matrix, contenders: Sequence[str], device: torch.device,
            rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Return the milliseconds of one product of each contender in each round."""
    kinds = LM_HEADS if matrix.name == 'lm_head' else CONTENDERS
    copies = {name: _copies(matrix, kinds[name][0], device) for name in contenders}
    products = {name: [kinds[name][1](matrix.n, matrix.k, device) for _ in range(copies[name])]
                for name in contenders}
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name in contenders:
            # Every matrix is another one, and so no call finds its own in the cache.
            timing = timed(lambda: [run() for run in products[name]], device, graph=True)
            found[name].append(1000 * timing.median / copies[name])
    return found


def _copies(matrix: Matrix, bytes_per_weight: float, device: torch.device) -> int:
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(2, ceil(_L2_FACTOR * cache / (matrix.n * matrix.k * bytes_per_weight)))


def why_absent(name: str, device: torch.device) -> str:
    """Return why a contender cannot run with this PyTorch on this device, or ''."""
    try:
        CONTENDERS[name][1](256, 1024, device)()
    except (AttributeError, RuntimeError) as error:
        return str(error)[:200]
    return ''


def run(args: argparse.Namespace) -> dict:
    """
    Measure, print the table and return the document.

    :raises ConfigError: there is no GPU, no kernel for it, or no such shape.
    """
    device = EngineConfig(device='cuda').torch_device()
    if extension.cuda(device) is None:
        raise ConfigError(extension.why_no_cuda(device))
    config = shape_config(args.shape)
    absent = {peer: why_absent(peer, device) for peer in (INT4PACK, FP16)}
    contenders = [name for name in CONTENDERS if not absent.get(name)]
    found = rows({m: measure(m, contenders, device) for m in matrices(config)})
    print(table(found))
    document = {'shape': args.shape, 'device': torch.cuda.get_device_name(device),
                'torch': torch.__version__, 'rounds': ROUNDS, 'rows': [asdict(r) for r in found],
                'left_out': {name: reason for name, reason in absent.items() if reason}}
    if args.llama_bench:
        document['decode'] = compare_decode(config, args, device)
    return document


def compare_decode(config: ModelConfig, args: argparse.Namespace,
                   device: torch.device) -> dict[str, float]:
    """Return the tokens per second of our whole decode step and of llama.cpp's."""
    past = random_past(config, 0, device, torch.float16)
    ours = 1000 / dict(product(config, past, _DECODE.generated))[GRAPH]
    theirs = speeds(args.llama_bench, args.gguf, [_DECODE], _REPETITIONS)[_DECODE]
    print(f'decode, {_DECODE.generated} tokens: ours {ours:.1f} tokens/s, llama.cpp {theirs:.1f} '
          f'tokens/s, ours/llama.cpp {ours / theirs:.3f}')
    return {OURS: ours, 'llama.cpp': theirs}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Print a table and one JSON document; return 0, or 1 when that failed."""
    parser = _parser()
    args = parser.parse_args(argv)
    if bool(args.llama_bench) != bool(args.gguf):
        parser.error('--llama-bench and --gguf: expected both or neither')
    try:
        print(json.dumps(run(args)))
    except TinychatError as error:
        print_error(error)
        return FAILED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.gpu_peers', description=__doc__)
    parser.add_argument('--shape', default='llama-2-7b', choices=LLAMA_SHAPES)
    parser.add_argument('--llama-bench', metavar='PATH',
                        help="llama.cpp's program of that name, to set its decoding beside ours")
    parser.add_argument('--gguf', metavar='FILE', help='the model of this shape that it is to run')
    return parser


if __name__ == '__main__':
    sys.exit(main())
