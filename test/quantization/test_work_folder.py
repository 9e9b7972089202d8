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
"""The folder of a running quantization: what it keeps, and whom it keeps out."""

from contextlib import closing
import json
import os
import shutil

import pytest
from tiny_models import llama_config
import torch

from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.errors import CheckpointError, ConfigError
from tinychat_ros.kernels.rtn import quantize_rtn
from tinychat_ros.quantization.report import LayerResult
from tinychat_ros.quantization.work_folder import partial_path, WorkFolder

_SETTINGS = {'scheme': 'WeightOnly', 'bits': 4, 'alpha': 0.55}
_RESULT = LayerResult('model.layers.0.q', 8, 32, 4, 32, 0.1 + 0.2, 1 / 3, None, 512, 150, 'note')


@pytest.fixture
def out(tmp_path):
    return tmp_path / 'out'


def _open(out, resume=False, **changes):
    return WorkFolder(out, {**_SETTINGS, **changes}, resume)


def _save_blocks(work, count):
    for index in range(count):
        weight = quantize_rtn(torch.randn(8, 32), 32)
        work.save_block(index, {f'model.layers.{index}.q': weight,
                                f'model.layers.{index}.norm': torch.ones(32)}, [_RESULT])


def test_a_finished_block_and_what_was_said_of_it_are_there_for_the_next_run(out):
    with closing(_open(out)) as work:
        _save_blocks(work, 2)
        work.save('survey', [{'largest': [0.1]}])
    with closing(_open(out, resume=True)) as work:
        assert [work.has_block(index) for index in range(3)] == [True, True, False]
        assert work.results(1) == [_RESULT]
        assert work.load('survey') == [{'largest': [0.1]}] and work.load('other') is None
    assert not out.exists()


def test_the_output_appears_whole_and_nothing_else_remains(out, tmp_path):
    extra = tmp_path / 'tokenizer.json'
    extra.write_text('{"a": 1}')
    with closing(_open(out)) as work:
        _save_blocks(work, 2)
        work.finish(2, {'embedding': torch.ones(4, 2)}, llama_config(), [extra])
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out', 'tokenizer.json']
    assert sorted(path.name for path in out.iterdir()) == [
        'config.json', 'model.safetensors', 'tokenizer.json']
    assert {oct(path.stat().st_mode & 0o777) for path in out.iterdir()} == {'0o644'}
    with CheckpointReader(out) as reader:
        assert reader.names == {'embedding', *(
            f'model.layers.{i}.{name}' for i in range(2)
            for name in ('norm', 'q.qweight', 'q.qzeros', 'q.scales'))}


def test_a_finish_that_failed_is_done_again_from_its_start(out, monkeypatch):
    with closing(_open(out)) as work:
        _save_blocks(work, 1)
        monkeypatch.setattr(os, 'rename', lambda *_: (_ for _ in ()).throw(OSError('full')))
        with pytest.raises(OSError, match='full'):
            work.finish(1, {'norm': torch.ones(2)}, {'a': 1}, [])
        monkeypatch.undo()
        (work.path / 'ready' / 'stale').write_text('')
    assert not out.exists()
    with closing(_open(out, resume=True)) as work:
        work.finish(1, {'norm': torch.ones(2)}, {'a': 2}, [])
    assert sorted(path.name for path in out.iterdir()) == ['config.json', 'model.safetensors']
    assert json.loads((out / 'config.json').read_text()) == {'a': 2}


def test_resuming_where_nothing_was_left_starts_anew(out):
    with closing(_open(out, resume=True)) as work:
        assert not work.has_block(0)
    shutil.rmtree(partial_path(out))
    partial_path(out).mkdir()
    (partial_path(out) / 'lock').touch()
    with closing(_open(out, resume=True)) as work:
        assert json.loads((work.path / 'settings.json').read_text()) == _SETTINGS


def test_what_an_earlier_run_left_is_not_touched_without_resume(out):
    with closing(_open(out)) as work:
        _save_blocks(work, 1)
    with pytest.raises(ConfigError, match='out.partial: an earlier run left this; go on with --r'):
        _open(out)
    with closing(_open(out, resume=True)) as work:
        assert work.has_block(0)


def test_two_runs_do_not_work_in_one_folder(out):
    with closing(_open(out)):
        for resume in (False, True):
            with pytest.raises(ConfigError, match='out.partial: another run is working in it'):
                _open(out, resume)
    _open(out, resume=True).close()


@pytest.mark.parametrize('changes, message', [
    ({'bits': 3}, 'expected bits = 4 as in the run to go on with, got 3'),
    ({'alpha': None}, 'expected alpha = 0.55 as in the run to go on with, got None'),
    ({'scheme': 'SmoothQuant', 'bits': 3}, "expected scheme = 'WeightOnly' as .* 'SmoothQuant'"),
    ({'more': 1}, 'expected more = None as in the run to go on with, got 1')])
def test_other_settings_are_named(out, changes, message):
    _open(out).close()
    with pytest.raises(ConfigError, match=f'out.partial: {message}'):
        _open(out, resume=True, **changes)
    _open(out, resume=True).close()


def test_a_setting_that_is_no_longer_there_is_named(out):
    _open(out, more=1).close()
    with pytest.raises(ConfigError, match='expected more = 1 as in the run .*, got None'):
        _open(out, resume=True)


@pytest.mark.parametrize('content', [b'', b'{"bits": 4', b'\xff', b'[]'])
def test_damaged_settings_are_refused(out, content):
    _open(out).close()
    (partial_path(out) / 'settings.json').write_bytes(content)
    with pytest.raises(CheckpointError, match='out.partial/settings.json: expected'):
        _open(out, resume=True)


@pytest.mark.parametrize('length', [0, 5, 60, -1])
def test_a_damaged_block_is_found_before_the_work_goes_on(out, length):
    with closing(_open(out)) as work:
        _save_blocks(work, 1)
        file = work.path / 'block-00000.safetensors'
        file.write_bytes(file.read_bytes()[:length])
        with pytest.raises(CheckpointError, match='block-00000.safetensors: expected a whole'):
            work.has_block(0)


@pytest.mark.parametrize('resume', [False, True])
def test_a_folder_of_something_else_is_left_alone(out, resume):
    partial_path(out).mkdir()
    (partial_path(out) / 'thesis.txt').write_text('precious')
    with pytest.raises(ConfigError, match='out.partial: expected what an earlier run left, got a '
                                          'folder with thesis.txt and without settings.json'):
        _open(out, resume)
    assert [path.name for path in partial_path(out).iterdir()] == ['thesis.txt']


@pytest.mark.parametrize('name', ['file/out', 'file/a/out', 'x' * 250])
def test_a_place_that_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / 'file').touch()
    with pytest.raises(ConfigError, match=f'{name}: expected a folder that can be written, got: '):
        _open(tmp_path / name)


def test_missing_parents_are_made(tmp_path):
    _open(tmp_path / 'a' / 'b' / 'out').close()
    assert (tmp_path / 'a' / 'b' / 'out.partial').is_dir()


def test_a_work_folder_that_is_a_file_is_named(out):
    partial_path(out).touch()
    with pytest.raises(ConfigError, match='expected a folder that can be written, got: Not a dir'):
        _open(out, resume=True)
