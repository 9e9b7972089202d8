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
"""What a compiled sampler has to draw, from engine/sampler.py and from Philox in Python."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from tinychat_ros.engine.sampler import filtered_probabilities, SamplingParams

FILTERS = {
    'plain': {},
    'temperature': {'temperature': 0.6},
    'hot': {'temperature': 100.0},
    'cold': {'temperature': 1e-9},
    'top_k': {'top_k': 7},
    'top_k of one': {'top_k': 1},
    'top_k of all': {'top_k': 2**31 - 1},
    'top_p': {'top_p': 0.8},
    'tiny top_p': {'top_p': 1e-9},
    'min_p': {'min_p': 0.05},
    'min_p of one': {'min_p': 1.0},
    'all': {'temperature': 0.8, 'top_k': 12, 'top_p': 0.9, 'min_p': 0.02},
    'penalty': {'repetition_penalty': 1.3, 'top_k': 9},
    'reward': {'repetition_penalty': 0.7, 'top_k': 9, 'top_p': 0.9},
}

_WORD = 2**32 - 1

# How far the kernel's cumulated probabilities, of single floats, may be from those in float64.
_TOLERANCE = 1e-5


def params_of(name: str, seed: int = 5) -> SamplingParams:
    """Return the parameters of a case above."""
    return SamplingParams(**{'temperature': 1.0, 'seed': seed, **FILTERS[name]})


def packed(params: SamplingParams) -> Tensor:
    """Return the bytes of a SamplingState."""
    seed = params.seed or 0
    return torch.frombuffer(bytearray(struct.pack(
        '<4fi2I', params.temperature, params.top_p, params.min_p, params.repetition_penalty,
        params.top_k, seed & _WORD, seed >> 32)), dtype=torch.uint8)


def philox(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    """Return four words of Philox 4x32-10 (Salmon et al., Parallel random numbers, 2011)."""
    words = list(counter)
    for i in range(10):
        first, second = 0xd2511f53 * words[0], 0xcd9e8d57 * words[2]
        k0, k1 = (key[0] + i * 0x9e3779b9) & _WORD, (key[1] + i * 0xbb67ae85) & _WORD
        words = [second >> 32 ^ words[1] ^ k0, second & _WORD,
                 first >> 32 ^ words[3] ^ k1, first & _WORD]
    return words


def candidates(logits: Tensor) -> Tensor:
    """Return the Candidate of each tile of logits [V]: int32 [ceil(V / 16), 2]."""
    tiles = torch.nn.functional.pad(logits.cpu(), (0, -len(logits) % 16), value=float('-inf'))
    values = tiles.view(-1, 16).amax(1)
    # A tile's NaN is its best; argmax takes the first of equals.
    tokens = torch.arange(0, len(tiles), 16) + tiles.view(-1, 16).argmax(1)
    return torch.stack([values.view(torch.int32), tokens.int()], 1)


def penalized(logits: Tensor, penalty: float, seen: Tensor) -> Tensor:
    """Return logits [V] after the repetition penalty for tokens seen [V]."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def acceptable_tokens(logits: Tensor, params: SamplingParams, seen: Tensor,
                      step: int) -> set[int]:
    """Return the token that u falls to, and its neighbours where u is next to their border."""
    logits = penalized(logits, params.repetition_penalty, seen)
    kept = filtered_probabilities(logits, params).double()
    tokens = kept.nonzero()[:, 0]
    reached = (kept / kept.sum())[tokens].cumsum(0)
    u = philox((step, 0, 0, 0), (params.seed & _WORD, params.seed >> 32))[0] / 2**32
    near = torch.tensor([u - _TOLERANCE, u, u + _TOLERANCE], dtype=torch.float64)
    found = torch.searchsorted(reached, near, right=True).clamp_max(len(tokens) - 1)
    return set(tokens[found].tolist())
