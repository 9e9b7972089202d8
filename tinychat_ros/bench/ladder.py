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
The ladder of the TinyChat talk: from eager PyTorch to the product, one technique a rung.

Each rung keeps the techniques of those before it. Weights are random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Mapping, Optional, Sequence

import torch
from torch import Tensor

from tinychat_ros.bench.eager import (
    Decoder, FAST_ATTENTION, filled_cache, FUSED_NORMS, FUSED_ROTARY, MERGED, PlainWeights,
    STATIC_CACHE)
from tinychat_ros.bench.shapes import RandomWeights
from tinychat_ros.bench.timing import timed
from tinychat_ros.engine.graph_runner import GraphRunner
from tinychat_ros.engine.model_runner import ModelRunner
from tinychat_ros.engine.sampler import SamplingParams
from tinychat_ros.kernels import cuda
from tinychat_ros.models.config import ModelConfig
from tinychat_ros.models.causal_lm import CausalLM

EAGER = 'eager PyTorch'
W4A16 = 'W4A16, all fused'
GRAPH = 'CUDA graph with the sampler'

# The rungs in their order, those of a Decoder and those of a CausalLM.
PLAIN = (EAGER, STATIC_CACHE, FUSED_NORMS, FAST_ATTENTION, MERGED, FUSED_ROTARY)
PRODUCT = {W4A16: ModelRunner, GRAPH: GraphRunner}
WITHOUT_KERNELS = (EAGER, STATIC_CACHE, MERGED)

_FIRST_TOKEN = 1
# Positions beyond the tokens that are timed: for the first one, and for warming up.
_SPARE = 8
_HOST = torch.device('cpu')


@dataclass(frozen=True)
class Rung:
    """
    What a technique brought; None stands where it was left out.

    :param milliseconds: per token, the median.
    :param over_previous: times as fast as the rung before that was measured.
    :param over_first: times as fast as the first rung.
    :param left_out: why it was not measured, or ''.
    """

    name: str
    milliseconds: Optional[float] = None
    tokens_per_second: Optional[float] = None
    over_previous: Optional[float] = None
    over_first: Optional[float] = None
    left_out: str = ''


def random_past(config: ModelConfig, context: int, device: torch.device,
                dtype: torch.dtype) -> Tensor:
    """Return random keys and values of a context, [2, layers, Hkv, context, D]."""
    return torch.randn(2, config.num_hidden_layers, config.num_key_value_heads, context,
                       config.head_dim, dtype=dtype, device=device)


def ladder(config: ModelConfig, device: torch.device, dtype: torch.dtype, context: int = 512,
           tokens: int = 64) -> list[Rung]:
    """
    Time each rung on random weights.

    :param dtype: of plain weights and of activations.
    :param context: positions before the first token.
    :param tokens: how many are timed, each from the host's asking for it to its having it.
    """
    refusal = cuda.refusal(device, dtype, config.head_dim)
    past = random_past(config, context, device, dtype)
    found = dict(_plain(config, past, tokens, not refusal))
    if not refusal:
        torch.cuda.empty_cache()
        found.update(product(config, past, tokens))
    return compare(found, refusal)


def _plain(config: ModelConfig, past: Tensor, tokens: int,
           kernels: bool) -> Iterator[tuple[str, float]]:
    """Yield the rungs of PLAIN that can run with what a token takes, in milliseconds."""
    weights = PlainWeights(config, RandomWeights(past.device, past.dtype))
    techniques: tuple[str, ...] = ()
    for name in PLAIN:
        if kernels or name in WITHOUT_KERNELS:
            techniques += (name,)
            decoder = Decoder(weights, past, techniques, past.shape[3] + tokens + _SPARE)
            yield name, _milliseconds(decoder.tokens(_FIRST_TOKEN), tokens)


def product(config: ModelConfig, past: Tensor, tokens: int) -> Iterator[tuple[str, float]]:
    """Yield the rungs of PRODUCT, which need kernels, with milliseconds per token."""
    context, device = past.shape[3], past.device
    max_seq_len = context + tokens + _SPARE
    model = CausalLM(config, RandomWeights(device, past.dtype), max_seq_len, device)
    cache = filled_cache(config, past, max_seq_len)
    for name, runner_type in PRODUCT.items():
        runner = runner_type(model, cache, device)
        last = runner.prefill([_FIRST_TOKEN], 0, context)
        answer = runner.tokens(last, 0, context + 1, SamplingParams(), [])
        yield name, _milliseconds(answer, tokens)
    # A step may still be under way, and the memory that it writes to goes back now.
    cuda.synchronize(device)


def _milliseconds(answer: Iterator[int], tokens: int) -> float:
    # The host waits for every token, so its clock is the one.
    return 1000 * timed(lambda: next(answer), _HOST, tokens).median


def compare(milliseconds: Mapping[str, float], refusal: str) -> list[Rung]:
    """
    Compare rungs with those before them.

    :param milliseconds: per token, by the names of the rungs that were measured.
    :param refusal: why the others were not.
    """
    rungs, measured = [], []
    for name in (*PLAIN, *PRODUCT):
        if name not in milliseconds:
            rungs.append(Rung(name, left_out=refusal))
            continue
        measured.append(milliseconds[name])
        first, previous, found = measured[0], measured[-2:][0], measured[-1]
        rungs.append(Rung(name, found, 1000 / found, previous / found, first / found))
    return rungs


def table(rungs: Sequence[Rung]) -> str:
    """Return the rungs as lines of text."""
    lines = [f'{"technique":32} {"ms/token":>9} {"tokens/s":>9} {"vs last":>8} {"vs first":>8}']
    for rung in rungs:
        figures = f'left out: {rung.left_out}' if rung.left_out else (
            f'{rung.milliseconds:9.3f} {rung.tokens_per_second:9.1f} '
            f'{rung.over_previous:7.2f}x {rung.over_first:7.2f}x')
        lines.append(f'{rung.name:32} {figures}')
    return '\n'.join(lines)
