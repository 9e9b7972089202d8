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
"""
Builds, tests and measures on a machine with a GPU, in eight minutes, and writes one JSON file.

It needs what setup.py and the tests import, and no virtual environment, ROS or network. A step
that fails or takes too long is recorded, and the others run all the same.
"""

from __future__ import annotations

import argparse
from collections import Counter
from concurrent.futures import as_completed, ThreadPoolExecutor
from datetime import datetime, timezone
import json
import os
from pathlib import Path
import platform
import re
import signal
import subprocess
import sys
from tempfile import TemporaryFile
import time
from typing import Any, Iterator, Mapping, NamedTuple, Optional, Sequence, TextIO

import torch

from tinychat_ros.checkpoint.writer import save_json

ROOT = Path(__file__).resolve().parents[1]
BUILD, TESTS = 'build', 'tests'
PASSED = 'passed'
_PYTEST = ('-m', 'pytest', '--device', 'cuda', '-v', '--tb=short')
_SIDE_BY_SIDE = 4
_TAIL = 4000

# As pytest -v prints it; a test that never ended has no outcome.
_OUTCOME = re.compile(r'^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b', re.MULTILINE)
_STARTED = re.compile(r'^(\S+::.+?) *\Z', re.MULTILINE)


class Step(NamedTuple):
    """A command, given by its arguments to Python."""

    name: str
    arguments: Sequence[str]


class Stage(NamedTuple):
    """Steps that run side by side and must end within a time, in seconds."""

    steps: Sequence[Step]
    limit: int


def stages(shape: str, family: str, plot: Path) -> list[Stage]:
    """
    Return what is to be run, one stage after another.

    :param family: a pytest expression for the tests to run, without the benchmarks; '' runs all.
    """
    bench = ['-m', 'tinychat_ros.cli', 'bench', '--shape', shape, '--device', 'cuda', '--json']
    lengths = ['--context', '4', '512', '4096', '--prefill', '128', '512', '1024', '2048']
    build = Stage([Step(BUILD, ['setup.py', 'build_ext', '--inplace'])], 150)
    if family:
        tests = Step(TESTS, [*_PYTEST, 'test/cuda', 'test/gpu', '-k', family])
        return [build, Stage([tests], 140)]
    return [build, Stage(steps_of_tests(), 140),
            Stage([Step('bench', [*bench, *lengths, '--plot', str(plot)])], 80),
            Stage([Step('ladder', [*bench, '--ladder'])], 50),
            Stage([Step('peers', ['-m', 'benchmarks.gpu_peers', '--shape', shape])], 50)]


def steps_of_tests() -> list[Step]:
    """Return a process for each file of tests, since a fault of the GPU ends its process."""
    paths = (path.relative_to(ROOT) for folder in ('test/gpu', 'test/cuda')
             for path in sorted((ROOT / folder).glob('test_*.py')))
    return [Step(f'{TESTS} {path}', [*_PYTEST, str(path)]) for path in paths]


def run(step: Step, limit: float, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a step for at most so many seconds; return its status, its seconds and what it found."""
    begin = time.monotonic()
    # Files, since a pipe would stay open for as long as anything that the step has started.
    with _log() as out, _log() as err:
        status = _run_until(step, limit, environment, out, err)
        out.seek(0)
        err.seek(0)
        stdout, stderr = out.read(), err.read()
    result = {'status': status, 'seconds': round(time.monotonic() - begin, 1)}
    if step.name.startswith(TESTS):
        result.update(outcomes(stdout))
    elif step.name != BUILD and status == PASSED:
        try:
            result['document'] = json.loads(stdout.splitlines()[-1])
        except (IndexError, ValueError):
            result['status'] = 'failed: no JSON document in the last line'
    if result['status'] != PASSED:
        result['output'] = f'{stdout[-_TAIL:]}\n{stderr[-_TAIL:]}'.strip()
    return result


def _log() -> TextIO:
    return TemporaryFile('w+', errors='replace')


def _run_until(step: Step, limit: float, environment: Mapping[str, str], out: TextIO,
               err: TextIO) -> str:
    process = subprocess.Popen([sys.executable, *step.arguments], cwd=ROOT, stdout=out, stderr=err,
                               env=environment, start_new_session=True)
    try:
        code = process.wait(max(0.1, limit))
    except subprocess.TimeoutExpired:
        # Compilers that it has started end too.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f'failed: not done after {limit:.0f} s'
    return PASSED if code == 0 else f'failed: exit status {code}'


def outcomes(log: str) -> dict[str, Any]:
    """Return how many tests ended how, and the names of those that failed or never ended."""
    ended = _OUTCOME.findall(log)
    return {'counts': dict(Counter(outcome.lower() for _, outcome in ended)),
            'failures': [name for name, outcome in ended if outcome in ('FAILED', 'ERROR')],
            'unfinished': _STARTED.findall(log)}


def machine() -> dict[str, str]:
    """Return what the figures belong to."""
    return {'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
            'gpu': torch.cuda.get_device_name(), 'driver': _driver(), 'torch': torch.__version__,
            'cuda': torch.version.cuda, 'python': platform.python_version()}


def _driver() -> str:
    command = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return 'unknown: no nvidia-smi'


def environment() -> dict[str, str]:
    """Return the environment of the steps: the build is for this GPU alone unless told."""
    major, minor = torch.cuda.get_device_capability()
    return {'TINYCHAT_CUDA_ARCHITECTURES': f'{major}{minor}', **os.environ,
            'TINYCHAT_REQUIRE_EXT': '1', 'PYTHONUNBUFFERED': '1'}


def check(chosen: Sequence[Stage], document: dict[str, Any], out: Path,
          environment: Mapping[str, str]) -> bool:
    """Run the stages, write what is known after each step, and say whether all passed."""
    document['steps'] = {}
    for stage in chosen:
        for step, result in _run_side_by_side(stage, environment):
            document['steps'][step.name] = result
            save_json(out, document)
            print(f"== {step.name}: {result['status']}, {result['seconds']} s  "
                  f"{result.get('counts', '')}", flush=True)
            if 'output' in result:
                print(result['output'], flush=True)
    return all(result['status'] == PASSED for result in document['steps'].values())


def _run_side_by_side(stage: Stage, environment: Mapping[str, str]
                      ) -> Iterator[tuple[Step, dict[str, Any]]]:
    """Yield the steps of a stage with their results as they end."""
    end = time.monotonic() + stage.limit
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        running = {pool.submit(lambda step=step: run(step, end - time.monotonic(), environment)):
                   step for step in stage.steps}
        for future in as_completed(running):
            yield running[future], future.result()


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run all steps; return 0, or 1 when one failed or there is no GPU."""
    args = _parser().parse_args(argv)
    if not torch.cuda.is_available():
        print('gpu-check: expected a GPU, and torch finds none', file=sys.stderr)
        return 1
    out = Path(args.out).absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    chosen = stages(args.shape, args.family, out.with_suffix('.png'))
    passed = check(chosen, machine(), out, environment())
    print(f"== {'all passed' if passed else 'not all passed'}: {out}")
    return 0 if passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.gpu_check', description=__doc__)
    parser.add_argument('--shape', default='llama-2-7b', help='that the benchmarks run')
    parser.add_argument('--family', default='', metavar='NAME',
                        help='test the kernels of this name alone, and measure nothing')
    parser.add_argument('--out', default=str(ROOT / 'benchmarks/results/gpu.json'), metavar='FILE')
    return parser


if __name__ == '__main__':
    sys.exit(main())
