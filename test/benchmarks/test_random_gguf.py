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
"""The models for llama.cpp: which tensors they have, and of what bytes."""

from collections import Counter

from benchmarks import random_gguf
from benchmarks.random_gguf import StoredTensor
import pytest
import torch

from tinychat_ros.bench.shapes import shape_config
from tinychat_ros.models.config import ModelConfig

_TINY = ModelConfig.from_dict({
    'model_type': 'llama', 'max_position_embeddings': 64, 'vocab_size': 320,
    'hidden_size': 256, 'intermediate_size': 512, 'num_hidden_layers': 8,
    'num_attention_heads': 4, 'num_key_value_heads': 2, 'rms_norm_eps': 1e-5})


@pytest.mark.parametrize('kind, expected', [
    ('F32', 4 * 3 * 512), ('Q4_0', 3 * 512 // 32 * 18), ('Q4_K', 3 * 2 * 144),
    ('Q6_K', 3 * 2 * 210)])
def test_a_tensor_has_the_bytes_of_its_blocks(kind, expected):
    assert StoredTensor('weight', 3, 512, kind).nbytes == expected
    if kind != 'F32':
        data = random_gguf.data(3, 512, kind)
        assert (data.dtype, data.nbytes, len(data)) == (torch.uint8, expected, 3)


def test_a_norm_is_ones():
    assert random_gguf.data(1, 5, 'F32').tolist() == [1] * 5


@pytest.mark.parametrize('quantization, expected', [('Q4_0', 635990016), ('Q4_K_M', 667078656)])
def test_tinyllama_has_the_size_that_llama_bench_reports_of_it(quantization, expected):
    tensors = random_gguf.tensors(shape_config('tinyllama-1.1b'), quantization)
    assert sum(tensor.nbytes for tensor in tensors) == expected


def test_q4_k_m_has_half_of_the_sensitive_layers_finer():
    tensors = list(random_gguf.tensors(shape_config('llama-2-7b'), 'Q4_K_M'))
    fine = [tensor.name for tensor in tensors if tensor.kind == 'Q6_K']
    assert Counter(name.split('.')[-2] for name in fine) == {
        'attn_v': 16, 'ffn_down': 16, 'output': 1}
    layers = [int(name.split('.')[1]) for name in fine if 'ffn_down' in name]
    assert layers == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


def test_q4_0_has_only_a_finer_output():
    tensors = random_gguf.tensors(_TINY, 'Q4_0')
    assert [tensor.name for tensor in tensors if tensor.kind == 'Q6_K'] == ['output.weight']


@pytest.mark.parametrize('quantization', random_gguf.QUANTIZATIONS)
def test_the_file_holds_what_it_should(tmp_path, quantization):
    gguf = pytest.importorskip('gguf', reason='the package gguf is not installed')
    path = tmp_path / 'model.gguf'
    random_gguf.write(path, _TINY, quantization)
    reader = gguf.GGUFReader(path)
    assert [(t.name, t.tensor_type.name, int(t.n_bytes), list(map(int, t.shape)))
            for t in reader.tensors] == [
        (t.name, t.kind, t.nbytes, [t.k] if t.kind == 'F32' else [t.k, t.n])
        for t in random_gguf.tensors(_TINY, quantization)]
    assert len(reader.fields['tokenizer.ggml.tokens'].data) == 320
    assert reader.fields['llama.attention.head_count_kv'].contents() == 2


@pytest.mark.parametrize('kind', ['Q4_0', 'Q4_K', 'Q6_K'])
def test_weights_keep_the_deviation_of_what_they_multiply(kind):
    gguf = pytest.importorskip('gguf', reason='the package gguf is not installed')
    weight = gguf.dequantize(random_gguf.data(64, 1024, kind).numpy(),
                             gguf.GGMLQuantizationType[kind])
    assert weight.std() == pytest.approx(1 / 32, rel=0.1)
