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
"""How llama-bench is run, in which settings, and what is read of its report."""

import json

from benchmarks import llama_bench
from benchmarks.llama_bench import LlamaBench, Phase
import pytest

from tinychat_ros.errors import ConfigError

_DECODE, _PREFILL = Phase(0, 64), Phase(128, 0)
_REPORT = json.dumps([{'n_prompt': 128, 'n_gen': 0, 'avg_ts': 900.0},
                      {'n_prompt': 0, 'n_gen': 64, 'avg_ts': 43.5, 'stddev_ts': 0.2}])


@pytest.fixture
def program(tmp_path):
    """Return a program that reports, and the file with what it was last given."""
    binary, given = tmp_path / 'llama-bench', tmp_path / 'arguments'
    binary.write_text(f"#!/bin/sh\necho \"$@\" > {given}\n"
                      f"[ $1 = --help ] && echo ' --repack <0|1>' && exit\necho '{_REPORT}'\n")
    binary.chmod(0o755)
    return binary, given


def test_a_phase_says_what_it_is():
    assert [str(_DECODE), str(_PREFILL)] == ['decode 64', 'prefill 128']


def test_the_speeds_are_read_by_their_phases():
    assert llama_bench.reported(_REPORT) == {_PREFILL: 900, _DECODE: 43.5}


@pytest.mark.parametrize('text', ['', '{"a": 1}', '[{"n_gen": 64}]', '[1]', '7'])
def test_another_report_is_refused(text):
    with pytest.raises(ConfigError, match='llama-bench: expected a JSON list'):
        llama_bench.reported(text)


def test_a_phase_that_is_not_reported_is_named(program):
    with pytest.raises(ConfigError, match='expected the phases decode 7, got prefill 128, dec'):
        llama_bench.speeds(str(program[0]), 'model.gguf', [Phase(0, 7)], 3)


def test_the_program_is_run_on_the_model(program):
    binary, given = program
    assert llama_bench.speeds(str(binary), 'model.gguf', [_DECODE], 3)[_DECODE] == 43.5
    assert given.read_text() == '-m model.gguf -p 0 -n 64 -r 3 -o json\n'
    binary.write_text('#!/bin/sh\necho no such model >&2\nexit 3\n')
    with pytest.raises(ConfigError, match='model.gguf .* got exit status 3: no such model'):
        llama_bench.speeds(str(binary), 'model.gguf', [_DECODE], 3)
    with pytest.raises(ConfigError, match='llama-bench: .*absent'):
        llama_bench.speeds(str(binary.with_name('absent')), 'model.gguf', [_DECODE], 3)


def test_a_peer_runs_all_phases_at_once_in_its_setting(program):
    binary, given = program
    peer = LlamaBench(str(binary))
    assert peer.speeds('a.gguf', 'as stored', [_DECODE, _PREFILL], 2) == {
        _DECODE: 43.5, _PREFILL: 900}
    assert given.read_text() == '-m a.gguf -p 128 -n 64 -r 1 -o json -t 2 --repack 0\n'


@pytest.mark.parametrize('usage, expected', [
    ('  --repack <0|1>   (default: 1)', {'repacked': ('--repack', '1'),
                                         'as stored': ('--repack', '0')}),
    ('  -rtr, --run-time-repack <0|1|auto>', {'repacked': ('-rtr', '1'),
                                              'as stored': ('-rtr', '0')}),
    ('  -t, --threads <n>', {'default': ()}),
], ids=['llama.cpp', 'ik_llama.cpp', 'older'])
def test_the_settings_are_those_that_the_program_has(usage, expected):
    assert llama_bench.settings(usage) == expected
