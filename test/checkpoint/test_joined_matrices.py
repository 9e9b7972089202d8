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
"""Matrices that a checkpoint has joined, some with their rows in turns, in every stored format."""

from family_models import load_family, quantize_family, read_family, token_ids, write_family
import pytest
from stored_weights import Codes, STORE
from tiny_models import run_model
import torch
from torch import Tensor

from tinychat_ros.checkpoint import weight_cache
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.writer import save_checkpoint
from tinychat_ros.kernels import extension
from tinychat_ros.kernels.packing import Int8Weight
from tinychat_ros.kernels.rtn import quantize_rtn


def _int8(weight: Tensor) -> Int8Weight:
    scales = weight.float().abs().amax(1) / 127
    return Int8Weight(torch.round(weight / scales[:, None]).to(torch.int8), scales)


# How a checkpoint of each format has a linear, and the weight that it then has.
_FORMATS = {
    'awq-gemm': lambda weight: quantize_rtn(weight, 32),
    'tinychat-w3': lambda weight: quantize_rtn(weight, 32, 3),
    'w8a8': _int8,
    **{name: lambda weight, store=store: store(Codes.of(quantize_rtn(weight, 32)))
       for name, store in STORE.items()}}


@pytest.mark.parametrize('name', ['falcon 40b', 'falcon mha', 'phi3 window', 'gemma2'])
@pytest.mark.parametrize('stored', _FORMATS)
def test_a_joined_matrix_is_taken_apart_whatever_it_is_stored_as(
        stored, name, tmp_path, monkeypatch):
    """Falcon's rows are in another order, with biases in one of the two; Phi-3's are not."""
    monkeypatch.setattr(extension, 'load', lambda: None)
    config, tensors, linears = read_family(write_family(tmp_path / 'model', name))
    weights = {linear: tensors.pop(f'{linear}.weight') for linear in linears}
    plain = {f'{linear}.weight': _values(stored, weight) for linear, weight in weights.items()}
    save_checkpoint(tmp_path / 'plain', config, {**tensors, **plain})
    for linear, weight in weights.items():
        found = _FORMATS[stored](weight)
        tensors.update({f'{linear}.{suffix}': tensor for suffix, tensor in found.items()}
                       if isinstance(found, dict) else {linear: found})
    save_checkpoint(tmp_path / 'stored', config, tensors)
    found, expected = (run_model(load_family(tmp_path / kind), token_ids(96, 12))
                       for kind in ('stored', 'plain'))
    # The inputs of int8 weights are rounded too.
    tolerance = 0.1 if stored == 'w8a8' else 1e-5
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def _values(stored: str, weight: Tensor) -> Tensor:
    """Return a weight as it comes back from a format."""
    made = _FORMATS[stored](weight)
    return (quantize_rtn(weight, 32) if isinstance(made, dict) else made).dequantize()


@pytest.mark.skipif(extension.load() is None, reason=extension.why_absent())
@pytest.mark.parametrize('name', ['falcon 40b', 'falcon mha', 'falcon 11b', 'qwen2'])
def test_packed_weights_keep_the_order_of_rows_and_the_biases(name, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_cache, 'LEAST_BYTES', 1)
    monkeypatch.setattr(weight_cache, 'LEAST_FREE_BYTES', 0)
    path = quantize_family(write_family(tmp_path, name), tmp_path)['awq']
    ids = token_ids(96)
    expected = run_model(load_family(path), ids)
    assert torch.equal(run_model(load_family(path, cache_folder=tmp_path / 'cache'), ids),
                       expected)
    stored, reads = CheckpointReader.stored, []
    monkeypatch.setattr(CheckpointReader, 'stored',
                        lambda reader, name: reads.append(name) or stored(reader, name))
    again = run_model(load_family(path, cache_folder=tmp_path / 'cache'), ids)
    assert torch.equal(again, expected)
    assert reads and not [name for name in reads if not name.endswith(('weight', 'bias'))]
