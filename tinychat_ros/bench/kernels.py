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
"""The parts of a decode step, one by one."""

from __future__ import annotations

from functools import partial
from typing import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tinychat_ros.bench.bandwidth import Bandwidth
from tinychat_ros.bench.figures import Kernel, Timed
from tinychat_ros.bench.subject import Subject
from tinychat_ros.bench.timing import timed, Timing
from tinychat_ros.engine.graph_runner import GraphRunner
from tinychat_ros.kernels import ops
from tinychat_ros.kernels.linear import Linear
from tinychat_ros.kernels.packing import CpuTiles, CudaTiles, tensors_of
from tinychat_ros.models.kv_cache import kv_bytes_per_position
from tinychat_ros.models.block import Block
from tinychat_ros.models.causal_lm import chain_prefetches

# What a step has one of is called so often in a row, since one alone may be too short to time.
_CALLS = 8


def time_kernels(subject: Subject, contexts: Sequence[int], repeats: int,
                 bandwidth: Bandwidth) -> list[Timed]:
    """
    Time each kernel on all layers in turn, so that it finds its weights outside of the cache.

    What is small enough for the cache as a whole may come out faster than memory. Kernels are
    left to prefetch for the one like them in the next layer, as they are timed.
    """
    return [Timed(kernel, *bandwidth.beside(
                partial(_time_each, work, len(work), subject, repeats)))
            for kernel, work in _kernels(subject, contexts)]


def time_products(subject: Subject, tokens: int, repeats: int) -> list[tuple[Kernel, Timing]]:
    """Time the linears of a prefill of so many tokens, each on all layers in turn."""
    groups = {'qkv': lambda block: block.qkv, 'o': lambda block: [block.o_proj],
              'gate_up': lambda block: block.gate_up, 'down': lambda block: [block.down_proj]}
    found = []
    for name, of in groups.items():
        layers = [of(block) for block in subject.model.blocks]
        kernel = _product(name, layers[0], len(layers))._replace(m=tokens)
        x = torch.randn(tokens, kernel.k, dtype=subject.model.dtype, device=subject.device)
        work = [partial(ops.linear, x, linear) for layer in layers for linear in layer]
        found.append((kernel, _time_each(work, len(layers), subject, repeats)))
    return found


def weight_bytes(linear: Linear) -> int:
    """Return the bytes of a weight as it lies in memory, with scales and zeros."""
    weight = linear.weight
    if isinstance(weight, Tensor):
        return weight.nbytes
    if isinstance(weight, CudaTiles):
        return weight.records.nbytes
    if isinstance(weight, CpuTiles):
        return weight.data.nbytes
    return sum(tensor.nbytes for tensor in tensors_of(weight).values())


def _time_each(work: Sequence[Callable[[], object]], count: int, subject: Subject,
               repeats: int) -> Timing:
    return timed(lambda: [call() for call in work], subject.device, repeats,
                 graph=True).scaled(1 / count)


def _kernels(subject: Subject, contexts: Sequence[int]
             ) -> Iterator[tuple[Kernel, list[Callable[[], object]]]]:
    model, config = subject.model, subject.model.config
    caches = [subject.cache.layer(i, 0) for i in range(len(model.blocks))]
    x, attended, gated = (
        torch.randn(1, size, dtype=model.dtype, device=subject.device)
        for size in (config.hidden_size, config.num_attention_heads * config.head_dim,
                     config.intermediate_size))
    first = ops.StepState.at(0, subject.device)
    token = torch.zeros(1, dtype=torch.int32, device=subject.device)

    def linears(name: str, of: Callable[[Block], Sequence[Linear]],
                run: Callable[..., object]) -> tuple[Kernel, list[Callable[[], object]]]:
        layers = [of(block) for block in model.blocks]
        chain_prefetches([*(linear for layer in layers for linear in layer), layers[0][0]])
        return (_product(name, layers[0], len(layers)),
                [partial(run, block, cache) for block, cache in zip(model.blocks, caches)])

    yield (Kernel('embedding', 1, config.hidden_size, 1, x.nbytes, 1),
           [partial(ops.embedding, token, model.embedding, model.dtype)] * _CALLS)
    yield linears('qkv', lambda block: block.qkv, lambda block, cache: ops.qkv_rope_append(
        x, block.attention_norm, block.qkv, block.rope, cache, first))
    q = attended.view(1, config.num_attention_heads, config.head_dim)
    for context in contexts:
        yield _attention(subject, caches, q, context)
    yield linears('o', lambda block: [block.o_proj], lambda block, cache: ops.linear_residual(
        attended, block.o_proj, x))
    yield linears('gate_up', lambda block: block.gate_up, lambda block, cache: block.activated(x))
    yield linears('down', lambda block: [block.down_proj], lambda block, cache:
                  ops.linear_residual(gated, block.down_proj, x))
    yield _product('lm_head', [model.lm_head], 1), [partial(model.candidates, x)] * _CALLS
    if isinstance(subject.runner, GraphRunner):
        subject.runner.step_at(0, 0)  # Makes it greedy.
        found = model.candidates(x)
        read = found.logits if found.best is None else found.best
        yield (Kernel('sampler', 1, config.vocab_size, 1, read.nbytes, 1),
               [partial(subject.runner.sample, found)] * _CALLS)


def _product(name: str, linears: Sequence[Linear], calls: int) -> Kernel:
    n = sum(linear.weight.shape[0] for linear in linears)
    return Kernel(name, 1, n, linears[0].weight.shape[1], sum(map(weight_bytes, linears)), calls)


def _attention(subject: Subject, caches: Sequence[ops.LayerCache], q: Tensor, context: int
               ) -> tuple[Kernel, list[Callable[[], object]]]:
    config, layers = subject.model.config, len(caches)
    size = context * kv_bytes_per_position(config, subject.kv_dtype) // layers
    last = ops.StepState.at(context - 1, subject.device)
    return (Kernel(f'attention@{context}', config.num_attention_heads, context, config.head_dim,
                   size, layers, context),
            [partial(ops.attention, q, cache, last, ops.Scores(config.head_dim ** -0.5))
             for cache in caches])
