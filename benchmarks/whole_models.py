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
"""Decode and prefill of a whole model: ours, and llama.cpp's in each of its settings."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
import time
from typing import (
    Any, Callable, Collection, Iterator, Mapping, NamedTuple, Protocol, Sequence, Union)

from benchmarks.comparison import medians, OURS, ratio_cell, ratio_titles, ratios
from benchmarks.conditions import competitor, Conditions, watched
from benchmarks.llama_bench import Phase
import torch

from tinychat_ros.bench.subject import of_shape, Subject
from tinychat_ros.bench.table import aligned
from tinychat_ros.engine.config import EngineConfig
from tinychat_ros.engine.graph_runner import GraphRunner, make_runner
from tinychat_ros.engine.model_runner import ModelRunner
from tinychat_ros.engine.sampler import SamplingParams

_GROUP_SIZE = 128
DECODE = Phase(0, 64)
PHASES = (DECODE, Phase(128, 0), Phase(512, 0))

# Tokens per second of each round.
Found = Mapping['Contender', Sequence[float]]


class Peer(Protocol):
    """A build of llama.cpp; ``settings`` are the layouts of weights that it has."""

    settings: Collection[str]

    def speeds(self, gguf: str, setting: str, phases: Sequence[Phase],
               threads: int) -> Mapping[Phase, float]:
        """Return the tokens per second of each phase."""


class Contender(NamedTuple):
    """
    A model that can be run.

    :param peer: whose; one may have several.
    :param setting: its quantization and layout.
    :param speeds: what phases take with a number of threads, in tokens per second.
    """

    peer: str
    setting: str
    speeds: Callable[[Sequence[Phase], int], Mapping[Phase, float]]

    def __str__(self) -> str:
        return f'{self.peer} {self.setting}'.strip()


def ours(shape: str, threads: int) -> Contender:
    """
    Make our model of a shape with an int8 LM head.

    :raises TinychatError: there is no such shape, or it does not fit.
    """
    config = EngineConfig(device='cpu', lm_head_dtype='int8', num_threads=threads)
    room = max(phase.prompt + phase.generated for phase in PHASES) + 1
    return Contender(OURS, '', partial(_our_speeds, of_shape(shape, _GROUP_SIZE, config, room)))


def _our_speeds(subject: Subject, phases: Sequence[Phase], threads: int) -> dict[Phase, float]:
    torch.set_num_threads(threads)
    # A recorded step keeps the threads that it was recorded with.
    runner = make_runner(subject.model, subject.cache, subject.device)
    return {phase: _our_speed(runner, phase) for phase in phases}


def _our_speed(runner: Union[ModelRunner, GraphRunner], phase: Phase) -> float:
    if phase.generated:
        answer = _answer(runner, 1)
        next(answer)
        return phase.generated / _seconds(lambda: [next(answer) for _ in range(phase.generated)])
    for _ in range(2):  # The first one warms up.
        seconds = _seconds(lambda: next(_answer(runner, phase.prompt)))
    return phase.prompt / seconds


def _answer(runner: Union[ModelRunner, GraphRunner], tokens: int) -> Iterator[int]:
    last = runner.prefill(range(tokens), 0, 0)
    return runner.tokens(last, 0, tokens, SamplingParams(), ())


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def theirs(label: str, peer: Peer, ggufs: Mapping[str, Path]) -> list[Contender]:
    """Return a contender for each quantization in each setting of a peer."""
    return [Contender(label, f'{quantization} {setting}',
                      partial(peer.speeds, str(gguf), setting))
            for quantization, gguf in ggufs.items() for setting in peer.settings]


def measure(contenders: Sequence[Contender], threads: int, rounds: int
            ) -> tuple[dict[Phase, Found], list[Conditions]]:
    """Run the phases of each contender in turn; return their speeds and what rounds were like."""
    found = {phase: {contender: [] for contender in contenders} for phase in PHASES}
    conditions: list[Conditions] = []
    for _ in range(rounds):
        torch.set_num_threads(threads)
        with watched(conditions):
            for contender in contenders:
                for phase, speed in contender.speeds(PHASES, threads).items():
                    found[phase][contender].append(speed)
    return found, conditions


def best(found: Found) -> list[Contender]:
    """Return the fastest contender of each peer, ours first."""
    fastest: dict[str, Contender] = {}
    for contender in sorted(found, key=lambda contender: median(found[contender])):
        fastest[contender.peer] = contender
    return sorted(fastest.values(), key=lambda contender: contender.peer != OURS)


def summary(found: Mapping[Phase, Found]) -> dict[str, Any]:
    """Return by phases the medians of all, and for each peer its best setting and our ratio."""
    return {str(phase): {'tokens_per_second': {str(c): median(each[c]) for c in each},
                         'peers': _against_best(each)} for phase, each in found.items()}


def _against_best(found: Found) -> dict[str, Any]:
    fastest = best(found)
    ratio = ratios({c.peer: found[c] for c in fastest})
    return {c.peer: {'setting': c.setting, 'ratio': ratio[c.peer]} for c in fastest[1:]}


def tables(summary: Mapping[str, Any]) -> list[str]:
    """Return lines of all speeds, and of the ratios to each peer at its best."""
    contenders = next(iter(summary.values()))['tokens_per_second']
    speeds = [['tokens/s', *summary]]
    speeds += [[name, *(f"{each['tokens_per_second'][name]:.2f}" for each in summary.values())]
               for name in contenders]
    against = [['ours against the best of', 'phase', 'setting', 'ours/peer (least-most)']]
    against += [[peer, phase, known['setting'], ratio_cell(known['ratio'])]
                for phase, each in summary.items() for peer, known in each['peers'].items()]
    return [*aligned(speeds), '', *(aligned(against) if against[1:] else [])]


def beside_competitor(contenders: Sequence[Contender], threads: int, rounds: int
                      ) -> tuple[dict[str, Any], list[Conditions]]:
    """
    Decode alone and beside a process that keeps a core busy.

    :param contenders: one of each peer.
    :returns: by the circumstances, medians in tokens per second and our ratios; and what the
        rounds were like.
    """
    circumstances = {'quiet, 1 thread': (1, nullcontext),
                     f'quiet, {threads} threads': (threads, nullcontext),
                     f'competitor, {threads} threads': (threads, competitor)}
    found = {name: {c.peer: [] for c in contenders} for name in circumstances}
    conditions: list[Conditions] = []
    for _ in range(rounds):
        torch.set_num_threads(threads)
        with watched(conditions):
            for name, (count, company) in circumstances.items():
                with company():
                    for each in contenders:
                        found[name][each.peer].append(each.speeds([DECODE], count)[DECODE])
    return {name: {'tokens_per_second': medians(each), 'ratios': ratios(each)}
            for name, each in found.items()}, conditions


def competitor_table(summary: Mapping[str, Any]) -> list[str]:
    """Return lines of what beside_competitor found."""
    first = next(iter(summary.values()))
    cells = [['decode tokens/s', *first['tokens_per_second'], *ratio_titles(first['ratios'])]]
    cells += [[name, *(f'{speed:.2f}' for speed in each['tokens_per_second'].values()),
               *map(ratio_cell, each['ratios'].values())] for name, each in summary.items()]
    return aligned(cells)
