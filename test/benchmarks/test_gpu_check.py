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
"""What a check on a GPU runs and records."""

import json
import os
from pathlib import Path
import subprocess
import sys
import time

from benchmarks import gpu_check
from benchmarks.gpu_check import Stage, Step
import pytest
import torch

_TESTS = '''
import pytest

def test_good(): pass

@pytest.mark.parametrize('x', [1, 'a b'])
def test_bad(x): assert x == 1

def test_broken(absent): pass

@pytest.mark.xfail
def test_known(): assert False

def test_left_out(): pytest.skip('not here')
'''


def _python(name: str, code: str) -> Step:
    return Step(name, ['-c', code])


def test_all_stages_together_end_within_eight_minutes():
    stages = gpu_check.stages('llama-2-7b', '', Path('gpu.png'))
    assert [stage.steps[0].name.split()[0] for stage in stages] == [
        'build', 'tests', 'bench', 'ladder', 'peers']
    assert sum(stage.limit for stage in stages) < 480


def test_every_file_of_tests_is_a_process_of_its_own():
    names = [step.name for step in gpu_check.steps_of_tests()]
    assert {'tests test/gpu/test_decode_graph.py', 'tests test/cuda/test_w4_gemv.py'} <= set(names)
    assert len(set(names)) == len(names)


def test_one_family_is_built_and_tested_without_benchmarks():
    build, tests = gpu_check.stages('llama-2-7b', 'w4_gemv', Path('gpu.png'))
    assert build.steps[0].name == 'build'
    assert tests.steps[0].arguments[-2:] == ['-k', 'w4_gemv']


def test_outcomes_are_counted_from_what_pytest_prints(tmp_path):
    (tmp_path / 'test_it.py').write_text(_TESTS)
    command = [sys.executable, '-m', 'pytest', '-v', '-p', 'no:cacheprovider', str(tmp_path)]
    log = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    found = gpu_check.outcomes(log)
    assert found['counts'] == {'passed': 2, 'failed': 1, 'error': 1, 'xfail': 1, 'skipped': 1}
    assert found['failures'] == ['test_it.py::test_bad[a b]', 'test_it.py::test_broken']
    assert found['unfinished'] == []


def test_the_test_that_hangs_is_named():
    log = 'test/cuda/test_a.py::test_b PASSED      [ 50%]\ntest/cuda/test_a.py::test_c[1] '
    assert gpu_check.outcomes(log) == {
        'counts': {'passed': 1}, 'failures': [], 'unfinished': ['test/cuda/test_a.py::test_c[1]']}


def test_a_step_that_fails_is_recorded_and_the_others_run(tmp_path):
    steps = [_python('build', 'import sys; print("spilled", file=sys.stderr); sys.exit(3)'),
             _python('bench', 'print("a table"); print(\'{"tokens": 5}\')'),
             _python('peers', 'print("no document")')]
    stages = [Stage(steps[:1], 60), Stage(steps[1:], 60)]
    document, out = {'gpu': 'none'}, tmp_path / 'gpu.json'
    assert not gpu_check.check(stages, document, out, os.environ)
    assert json.loads(out.read_text()) == document and document['gpu'] == 'none'
    build, bench, peers = (document['steps'][step.name] for step in steps)
    assert (build['status'], build['output']) == ('failed: exit status 3', 'spilled')
    assert (bench['status'], bench['document']) == ('passed', {'tokens': 5})
    assert peers['status'] == 'failed: no JSON document in the last line'
    assert gpu_check.check([Stage(steps[1:2], 60)], {}, out, os.environ)


def test_a_step_that_takes_too_long_ends_with_all_that_it_has_started(tmp_path):
    """The child would write a file if it lived on."""
    child = f'import time; time.sleep(2); open({str(tmp_path / "late")!r}, "w")'
    code = (f'import subprocess, sys, time; subprocess.Popen([sys.executable, "-c", {child!r}]); '
            'print("started", flush=True); time.sleep(60)')
    result = gpu_check.run(_python('build', code), 1, os.environ)
    assert result['status'] == 'failed: not done after 1 s' and result['seconds'] < 3
    time.sleep(2)
    assert not (tmp_path / 'late').exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    assert gpu_check.main(['--out', str(tmp_path / 'gpu.json')]) == 1
    assert capsys.readouterr().err == 'gpu-check: expected a GPU, and torch finds none\n'
    assert list(tmp_path.iterdir()) == []
