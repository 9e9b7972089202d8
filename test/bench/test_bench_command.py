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
"""The command `tinychat bench` on the CPU: what it prints, and what it refuses in one line."""

import json
import sys

import pytest
from tiny_models import llama_config, llama_tensors, write_model
import torch

from tinychat_ros import cli
from tinychat_ros.engine.config import EngineConfig
from tinychat_ros.kernels import extension

QUICK = ('--device', 'cpu', '--context', 4, 20, '--prefill', 8, 33)
TINY = ('--shape', 'tiny', '--group-size', 32)
LINEARS = ('qkv', 'o', 'gate_up', 'down', 'lm_head')


def run(capsys, *args):
    """Return exit code, stdout and stderr of `tinychat bench`."""
    code = cli.main(['bench', *map(str, args)])
    return (code, *capsys.readouterr())


def measured(capsys, *args):
    code, out, err = run(capsys, *args, '--json')
    assert code == 0 and out.count('\n') == 1 and 'read_bandwidth_gbs' in err
    return json.loads(out)


def test_a_shape_is_measured_with_every_key(capsys):
    found = measured(capsys, *TINY, *QUICK)
    assert set(found) == {
        'device', 'gpu', 'threads', 'torch', 'dtype', 'kv_cache_dtype', 'lm_head_dtype',
        'activations', 'isa', 'shape', 'model',
        'read_bandwidth_gbs', 'copy_bandwidth_gbs', 'matrix_tflops', 'load_seconds',
        'peak_memory_bytes', 'time_to_first_token', 'kernels', 'products', 'decode', 'prefill'}
    assert (found['device'], found['gpu'], found['dtype'], found['torch']) == (
        'cpu', None, 'float32', torch.__version__)
    assert (found['shape'], found['model'], found['threads']) == ('tiny', None, 1)
    assert [row['context'] for row in found['decode']] == [4, 20]
    assert [row['tokens'] for row in found['prefill']] == [8, 33]
    assert min(found[key] for key in (
        'read_bandwidth_gbs', 'copy_bandwidth_gbs', 'matrix_tflops', 'load_seconds',
        'peak_memory_bytes', 'time_to_first_token')) > 0


def test_its_figures_agree_with_each_other(capsys):
    found = measured(capsys, *TINY, *QUICK)
    kernels = {row['name']: row for row in found['kernels']}
    assert list(kernels) == ['embedding', 'qkv', 'attention@4', 'attention@20', *LINEARS[1:],
                             'sampler']
    for row in kernels.values():
        assert row['fraction_of_bandwidth'] == pytest.approx(
            row['bytes'] / (row['read_bandwidth_gbs'] * 1e9) / (row['microseconds'] * 1e-6))
    weights = sum(kernels[name]['bytes'] * kernels[name]['calls'] for name in LINEARS)
    for row in found['decode']:
        attention = kernels[f"attention@{row['context']}"]
        # K and V of 3 layers, 2 heads and 16 dimensions in fp16.
        assert attention['bytes'] * 3 == row['context'] * 2 * 3 * 2 * 16 * 2
        assert row['bytes_per_token'] == weights + attention['bytes'] * 3
        assert row['fraction_of_limit'] == pytest.approx(
            row['bytes_per_token'] / (row['read_bandwidth_gbs'] * 1e9)
            * row['tokens_per_second'])
        assert row['kernels_milliseconds'] == pytest.approx(1e-3 * sum(
            kernel['microseconds'] * kernel['calls'] for name, kernel in kernels.items()
            if 'attention' not in name or kernel is attention))
    for row in found['prefill']:
        parameters = 3 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
        assert row['fraction_of_matrix_rate'] == pytest.approx(
            2 * parameters * row['tokens_per_second'] / (found['matrix_tflops'] * 1e12))


def test_the_shapes_of_the_linears_are_those_of_the_model(capsys):
    rows = {row['name']: row for row in measured(capsys, *TINY, *QUICK)['kernels']}
    assert {name: (rows[name]['m'], rows[name]['n'], rows[name]['k'], rows[name]['calls'])
            for name in LINEARS} == {
        'qkv': (1, 128, 64, 3), 'o': (1, 64, 64, 3), 'gate_up': (1, 256, 64, 3),
        'down': (1, 64, 128, 3), 'lm_head': (1, 96, 64, 1)}


def test_the_products_of_each_prefill_are_measured(capsys):
    found = measured(capsys, *TINY, *QUICK)['products']
    assert [(row['name'], row['m']) for row in found] == [
        (name, tokens) for tokens in (8, 33) for name in LINEARS[:-1]]
    assert all(row['gmacs'] > 0 and row['gmacs'] == row['gmacs_per_thread'] for row in found)


def test_the_instruction_set_can_be_chosen(capsys):
    if extension.load() is None:
        pytest.skip(extension.why_absent())
    isas = extension.load().cpu_isas()
    try:
        assert measured(capsys, *TINY, *QUICK, '--isa', 'generic')['isa'] == 'generic'
    finally:
        extension.load().cpu_use_isa(isas[0])
    assert measured(capsys, *TINY, *QUICK)['isa'] == isas[0]


def test_a_checkpoint_is_measured_too(capsys, tmp_path):
    config = llama_config(tie_word_embeddings=True)
    path = write_model(tmp_path / 'model', config, llama_tensors(config))
    found = measured(capsys, '--model', path, *QUICK, '--kv-cache-dtype', 'int8')
    assert (found['shape'], found['model']) == (None, str(path))
    assert found['kv_cache_dtype'] == 'int8'
    first, second = (row['bytes_per_token'] for row in found['decode'])
    # K and V of 2 layers and 2 heads, 16 bytes and a scale of 2 bytes each.
    assert second - first == (20 - 4) * 2 * 2 * 2 * (16 + 2)


def test_the_ladder_has_the_rungs_that_run_here_and_why_the_others_do_not(capsys):
    code, out, err = run(capsys, *TINY, '--device', 'cpu', '--ladder', '--json')
    rungs = json.loads(out)['ladder']
    measured = [rung['name'] for rung in rungs if not rung['left_out']]
    assert code == 0 and measured == ['eager PyTorch', 'static KV cache', 'merged QKV and gate/up']
    assert rungs[0]['over_first'] == 1 and all(name in err for name in measured)
    assert rungs[-1]['left_out'] == 'no kernel for cpu' and len(rungs) == 8


def test_without_json_the_table_is_what_is_printed(capsys):
    code, out, err = run(capsys, *TINY, *QUICK)
    assert (code, err) == (0, '')
    assert 'read_bandwidth_gbs' in out and 'attention@20' in out


def test_the_plot_is_written_as_a_png(capsys, tmp_path):
    code, _, _ = run(capsys, *TINY, *QUICK, '--plot', tmp_path / 'plot.png')
    assert code == 0
    assert (tmp_path / 'plot.png').read_bytes().startswith(b'\x89PNG\r\n\x1a\n')


@pytest.mark.parametrize('args, words', [
    (('--shape', 'llama-9'), "shape: expected one of tinyllama-1.1b, llama-2-7b"),
    (('--shape', 'tiny', '--context', 4, 0), 'context: expected 1 or more, got 0'),
    (('--shape', 'tiny', '--isa', 'mmx'), 'isa: expected'),
    (('--shape', 'tiny', '--prefill', -1), 'prefill: expected 1 or more, got -1'),
    (('--model', 'demo', '--ladder'), 'ladder: expected a shape, got a model'),
    (('--model', 'demo', '--group-size', 64), 'group-size: expected with it a shape'),
    (('--shape', 'tiny', '--plot', 'no/folder/plot.png'), 'plot: expected a file in a folder'),
    (('--shape', 'tiny', '--plot', '.'), 'plot: expected a file in a folder'),
])
def test_what_cannot_be_measured_is_refused_before_the_work(capsys, args, words):
    code, out, err = run(capsys, *args, '--device', 'cpu')
    assert (code, out) == (2, '')
    assert err.startswith('tinychat: error: ') and words in err and err.count('\n') == 1


def test_a_plot_without_matplotlib_is_refused_by_name(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    code, _, err = run(capsys, *TINY, *QUICK, '--plot', 'plot.png')
    assert code == 2 and 'plot: expected matplotlib' in err


def test_a_shape_that_does_not_fit_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(EngineConfig, 'budget', lambda config: 2**17)
    code, _, err = run(capsys, *TINY, *QUICK)
    assert code == 1 and 'tiny: expected at most 0 MiB, got weights of 0 MiB' in err
