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
"""Every family with 4-bit weights on the reference and on the CPU kernels."""

from dataclasses import dataclass
from pathlib import Path

from family_models import (
    FAMILIES, load_family, logits_of, MAX_SEQ_LEN, PROMPT_LEN, quantize_family, token_ids,
    transformers_model, write_family)
import pytest
from tiny_models import run_model
import torch
from torch import Tensor

from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.summary import summarize_layers, why_not_recorded
from tinychat_ros.engine.graph_runner import GraphRunner, make_runner
from tinychat_ros.engine.model_runner import ModelRunner
from tinychat_ros.engine.sampler import SamplingParams
from tinychat_ros.kernels import extension
from tinychat_ros.kernels.packing import CpuTiles
from tinychat_ros.models.kv_cache import KVCache

_CPU = torch.device('cpu')
# K of these is not a multiple of 32, as that of no published model.
_ON_REFERENCE = {'falcon 71 heads'}

with_kernels = pytest.mark.skipif(extension.load() is None, reason=extension.why_absent())


@dataclass(frozen=True)
class Subject:
    """A checkpoint of 4-bit weights, a text, and transformers' logits with the same weights."""

    name: str
    path: Path
    ids: list[int]
    expected: Tensor

    def error(self, **options) -> float:
        """Return the largest difference to them, of the largest of them; of pieces of 7 tokens."""
        logits = run_model(load_family(self.path, **options), self.ids, 7)
        return ((logits - self.expected).abs().max() / self.expected.abs().max()).item()


@pytest.fixture(scope='module', params=FAMILIES)
def subject(request, tmp_path_factory) -> Subject:
    """Return each family in turn."""
    path = tmp_path_factory.mktemp('family')
    folders = quantize_family(write_family(path, request.param), path)
    theirs = transformers_model(folders['plain'])
    ids = token_ids(theirs.config.vocab_size)
    return Subject(request.param, folders['awq'], ids, logits_of(theirs, ids))


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.float16, 1e-2)])
def test_the_reference_computes_with_the_dequantized_weights(
        subject, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(extension, 'load', lambda: None)
    assert subject.error(dtype=dtype) <= tolerance


@with_kernels
@pytest.mark.parametrize('options, tolerance', [
    ({'dtype': torch.float32}, 1e-5), ({'dtype': torch.float16}, 1e-2),
    ({'int8_activations': True}, 0.12)], ids=['W4A16', 'W4A16 in fp16', 'W4A8'])
def test_the_cpu_kernels_compute_with_the_dequantized_weights(subject, options, tolerance):
    assert subject.error(**options) <= tolerance


@with_kernels
def test_the_linears_of_its_blocks_are_read_by_the_cpu_kernels(subject):
    model = load_family(subject.path)
    packed = {isinstance(linear.weight, CpuTiles)
              for block in model.blocks for linear in block.linears()}
    assert packed == {subject.name not in _ON_REFERENCE}


@with_kernels
def test_its_step_is_recorded_where_inspect_says_so(subject):
    model = load_family(subject.path)
    runner = make_runner(model, KVCache(model.config, 1, 8, torch.float16, _CPU), _CPU)
    with CheckpointReader(subject.path) as reader:
        reasons = why_not_recorded(reader.config, summarize_layers(reader))
    assert (reasons['cpu'] is None) == isinstance(runner, GraphRunner)


@pytest.mark.parametrize('int8', [False, True])
def test_its_step_gives_the_tokens_of_the_ops_one_by_one(subject, int8):
    def tokens(make):
        model = load_family(subject.path, int8_activations=int8)
        runner = make(model, KVCache(model.config, 1, MAX_SEQ_LEN, torch.float32, _CPU), _CPU)
        answer = runner.tokens(runner.prefill(subject.ids, 0, 0), 0, PROMPT_LEN,
                               SamplingParams(), subject.ids)
        return [next(answer) for _ in range(24)]

    assert tokens(make_runner) == tokens(ModelRunner)
