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
"""The command `tinychat quantize`: what it prints, and what it refuses in one line."""

import json
from pathlib import Path
import resource
import shutil

import pytest
from tiny_models import llama_config, llama_tensors, write_chat_model, write_model
from tiny_models import one_thread  # noqa: F401

from tinychat_ros import cli
from tinychat_ros.quantization.work_folder import WorkFolder

QUICK = ('--group-size', 32, '--samples', 2, '--sample-length', 16)
KINDS = ('q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp('models') / 'source')


@pytest.fixture
def source(model, tmp_path):
    """Return a copy of the model to break."""
    return Path(shutil.copytree(model, tmp_path / 'source'))


def run(capsys, *args):
    """Return exit code, stdout and stderr of `tinychat quantize`."""
    try:
        code = cli.main(['quantize', *map(str, args)])
    except SystemExit as error:
        code = error.code
    return code, *capsys.readouterr()


def refuse(capsys, tmp_path, code, words, *args):
    """Check for one line, an exit code and that nothing was written."""
    before = sorted(tmp_path.rglob('*'))
    got, out, err = run(capsys, *args)
    assert (got, out) == (code, '')
    assert err.startswith('tinychat') and 'error: ' in err and words in err
    assert err.count('\n') == 1
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('method, bits, group_size, losses', [
    ('awq', 4, 32, True), ('rtn', 4, 32, False), ('smoothquant', 8, None, True)])
def test_json_is_the_last_line_and_tells_of_every_layer(
        capsys, tmp_path, model, method, bits, group_size, losses):
    args = {'awq': QUICK, 'rtn': QUICK[:2], 'smoothquant': QUICK[2:]}[method]
    code, out, _ = run(capsys, model, tmp_path / 'out', '--method', method, *args, '--json')
    found = json.loads(out.splitlines()[-1])
    assert code == 0 and out.count('\n') == 1
    assert (found['method'], found['bits'], found['group_size']) == (method, bits, group_size)
    assert found['samples'] == (2 if losses else 0) and found['tokens'] == 16 * found['samples']
    assert found['seconds'] > 0 and found['peak_memory_bytes'] > 2**20 and found['blocks'] == 2
    assert [layer['name'].rpartition('.')[2] for layer in found['layers']] == [*KINDS, *KINDS]
    for layer in found['layers']:
        assert {'loss_rtn', 'loss', 'alpha'} <= layer.keys()
        assert (layer['loss'] is not None) == (layer['loss_rtn'] is not None) == losses
    assert any(layer['alpha'] is not None for layer in found['layers']) == losses
    assert found['bytes_after'] == sum(layer['bytes_after'] for layer in found['layers'])


def test_a_person_gets_a_table(capsys, tmp_path, model):
    code, out, err = run(capsys, model, tmp_path / 'out', *QUICK)
    assert code == 0
    rows = dict(line.split(None, 1) for line in out.splitlines())
    assert rows['method'] == 'awq' and rows['group_size'] == '32' and rows['blocks'] == '2'
    assert [line.partition(' [')[0] for line in err.splitlines()] == ['blocks: 1/2', 'blocks: 2/2']


def test_layers_left_in_fp16_are_named(capsys, tmp_path):
    source = write_chat_model(tmp_path / 'source', intermediate_size=80)
    _, _, err = run(capsys, source, tmp_path / 'out', '--method', 'rtn', '--group-size', 32)
    assert ('model.layers.1.mlp.down_proj: left in fp16: K = 80 is not a multiple of the group '
            'size 32\n') in err


@pytest.mark.parametrize('folder', ['report', 'out/report'])
def test_a_report_is_written_beside_the_output_or_into_it(capsys, tmp_path, model, folder):
    code, _, _ = run(capsys, model, tmp_path / 'out', *QUICK, '--report', tmp_path / folder)
    assert code == 0
    assert 'model.layers.1.mlp.down_proj' in (tmp_path / folder / 'index.html').read_text()


def test_a_report_that_cannot_be_written_is_refused_before_the_work(capsys, tmp_path, model):
    (tmp_path / 'file').touch()
    for name, found in (('file', 'File exists'), ('file/report', 'Not a directory')):
        refuse(capsys, tmp_path, 2, f'report: expected a folder that can be written, got '
               f'{tmp_path / name}: {found}', model, tmp_path / 'out', *QUICK,
               '--report', tmp_path / name)


@pytest.mark.parametrize('args, words', [
    (['--bits', 5], 'argument --bits: invalid choice: 5'),
    (['--bits', 'x'], 'argument --bits: invalid int value'),
    (['--method', 'magic'], 'argument --method: invalid choice'),
    (['--group-size', 0], 'group size: expected a multiple of 8 or -1, one group per row, got 0'),
    (['--group-size', -2], 'group size: expected a multiple of 8 or -1'),
    (['--group-size', 12], 'group size: expected a multiple of 8 or -1'),
    (['--group-size', 256], 'group size: expected a divisor of a K of this model, 64 or 128, '
     'got 256'),
    (['--method', 'smoothquant', '--alpha', 2], 'alpha: expected 0 to 1, got 2.0'),
    (['--method', 'smoothquant', '--alpha', 'nan'], 'alpha: expected 0 to 1, got nan'),
    (['--samples', 0], 'samples: expected 1 or more, got 0'),
    (['--sample-length', 0], 'sample-length: expected 1 or more, got 0'),
    (['--search-samples', -1], 'search-samples: expected 1 or more, got -1'),
    (['--skip', -1], 'skip: expected 0 or more, got -1'),
    (['--limit', -1], 'limit: expected 0 or more, got -1'),
    (['--skip', 10**6], 'calibration text: expected at least the 512 tokens of one sample, got 0'),
    (['--threads', -1], 'num_threads: expected 0 or more, got -1'),
    (['--rounding', 'nearest'], 'act_order: expected feedback with it, which is off'),
])
def test_an_option_out_of_range_is_one_line(capsys, tmp_path, model, args, words):
    refuse(capsys, tmp_path, 2, words, model, tmp_path / 'out', *args)


@pytest.mark.parametrize('method, args, words', [
    ('awq', ['--alpha', 0.5], 'alpha: expected with it a method for weights of 8 bits, got awq'),
    ('smoothquant', ['--bits', 4], 'bits: expected with it a method for weights of 3 or 4 bits'),
    ('smoothquant', ['--symmetric'], 'symmetric: expected with it a method for weights of 3 or'),
    ('smoothquant', ['--group-size', 128], 'group-size: expected with it a method for weights'),
    ('smoothquant', ['--no-act-order'], 'act-order: expected with it a method for weights of 3'),
    ('rtn', ['--samples', 128], 'samples: expected with it a method with calibration, got rtn'),
    ('rtn', ['--calibration', 'x'], 'calibration: expected with it a method with calibration'),
    ('rtn', ['--search-samples', 8], 'search-samples: expected with it a method that searches'),
    ('gptq', ['--search-samples', 8], 'search-samples: expected with it a method that searches '
     'scales, got gptq'),
    ('rtn', ['--inputs', 'quantized'], 'inputs: expected a method that reads them, got quantized'),
    ('gptq', ['--alpha-one'], 'alpha_one: expected scales with it, which is off'),
    ('gptq', ['--weight-magnitude'], 'weight_magnitude: expected scales with it, which is off'),
    ('gptq', ['--clip-all'], 'clip_all: expected clip with it, which is off'),
    ('awq-paper', ['--act-order'], 'act_order: expected feedback with it, which is off'),
])
def test_an_option_that_the_method_does_not_read_is_refused(capsys, tmp_path, model, method, args,
                                                            words):
    refuse(capsys, tmp_path, 2, words, model, tmp_path / 'out', '--method', method, *args)


def test_options_that_make_another_method_are_taken(capsys, tmp_path, model):
    code, _, _ = run(capsys, model, tmp_path / 'out', '--method', 'rtn', '--rounding', 'feedback',
                     '--inputs', 'quantized', *QUICK, '--json')
    assert code == 0
    run(capsys, model, tmp_path / 'gptq', '--method', 'gptq', *QUICK)
    assert (tmp_path / 'out' / 'model.safetensors').read_bytes() == (
        tmp_path / 'gptq' / 'model.safetensors').read_bytes()


@pytest.mark.parametrize('name, content, words', [
    ('no.txt', None, 'no.txt: expected a file, and there is none'),
    ('a.txt', b' \n', 'a.txt: expected text, and there is none in it'),
    ('a.txt', b'\xfc', 'a.txt: expected UTF-8, got byte 0xfc at offset 0'),
    ('a.txt', b'few', 'expected at least the 16 tokens of one sample, got 3'),
    ('a.jsonl', b'{"prompt": 1}', 'a.jsonl, line 1: expected a JSON object with a string as'),
])
def test_calibration_text_that_cannot_serve_is_one_line(capsys, tmp_path, model, name, content,
                                                        words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for method in ('awq', 'smoothquant'):
        refuse(capsys, tmp_path, 2, words, model, tmp_path / 'out', '--method', method,
               '--sample-length', 16, '--calibration', tmp_path / name)


def test_texts_between_separators_are_samples_of_their_own(capsys, tmp_path, model):
    (tmp_path / 'a.txt').write_text('one##two##three')
    code, out, _ = run(capsys, model, tmp_path / 'out', '--group-size', 32, '--separator', '##',
                       '--calibration', tmp_path / 'a.txt', '--json')
    found = json.loads(out)
    assert (code, found['samples'], found['tokens']) == (0, 3, 11)
    refuse(capsys, tmp_path, 2, 'expected at least one sample, got none', model, tmp_path / 'new',
           '--group-size', 32, '--separator', '##', '--calibration', tmp_path / 'a.txt',
           '--skip', 3)


def test_a_source_that_is_no_plain_checkpoint_is_one_line(capsys, tmp_path, source):
    def refuse_source(words, path=source):
        refuse(capsys, tmp_path, 1, words, path, tmp_path / 'out', *QUICK)

    refuse_source('nowhere: expected a checkpoint folder, and there is none', tmp_path / 'nowhere')
    refuse_source('config.json: expected a checkpoint folder, got a file', source / 'config.json')
    weights = (source / 'model.safetensors').read_bytes()
    (source / 'model.safetensors').write_bytes(weights[:-1])
    refuse_source('model.safetensors: expected a whole safetensors file, got: ')
    (source / 'model.safetensors').unlink()
    (source / 'pytorch_model.bin').touch()
    refuse_source('expected model.safetensors or model.safetensors.index.json, got only '
                  'pytorch_model.bin, a pickle')
    (source / 'model.safetensors').write_bytes(weights)
    config = json.loads((source / 'config.json').read_text())
    (source / 'config.json').write_text(json.dumps({**config, 'model_type': 'mamba'}))
    refuse_source(", got 'mamba'")
    (source / 'config.json').unlink()
    refuse_source('config.json: expected a file, and there is none')


def test_a_tokenizer_that_is_missing_or_of_another_model_is_one_line(capsys, tmp_path, source):
    config = llama_config(vocab_size=200)
    small = write_model(tmp_path / 'small', config, llama_tensors(config))
    shutil.copy(source / 'tokenizer.json', small)
    refuse(capsys, tmp_path, 1, 'small: expected a tokenizer of at most 200 tokens', small,
           tmp_path / 'out', *QUICK)
    (source / 'tokenizer.json').unlink()
    refuse(capsys, tmp_path, 1, 'tokenizer', source, tmp_path / 'out', *QUICK)
    assert run(capsys, source, tmp_path / 'out', '--method', 'rtn', '--group-size', 32)[0] == 0


def test_what_is_quantized_already_is_one_line(capsys, tmp_path, model):
    run(capsys, model, tmp_path / 'out', *QUICK)
    refuse(capsys, tmp_path, 1, 'it is quantized already', tmp_path / 'out', tmp_path / 'again',
           *QUICK)


def test_an_output_folder_in_the_wrong_place_is_one_line(capsys, tmp_path, source):
    def refuse_out(words, out):
        refuse(capsys, tmp_path, 2, words, source, out, *QUICK)

    (tmp_path / 'file').touch()
    refuse_out('file: expected an output folder that does not exist yet', tmp_path / 'file')
    refuse_out('source: expected an output folder that does not exist yet', source)
    refuse_out(': expected an output folder that does not exist yet', '.')
    refuse_out('out: expected a folder that can be written, got: Not a directory',
               tmp_path / 'file' / 'out')
    refuse_out('out: expected a folder outside of the source', source / 'out')
    (tmp_path / 'source').rename(tmp_path / 'x.partial')
    for resume in ([], ['--resume']):
        refuse(capsys, tmp_path, 2, 'x: expected a folder outside of the source',
               tmp_path / 'x.partial', tmp_path / 'x', *QUICK, *resume)


def test_parents_of_the_output_are_made(capsys, tmp_path, model):
    assert run(capsys, model, tmp_path / 'a' / 'b' / 'out', *QUICK)[0] == 0
    assert [path.name for path in (tmp_path / 'a' / 'b').iterdir()] == ['out']


def test_a_second_run_and_one_without_resume_are_kept_out(capsys, tmp_path, model):
    work = WorkFolder(tmp_path / 'out', {}, resume=False)
    for resume in ([], ['--resume']):
        refuse(capsys, tmp_path, 2, 'out.partial: another run is working in it', model,
               tmp_path / 'out', *QUICK, *resume)
    work.close()
    refuse(capsys, tmp_path, 2, 'out.partial: an earlier run left this; go on with --resume, or '
           'remove it', model, tmp_path / 'out', *QUICK)
    refuse(capsys, tmp_path, 2, "out.partial: expected scheme = None as in the run to go on with, "
           "got 'WeightOnly'", model, tmp_path / 'out', *QUICK, '--resume')


def test_resuming_with_nothing_there_starts_anew(capsys, tmp_path, model):
    assert run(capsys, model, tmp_path / 'out', *QUICK, '--resume')[0] == 0
    assert run(capsys, model, tmp_path / 'new', *QUICK)[0] == 0
    for file in (tmp_path / 'out').iterdir():
        assert file.read_bytes() == (tmp_path / 'new' / file.name).read_bytes()


@pytest.mark.parametrize('limit', [4_000, 16_000, 40_000])
def test_a_disk_that_fills_up_is_one_line_and_the_work_goes_on_later(capsys, tmp_path, model,
                                                                     limit):
    """Activations, a block, or what lies outside the blocks are the first to find no room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        code, out, err = run(capsys, model, tmp_path / 'out', *QUICK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    *progress, line = err.splitlines()
    assert (code, out) == (1, '') and all(row.startswith('blocks: ') for row in progress)
    assert line.startswith('tinychat: error: OSError: ') and 'File too large' in line
    assert line.endswith(f'what is finished stays in {tmp_path}/out.partial, go on with --resume')
    assert not (tmp_path / 'out').exists()
    assert not list((tmp_path / 'out.partial').glob('.*.partial'))
    assert run(capsys, model, tmp_path / 'out', *QUICK, '--resume')[0] == 0


def test_verbose_shows_the_traceback_and_how_to_go_on(capsys, tmp_path, model, monkeypatch):
    def stop(*_):
        raise OSError('full')

    monkeypatch.setattr(WorkFolder, 'save_block', stop)
    with pytest.raises(OSError, match='full'):
        cli.main(['quantize', str(model), str(tmp_path / 'out'), '--group-size', '32',
                  '--method', 'rtn', '--verbose'])
    assert 'go on with --resume' in capsys.readouterr().err
