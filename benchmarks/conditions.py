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
"""What the machine was like in a round: how fast it read its memory, and what else it did."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
import os
from pathlib import Path
import subprocess
import sys
import time
from typing import Iterator, Sequence

import torch

from tinychat_ros.bench.bandwidth import Bandwidth

# user, nice, system, irq, softirq and steal of the line `cpu`; the others are idle or counted
# in these.
_BUSY = (0, 1, 2, 5, 6, 7)


@dataclass(frozen=True)
class Conditions:
    """
    Those of a round.

    :param foreign_cores: that were busy with anything but this process and what it ran.
    """

    read_bandwidth_gbs: float
    foreign_cores: float


@contextmanager
def watched(rounds: list[Conditions]) -> Iterator[None]:
    """Measure the bandwidth with torch's number of threads, let a round run, and append both."""
    bandwidth = Bandwidth(torch.device('cpu')).read()
    begin, foreign = time.perf_counter(), _foreign_seconds()
    yield
    cores = (_foreign_seconds() - foreign) / (time.perf_counter() - begin)
    # The kernel counts in hundredths of a second.
    rounds.append(Conditions(bandwidth / 1e9, max(0.0, cores)))


def _foreign_seconds() -> float:
    stat = Path('/proc/stat').read_text()
    # Of children, only those that have ended.
    return busy_seconds(stat, os.sysconf('SC_CLK_TCK')) - sum(os.times()[:4])


def busy_seconds(stat: str, ticks_per_second: int) -> float:
    """Return how long all cores together have been busy, by the text of /proc/stat."""
    fields = stat.splitlines()[0].split()[1:]
    return sum(int(fields[index]) for index in _BUSY) / ticks_per_second


@contextmanager
def competitor() -> Iterator[None]:
    """Keep one core busy from another process."""
    process = subprocess.Popen([sys.executable, '-c', 'while True: pass'])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def lines(rounds: Sequence[Conditions]) -> list[str]:
    """Return a line of text for each round."""
    return [f'round {number}: {each.read_bandwidth_gbs:.1f} GB/s read, '
            f'{each.foreign_cores:.2f} cores busy with other work'
            for number, each in enumerate(rounds, 1)]
