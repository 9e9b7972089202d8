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
"""A checkpoint with random damage either works or is refused with an error of this package."""

import random
import shutil

import pytest
from tiny_models import linear_shapes, llama_config, llama_tensors, write_model, write_tokenizer

from tinychat_ros.checkpoint.writer import awq_gemm_tensors
from tinychat_ros.engine.engine import Engine
from tinychat_ros.engine.request import Request
from tinychat_ros.engine.sampler import SamplingParams
from tinychat_ros.errors import TinychatError
from tinychat_ros.kernels.rtn import quantize_rtn

_FILES = ('config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json',
          'generation_config.json')


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Return a whole quantized checkpoint, as small as group size 32 allows."""
    path = tmp_path_factory.mktemp('whole')
    config = llama_config(hidden_size=32, head_dim=8, intermediate_size=32, num_hidden_layers=1,
                          vocab_size=261, eos_token_id=257)
    tensors = llama_tensors(config)
    for name in linear_shapes(config):
        tensors.update(awq_gemm_tensors(name, quantize_rtn(tensors.pop(f'{name}.weight'), 32)))
    write_model(path, config, tensors)
    write_tokenizer(path)
    (path / 'generation_config.json').write_text(
        '{"do_sample": true, "temperature": 0.7, "top_k": 40, "eos_token_id": [257, 0]}')
    return path


def _use(path):
    engine = Engine.load(path, device='cpu', num_slots=1, max_seq_len=32)
    for sampling in (None, SamplingParams(), SamplingParams(temperature=1.0, top_p=0.9)):
        list(engine.generate(Request('hi', sampling=sampling, max_new_tokens=3)))


def _damage(data, rng, head):
    """Cut a file, or change, drop or insert a few bytes, most of them among the first ``head``."""
    data = bytearray(data)
    kind = rng.randrange(5)
    if kind == 0:
        return bytes(data[:rng.randrange(len(data))])
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(min(len(data), head) if rng.random() < 0.7 else len(data))
        if kind == 1:
            data[at] = rng.randrange(256)
        elif kind == 2:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            del data[at:at + rng.randrange(1, 9)]
        else:
            data[at:at] = rng.choice([b'-', b'9999', b'null', b'"', b'[', b'}', b'\xff', b'0'])
    return bytes(data)


def test_the_whole_checkpoint_works(whole):
    _use(whole)


@pytest.mark.parametrize('name', _FILES)
def test_random_damage_to_a_file_escapes_as_no_other_exception(name, whole, tmp_path):
    rng, refused = random.Random(name), 0
    path = tmp_path / 'damaged'
    shutil.copytree(whole, path)
    original = (whole / name).read_bytes()
    for i in range(60):
        # A new file each time: torch may still map the last one.
        (path / name).unlink()
        (path / name).write_bytes(_damage(original, rng, 3000))
        try:
            _use(path)
        except TinychatError as error:
            assert str(error)
            refused += 1
    assert refused >= 10, 'the damage is too slight to show anything'


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors', 'tokenizer.json'])
def test_a_missing_file_is_refused_by_name(name, whole, tmp_path):
    path = tmp_path / 'damaged'
    shutil.copytree(whole, path)
    (path / name).unlink()
    with pytest.raises(TinychatError, match=name):
        _use(path)
