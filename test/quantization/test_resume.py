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
"""A run that was killed goes on with --resume, and writes the bytes of one that was not."""

from hashlib import sha256
import os
from pathlib import Path
from random import Random
import shutil
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file
from tiny_models import write_chat_model
import torch

from tinychat_ros import cli
from tinychat_ros.quantization import quantize
from tinychat_ros.quantization.work_folder import WorkFolder

ROOT = Path(__file__).resolve().parents[2]
_ARGS = {'awq': ['--group-size', '32', '--search-samples', '8'],
         'gptq': ['--group-size', '32'],
         'awq-paper': ['--group-size', '32', '--search-samples', '2'],
         'smoothquant': ['--search-samples', '8']}
# Long enough for a kill in between.
_SLOW = ['--samples', '24', '--sample-length', '64']
_QUICK = ['--samples', '3', '--sample-length', '16']


class Killed(BaseException):
    """What no handler catches."""


def _stop(*_):
    raise Killed


def _command(method, source, out, *more):
    return ['quantize', str(source), str(out), '--method', method, *_ARGS[method],
            '--device', 'cpu', '--threads', '1', *more]


def _hashes(folder):
    return {file.relative_to(folder).as_posix(): sha256(file.read_bytes()).hexdigest()
            for file in folder.rglob('*')}


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Write a source of six blocks, and one of two."""
    folder = tmp_path_factory.mktemp('models')
    return [write_chat_model(folder / f'{blocks}', num_hidden_layers=blocks) for blocks in (6, 2)]


@pytest.fixture(scope='module')
def unkilled(models, tmp_path_factory):
    """Return the hashes of what a run that is left alone writes, by method and arguments."""
    known = {}

    def run(method, index, args):
        if (method, index) not in known:
            out = tmp_path_factory.mktemp('whole') / 'out'
            assert cli.main(_command(method, models[index], out, *args)) == 0
            known[method, index] = _hashes(out)
        return known[method, index]
    return run


def _start(args):
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    return subprocess.Popen([sys.executable, '-m', 'tinychat_ros.cli', *args], cwd=ROOT,
                            env=environment, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)


@pytest.mark.parametrize('method, last', [('awq', 'block-00002.safetensors'),
                                          ('smoothquant', 'original-block-00003.bin')])
def test_a_process_killed_at_work_is_resumed(tmp_path, models, unkilled, method, last):
    out = tmp_path / 'out'
    process = _start(_command(method, models[0], out, *_SLOW))
    while not (tmp_path / 'out.partial' / last).exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not out.exists()
    assert not (tmp_path / 'out.partial' / 'block-00005.safetensors').exists()
    assert cli.main(_command(method, models[0], out, *_SLOW, '--resume')) == 0
    assert _hashes(out) == unkilled(method, 0, _SLOW)
    assert [path.name for path in tmp_path.iterdir()] == ['out']


def test_a_process_killed_again_and_again_is_resumed(tmp_path, models, unkilled):
    out, random = tmp_path / 'out', Random(0)
    for _ in range(2):
        process = _start(_command('awq', models[0], out, *_SLOW, '--resume'))
        while not (tmp_path / 'out.partial').exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 1))
        process.kill()
        process.wait()
    if not out.exists():
        assert cli.main(_command('awq', models[0], out, *_SLOW, '--resume')) == 0
    assert _hashes(out) == unkilled('awq', 0, _SLOW)


def _die(monkeypatch, survived):
    """Let the operations that name or remove files fail for ever after so many; count them."""
    count = [0]
    for owner, name in ((os, 'replace'), (os, 'rename'), (shutil, 'rmtree'), (Path, 'unlink')):
        def operation(*args, real=getattr(owner, name), **options):
            count[0] += 1
            if count[0] > survived:
                raise Killed
            return real(*args, **options)
        monkeypatch.setattr(owner, name, operation)
    return count


@pytest.mark.parametrize('method', list(_ARGS))
def test_death_between_any_two_files_loses_nothing(tmp_path, models, unkilled, method,
                                                   monkeypatch):
    wanted = unkilled(method, 1, _QUICK)
    with monkeypatch.context() as patch:
        count = _die(patch, 10**9)
        cli.main(_command(method, models[1], tmp_path / 'whole', *_QUICK))
    # In the end the work folder is removed, and then the output is there.
    for survived in range(0, count[0] - 1, 3):
        out = tmp_path / f'out-{survived}'
        with monkeypatch.context() as patch:
            _die(patch, survived)
            with pytest.raises(Killed):
                cli.main(_command(method, models[1], out, *_QUICK))
        assert not out.exists()
        assert cli.main(_command(method, models[1], out, *_QUICK, '--resume')) == 0
        assert _hashes(out) == wanted


def test_a_resumed_run_does_not_do_finished_blocks_again(tmp_path, models, unkilled, monkeypatch):
    out, seen = tmp_path / 'out', []
    load, save_block = quantize.load_block, WorkFolder.save_block

    def stop(work, index, *args):
        save_block(work, index, *args)
        if index == 0:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(WorkFolder, 'save_block', stop)
        with pytest.raises(Killed):
            cli.main(_command('awq', models[1], out, *_QUICK))
    monkeypatch.setattr(quantize, 'load_block', lambda source, index, *args: seen.append(index)
                        or load(source, index, *args))
    monkeypatch.setattr(quantize._Run, '_embedded', lambda _: pytest.fail('embedded again'))
    assert cli.main(_command('awq', models[1], out, *_QUICK, '--resume')) == 0
    assert seen == [1]
    assert _hashes(out) == unkilled('awq', 1, _QUICK)


def test_a_finished_survey_is_not_done_again(tmp_path, models, unkilled, monkeypatch):
    out = tmp_path / 'out'
    with monkeypatch.context() as patch:
        patch.setattr(WorkFolder, 'save_block', _stop)
        with pytest.raises(Killed):
            cli.main(_command('smoothquant', models[1], out, *_QUICK))
    monkeypatch.setattr(quantize, 'Surveyor', lambda *_: pytest.fail('surveyed again'))
    assert cli.main(_command('smoothquant', models[1], out, *_QUICK, '--resume')) == 0
    assert _hashes(out) == unkilled('smoothquant', 1, _QUICK)


@pytest.mark.parametrize('error, words', [
    (KeyboardInterrupt(), 'interrupted; '),
    (OSError(28, 'No space left on device'), 'error: OSError: [Errno 28] No space left on dev'),
    (RuntimeError('out of memory'), 'error: RuntimeError: out of memory; ')])
def test_what_stops_a_run_is_one_line_that_says_how_to_go_on(
        tmp_path, models, unkilled, monkeypatch, capsys, error, words):
    out = tmp_path / 'out'
    save_block = WorkFolder.save_block

    def stop(work, index, *args):
        if index:
            raise error
        save_block(work, index, *args)

    with monkeypatch.context() as patch:
        patch.setattr(WorkFolder, 'save_block', stop)
        assert cli.main(_command('awq', models[1], out, *_QUICK)) == 1
    progress, line = capsys.readouterr().err.splitlines()
    assert progress.startswith('blocks: 1/2 [')
    assert line.startswith(f'tinychat: {words}')
    assert line.endswith(f'; what is finished stays in {out}.partial, go on with --resume')
    assert not out.exists()
    assert cli.main(_command('awq', models[1], out, *_QUICK, '--resume')) == 0
    assert _hashes(out) == unkilled('awq', 1, _QUICK)


def test_every_tensor_of_the_output_is_finite(tmp_path, models):
    """So that equal hashes are not those of nothing."""
    assert cli.main(_command('awq', models[1], tmp_path / 'out', *_QUICK)) == 0
    tensors = load_file(tmp_path / 'out' / 'model.safetensors')
    assert all(torch.isfinite(t.float()).all() for t in tensors.values())


@pytest.mark.parametrize('name, content', [
    ('block-00000.safetensors', b'cut short'), ('original-block-00001.bin', b'cut short'),
    ('original-block-00001.bin', None), ('settings.json', b'{"scheme"')])
def test_a_damaged_file_of_the_work_folder_is_named(tmp_path, models, monkeypatch, capsys, name,
                                                    content):
    out, save_block = tmp_path / 'out', WorkFolder.save_block

    def stop(work, index, *args):
        save_block(work, index, *args)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(WorkFolder, 'save_block', stop)
        with pytest.raises(Killed):
            cli.main(_command('awq-paper', models[1], out, *_QUICK))
    file = tmp_path / 'out.partial' / name
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    capsys.readouterr()
    assert cli.main(_command('awq-paper', models[1], out, *_QUICK, '--resume')) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f'tinychat: error: {file}: expected ')
    assert not out.exists()


@pytest.mark.parametrize('args, message', [
    (['--bits', '3'], 'expected bits = 4 as in the run to go on with, got 3'),
    (['--group-size', '64'], 'expected group_size = 32 as in the run to go on with, got 64'),
    (['--samples', '2'], 'expected samples = 3 as in the run to go on with, got 2'),
    (['--sample-length', '8'], 'expected tokens = 48 as in the run to go on with, got 24'),
    (['--seed', '1'], 'expected calibration = '),
    (['--method', 'awq-paper'], "expected inputs = 'corrected' as in"),
    (['--no-alpha-one', '--no-act-order'], 'expected act_order = True as in'),
    (['--threads', '2'], 'expected threads = 1 as in the run to go on with, got 2')])
def test_resuming_with_other_settings_names_them(tmp_path, models, monkeypatch, capsys, args,
                                                 message):
    out = tmp_path / 'out'
    with monkeypatch.context() as patch:
        patch.setattr(WorkFolder, 'has_block', _stop)
        with pytest.raises(Killed):
            cli.main(_command('awq', models[1], out, *_QUICK))
    assert cli.main(_command('awq', models[1], out, *_QUICK, *args, '--resume')) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f'tinychat: error: {out}.partial: {message}')


def test_resuming_with_another_source_is_refused(tmp_path, models, monkeypatch, capsys):
    source, out = tmp_path / 'source', tmp_path / 'out'
    shutil.copytree(models[1], source)
    monkeypatch.setattr(WorkFolder, 'has_block', _stop)
    with pytest.raises(Killed):
        cli.main(_command('awq', source, out, *_QUICK))
    os.utime(source / 'model.safetensors', (0, 0))
    assert cli.main(_command('awq', source, out, *_QUICK, '--resume')) == 2
    assert 'out.partial: expected weights = ' in capsys.readouterr().err
