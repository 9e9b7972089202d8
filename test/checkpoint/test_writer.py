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
"""What the writer leaves on disk: whole files that others can read, or the old ones."""

import json

import pytest
from tiny_models import (
    linear_shapes, llama_config, llama_tensors, load_folder, run_model, write_model)
import torch
from transformers import AutoModelForCausalLM

from tinychat_ros.checkpoint import writer
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.writer import save_checkpoint
from tinychat_ros.kernels.rtn import quantize_rtn


def _files(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_plain_checkpoint_is_read_by_transformers(tmp_path):
    config = llama_config()
    tensors = llama_tensors(config)
    save_checkpoint(tmp_path, config, tensors)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert all(torch.equal(model.state_dict()[name], t) for name, t in tensors.items())


def test_everyone_may_read_what_was_written(tmp_path):
    save_checkpoint(tmp_path, llama_config(), llama_tensors(llama_config()))
    assert {oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()} == {'0o644'}


def test_what_was_read_by_mmap_can_be_written_again(tmp_path):
    """Also over the file that it is read from, whose pages must then outlive it."""
    config = llama_config()
    tensors = llama_tensors(config)
    write_model(tmp_path, config, tensors)
    with CheckpointReader(tmp_path) as reader:
        read = {name: reader.floats(name, reader.shape(name)) for name in reader.names}
        save_checkpoint(tmp_path, config, read)
        assert all(torch.equal(read[name], t) for name, t in tensors.items())
    ids = [1, 2, 3]
    first = write_model(tmp_path / 'first', config, tensors)
    assert torch.equal(run_model(load_folder(tmp_path), ids), run_model(load_folder(first), ids))


def test_quantized_layers_and_extra_files_are_written_beside_plain_tensors(tmp_path):
    config = llama_config()
    tensors = llama_tensors(config)
    for name in linear_shapes(config):
        tensors[name] = quantize_rtn(tensors.pop(f'{name}.weight'), 32)
    extra = tmp_path / 'tokenizer.json'
    extra.write_text('{}')
    out = tmp_path / 'a' / 'b'
    save_checkpoint(out, config, tensors, [extra])
    assert sorted(_files(out)) == ['config.json', 'model.safetensors', 'tokenizer.json']
    assert json.loads((out / 'config.json').read_text()) == config
    assert torch.isfinite(run_model(load_folder(out), [5, 6])).all()


def test_a_transposed_tensor_is_written_as_it_reads(tmp_path):
    config = llama_config()
    tensors = llama_tensors(config)
    wide = tensors['lm_head.weight']
    save_checkpoint(tmp_path, config, {**tensors, 'lm_head.weight': wide.t().contiguous().t()})
    with CheckpointReader(tmp_path) as reader:
        assert torch.equal(reader.floats('lm_head.weight', [96, 64]), wide)


@pytest.mark.parametrize('culprit', ['save_file', 'shutil.copyfile', 'json.dumps'])
def test_a_failed_write_leaves_no_half_file_and_the_old_ones_whole(culprit, tmp_path, monkeypatch):
    config = llama_config()
    extra = tmp_path / 'tokenizer.json'
    extra.write_text('new')
    out = tmp_path / 'out'
    save_checkpoint(out, config, llama_tensors(config), [extra])
    before = _files(out)

    def fail(*args, **_):
        for path in args:
            if hasattr(path, 'write_bytes') and path.name.endswith('.partial'):
                path.write_bytes(b'half of it')
        raise OSError('No space left on device')

    monkeypatch.setattr(writer, culprit, fail) if '.' not in culprit else monkeypatch.setattr(
        f'tinychat_ros.checkpoint.writer.{culprit}', fail)
    with pytest.raises(OSError, match='No space left'):
        save_checkpoint(out, {**config, 'more': 1}, llama_tensors(config), [extra])
    assert _files(out) == before


def test_a_layer_of_a_width_that_awq_cannot_hold_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match='lm_head: expected N to be a multiple of 8, got 12'):
        save_checkpoint(tmp_path, {}, {'lm_head': quantize_rtn(torch.ones(12, 32), 32)})
    assert not list(tmp_path.iterdir())
