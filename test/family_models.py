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
"""Small random checkpoints of every family, in the shapes that are easy to get wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
import json
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional, Sequence
import zlib

from safetensors.torch import load_file
from tiny_models import load_folder
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tinychat_ros.checkpoint.writer import save_checkpoint
from tinychat_ros.kernels.rtn import quantize_rtn
from tinychat_ros.models.causal_lm import CausalLM
from tinychat_ros.models.config import ModelConfig
from tinychat_ros.models.registry import read_config

PROMPT_LEN = 40
MAX_SEQ_LEN = 128


@dataclass(frozen=True)
class Family:
    """
    A model to make.

    :param kind: its ``model_type``.
    :param config: what its config class of transformers is given.
    :param gains: what the weights whose names end so are multiplied with.
    """

    kind: str
    config: Mapping[str, Any]
    gains: Mapping[str, float] = field(default_factory=dict)


def _shape(heads: int, kv_heads: int, head_dim: int, **changes: Any) -> dict[str, Any]:
    return {'vocab_size': 96, 'hidden_size': 64, 'intermediate_size': 128,
            'num_hidden_layers': 2, 'num_attention_heads': heads,
            'num_key_value_heads': kv_heads, 'head_dim': head_dim,
            'max_position_embeddings': MAX_SEQ_LEN, 'pad_token_id': 0, **changes}


def _phi3(heads: int, kv_heads: int, head_dim: int, **changes: Any) -> dict[str, Any]:
    """Return a shape whose heads make up the hidden size, which is all that Phi-3 can have."""
    shape = _shape(heads, kv_heads, head_dim, hidden_size=heads * head_dim, **changes)
    del shape['head_dim']
    return shape


def _mpt(heads: int, head_dim: int, **changes: Any) -> dict[str, Any]:
    return {'d_model': heads * head_dim, 'n_heads': heads, 'n_layers': 2,
            'max_seq_len': MAX_SEQ_LEN, 'vocab_size': 96, **changes}


def _falcon(heads: int, head_dim: int, **changes: Any) -> dict[str, Any]:
    return {'vocab_size': 96, 'hidden_size': heads * head_dim, 'num_hidden_layers': 2,
            'num_attention_heads': heads, 'max_position_embeddings': MAX_SEQ_LEN, **changes}


def _yarn(**changes: Any) -> dict[str, Any]:
    return {'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0,
                             'original_max_position_embeddings': 32, **changes}}


def _longrope(head_dim: int, trained_len: int) -> dict[str, Any]:
    return {'original_max_position_embeddings': trained_len, 'rope_scaling': {
        'type': 'longrope', 'short_factor': [1.0 + i / 32 for i in range(head_dim // 2)],
        'long_factor': [1.0 + i for i in range(head_dim // 2)]}}


_LLAMA3 = {'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0,
           'high_freq_factor': 4.0, 'original_max_position_embeddings': 32}
# With these, scores reach Gemma 2's cap of 50 and logits its cap of 30.
_LOUD = {'q_proj.weight': 5.0, 'k_proj.weight': 5.0, 'embed_tokens.weight': 6.0}
_NEW_FALCON = {'new_decoder_architecture': True, 'num_kv_heads': 2}

FAMILIES = {
    'llama mha': Family('llama', _shape(
        2, 2, 80, hidden_size=96, attention_bias=True, mlp_bias=True)),
    'llama mqa': Family('llama', _shape(4, 1, 64, vocab_size=97, tie_word_embeddings=True)),
    'llama linear': Family('llama', _shape(4, 2, 16, rope_scaling={
        'rope_type': 'linear', 'factor': 4.0})),
    'llama dynamic': Family('llama', _shape(4, 2, 16, rope_scaling={
        'rope_type': 'dynamic', 'factor': 4.0})),
    'llama llama3': Family('llama', _shape(4, 2, 16, rope_scaling=_LLAMA3)),
    'llama yarn': Family('llama', _shape(4, 2, 16, **_yarn())),
    'llama yarn mscale': Family('llama', _shape(4, 2, 16, **_yarn(
        mscale=0.7, mscale_all_dim=1.5, truncate=False, beta_fast=16.0))),
    'llama yarn factor': Family('llama', _shape(4, 2, 16, **_yarn(
        attention_factor=1.3, rope_theta=500.0))),
    'mistral': Family('mistral', _shape(6, 2, 128, sliding_window=None)),
    'mistral window': Family('mistral', _shape(4, 2, 64, sliding_window=7, vocab_size=101)),
    'qwen2': Family('qwen2', _shape(4, 2, 64, tie_word_embeddings=True)),
    'qwen2 yarn': Family('qwen2', _shape(4, 4, 16, **_yarn())),
    'qwen2 windows': Family('qwen2', _shape(
        4, 2, 16, num_hidden_layers=3, use_sliding_window=True, sliding_window=5,
        max_window_layers=1)),
    'qwen3': Family('qwen3', _shape(4, 1, 128, attention_bias=True)),
    'qwen3 windows': Family('qwen3', _shape(
        6, 3, 32, num_hidden_layers=3, use_sliding_window=True, sliding_window=5,
        max_window_layers=2)),
    'phi3': Family('phi3', _phi3(2, 2, 96, sliding_window=2047)),
    'phi3 partial': Family('phi3', _phi3(4, 2, 16, partial_rotary_factor=0.75)),
    'phi3 partial long': Family('phi3', _phi3(
        4, 1, 32, partial_rotary_factor=0.75, **_longrope(24, 32))),
    'phi3 window': Family('phi3', _phi3(4, 1, 32, sliding_window=9)),
    'phi3 long': Family('phi3', _phi3(4, 2, 16, **_longrope(16, 32))),
    'phi3 short': Family('phi3', _phi3(
        4, 2, 16, **{**_longrope(16, MAX_SEQ_LEN), 'max_position_embeddings': 512})),
    'gemma2': Family('gemma2', _shape(
        4, 2, 256, sliding_window=6, query_pre_attn_scalar=224, tie_word_embeddings=False)),
    'gemma2 loud': Family('gemma2', _shape(4, 1, 64, sliding_window=32, vocab_size=131), _LOUD),
    'gemma3': Family('gemma3_text', _shape(
        4, 1, 256, num_hidden_layers=7, sliding_window=6, tie_word_embeddings=False,
        rope_parameters={
            'full_attention': {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 1e6},
            'sliding_attention': {'rope_type': 'default', 'rope_theta': 1e4}})),
    'mpt': Family('mpt', _mpt(2, 128)),
    'mpt clip': Family('mpt', _mpt(6, 32, attn_config={
        'clip_qkv': 0.6, 'softmax_scale': 0.3})),
    'falcon 7b': Family('falcon', _falcon(7, 64, ffn_hidden_size=896)),
    'falcon 71 heads': Family('falcon', _falcon(71, 8, num_hidden_layers=1, vocab_size=97)),
    'falcon 40b': Family('falcon', _falcon(
        8, 16, **_NEW_FALCON, tie_word_embeddings=False), {'word_embeddings.weight': 8.0}),
    'falcon 11b': Family('falcon', _falcon(
        4, 64, **_NEW_FALCON, num_ln_in_parallel_attn=1, ffn_hidden_size=384, bias=True)),
    'falcon mha': Family('falcon', _falcon(
        4, 32, multi_query=False, parallel_attn=False, bias=True)),
}


def hf_config(name: str) -> dict[str, Any]:
    """Return what transformers writes as config.json of a family."""
    family = FAMILIES[name]
    return json.loads(AutoConfig.for_model(family.kind, **family.config).to_json_string(False))


def write_family(path: Path, name: str) -> Path:
    """Write a model as transformers saves it, no norm of ones and no bias of zeros in it."""
    family = FAMILIES[name]
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    config = AutoConfig.for_model(family.kind, **family.config)
    model = AutoModelForCausalLM.from_config(config)
    for key, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            parameter.data.add_(noise * 0.2)
        else:
            gains = [gain for end, gain in family.gains.items() if key.endswith(end)]
            parameter.data.copy_(noise * 0.15 * (gains or [1.0])[0])
    model.save_pretrained(path)
    return path


def transformers_model(path: Path) -> PreTrainedModel:
    """Load a folder in transformers, which computes as its model files are written."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32,
                                                attn_implementation='eager').eval()


def logits_of(model: PreTrainedModel, token_ids: Sequence[int]) -> Tensor:
    """Return transformers' logits fp32 [T, V]."""
    with torch.no_grad():
        return model(torch.tensor([list(token_ids)])).logits[0]


def load_family(path: Path, *args: Any, **options: Any) -> CausalLM:
    """Load a folder here; see load_folder."""
    return load_folder(path, *args, **{'max_seq_len': MAX_SEQ_LEN, **options})


def token_ids(vocab_size: int, length: int = PROMPT_LEN) -> list[int]:
    """Return a random text."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(vocab_size, (length,), generator=generator).tolist()


def block_linears(config: ModelConfig) -> Iterator[str]:
    """Yield the names of the linears in the blocks."""
    names = config.names
    for i in range(config.num_hidden_layers):
        for name in (*names.qkv, names.o_proj, *names.gate_up, names.down_proj):
            yield f'{names.blocks}.{i}.{name}'


def read_family(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Return config.json, the tensors and the names of the linears in the blocks."""
    config = json.loads((path / 'config.json').read_text())
    tensors = load_file(path / 'model.safetensors')
    return config, tensors, list(block_linears(read_config(config)))


def quantize_family(path: Path, out: Path, group: Optional[int] = None) -> dict[str, Path]:
    """
    Round the linears of the blocks to 4 bits.

    :param group: None is the largest of 128, 64 and 32 that divides every K.
    :returns: 'awq', where they are saved so, and 'plain', where transformers finds their values.
    """
    config, tensors, linears = read_family(path)
    inputs = {tensors[f'{name}.weight'].shape[1] for name in linears}
    group = group or next(g for g in (128, 64, 32, 8) if not any(k % g for k in inputs))
    quantized = {name: quantize_rtn(tensors.pop(f'{name}.weight'), group) for name in linears}
    plain = {f'{name}.weight': weight.dequantize() for name, weight in quantized.items()}
    save_checkpoint(out / 'awq', config, {**tensors, **quantized})
    save_checkpoint(out / 'plain', config, {**tensors, **plain})
    return {'awq': out / 'awq', 'plain': out / 'plain'}
