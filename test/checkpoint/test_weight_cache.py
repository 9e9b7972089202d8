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
"""Packed weights that outlive a process: found again, refused with a reason, written anew."""

from dataclasses import replace
import errno
import fcntl
import json
import os
import re
import shutil
import signal

import pytest
from safetensors import safe_open
from tiny_models import (
    linear_shapes, llama_config, llama_tensors, run_model, write_model)
import torch

from tinychat_ros.checkpoint import reader, weight_cache, weight_file
from tinychat_ros.checkpoint.loader import load_model
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.weight_cache import WeightCache
from tinychat_ros.checkpoint.writer import save_checkpoint
from tinychat_ros.errors import CheckpointError
from tinychat_ros.kernels import extension
from tinychat_ros.kernels.packing import LAYOUT_VERSION, tensors_of
from tinychat_ros.kernels.rtn import quantize_rtn
from tinychat_ros.models import causal_lm

_IDS = [i * 7 % 96 for i in range(20)]
_CPU = torch.device('cpu')

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_absent())


@pytest.fixture(autouse=True)
def small_weights_count(monkeypatch):
    """Let weights of a few kilobytes be kept, on a full disk too."""
    monkeypatch.setattr(weight_cache, 'LEAST_BYTES', 1)
    monkeypatch.setattr(weight_cache, 'LEAST_FREE_BYTES', 0)


@pytest.fixture
def cache(tmp_path):
    """Return the folder of packed weights, which is not there yet."""
    return tmp_path / 'home' / 'cache'


@pytest.fixture
def checkpoint(tmp_path):
    """Return a checkpoint folder of 4-bit weights."""
    return _write(tmp_path / 'model')


def _write(path, seed=0, bits=4, keep=lambda name: False):
    config = llama_config(attention_bias=True)
    tensors = llama_tensors(config, seed)
    for name in linear_shapes(config):
        if not keep(name):
            tensors[name] = quantize_rtn(tensors.pop(f'{name}.weight'), 32, bits)
    save_checkpoint(path, config, tensors)
    return path


def _load(checkpoint, cache=None, int8_activations=False):
    with CheckpointReader(checkpoint) as reader:
        return load_model(reader, torch.float32, _CPU, 64, int8_activations, cache_folder=cache)[0]


def _logits(checkpoint, cache=None):
    return run_model(_load(checkpoint, cache), _IDS)


def _file_in(cache):
    [file] = cache.glob('*.safetensors')
    return file


@pytest.fixture
def reads(monkeypatch):
    """Collect the names of quantized tensors that are read."""
    names, stored = [], CheckpointReader.stored

    def spy(reader, name):
        if not name.endswith(('weight', 'bias')):
            names.append(name)
        return stored(reader, name)

    monkeypatch.setattr(CheckpointReader, 'stored', spy)
    return names


@pytest.mark.parametrize('bits', [3, 4])
def test_a_second_load_gives_the_same_logits_and_reads_no_quantized_tensor(
        bits, tmp_path, cache, reads, caplog):
    checkpoint = _write(tmp_path / 'model', bits=bits)
    expected = _logits(checkpoint)
    assert torch.equal(_logits(checkpoint, cache), expected) and reads
    reads.clear()
    assert torch.equal(_logits(checkpoint, cache), expected)
    assert not reads and not caplog.messages


def test_what_is_known_of_the_linears_is_the_same_as_without(checkpoint, cache):
    _load(checkpoint, cache)
    for rounding in (False, True, None):
        fresh, found = (_load(checkpoint, where, rounding) for where in (None, cache))
        for block, other in zip(fresh.blocks, found.blocks):
            for linear, twin in zip(block.linears(), other.linears(), strict=True):
                assert linear.activation_group == twin.activation_group
                assert vars(linear.weight).keys() == vars(twin.weight).keys()
                assert torch.equal(linear.weight.data, twin.weight.data)
                assert (linear.bias is None) == (twin.bias is None)


def test_the_format_is_told_from_the_checkpoint(checkpoint, cache):
    for _ in range(2):
        with CheckpointReader(checkpoint) as reader:
            assert load_model(reader, torch.float32, _CPU, 64, cache_folder=cache)[1] == 'awq-gemm'


def test_the_file_is_safetensors_in_a_folder_of_its_owner(checkpoint, cache):
    model = _load(checkpoint, cache)
    assert cache.stat().st_mode & 0o777 == 0o700
    with safe_open(_file_in(cache), framework='pt') as file:
        assert torch.equal(file.get_tensor('model.layers.1.mlp.down_proj.data'),
                           model.blocks[1].down_proj.weight.data)


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('dtype', ['int8', 'int4'])
def test_a_head_is_rounded_once(dtype, tied, tmp_path, cache, caplog, monkeypatch):
    plain, stored = [], CheckpointReader.stored
    monkeypatch.setattr(CheckpointReader, 'stored', lambda reader, name: (
        plain.append(name) or stored(reader, name)))
    config = llama_config(tie_word_embeddings=tied)
    checkpoint = write_model(tmp_path / 'model', config, llama_tensors(config))

    def head():
        with CheckpointReader(checkpoint) as reader:
            return load_model(reader, torch.float32, _CPU, 64, None, dtype, cache)[0].lm_head

    expected = head()
    monkeypatch.setattr(causal_lm, 'int8_rows', None)
    monkeypatch.setattr(causal_lm, 'int4_groups', None)
    plain.clear()
    found = head()
    assert 'lm_head.weight' not in plain
    tensors = tensors_of(expected.weight)
    assert all(torch.equal(tensors_of(found.weight)[name], tensors[name]) for name in tensors)
    assert found.activation_group == expected.activation_group == (dtype == 'int4') * 64
    assert not caplog.messages


def test_an_int8_head_that_is_asked_for_later_is_added(checkpoint, cache, caplog):
    _load(checkpoint, cache)
    for messages in (1, 1):
        with CheckpointReader(checkpoint) as reader:
            load_model(reader, torch.float32, _CPU, 64, False, 'int8', cache)
        assert len(caplog.messages) == messages
    assert 'it has no lm_head in int8' in caplog.text


def test_linears_that_are_not_joined_are_packed_each_time_without_a_word(
        tmp_path, cache, caplog):
    checkpoint = _write(tmp_path / 'model', keep=lambda name: name.endswith('k_proj'))
    expected = _logits(checkpoint, cache)
    written = _file_in(cache).stat()
    assert torch.equal(_logits(checkpoint, cache), expected)
    assert _file_in(cache).stat() == written and not caplog.messages


def test_a_plain_model_keeps_nothing(tmp_path, cache, caplog):
    config = llama_config()
    checkpoint = write_model(tmp_path / 'model', config, llama_tensors(config))
    assert torch.equal(_logits(checkpoint, cache), _logits(checkpoint))
    assert not cache.exists() and not caplog.messages


def test_little_is_not_kept(checkpoint, cache, monkeypatch):
    monkeypatch.setattr(weight_cache, 'LEAST_BYTES', 2**20)
    _load(checkpoint, cache)
    assert not cache.exists()


def test_a_broken_tensor_is_named_and_nothing_is_kept(tmp_path, cache):
    config, tensors = llama_config(), llama_tensors(llama_config())
    name = 'model.layers.1.mlp.up_proj'
    weight = quantize_rtn(tensors.pop(f'{name}.weight'), 32)
    weight.scales[3, 1] = torch.nan
    save_checkpoint(tmp_path / 'model', config, {**tensors, name: weight})
    with pytest.raises(CheckpointError, match=f'{name}.scales'):
        _load(tmp_path / 'model', cache)
    assert not cache.exists()


def _change(checkpoint, file):
    _write(checkpoint, seed=1)


def _change_config(checkpoint, file):
    path = checkpoint / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'rms_norm_eps': 1e-6}))


def _cut(checkpoint, file):
    os.truncate(file, file.stat().st_size - 1)


def _flip_last(checkpoint, file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def _flip_offset(checkpoint, file):
    data = file.read_bytes()
    file.write_bytes(data.replace(b'"data_offsets": [0,', b'"data_offsets": [8,', 1))


def _put_checkpoint(checkpoint, file):
    shutil.copyfile(checkpoint / 'model.safetensors', file)


def _put_text(checkpoint, file):
    file.write_text('Packed weights, or so it says.')


def _empty(checkpoint, file):
    file.write_bytes(b'')


def _put_deep_json(checkpoint, file):
    text = b'[' * 2**20
    file.write_bytes(len(text).to_bytes(8, 'little') + text)


FOREIGN = 'it is no file of packed weights'
DAMAGES = {
    'another checkpoint': (_change, 'the checkpoint has changed'),
    'another config': (_change_config, 'the checkpoint has changed'),
    'cut': (_cut, r'it has \d+ bytes, not \d+'),
    'a bit of a weight': (_flip_last, r'model.layers.1.mlp.down_proj.data is corrupt'),
    'a byte of the header': (_flip_offset, 'its header is corrupt'),
    'another safetensors file': (_put_checkpoint, FOREIGN),
    'text': (_put_text, FOREIGN),
    'nothing': (_empty, FOREIGN),
    'brackets': (_put_deep_json, FOREIGN),
}


def _expect_anew(checkpoint, cache, reads, caplog, reason):
    """Load with one line that says why, and then again from a file that is good."""
    expected = _logits(checkpoint)
    caplog.clear()
    assert torch.equal(_logits(checkpoint, cache), expected)
    [message] = caplog.messages
    assert re.fullmatch(f'.*: the weights are packed anew: {reason}', message)
    reads.clear()
    caplog.clear()
    assert torch.equal(_logits(checkpoint, cache), expected)
    assert not reads and not caplog.messages


@pytest.mark.parametrize('damage, reason', DAMAGES.values(), ids=DAMAGES.keys())
def test_what_does_not_fit_is_named_and_written_anew(
        damage, reason, checkpoint, cache, reads, caplog):
    _load(checkpoint, cache)
    damage(checkpoint, _file_in(cache))
    _expect_anew(checkpoint, cache, reads, caplog, reason)


def test_another_layout_is_written_anew(checkpoint, cache, reads, caplog, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(weight_file, 'LAYOUT_VERSION', 1)
        _load(checkpoint, cache)
    _expect_anew(checkpoint, cache, reads, caplog, f'its layout is 1, not {LAYOUT_VERSION}')


def test_weights_that_were_joined_otherwise_are_written_anew(
        checkpoint, cache, reads, caplog, monkeypatch):
    with monkeypatch.context() as patch:
        keep = WeightCache.keep
        patch.setattr(WeightCache, 'keep', lambda self, name, weight: keep(
            self, name.replace('q_proj + ', 'o_proj + '), weight))
        _load(checkpoint, cache)
    _expect_anew(checkpoint, cache, reads, caplog,
                 r'it has no model.layers.0.self_attn.q_proj \+ .*')


def test_a_weight_of_another_shape_is_written_anew(
        checkpoint, cache, reads, caplog, monkeypatch):
    with monkeypatch.context() as patch:
        keep = WeightCache.keep
        patch.setattr(WeightCache, 'keep', lambda self, name, weight: keep(
            self, name, replace(weight, n=weight.n - 8)))
        _load(checkpoint, cache)
    _expect_anew(checkpoint, cache, reads, caplog, r'.* is \[120, 64\], not \[128, 64\]')


def _touch(checkpoint):
    os.utime(checkpoint / 'model.safetensors', ns=(1, 1))


def _copy(checkpoint):
    shutil.copytree(checkpoint, checkpoint.parent / 'copy')
    shutil.rmtree(checkpoint)
    (checkpoint.parent / 'copy').rename(checkpoint)


def _refuse_to_hash(files):
    raise AssertionError('the content was read')


@pytest.mark.parametrize('renew', [_touch, _copy])
def test_files_of_the_same_content_are_known_by_it_once(
        renew, checkpoint, cache, reads, caplog, monkeypatch):
    _load(checkpoint, cache)
    renew(checkpoint)
    reads.clear()
    expected = _logits(checkpoint, cache)
    assert not reads and not caplog.messages
    monkeypatch.setattr(reader, 'content_hash', _refuse_to_hash)
    assert torch.equal(_logits(checkpoint, cache), expected)
    assert not reads and not caplog.messages


def test_a_checkpoint_that_changes_while_it_is_read_is_not_kept(
        checkpoint, cache, caplog, monkeypatch):
    content_hash = reader.content_hash

    def change(files):
        _touch(checkpoint)
        return content_hash(files)

    monkeypatch.setattr(reader, 'content_hash', change)
    _load(checkpoint, cache)
    assert not list(cache.iterdir())
    assert 'the checkpoint has changed while it was read' in caplog.text


def test_two_checkpoints_have_a_file_each(tmp_path, cache, reads):
    one, other = _write(tmp_path / 'a' / 'model'), _write(tmp_path / 'b' / 'model', seed=1)
    expected = [_logits(checkpoint, cache) for checkpoint in (one, other)]
    reads.clear()
    for checkpoint, logits in zip((one, other), expected):
        assert torch.equal(_logits(checkpoint, cache), logits)
    assert not reads and len(list(cache.iterdir())) == 2


def test_a_long_name_of_a_checkpoint_is_cut(tmp_path, cache, reads, caplog):
    checkpoint = _write(tmp_path / ('é' * 120))
    _load(checkpoint, cache)
    reads.clear()
    _load(checkpoint, cache)
    assert not reads and not caplog.messages


def test_a_process_that_is_killed_leaves_nothing_that_looks_whole(checkpoint, cache, reads):
    child = os.fork()
    if child == 0:
        os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
        try:
            _load(checkpoint, cache)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    [leftover] = cache.iterdir()
    assert leftover.name.endswith(weight_file.PARTIAL)
    _load(checkpoint, cache)
    assert not leftover.exists()
    reads.clear()
    _load(checkpoint, cache)
    assert not reads and _file_in(cache)


def test_what_another_process_is_writing_stays(checkpoint, cache):
    cache.mkdir(parents=True)
    with open(cache / f'.other{weight_file.PARTIAL}', 'wb') as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        _load(checkpoint, cache)
        assert len(list(cache.iterdir())) == 2


def test_a_file_that_is_replaced_while_it_is_read_is_read_to_its_end(
        checkpoint, cache, caplog):
    expected = _logits(checkpoint, cache)
    with CheckpointReader(checkpoint) as reader, WeightCache(cache, reader) as open_cache:
        _touch(checkpoint)
        _load(checkpoint, cache)
        tiles = open_cache.take('model.layers.1.mlp.down_proj', 64, 128)
    assert torch.equal(tiles.data, _load(checkpoint).blocks[1].down_proj.weight.data)
    assert torch.equal(_logits(checkpoint, cache), expected) and not caplog.messages


def _raise_full(file):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_and_the_model_runs(checkpoint, cache, caplog, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', _raise_full)
        logits = _logits(checkpoint, cache)
    assert torch.equal(logits, _logits(checkpoint)) and not list(cache.iterdir())
    [message] = caplog.messages
    assert 'the packed weights are not kept: ' in message and 'No space left' in message


def test_a_folder_that_cannot_be_made_is_told_and_the_model_runs(checkpoint, tmp_path, caplog):
    (tmp_path / 'file').touch()
    assert torch.equal(_logits(checkpoint, tmp_path / 'file' / 'cache'), _logits(checkpoint))
    assert 'the packed weights are not kept: ' in caplog.text


def test_a_disk_that_is_nearly_full_is_left_alone(checkpoint, cache, caplog, monkeypatch):
    monkeypatch.setattr(weight_cache, 'LEAST_FREE_BYTES', 2**62)
    _load(checkpoint, cache)
    assert not list(cache.iterdir()) and 'are to stay free' in caplog.text
