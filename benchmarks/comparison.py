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
"""Contenders side by side: what they multiply by, the ratios of their rounds, and tables."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Mapping, Sequence

from tinychat_ros.models.config import ModelConfig

OURS = 'ours'

# Least, median and greatest of the rounds.
Ratio = tuple[float, float, float]


@dataclass(frozen=True)
class Matrix:
    """
    A distinct linear of a shape, its weight [n, k].

    :param count: how many of them a token passes.
    """

    name: str
    n: int
    k: int
    count: int


def matrices(config: ModelConfig) -> list[Matrix]:
    """Return the linears of a shape, joined as the product joins them; the LM head is the last."""
    hidden, inter, layers = (
        config.hidden_size, config.intermediate_size, config.num_hidden_layers)
    q_size, kv_size = (heads * config.head_dim for heads in (
        config.num_attention_heads, config.num_key_value_heads))
    return [Matrix('qkv', q_size + 2 * kv_size, hidden, layers),
            Matrix('o', hidden, q_size, layers), Matrix('gate_up', 2 * inter, hidden, layers),
            Matrix('down', hidden, inter, layers), Matrix('lm_head', config.vocab_size, hidden, 1)]


def medians(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median of the rounds of each contender."""
    return {contender: median(each) for contender, each in found.items()}


def ratios(found: Mapping[str, Sequence[float]]) -> dict[str, Ratio]:
    """Return what ours is, over what each peer is in the same round."""
    return {peer: _ratio(found[OURS], theirs) for peer, theirs in found.items() if peer != OURS}


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    each = [own / other for own, other in zip(ours, theirs)]
    return min(each), median(each), max(each)


def ratio_titles(peers: Sequence[str]) -> list[str]:
    """Return the titles of columns of ratios."""
    return [f'ours/{peer} (least-most)' for peer in peers]


def ratio_cell(ratio: Ratio) -> str:
    """Return a ratio as a table has it."""
    least, middle, most = ratio
    return f'{middle:.3f} ({least:.3f}-{most:.3f})'
