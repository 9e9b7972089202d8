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
"""What a benchmark measured, and the figures that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Sequence

from tinychat_ros.bench.timing import Timing


class Kernel(NamedTuple):
    """
    A part of the decode step.

    :param m, n, k: the shape of its product, n x k what it reads.
    :param bytes: that a call reads of weights or of the KV cache.
    :param calls: in a step.
    :param context: the only one at which it is called so; None is all.
    """

    name: str
    m: int
    n: int
    k: int
    bytes: int
    calls: int
    context: Optional[int] = None


class Timed(NamedTuple):
    """A kernel, the time of a call, and the bytes per second that were read at that time."""

    kernel: Kernel
    timing: Timing
    bandwidth: float


class Decode(NamedTuple):
    """
    A token behind so many others.

    :param wall: as the runner's caller has it.
    :param step: the recorded step.
    :param bandwidth: that was read at that time, in bytes per second.
    """

    context: int
    wall: Timing
    step: Optional[Timing]
    bandwidth: float


class Prefill(NamedTuple):
    """A prefill of so many tokens into an empty slot."""

    tokens: int
    timing: Timing


@dataclass(frozen=True)
class Measured:
    """
    What a run measured, in seconds, bytes and operations per second.

    :param read_bandwidth: the median of all that was read.
    :param kernels: of a decode step.
    :param products: the linears of prefills, likewise.
    :param threads: that computed, on a CPU.
    :param weight_bytes: that a token reads: all linears and the LM head.
    :param kv_bytes: that a token reads for each position before it.
    :param linear_parameters: of the linears without the LM head.
    """

    read_bandwidth: float
    copy_bandwidth: float
    matrix_rate: float
    kernels: Sequence[Timed]
    products: Sequence[tuple[Kernel, Timing]]
    threads: int
    decode: Sequence[Decode]
    prefill: Sequence[Prefill]
    time_to_first_token: Timing
    load_seconds: float
    peak_memory_bytes: int
    weight_bytes: int
    kv_bytes: int
    linear_parameters: int


def figures(measured: Measured) -> dict[str, Any]:
    """Return the figures by the names that they have in JSON; a fraction is 1 at the limit."""
    return {
        'read_bandwidth_gbs': measured.read_bandwidth / 1e9,
        'copy_bandwidth_gbs': measured.copy_bandwidth / 1e9,
        'matrix_tflops': measured.matrix_rate / 1e12,
        'load_seconds': measured.load_seconds,
        'peak_memory_bytes': measured.peak_memory_bytes,
        'time_to_first_token': measured.time_to_first_token.median,
        'kernels': [_kernel(*timed) for timed in measured.kernels],
        'products': [_product(kernel, timing, measured) for kernel, timing in measured.products],
        'decode': [_decode(decode, measured) for decode in measured.decode],
        'prefill': [_prefill(prefill, measured) for prefill in measured.prefill],
    }


def _kernel(kernel: Kernel, timing: Timing, bandwidth: float) -> dict[str, Any]:
    rate = kernel.bytes / timing.median
    micro = timing.scaled(1e6)
    return {'name': kernel.name, 'm': kernel.m, 'n': kernel.n, 'k': kernel.k,
            'bytes': kernel.bytes, 'calls': kernel.calls, 'microseconds': micro.median,
            'p10': micro.p10, 'p90': micro.p90, 'gbs': rate / 1e9,
            'read_bandwidth_gbs': bandwidth / 1e9, 'fraction_of_bandwidth': rate / bandwidth}


def _product(kernel: Kernel, timing: Timing, measured: Measured) -> dict[str, Any]:
    rate, micro = kernel.m * kernel.n * kernel.k / timing.median, timing.scaled(1e6)
    return {'name': kernel.name, 'm': kernel.m, 'n': kernel.n, 'k': kernel.k,
            'calls': kernel.calls, 'microseconds': micro.median, 'p10': micro.p10,
            'p90': micro.p90, 'gmacs': rate / 1e9,
            'gmacs_per_thread': rate / 1e9 / measured.threads,
            'fraction_of_matrix_rate': 2 * rate / measured.matrix_rate}


def _decode(decode: Decode, measured: Measured) -> dict[str, Any]:
    bytes_per_token = measured.weight_bytes + decode.context * measured.kv_bytes
    kernels = sum(kernel.calls * timing.median for kernel, timing, _ in measured.kernels
                  if kernel.context in (None, decode.context))
    seconds = decode.wall.median
    return {'context': decode.context, 'tokens_per_second': 1 / seconds,
            'milliseconds': 1e3 * seconds, 'p10': 1e3 * decode.wall.p10,
            'p90': 1e3 * decode.wall.p90, 'bytes_per_token': bytes_per_token,
            'read_bandwidth_gbs': decode.bandwidth / 1e9,
            'fraction_of_limit': bytes_per_token / decode.bandwidth / seconds,
            'kernels_milliseconds': 1e3 * kernels,
            'step_milliseconds': None if decode.step is None else 1e3 * decode.step.median}


def _prefill(prefill: Prefill, measured: Measured) -> dict[str, Any]:
    seconds = prefill.timing.median
    operations = 2 * measured.linear_parameters * prefill.tokens
    return {'tokens': prefill.tokens, 'tokens_per_second': prefill.tokens / seconds,
            'milliseconds': 1e3 * seconds,
            'fraction_of_matrix_rate': operations / seconds / measured.matrix_rate}
