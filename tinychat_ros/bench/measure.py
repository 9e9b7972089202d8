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
"""Measures a loaded model: the first token, prefill, decode, each kernel, and the limits."""

from __future__ import annotations

import logging
import resource
import time
from typing import Iterator, NamedTuple, Sequence

import torch

from tinychat_ros.bench.bandwidth import Bandwidth, matrix_rate
from tinychat_ros.bench.figures import Decode, Measured, Prefill
from tinychat_ros.bench.kernels import time_kernels, time_products, weight_bytes
from tinychat_ros.bench.subject import Subject
from tinychat_ros.bench.timing import summary, timed, timed_by_host
from tinychat_ros.engine.graph_runner import GraphRunner
from tinychat_ros.engine.sampler import SamplingParams
from tinychat_ros.kernels import cuda
from tinychat_ros.models.kv_cache import kv_bytes_per_position

# Positions behind a context that measuring there may fill, beside tokens and repeats.
ROOM = 128

_PROMPT_TOKENS = 32
_WARM_UP_TOKENS = 4

_LOGGER = logging.getLogger(__name__)


class _Effort(NamedTuple):
    """How often things are done: tokens of an answer, prefills, and all else."""

    tokens: int
    prefills: int
    repeats: int


_EFFORTS = {'cuda': _Effort(64, 5, 20), 'cpu': _Effort(16, 3, 5)}


def measure(subject: Subject, contexts: Sequence[int], prefills: Sequence[int]) -> Measured:
    """
    Measure all there is to measure.

    :param contexts: positions at which to decode, with ROOM behind them in the cache.
    :param prefills: tokens of each prefill, at most what the cache holds.
    """
    effort, device, model = _EFFORTS[subject.device.type], subject.device, subject.model
    _LOGGER.info('time to first token')
    first = timed_by_host(lambda: _first_token(subject), device, effort.repeats)
    # Prefills first, so that decoding finds keys and values of tokens in the cache.
    prefill = [_prefill(subject, tokens, effort) for tokens in prefills]
    peak = _peak_memory_bytes(device)
    bandwidth = Bandwidth(device)
    decode = [_decode(subject, context, effort, bandwidth) for context in contexts]
    _LOGGER.info('kernels')
    kernels = time_kernels(subject, contexts, effort.repeats, bandwidth)
    products = [row for tokens in prefills
                for row in time_products(subject, tokens, effort.prefills)]
    _LOGGER.info('limits')
    linears = [linear for block in model.blocks for linear in block.linears()]
    return Measured(
        read_bandwidth=bandwidth.median(), copy_bandwidth=bandwidth.copy(),
        matrix_rate=matrix_rate(device),
        kernels=kernels, products=products,
        threads=torch.get_num_threads(), decode=decode, prefill=prefill, time_to_first_token=first,
        load_seconds=subject.load_seconds, peak_memory_bytes=peak,
        weight_bytes=sum(map(weight_bytes, [*linears, model.lm_head])),
        kv_bytes=kv_bytes_per_position(model.config, subject.kv_dtype),
        linear_parameters=sum(n * k for n, k in (linear.weight.shape for linear in linears)))


def _prompt(subject: Subject, tokens: int) -> list[int]:
    return [i % subject.model.config.vocab_size for i in range(tokens)]


def _first_token(subject: Subject) -> int:
    last = subject.runner.prefill(_prompt(subject, _PROMPT_TOKENS), 0, 0)
    return next(subject.runner.tokens(last, 0, _PROMPT_TOKENS, SamplingParams(), ()))


def _prefill(subject: Subject, tokens: int, effort: _Effort) -> Prefill:
    _LOGGER.info('prefill of %d', tokens)
    prompt = _prompt(subject, tokens)

    def prefill() -> None:
        subject.runner.prefill(prompt, 0, 0)
        cuda.synchronize(subject.device)

    return Prefill(tokens, timed_by_host(prefill, subject.device, effort.prefills))


def _decode(subject: Subject, context: int, effort: _Effort, bandwidth: Bandwidth) -> Decode:
    _LOGGER.info('decode at %d', context)
    wall, read = bandwidth.beside(
        lambda: summary(list(_token_seconds(subject, context, effort.tokens))))
    if not isinstance(subject.runner, GraphRunner):
        return Decode(context, wall, None, read)
    step = subject.runner.step_at(0, context)
    return Decode(context, wall, timed(step, subject.device, effort.repeats), read)


def _token_seconds(subject: Subject, context: int, tokens: int) -> Iterator[float]:
    """Yield what each token of an answer took its reader."""
    last = subject.runner.prefill([0], 0, context - 1)
    answer = subject.runner.tokens(last, 0, context, SamplingParams(), ())
    for _ in range(_WARM_UP_TOKENS):
        next(answer)
    for _ in range(tokens):
        begin = time.perf_counter()
        next(answer)
        yield time.perf_counter() - begin


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
