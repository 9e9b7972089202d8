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
"""Times products with each matrix of a shape: for one token, and for many."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import median
from typing import Mapping, Sequence

from benchmarks.comparison import Matrix, medians, Ratio, ratio_cell, ratios
from benchmarks.conditions import Conditions, watched
from benchmarks.int4_contenders import CONTENDERS, Product, Work
import torch

from tinychat_ros.bench.table import aligned
from tinychat_ros.bench.timing import timed

_CACHES = Path('/sys/devices/system/cpu/cpu0/cache')
# Where the machine does not tell.
_USUAL_CACHE = 2**25
# So much more than the last cache all copies of a matrix are together.
_CACHE_FACTOR = 4

TOKENS = (1, 128)
_REPEATS = {1: 20, 128: 5}
_UNITS = {1: 'GB/s', 128: 'GMAC/s of a core'}


@dataclass(frozen=True)
class Row:
    """
    A line of the table.

    :param speeds: for one token the bytes of weights in a second, in billions; for many the
        multiplications with addition of a core in a second, in billions. Medians of the rounds.
    :param ratios: of our products per second to those of each peer.
    """

    name: str
    n: int
    k: int
    tokens: int
    speeds: dict[str, float]
    ratios: dict[str, Ratio]
    rounds: Sequence[Conditions]


def measure(matrix: Matrix, contenders: Sequence[str], threads: int, rounds: int) -> list[Row]:
    """Let the contenders take turns and return a row for each number of tokens."""
    works = {tokens: _work(matrix, tokens, threads) for tokens in TOKENS}
    products = {tokens: {name: CONTENDERS[name](work) for name in contenders}
                for tokens, work in works.items()}
    found = {tokens: {name: [] for name in contenders} for tokens in TOKENS}
    conditions: list[Conditions] = []
    for _ in range(rounds):
        with watched(conditions):
            for tokens, work in works.items():
                for name in contenders:
                    found[tokens][name].append(_per_second(products[tokens][name], work))
    return [row(matrix, works[tokens], found[tokens], {
        name: product.weight_bytes for name, product in products[tokens].items()}, conditions)
        for tokens in TOKENS]


def _work(matrix: Matrix, tokens: int, threads: int) -> Work:
    # Only one token waits for the memory.
    copies = 1 if tokens > 1 else max(2, ceil(
        _CACHE_FACTOR * last_cache_bytes(_CACHES) / (matrix.n * matrix.k / 2)))
    return Work(matrix.n, matrix.k, tokens, copies, threads)


def last_cache_bytes(folder: Path) -> int:
    """Return the size of the largest cache of a core, from its folder in sysfs."""
    sizes = [path.read_text().strip() for path in folder.glob('index*/size')]
    return max((int(size.removesuffix('K')) * 1024 for size in sizes), default=_USUAL_CACHE)


def _per_second(product: Product, work: Work) -> float:
    return work.copies / timed(product.run, torch.device('cpu'), _REPEATS[work.tokens]).median


def row(matrix: Matrix, work: Work, found: Mapping[str, Sequence[float]],
        weight_bytes: Mapping[str, int], rounds: Sequence[Conditions]) -> Row:
    """
    Return a line of the table.

    :param found: products per second of each contender in each round.
    """
    operations = work.n * work.k * work.tokens / work.threads
    speeds = {name: (weight_bytes[name] if work.tokens == 1 else operations) * each / 1e9
              for name, each in medians(found).items()}
    return Row(matrix.name, work.n, work.k, work.tokens, speeds, ratios(found), rounds)


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table for each number of tokens."""
    return [line for tokens in TOKENS
            for line in ['', *_table(tokens, [row for row in rows if row.tokens == tokens])]]


def _table(tokens: int, rows: Sequence[Row]) -> list[str]:
    cells = [[f'tokens: {tokens}', 'n', 'k', 'by', _UNITS[tokens], 'ours/this (least-most)',
              'read GB/s', 'foreign cores']]
    for row in rows:
        conditions = [f'{median(each.read_bandwidth_gbs for each in row.rounds):.1f}',
                      f'{max(each.foreign_cores for each in row.rounds):.2f}']
        cells += [[row.name, str(row.n), str(row.k), name, f'{speed:.1f}',
                   ratio_cell(row.ratios[name]) if name in row.ratios else '', *conditions]
                  for name, speed in row.speeds.items()]
    return aligned(cells)
