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
"""transformers loads the quantized checkpoints that are written here, and computes the same."""

import sys
from types import ModuleType, SimpleNamespace

from family_sources import auto_class, samples, SOURCES, write_source
import pytest
from tiny_models import linear_shapes, llama_config, llama_tensors, load_folder, run_model
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.quantizers.quantizer_awq import AwqQuantizer

from tinychat_ros.checkpoint.quantization_config import awq_config, w8a8_config
from tinychat_ros.checkpoint.writer import save_checkpoint
from tinychat_ros.engine.config import DEMO_MODEL
from tinychat_ros.kernels.packing import Int8Weight
from tinychat_ros.kernels.rtn import quantize_rtn, WeightSpec
from tinychat_ros.quantization.job import Job, WeightOnly
from tinychat_ros.quantization.method import METHODS
from tinychat_ros.quantization.quantize import quantize_checkpoint

_IDS = [i * 7 % 96 for i in range(30)]
_DOWN = 'model.layers.1.mlp.down_proj'


class _GemmLinear(nn.Module):
    """The tensors of gptqmodel 7.7's AwqTorchLinear, in the order that AutoAWQ published."""

    def __init__(self, in_features, out_features, group_size, bias, **_):
        super().__init__()
        self.out_features = out_features
        k, columns = in_features, out_features // 8
        groups = 1 if group_size == -1 else k // group_size
        self.register_buffer('qweight', torch.zeros(k, columns, dtype=torch.int32))
        self.register_buffer('qzeros', torch.zeros(groups, columns, dtype=torch.int32))
        self.register_buffer('scales', torch.zeros(groups, out_features, dtype=torch.float16))
        self.register_buffer('bias', torch.zeros(out_features) if bias else None)

    def forward(self, x):
        shifts = 4 * torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
        q, zeros = ((packed[..., None] >> shifts & 15).flatten(1)
                    for packed in (self.qweight, self.qzeros))
        zeros, scales = (t.repeat_interleave(len(q) // len(zeros), 0)
                         for t in (zeros, self.scales.float()))
        product = x @ ((q - zeros) * scales)
        return product if self.bias is None else product + self.bias


class _ScaledActivation(nn.Module):
    """What stands in the place of an activation in AutoAWQ's checkpoints."""

    def __init__(self, act, scales):
        super().__init__()
        self.act, self.scales = act, nn.Parameter(scales)

    def forward(self, x):
        return self.act(x) / self.scales


@pytest.fixture
def wanted(monkeypatch):
    """Stand in for gptqmodel, which needs a torch of its own; return what it is asked for."""
    arguments = {}

    def select_linear(**kwargs):
        arguments.update(kwargs)
        return _GemmLinear

    def do_nothing(*_, **__):
        pass

    for name, contents in {
            'gptqmodel': {},
            'gptqmodel.quantization': {'METHOD': SimpleNamespace(AWQ='awq')},
            'gptqmodel.quantization.awq.modules.act': {'ScaledActivation': _ScaledActivation},
            'gptqmodel.utils.importer': {'hf_select_quant_linear_v2': select_linear},
            'gptqmodel.utils.model': {'hf_gptqmodel_post_init': do_nothing}}.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(AwqQuantizer, 'validate_environment', do_nothing)
    return arguments


def _write(path, config, quantization_config, quantize, kept):
    """Write a model with quantized linears, the kept ones plain; return them by name."""
    stored = llama_tensors(config, dtype=torch.float16)
    layers = {name: quantize(stored.pop(f'{name}.weight'))
              for name in linear_shapes(config) if name not in kept}
    save_checkpoint(path, {**config, 'quantization_config': quantization_config},
                    {**stored, **layers})
    return layers


def _load(path, auto=AutoModelForCausalLM):
    """Load a folder in transformers, which must find all it looks for and nothing more."""
    model, found = auto.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    assert {'missing_keys', 'unexpected_keys', 'mismatched_keys'} <= set(found)
    assert not any(found.values()), found
    return model


def _run(model):
    with torch.no_grad():
        return model(torch.tensor([_IDS])).logits[0]


@pytest.mark.parametrize('group_size, kept, changes', [
    (32, (), {'attention_bias': True}), (-1, [_DOWN], {'tie_word_embeddings': True})])
def test_an_awq_checkpoint_gives_the_same_logits(group_size, kept, changes, wanted, tmp_path):
    config = llama_config(**changes)
    layers = _write(tmp_path, config, awq_config(group_size, kept),
                    lambda weight: quantize_rtn(weight, group_size), kept)
    model = _load(tmp_path)
    assert {name for name, module in model.named_modules()
            if isinstance(module, _GemmLinear)} == set(layers)
    assert {'quant_method': 'awq', 'format': 'gemm', 'bits': 4, 'group_size': group_size,
            'zero_point': True}.items() <= wanted.items()
    torch.testing.assert_close(_run(model), run_model(load_folder(tmp_path), _IDS),
                               rtol=1e-4, atol=1e-4)


# transformers has a table of rotations for every length of text, this project one.
_FAMILIES = [name for name in SOURCES if name != 'phi3 of a long context']


@pytest.mark.parametrize('name, method', [
    *((name, 'awq') for name in _FAMILIES), ('mpt', 'rtn'), ('falcon with one norm', 'gptq')])
def test_every_family_quantized_to_4_bits_gives_the_same_logits(name, method, wanted, tmp_path):
    scheme = WeightOnly(METHODS[method], WeightSpec(4, 32))
    quantize_checkpoint(Job(write_source(tmp_path / 'source', name), tmp_path / 'out', scheme,
                            samples(), search_samples=2))
    torch.testing.assert_close(_run(_load(tmp_path / 'out', auto_class(name))),
                               run_model(load_folder(tmp_path / 'out'), _IDS), rtol=0, atol=1e-4)


def test_the_demo_model_gives_the_same_logits(wanted):
    torch.testing.assert_close(_run(_load(DEMO_MODEL)), run_model(load_folder(DEMO_MODEL), _IDS),
                               rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kept, changes', [
    ((), {'attention_bias': True}), ([_DOWN], {'tie_word_embeddings': True})])
def test_a_w8a8_checkpoint_gives_its_weights_and_like_logits(kept, changes, tmp_path):
    """Not the same logits: compressed-tensors divides a token by 127.5 and not by 127 steps."""
    pytest.importorskip('compressed_tensors', reason='compressed-tensors is not installed')

    def quantize(weight):
        scales = weight.float().abs().amax(1) / 127
        return Int8Weight(torch.round(weight / scales[:, None]).to(torch.int8), scales)

    layers = _write(tmp_path, llama_config(**changes), w8a8_config(kept), quantize, kept)
    model = _load(tmp_path)
    logits, ours = _run(model), run_model(load_folder(tmp_path), _IDS)
    assert (logits - ours).abs().max() <= 0.05 * ours.abs().max()
    schemes = {name: module.quantization_scheme for name, module in model.named_modules()
               if hasattr(module, 'quantization_scheme')}
    assert set(schemes) == set(layers)
    for name, layer in layers.items():
        assert schemes[name].input_activations.dynamic
        assert schemes[name].input_activations.strategy == 'token'
        assert torch.equal(model.get_submodule(name).weight, layer.dequantize())
