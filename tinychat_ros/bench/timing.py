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
"""How long things take on a device: warmed up, many times, the median with its spread."""

from __future__ import annotations

from statistics import quantiles
import time
from typing import Callable, Iterator, NamedTuple, Sequence

import torch

from tinychat_ros.kernels import cuda

_WARM_UP = 3


class Timing(NamedTuple):
    """Seconds that a call took."""

    median: float
    p10: float
    p90: float

    def scaled(self, factor: float) -> Timing:
        """Return all of it times a factor."""
        return Timing(*(factor * seconds for seconds in self))


def summary(seconds: Sequence[float]) -> Timing:
    """Return the median of some calls with its spread."""
    deciles = quantiles(seconds, n=10, method='inclusive') if len(seconds) > 1 else seconds * 9
    return Timing(deciles[4], deciles[0], deciles[8])


def timed(work: Callable[[], object], device: torch.device, repeats: int = 20,
          graph: bool = False) -> Timing:
    """
    Time calls of ``work``, on a GPU by its own clock.

    :param graph: record what it launches on a GPU once and time the replays, so that nothing of
        the host is in the figure.
    """
    if device.type == 'cuda' and graph:
        work = cuda.record(work)
    for _ in range(_WARM_UP):
        work()
    seconds = _gpu_seconds if device.type == 'cuda' else _host_seconds
    return summary([seconds(work) for _ in range(repeats)])


def timed_by_host(work: Callable[[], object], device: torch.device, repeats: int) -> Timing:
    """Time calls of ``work``, which waits for what counts, each on a device with nothing to do."""
    return summary(list(_idle_seconds(work, device, repeats)))


def _gpu_seconds(work: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    work()  # Keeps the GPU busy while the host queues what is timed.
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def _host_seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _idle_seconds(work: Callable[[], object], device: torch.device,
                  repeats: int) -> Iterator[float]:
    for _ in range(repeats):
        cuda.synchronize(device)
        yield _host_seconds(work)
