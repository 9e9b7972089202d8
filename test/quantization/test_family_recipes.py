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
"""Every family with every method: scales fold in and out exactly, and the result runs."""

from dataclasses import dataclass
from pathlib import Path

from family_sources import samples, scales_name, SOURCES, VOCABULARY, write_source
import pytest
from tiny_models import run_model, write_model
import torch
from torch import Tensor

from tinychat_ros.checkpoint import writer
from tinychat_ros.checkpoint.loader import load_model
from tinychat_ros.checkpoint.reader import CheckpointReader, read_json
from tinychat_ros.kernels.packing import Int8Weight, QuantizedWeight
from tinychat_ros.kernels.rtn import WeightSpec
from tinychat_ros.models.kv_cache import KVCache
from tinychat_ros.models.registry import FAMILIES
from tinychat_ros.quantization import awq, block, smoothquant, work_folder
from tinychat_ros.quantization.block import BlockQuantizer
from tinychat_ros.quantization.job import Job, SmoothQuant, WeightOnly
from tinychat_ros.quantization.method import Method, METHODS
from tinychat_ros.quantization.quantize import quantize_checkpoint
from tinychat_ros.quantization.recipes import by_norm, output, recipe, RECIPES, Scratch
from tinychat_ros.quantization.source import block_prefix, load_block

SPEC = WeightSpec(4, 32)
SCHEMES = {**{name: WeightOnly(method, SPEC) for name, method in METHODS.items()},
           'smoothquant': SmoothQuant(0.5)}
W3 = WeightOnly(METHODS['awq'], WeightSpec(3, 32))
LENGTH = 24
IDS = [i * 5 % VOCABULARY for i in range(LENGTH)]


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """Return what gives the folder of one of SOURCES."""
    known: dict[str, Path] = {}

    def of(name):
        if name not in known:
            known[name] = write_source(tmp_path_factory.mktemp('source') / 'model', name)
        return known[name]
    return of


def _quantize(source, out, scheme):
    return quantize_checkpoint(Job(source, out, scheme, samples(), search_samples=2))


def _load(path):
    """Load a model for texts as long as the samples: its positions can depend on that."""
    with CheckpointReader(path) as reader:
        return load_model(reader, torch.float32, torch.device('cpu'), LENGTH)[0]


def _logits(path, *texts):
    model = _load(path)
    return torch.cat([run_model(model, ids) for ids in texts or [IDS]])


def _stored(path):
    with CheckpointReader(path) as reader:
        return {name: reader.stored(name) for name in reader.names}


def _powers_of_two(factors):
    return 2.0 ** torch.log2(factors).round()


@dataclass(frozen=True)
class _Unrounded(QuantizedWeight):
    """A weight as it would be rounded, and a scale for each of its rows."""

    weight: Tensor = None

    def dequantize(self, dtype=torch.float32):
        return self.weight * self.scales.float()


@dataclass(frozen=True)
class _Unrounded8(Int8Weight):
    """The same among weights of 8 bits."""

    weight: Tensor = None

    def dequantize(self, dtype=torch.float32):
        return self.weight


def _keep_codes(self, weight, sums, factors, clip):
    n, k = weight.shape
    return _Unrounded(torch.zeros(n, k // 2, dtype=torch.uint8), torch.ones(n, 1).half(),
                      torch.zeros(n, 1, dtype=torch.uint8), k, 4, weight)


def _plain_tensors(tensors):
    return writer.stored_tensors({
        (name if isinstance(value, Tensor) else f'{name}.weight'):
        (value if isinstance(value, Tensor) else value.dequantize())
        for name, value in tensors.items()})


@pytest.fixture
def without_rounding(monkeypatch):
    """
    Store linears in fp32 as they would be rounded, with scales that are powers of two.

    Norms, biases and scales behind activations are stored in fp16 as ever, which holds them
    exactly when they are divided by powers of two.
    """
    best, smoothing, quantize_int8 = (
        awq.best_scale, smoothquant.smoothing, smoothquant.quantize_int8)

    def last(scales, loss):
        scale = list(scales)[-1]
        factors = _powers_of_two(scale.factors ** 3)  # Cubed, for more than one power.
        return best(iter([scale._replace(factors=factors)]), loss)

    monkeypatch.setattr(BlockQuantizer, '_codes', _keep_codes)
    monkeypatch.setattr(block, 'best_scale', last)
    monkeypatch.setattr(smoothquant, 'smoothing', lambda *args: _powers_of_two(smoothing(*args)))
    monkeypatch.setattr(smoothquant, 'quantize_int8', lambda weight: _Unrounded8(
        **vars(quantize_int8(weight)), weight=weight))
    monkeypatch.setattr(work_folder, 'stored_tensors', _plain_tensors)


def test_every_family_has_a_recipe():
    older_names_of_falcon = {'RefinedWeb', 'RefinedWebModel'}
    # Of a Gemma 3 that sees, a part is run.
    assert RECIPES.keys() == FAMILIES.keys() - older_names_of_falcon - {'gemma3'}
    assert RECIPES.keys() == {kind for kind, _ in SOURCES.values()}


@pytest.mark.parametrize('method', SCHEMES)
@pytest.mark.parametrize('name', SOURCES)
def test_without_rounding_the_logits_stay_what_they_were(
        name, method, source, tmp_path, without_rounding):
    _quantize(source(name), tmp_path / 'out', SCHEMES[method])
    wanted = _logits(source(name))
    assert wanted.abs().max() > 1, 'a model that says nothing proves nothing'
    torch.testing.assert_close(_logits(tmp_path / 'out'), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize('name', SOURCES)
def test_a_scale_is_folded_into_every_place_that_takes_one(
        name, source, tmp_path, without_rounding):
    outcome = _quantize(source(name), tmp_path / 'out', SCHEMES['awq'])
    config = _load(source(name)).config
    before, after = _stored(source(name)), _stored(tmp_path / 'out')
    alphas = {layer.name: layer.alpha for layer in outcome.layers}
    for index in range(config.num_hidden_layers):
        prefix = block_prefix(config, index)
        for part in (part for step in recipe(config) for part in step):
            norm, last = f'{prefix}{part.norm_name}.weight', prefix + part.last_name
            assert (after[norm].float() - before[norm]).abs().max() > 0.1
            factors = (after[f'{last}.weight'] / before[f'{last}.weight']).nanmedian(0).values
            assert (alphas[last] is not None) == part.takes_scale
            assert (factors.max() > 1.9 * factors.min()) == part.takes_scale
            if part.scales_name:
                known = before.get(prefix + part.scales_name, torch.ones(1))
                torch.testing.assert_close(after[prefix + part.scales_name].float(),
                                           factors * known, rtol=1e-3, atol=0)


@pytest.mark.parametrize('name', ['gemma3 with every norm', 'falcon with one norm', 'mpt'])
def test_what_parts_add_is_what_their_step_adds(name, source):
    config = _load(source(name)).config
    x = torch.randn(LENGTH, config.hidden_size)
    scratch = Scratch(config, LENGTH, torch.device('cpu'))
    layer = load_block(source(name), 0, torch.device('cpu'), scratch.positions)
    for step in recipe(config):
        added = sum(part.added(layer, x, scratch) for part in step)
        torch.testing.assert_close(x + added, output(step, layer, x, scratch))


@pytest.mark.parametrize('name', SOURCES)
def test_blocks_are_calibrated_on_what_the_model_feeds_them(
        name, source, tmp_path, monkeypatch):
    seen, quantize = [], BlockQuantizer.quantize

    def spy(self, step, inputs, search):
        seen.append((self._prefix, next(inputs())[1]))
        quantize(self, step, inputs, search)

    monkeypatch.setattr(BlockQuantizer, 'quantize', spy)
    _quantize(source(name), tmp_path / 'out', SCHEMES['awq'])
    model, ids = _load(source(name)), samples()[0]
    cache = KVCache(model.config, 1, len(ids), torch.float32, torch.device('cpu'))
    found = dict(reversed(seen))
    blocks, model.blocks = model.blocks, []
    for index, layer in enumerate(blocks):
        x = found[block_prefix(model.config, index)]
        torch.testing.assert_close(x, model.hidden(ids, cache, 0, 0), rtol=1e-4, atol=1e-4)
        model.blocks.append(layer)


@pytest.mark.parametrize('name', SOURCES)
def test_every_method_writes_what_the_engine_loads_and_awq_loses_less(name, source, tmp_path):
    texts = [ids.tolist() for ids in samples()]
    wanted = _logits(source(name), *texts)
    errors = {}
    for method, scheme in {**SCHEMES, 'awq of 3 bits': W3}.items():
        outcome = _quantize(source(name), tmp_path / method, scheme)
        assert not any(layer.note for layer in outcome.layers)
        found = _logits(tmp_path / method, *texts)
        errors[method] = float((found - wanted).pow(2).mean() / wanted.pow(2).mean())
    stored = _stored(tmp_path / 'awq').values()
    assert {tensor.dtype for tensor in stored} == {torch.float16, torch.int32}
    assert 0 < errors['awq'] < errors['rtn']
    assert 0 < max(errors.values()) < 0.3


def test_numbers_in_a_tower_stay_as_they_are(source, tmp_path):
    old = tmp_path / 'old'
    places = {'vision_tower.embeddings.position_ids': torch.arange(10)[None]}
    write_model(old, read_json(source('llava') / 'config.json'),
                {**_stored(source('llava')), **places})
    _quantize(old, tmp_path / 'out', SCHEMES['rtn'])
    for name, numbers in places.items():
        assert torch.equal(_stored(tmp_path / 'out')[name], numbers)


def _split(tensors):
    """Return Phi-3's tensors as Llama keeps them."""
    parts = {'qkv_proj': ('q_proj', 'k_proj', 'v_proj'), 'gate_up_proj': ('gate_proj', 'up_proj')}
    rows = {'qkv_proj': [64, 32, 32], 'gate_up_proj': [128, 128]}
    split = {}
    for name, tensor in tensors.items():
        stem, _, module = name.removesuffix('.weight').rpartition('.')
        for part, piece in (zip(parts[module], tensor.split(rows[module]))
                            if module in parts else [(module, tensor)]):
            split[f'{stem}.{part}.weight'.removeprefix('.')] = piece.clone()
    return split


@pytest.mark.parametrize('method', ['gptq', 'awq', 'awq-paper'])
def test_merged_matrices_are_quantized_as_their_parts_would_be(method, source, tmp_path):
    merged = source('phi3 with merged matrices')
    config = {**read_json(merged / 'config.json'), 'model_type': 'llama'}
    separate = write_model(tmp_path / 'separate', config, _split(_stored(merged)))
    outputs = []
    for path in (merged, separate):
        _quantize(path, tmp_path / f'{path.name} out', SCHEMES[method])
        outputs.append(_stored(tmp_path / f'{path.name} out'))
    for index in range(2):
        for whole, parts in (('self_attn.qkv_proj', ('q', 'k', 'v')),
                             ('mlp.gate_up_proj', ('gate', 'up'))):
            prefix = f"model.layers.{index}.{whole.partition('.')[0]}."
            for suffix in ('qweight', 'qzeros', 'scales'):
                found = outputs[0][f'model.layers.{index}.{whole}.{suffix}']
                wanted = torch.cat([outputs[1][f'{prefix}{part}_proj.{suffix}']
                                    for part in parts], 1)
                # Matrices of other shapes add up in another order.
                assert (found == wanted).float().mean() > 0.99


@pytest.mark.parametrize('name, module, top', [
    ('phi3 with merged matrices', 'self_attn.qkv_proj', 96), ('mpt', 'attn.Wqkv', 128),
    ('falcon with one norm', 'self_attention.query_key_value', 128),
    ('phi3 with merged matrices', 'mlp.gate_up_proj', 0)])
def test_the_rows_of_queries_and_keys_are_not_cut(name, module, top, source, tmp_path):
    for scheme, out in ((SCHEMES['rtn'], 'rtn'), (WeightOnly(Method(clip=True), SPEC), 'clip')):
        _quantize(source(name), tmp_path / out, scheme)
    prefix = block_prefix(_load(source(name)).config, 0)
    plain, cut = (_stored(tmp_path / out)[f'{prefix}{module}.scales'] for out in ('rtn', 'clip'))
    assert torch.equal(plain[:, :top], cut[:, :top])
    assert (plain[:, top:] != cut[:, top:]).float().mean() > 0.3


def test_linears_behind_one_norm_share_a_scale(source, tmp_path):
    outcome = _quantize(source('falcon with one norm'), tmp_path / 'out', SCHEMES['awq-paper'])
    alphas = {layer.name: layer.alpha for layer in outcome.layers}
    assert list(alphas)[:4] == [f'transformer.h.0.{name}' for name in (
        'self_attention.query_key_value', 'mlp.dense_h_to_4h', 'self_attention.dense',
        'mlp.dense_4h_to_h')]
    assert alphas['transformer.h.1.self_attention.query_key_value'] == (
        alphas['transformer.h.1.mlp.dense_h_to_4h'])
    for name, norms in (('falcon with one norm', 1), ('falcon with two norms', 2)):
        step, = recipe(_load(source(name)).config)
        assert (len(step), len(by_norm(step))) == (2, norms)


@pytest.mark.parametrize('method', ['rtn', 'gptq', 'smoothquant'])
def test_scales_behind_the_activation_stay_what_they_are_without_a_search(
        method, source, tmp_path):
    for name in ('mpt', 'mpt with scales'):
        _quantize(source(name), tmp_path / name, SCHEMES[method])
    added, kept = _stored(tmp_path / 'mpt'), _stored(tmp_path / 'mpt with scales')
    before = _stored(source('mpt with scales'))
    for name in map(scales_name, range(2)):
        assert kept[name].dtype == torch.float16
        assert torch.equal(kept[name].float(), before[name])
        assert (name in added) == (method != 'smoothquant')
        assert name not in added or (added[name] == 1).all()
