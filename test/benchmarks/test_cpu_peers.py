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
"""The benchmark beside peers on a CPU: its document, and what it says of missing peers."""

import json

from benchmarks import cpu_peers, int4_products, whole_models
from benchmarks.comparison import Matrix, OURS
from benchmarks.conditions import Conditions
from benchmarks.whole_models import Contender
import pytest

from tinychat_ros.kernels import extension

_ROUND = {'read_bandwidth_gbs': 30.0, 'foreign_cores': 0.1}
_CONDITIONS = Conditions(**_ROUND)


@pytest.fixture
def quick(monkeypatch):
    """Replace what takes time by given figures."""
    def contender(peer, speed):
        return Contender(peer, '', lambda phases, threads: {p: speed for p in phases})

    def measure(contenders, threads, rounds):
        found = {phase: {c: [*c.speeds([phase], threads).values()] for c in contenders}
                 for phase in whole_models.PHASES}
        return found, [_CONDITIONS]

    def no_package(name):
        return '' if name == OURS else f'ModuleNotFoundError: {name}'

    def products(matrix: Matrix, contenders, threads, rounds):
        return [int4_products.Row(matrix.name, matrix.n, matrix.k, tokens,
                                  dict.fromkeys(contenders, 20.0), {}, [_CONDITIONS])
                for tokens in int4_products.TOKENS]

    monkeypatch.setattr(whole_models, 'ours', lambda shape, threads: contender(OURS, 40.0))
    monkeypatch.setattr(cpu_peers, '_llamas', lambda args, folder: [contender('llama.cpp', 20.0)])
    monkeypatch.setattr(whole_models, 'measure', measure)
    monkeypatch.setattr(cpu_peers, 'why_absent', no_package)
    monkeypatch.setattr(int4_products, 'measure', products)
    monkeypatch.setattr(extension, 'load', lambda: type('Kernels', (), {
        'cpu_isas': staticmethod(lambda: ['generic'])}))


def test_the_last_line_and_the_file_are_the_document(quick, capsys, tmp_path):
    out = tmp_path / 'cpu.json'
    assert cpu_peers.main(['--threads', '1', '--out', str(out)]) == 0
    *tables, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    assert json.loads(out.read_text()) == document
    assert document['models']['decode 64'] == {
        'tokens_per_second': {'ours': 40, 'llama.cpp': 20},
        'peers': {'llama.cpp': {'setting': '', 'ratio': [2, 2, 2]}}}
    assert document['model_rounds'] == [_ROUND]
    assert [(row['name'], row['tokens']) for row in document['products']] == [
        (name, tokens) for name in ('qkv', 'o', 'gate_up', 'down', 'square')
        for tokens in (1, 128)]
    assert 'onnxruntime b32' in document['left_out'] and 'competitor' not in document
    assert any(line.startswith('gate_up') for line in tables)


def test_without_llama_cpp_the_rest_is_measured(quick, monkeypatch, capsys):
    def no_package(args, folder):
        raise ModuleNotFoundError("No module named 'llama_cpp'")

    monkeypatch.setattr(cpu_peers, '_llamas', no_package)
    assert cpu_peers.main([]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document['left_out']['llama.cpp'] == "No module named 'llama_cpp'"
    assert document['models']['decode 64']['peers'] == {}


def test_a_competitor_is_in_the_document_when_asked_for(quick, monkeypatch, capsys):
    def beside(contenders, threads, rounds):
        assert [c.peer for c in contenders] == [OURS, 'llama.cpp'] and threads == 2
        return {'quiet, 1 thread': {'tokens_per_second': {OURS: 40.0}, 'ratios': {}}}, []

    monkeypatch.setattr(whole_models, 'beside_competitor', beside)
    assert cpu_peers.main(['--threads', '2', '--competitor']) == 0
    assert 'quiet, 1 thread' in json.loads(
        capsys.readouterr().out.splitlines()[-1])['competitor']


@pytest.mark.parametrize('program, label', [('ik=bin/llama-bench', 'ik'),
                                            ('bin/llama-bench', 'llama.cpp')])
def test_a_program_may_have_a_label(monkeypatch, program, label):
    monkeypatch.setattr(cpu_peers, 'LlamaBench', lambda path: path)
    assert cpu_peers._named(program) == (label, 'bin/llama-bench')


@pytest.mark.parametrize('option', ['--threads', '--rounds'])
def test_nothing_is_measured_no_times(option, capsys):
    with pytest.raises(SystemExit):
        cpu_peers.main([option, '0'])
    assert 'expected 1 or more' in capsys.readouterr().err


def test_a_program_that_is_not_there_is_an_error_in_one_line(quick, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.setattr(whole_models, 'ours', lambda shape, threads: None)
    monkeypatch.setattr(extension, 'load', lambda: type('Kernels', (), {'cpu_isas': list}))
    assert cpu_peers.main(['--llama-bench', 'absent/llama-bench']) == 1
    captured = capsys.readouterr()
    assert captured.out == '' and captured.err.startswith('tinychat: error: llama-bench: ')
