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
"""Whole models side by side: turns, the best setting of each peer, and tables."""

from contextlib import contextmanager
from pathlib import Path

from benchmarks import whole_models
from benchmarks.comparison import OURS
from benchmarks.conditions import Conditions
from benchmarks.llama_bench import Phase
from benchmarks.whole_models import Contender, DECODE, PHASES
import pytest
from tiny_models import one_thread  # noqa: F401
import torch

from tinychat_ros.bench import shapes

_QUIET = Conditions(30, 0)
_OURS = Contender(OURS, '', lambda phases, threads: {})
_FAST = Contender('llama.cpp', 'Q4_0 repacked', lambda phases, threads: {})
_SLOW = Contender('llama.cpp', 'Q4_0 as stored', lambda phases, threads: {})
_OTHER = Contender('ik', 'Q4_0 repacked', lambda phases, threads: {})
_SPEEDS = {_SLOW: [1.0, 9.0, 2.0], _OURS: [8.0, 6.0, 4.0], _FAST: [4.0, 2.0, 4.0],
           _OTHER: [8.0, 8.0, 8.0]}


@pytest.fixture
def watched(monkeypatch):
    """Let rounds be quiet; return the list of what happened in them."""
    happened = []

    @contextmanager
    def watch(rounds):
        happened.append('round')
        rounds.append(_QUIET)
        yield

    @contextmanager
    def compete():
        happened.append('competitor')
        yield
        happened.append('alone')

    monkeypatch.setattr(whole_models, 'watched', watch)
    monkeypatch.setattr(whole_models, 'competitor', compete)
    return happened


def noting(happened, peer, speed):
    """Return a contender that notes its turns."""
    def speeds(phases, threads):
        happened.append((peer, len(phases), threads))
        return {phase: speed * threads for phase in phases}

    return Contender(peer, '', speeds)


def test_the_best_setting_of_each_peer_has_the_highest_median():
    assert whole_models.best(_SPEEDS) == [_OURS, _FAST, _OTHER]


def test_the_summary_has_all_medians_and_the_ratios_to_the_best():
    assert whole_models.summary({DECODE: _SPEEDS}) == {'decode 64': {
        'tokens_per_second': {'llama.cpp Q4_0 as stored': 2, 'ours': 6,
                              'llama.cpp Q4_0 repacked': 4, 'ik Q4_0 repacked': 8},
        'peers': {'llama.cpp': {'setting': 'Q4_0 repacked', 'ratio': (1, 2, 3)},
                  'ik': {'setting': 'Q4_0 repacked', 'ratio': (0.5, 0.75, 1)}}}}


def test_each_phase_has_its_own_best():
    prefill = {**_SPEEDS, _SLOW: [16.0, 12.0, 8.0]}
    found = whole_models.summary({DECODE: _SPEEDS, Phase(128, 0): prefill})
    assert found['prefill 128']['peers']['llama.cpp'] == {
        'setting': 'Q4_0 as stored', 'ratio': (0.5, 0.5, 0.5)}


def test_the_tables_name_every_setting_and_every_ratio():
    lines = whole_models.tables(whole_models.summary({DECODE: _SPEEDS, Phase(128, 0): _SPEEDS}))
    split = lines.index('')
    assert [line.split()[-2:] for line in lines[1:split]] == [
        ['2.00'] * 2, ['6.00'] * 2, ['4.00'] * 2, ['8.00'] * 2]
    assert lines[0].split()[1:] == ['decode', '64', 'prefill', '128']
    assert lines[split + 2].split() == [
        'llama.cpp', 'decode', '64', 'Q4_0', 'repacked', '2.000', '(1.000-3.000)']
    assert len(lines[split + 2:]) == 4


def test_without_peers_there_are_only_speeds():
    lines = whole_models.tables(whole_models.summary({DECODE: {_OURS: [8.0, 6.0, 4.0]}}))
    assert lines[1:] == ['ours           6.00', '']


def test_contenders_take_turns(watched):
    contenders = [noting(watched, OURS, 3.0), noting(watched, 'llama.cpp', 2.0)]
    found, rounds = whole_models.measure(contenders, 1, 2)
    turns = ['round', (OURS, 3, 1), ('llama.cpp', 3, 1)]
    assert watched == turns * 2
    assert rounds == [_QUIET] * 2
    assert found == {phase: {contenders[0]: [3, 3], contenders[1]: [2, 2]} for phase in PHASES}


def test_a_competitor_runs_only_in_its_own_turn(watched):
    contenders = [noting(watched, OURS, 3.0), noting(watched, 'llama.cpp', 2.0)]
    found, rounds = whole_models.beside_competitor(contenders, 2, 1)
    both = [(OURS, 1, 2), ('llama.cpp', 1, 2)]
    assert watched == ['round', (OURS, 1, 1), ('llama.cpp', 1, 1), *both,
                       'competitor', *both, 'alone']
    assert found['quiet, 2 threads'] == {'tokens_per_second': {OURS: 6, 'llama.cpp': 4},
                                         'ratios': {'llama.cpp': (1.5, 1.5, 1.5)}}
    head, *lines = whole_models.competitor_table(found)
    assert [line.split(',')[0] for line in lines] == ['quiet', 'quiet', 'competitor']
    assert lines[0].split()[3:] == ['3.00', '2.00', '1.500', '(1.500-1.500)']
    assert rounds == [_QUIET]


def test_a_peer_has_a_contender_of_each_file_and_setting():
    class Peer:
        settings = ('repacked', 'as stored')

        def speeds(self, gguf, setting, phases, threads):
            return gguf, setting, phases, threads

    found = whole_models.theirs('ik', Peer(), {'Q4_0': Path('a'), 'Q4_K_M': Path('b')})
    assert [str(contender) for contender in found] == [
        'ik Q4_0 repacked', 'ik Q4_0 as stored', 'ik Q4_K_M repacked', 'ik Q4_K_M as stored']
    assert found[3].speeds([DECODE], 2) == ('b', 'as stored', [DECODE], 2)


def test_our_model_is_timed_in_all_phases_on_the_threads_it_is_told(monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, 'tiny', {
        'model_type': 'llama', 'vocab_size': 600, 'hidden_size': 128, 'intermediate_size': 128,
        'num_hidden_layers': 1, 'num_attention_heads': 2, 'num_key_value_heads': 1,
        'rms_norm_eps': 1e-5, 'max_position_embeddings': 1024})
    ours = whole_models.ours('tiny', 1)
    found = ours.speeds(PHASES, 2)
    assert torch.get_num_threads() == 2
    assert list(found) == list(PHASES) and min(found.values()) > 0
