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
"""Checkpoints as they lie on the hub, in miniature: their keys, names, dtypes and leftovers."""

from __future__ import annotations

from dataclasses import dataclass, field
import json
from pathlib import Path
from typing import Any, Mapping, Sequence

from safetensors.torch import save_file
from stored_weights import Codes, pack_quantized
from tiny_llava import IMAGE_TOKEN_ID, write_processor
from tiny_models import write_tokenizer
import torch
from torch import Tensor

from tinychat_ros.checkpoint.writer import awq_gemm_tensors
from tinychat_ros.kernels.rtn import quantize_rtn

# The tokenizer has 261 tokens: as on the hub, most models embed more.
VOCAB, _H, _I = 272, 64, 128
END = 257
GROUP = 32

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Layout:
    """
    One checkpoint.

    :param config: config.json with the hub's keys, sizes shrunk.
    :param blocks: what the names in the blocks begin with.
    :param linears: [N, K] of each linear in a block; ``vectors`` are its norms and biases.
    :param rest: what lies outside the blocks and is read.
    :param unread: what nobody reads.
    :param quantized: how the linears lie, where they are quantized.
    """

    config: Mapping[str, Any]
    blocks: str
    linears: Shapes
    vectors: Shapes
    rest: Shapes
    unread: Mapping[str, Tensor] = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16
    quantized: str = ''
    generation: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Any] = field(default_factory=dict)


_SHAPE = {'hidden_size': _H, 'intermediate_size': _I, 'num_attention_heads': 4,
          'num_hidden_layers': 2, 'num_key_value_heads': 2, 'vocab_size': VOCAB,
          'max_position_embeddings': 4096, 'rms_norm_eps': 1e-05, 'use_cache': True,
          'bos_token_id': 256, 'eos_token_id': END, 'initializer_range': 0.02,
          'attention_dropout': 0.0, 'torch_dtype': 'bfloat16', 'transformers_version': '4.42.3'}
_LINEARS = {'self_attn.q_proj': [64, _H], 'self_attn.k_proj': [32, _H],
            'self_attn.v_proj': [32, _H], 'self_attn.o_proj': [_H, 64], 'mlp.gate_proj': [_I, _H],
            'mlp.up_proj': [_I, _H], 'mlp.down_proj': [_H, _I]}
_NORMS = {'input_layernorm.weight': [_H], 'post_attention_layernorm.weight': [_H]}
_QKV_BIASES = {f'{name}.bias': _LINEARS[name][:1] for name in list(_LINEARS)[:3]}
HEAD_NORMS = {'self_attn.q_norm.weight': [16], 'self_attn.k_norm.weight': [16]}
GEMMA_NORMS = {**_NORMS, 'pre_feedforward_layernorm.weight': [_H],
               'post_feedforward_layernorm.weight': [_H]}
TIED = {'model.embed_tokens.weight': [VOCAB, _H], 'model.norm.weight': [_H]}
_REST = {**TIED, 'lm_head.weight': [VOCAB, _H]}
_FREQUENCIES = {f'model.layers.{i}.self_attn.rotary_emb.inv_freq': torch.ones(8) for i in (0, 1)}
_AWQ = {'bits': 4, 'group_size': GROUP, 'quant_method': 'awq', 'version': 'gemm',
        'zero_point': True}
_OFFICIAL_AWQ = {**_AWQ, 'backend': 'autoawq', 'do_fuse': False, 'exllama_config': None,
                 'fuse_max_seq_len': None, 'modules_to_fuse': None,
                 'modules_to_not_convert': None, 'version': 'GEMM'}
_PACKED = {'config_groups': {'group_0': {
    'input_activations': None, 'output_activations': None, 'targets': ['Linear'], 'weights': {
        'actorder': None, 'block_structure': None, 'dynamic': False, 'group_size': GROUP,
        'num_bits': 4, 'observer': 'minmax', 'observer_kwargs': {}, 'strategy': 'group',
        'symmetric': True, 'type': 'int'}}},
    'format': 'pack-quantized', 'global_compression_ratio': 1.89, 'ignore': ['lm_head'],
    'kv_cache_scheme': None, 'quant_method': 'compressed-tensors',
    'quantization_status': 'compressed'}


def _named(model_type: str, architecture: str, **changes: Any) -> dict[str, Any]:
    return {**_SHAPE, 'model_type': model_type, 'architectures': [architecture], **changes}


def like_llama(config: Mapping[str, Any], vectors: Shapes = _NORMS, rest: Shapes = _REST,
               **fields: Any) -> Layout:
    """Return a layout with Llama's names."""
    return Layout(config, 'model.layers', fields.pop('linears', _LINEARS), vectors, rest, **fields)


def _llama(**changes: Any) -> dict[str, Any]:
    return _named('llama', 'LlamaForCausalLM', hidden_act='silu', pretraining_tp=1,
                  rope_scaling=None, tie_word_embeddings=False, **changes)


def _qwen2(**changes: Any) -> dict[str, Any]:
    return _named('qwen2', 'Qwen2ForCausalLM', hidden_act='silu', max_window_layers=28,
                  rope_theta=1e6, sliding_window=131072, use_sliding_window=False, **changes)


_PHI3_LINEARS = {'self_attn.qkv_proj': [192, _H], 'self_attn.o_proj': [_H, _H],
                 'mlp.gate_up_proj': [2 * _I, _H], 'mlp.down_proj': [_H, _I]}
_LONG = {'long_factor': [1.0 + i for i in range(8)], 'short_factor': [1.0] * 8}


def phi3(**changes: Any) -> dict[str, Any]:
    """Return the config.json of a Phi-3."""
    return _named(
        'phi3', 'Phi3ForCausalLM', num_key_value_heads=4, hidden_act='silu', embd_pdrop=0.0,
        resid_pdrop=0.0, original_max_position_embeddings=4096, pad_token_id=256,
        rope_theta=10000.0, sliding_window=2047, attention_bias=False, tie_word_embeddings=False,
        auto_map={'AutoConfig': 'configuration_phi3.Phi3Config'}, **changes)


_GEMMA3_TEXT = {
    'attention_bias': False, 'attn_logit_softcapping': None, 'cache_implementation': 'hybrid',
    'final_logit_softcapping': None, 'head_dim': 16, 'hidden_activation': 'gelu_pytorch_tanh',
    'pad_token_id': 0, 'query_pre_attn_scalar': 16, 'rope_local_base_freq': 10000,
    'rope_scaling': None, 'rope_theta': 1000000, 'sliding_window': 512,
    'sliding_window_pattern': 6}
# The hub's text_config has no more than its first line and sizes, which are larger here.
GEMMA3 = {
    'architectures': ['Gemma3ForConditionalGeneration'], 'boi_token_index': 255999,
    'eoi_token_index': 256000, 'eos_token_id': [1, END], 'image_token_index': 262144,
    'initializer_range': 0.02, 'mm_tokens_per_image': 256, 'model_type': 'gemma3',
    'torch_dtype': 'bfloat16', 'transformers_version': '4.50.0.dev0', 'text_config': {
        'hidden_size': _H, 'intermediate_size': _I, 'model_type': 'gemma3_text',
        'num_hidden_layers': 2, 'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'},
        'sliding_window': 1024, 'num_attention_heads': 4, 'num_key_value_heads': 2,
        'head_dim': 16, 'vocab_size': VOCAB},
    'vision_config': {'hidden_size': 16, 'image_size': 896, 'intermediate_size': 32,
                      'model_type': 'siglip_vision_model', 'num_attention_heads': 2,
                      'num_hidden_layers': 1, 'patch_size': 14, 'vision_use_head': False}}


def _gemma3(root: str, tower: str) -> dict[str, Any]:
    return {
        'config': GEMMA3, 'blocks': f'{root}.layers', 'linears': _LINEARS,
        'vectors': {**GEMMA_NORMS, **HEAD_NORMS},
        'rest': {f'{root}.embed_tokens.weight': [VOCAB, _H], f'{root}.norm.weight': [_H]},
        'unread': {f'{tower}vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight':
                   torch.ones(32, 16),
                   f'{tower}multi_modal_projector.mm_input_projection_weight': torch.ones(16, _H)}}


_MPT_CONFIG = {
    'architectures': ['MPTForCausalLM'], 'attn_config': {
        'alibi': True, 'alibi_bias_max': 8, 'attn_impl': 'triton', 'attn_pdrop': 0,
        'attn_type': 'multihead_attention', 'attn_uses_sequence_id': False, 'clip_qkv': None,
        'prefix_lm': False, 'qk_ln': False, 'softmax_scale': None},
    'auto_map': {'AutoModelForCausalLM': 'modeling_mpt.MPTForCausalLM'}, 'd_model': _H,
    'emb_pdrop': 0, 'embedding_fraction': 1.0, 'expansion_ratio': 4,
    'init_config': {'init_std': 0.02, 'name': 'kaiming_normal_', 'verbose': 0},
    'init_device': 'cpu', 'learned_pos_emb': True, 'logit_scale': None, 'max_seq_len': 2048,
    'model_type': 'mpt', 'n_heads': 4, 'n_layers': 2, 'no_bias': True,
    'norm_type': 'low_precision_layernorm', 'resid_pdrop': 0,
    'tokenizer_name': 'EleutherAI/gpt-neox-20b', 'torch_dtype': 'bfloat16',
    'transformers_version': '4.28.1', 'use_cache': False, 'verbose': 0, 'vocab_size': VOCAB}
_MPT = {
    'blocks': 'transformer.blocks', 'vectors': {'norm_1.weight': [_H], 'norm_2.weight': [_H]},
    'linears': {'attn.Wqkv': [3 * _H, _H], 'attn.out_proj': [_H, _H],
                'ffn.up_proj': [4 * _H, _H], 'ffn.down_proj': [_H, 4 * _H]},
    'rest': {'transformer.wte.weight': [VOCAB, _H], 'transformer.norm_f.weight': [_H]}}

_FALCON_CONFIG = {
    'alibi': False, 'apply_residual_connection_post_layernorm': False, 'attention_dropout': 0.0,
    'architectures': ['FalconForCausalLM'], 'bias': False, 'bos_token_id': 11,
    'eos_token_id': END, 'hidden_dropout': 0.0, 'hidden_size': _H, 'initializer_range': 0.02,
    'layer_norm_epsilon': 1e-05, 'model_type': 'falcon', 'multi_query': True,
    'new_decoder_architecture': False, 'num_attention_heads': 4, 'num_hidden_layers': 2,
    'parallel_attn': True, 'torch_dtype': 'bfloat16', 'transformers_version': '4.27.4',
    'use_cache': True, 'vocab_size': VOCAB}
_NEW_FALCON = {**_FALCON_CONFIG, 'new_decoder_architecture': True, 'num_kv_heads': 2}
_FALCON_11B = {**_NEW_FALCON, 'ff_factor': 4, 'ffn_hidden_size': 4 * _H, 'rope_theta': 500042.0,
               'max_position_embeddings': 8192, 'num_ln_in_parallel_attn': 1,
               'tie_word_embeddings': False}
_FIRST_FALCON = {key: value for key, value in _FALCON_CONFIG.items() if key not in (
    'num_attention_heads', 'num_hidden_layers', 'new_decoder_architecture')}


def _falcon(qkv: int, norms: Sequence[str]) -> dict[str, Any]:
    """Return what all have; the hub's files hold the head even where it is the embedding."""
    return {
        'blocks': 'transformer.h', 'vectors': {
            f'{norm}.{part}': [_H] for norm in norms for part in ('weight', 'bias')},
        'linears': {'self_attention.query_key_value': [qkv, _H],
                    'self_attention.dense': [_H, _H], 'mlp.dense_h_to_4h': [4 * _H, _H],
                    'mlp.dense_4h_to_h': [_H, 4 * _H]},
        'rest': {'transformer.word_embeddings.weight': [VOCAB, _H],
                 'transformer.ln_f.weight': [_H], 'transformer.ln_f.bias': [_H]}}


_FALCON = _falcon(96, ['input_layernorm'])
_FALCON_HEAD = {'lm_head.weight': torch.ones(VOCAB, _H)}

_LLAVA_TEXT = {key: value for key, value in _SHAPE.items() if not key.endswith('token_id')}
_LLAVA_CONFIG = {
    'architectures': ['LlavaForConditionalGeneration'], 'ignore_index': -100,
    'image_token_index': IMAGE_TOKEN_ID, 'model_type': 'llava', 'pad_token_id': 260,
    'projector_hidden_act': 'gelu', 'tie_word_embeddings': False, 'torch_dtype': 'float16',
    'text_config': {**_LLAVA_TEXT, '_name_or_path': 'lmsys/vicuna-7b-v1.5', 'model_type': 'llama',
                    'architectures': ['LlamaForCausalLM'], 'torch_dtype': 'float16'},
    'vision_config': {
        'hidden_size': 16, 'image_size': 12, 'intermediate_size': 32, 'num_attention_heads': 2,
        'model_type': 'clip_vision_model', 'num_hidden_layers': 1, 'patch_size': 4,
        'projection_dim': 768, 'vocab_size': 32000},
    'vision_feature_layer': -1, 'vision_feature_select_strategy': 'default', 'vocab_size': VOCAB}
_CLIP = 'vision_tower.vision_model'
_CLIP_LINEARS = {'self_attn.k_proj': [16, 16], 'self_attn.v_proj': [16, 16],
                 'self_attn.q_proj': [16, 16], 'self_attn.out_proj': [16, 16],
                 'layer_norm1': [16], 'layer_norm2': [16], 'mlp.fc1': [32, 16],
                 'mlp.fc2': [16, 32]}
_WITH_BIAS = {
    **{f'{_CLIP}.encoder.layers.0.{name}': shape for name, shape in _CLIP_LINEARS.items()},
    f'{_CLIP}.pre_layrnorm': [16], 'multi_modal_projector.linear_1': [_H, 16],
    'multi_modal_projector.linear_2': [_H, _H]}
_LLAVA = {
    'blocks': 'language_model.model.layers', 'linears': _LINEARS, 'vectors': _NORMS,
    'dtype': torch.float16, 'rest': {
        **{f'language_model.{name}': shape for name, shape in _REST.items()},
        **{f'{name}.weight': shape for name, shape in _WITH_BIAS.items()},
        **{f'{name}.bias': shape[:1] for name, shape in _WITH_BIAS.items()},
        f'{_CLIP}.embeddings.class_embedding': [16],
        f'{_CLIP}.embeddings.patch_embedding.weight': [16, 3, 4, 4],
        f'{_CLIP}.embeddings.position_embedding.weight': [10, 16]},
    'unread': {f'{_CLIP}.embeddings.position_ids': torch.arange(10)[None],
               f'{_CLIP}.post_layernorm.weight': torch.ones(16).half(),
               f'{_CLIP}.post_layernorm.bias': torch.ones(16).half()}}

_SAMPLED = {'do_sample': True, 'temperature': 0.6, 'top_p': 0.9, 'pad_token_id': 0,
            'bos_token_id': 256, 'transformers_version': '4.42.3'}
LAYOUTS = {
    'llama 1': like_llama(
        {**_llama(), 'architectures': ['LLaMAForCausalLM'], 'max_sequence_length': 2048,
         'pad_token_id': -1, 'torch_dtype': 'float16'}, unread=_FREQUENCIES, dtype=torch.float16),
    'llama 2 chat': like_llama(_llama(), dtype=torch.float16, generation={
        **_SAMPLED, 'max_length': 4096, 'eos_token_id': 2}),
    'llama 2 chat, awq': like_llama(
        {**_llama(torch_dtype='float16'), 'quantization_config': _AWQ}, quantized='awq',
        dtype=torch.float16, unread=_FREQUENCIES, files={'quant_config.json': {
            'zero_point': True, 'q_group_size': GROUP, 'w_bit': 4, 'version': 'GEMM'}}),
    'llama 3.1': like_llama(
        {**_llama(mlp_bias=False, rope_theta=500000.0, eos_token_id=[END, 258, 259]),
         'max_position_embeddings': 131072, 'rope_scaling': {
             'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
             'original_max_position_embeddings': 8192, 'rope_type': 'llama3'}},
        generation={**_SAMPLED, 'eos_token_id': [END, 258, 259]}),
    'llama 3.2': like_llama({**_llama(head_dim=16), 'tie_word_embeddings': True}, rest=TIED),
    'codellama': like_llama({**_llama(rope_theta=1000000), 'max_position_embeddings': 16384}),
    'smollm2': like_llama(
        {**_llama(is_llama_config=True, rope_interleaved=False, rope_theta=100000),
         'tie_word_embeddings': True, 'transformers.js_config': {'kv_cache_dtype': {
             'q4f16': 'float16'}}}, rest=TIED),
    'mistral 0.3': like_llama(_named(
        'mistral', 'MistralForCausalLM', hidden_act='silu', rope_theta=1e6, sliding_window=None,
        tie_word_embeddings=False)),
    'qwen 2.5': like_llama(
        _qwen2(tie_word_embeddings=True), {**_NORMS, **_QKV_BIASES}, TIED, generation={
            **_SAMPLED, 'repetition_penalty': 1.05, 'top_k': 20, 'eos_token_id': [END, 256]}),
    'qwen 2.5, awq': like_llama(
        _qwen2(tie_word_embeddings=True, quantization_config=_OFFICIAL_AWQ),
        {**_NORMS, **_QKV_BIASES}, TIED, quantized='awq', dtype=torch.float16,
        unread={'lm_head.weight': torch.ones(VOCAB, _H).half()}),
    'qwen 3, awq in groups of a row': like_llama(
        _named('qwen3', 'Qwen3ForCausalLM', head_dim=16, hidden_act='silu', sliding_window=None,
               max_window_layers=36, use_sliding_window=False, attention_bias=False,
               tie_word_embeddings=False, quantization_config={**_AWQ, 'group_size': -1}),
        {**_NORMS, **HEAD_NORMS}, quantized='awq of rows', dtype=torch.float16),
    'qwen 3, packed': like_llama(
        _named('qwen3', 'Qwen3ForCausalLM', head_dim=16, hidden_act='silu',
               tie_word_embeddings=False, quantization_config=_PACKED),
        {**_NORMS, **HEAD_NORMS}, quantized='packed'),
    'phi 3 4k': like_llama(phi3(rope_scaling=None), linears=_PHI3_LINEARS, generation={
        'bos_token_id': 256, 'eos_token_id': [END, 258, 259], 'pad_token_id': 260}),
    'phi 3 128k, awq': like_llama(
        {**phi3(rope_scaling={**_LONG, 'type': 'su'}), 'max_position_embeddings': 131072,
         'sliding_window': 262144, 'quantization_config': _AWQ},
        linears=_PHI3_LINEARS, quantized='awq', dtype=torch.float16),
    'phi 3.5': like_llama(
        {**phi3(rope_scaling={**_LONG, 'type': 'longrope'}), 'max_position_embeddings': 131072,
         'sliding_window': 262144}, linears=_PHI3_LINEARS),
    'phi 4 mini': like_llama(
        {**phi3(rope_scaling={key: [1.0 + i for i in range(6)] for key in _LONG}
                | {'type': 'longrope'}, partial_rotary_factor=0.75),
         'max_position_embeddings': 131072, 'sliding_window': 262144, 'tie_word_embeddings': True},
        rest=TIED, linears=_PHI3_LINEARS),
    'gemma 2': like_llama(
        _named('gemma2', 'Gemma2ForCausalLM', attn_logit_softcapping=50.0, head_dim=16,
               cache_implementation='hybrid', eos_token_id=[1, END], hidden_size=_H,
               final_logit_softcapping=30.0, hidden_act='gelu_pytorch_tanh',
               hidden_activation='gelu_pytorch_tanh', query_pre_attn_scalar=256,
               sliding_window=4096, pad_token_id=0), GEMMA_NORMS, TIED),
    'gemma 2, awq, norms in fp32': like_llama(
        _named('gemma2', 'Gemma2ForCausalLM', head_dim=16, hidden_act='gelu_pytorch_tanh',
               hidden_activation='gelu_pytorch_tanh', quantization_config=_AWQ),
        GEMMA_NORMS, TIED, quantized='awq', dtype=torch.float32),
    'gemma 3 1b': like_llama(
        _named('gemma3_text', 'Gemma3ForCausalLM', **_GEMMA3_TEXT),
        {**GEMMA_NORMS, **HEAD_NORMS}, TIED),
    'gemma 3 4b': Layout(**_gemma3('language_model.model', '')),
    'gemma 3 4b, newer': Layout(**_gemma3('model.language_model', 'model.')),
    'gemma 3 4b, packed': Layout(**_gemma3('language_model.model', ''), quantized='packed'),
    'mpt': Layout(_MPT_CONFIG, **_MPT, generation={'_from_model_config': True}),
    'mpt, awq': Layout({**_MPT_CONFIG, 'quantization_config': _AWQ}, **{**_MPT, 'vectors': {
        **_MPT['vectors'], 'ffn.act.scales': [4 * _H]}}, quantized='awq', dtype=torch.float16),
    'falcon 7b': Layout(_FALCON_CONFIG, **_FALCON, unread=_FALCON_HEAD),
    'falcon 7b, first': Layout(
        {**_FIRST_FALCON, 'model_type': 'RefinedWebModel', 'n_head': 4, 'n_layer': 2,
         'architectures': ['RWForCausalLM']}, **_FALCON, unread=_FALCON_HEAD),
    'falcon 7b, awq': Layout(
        {**_FALCON_CONFIG, 'quantization_config': _AWQ}, **{**_FALCON, 'vectors': {
            **_FALCON['vectors'], 'mlp.act.scales': [4 * _H]}}, quantized='awq',
        dtype=torch.float16, unread=_FALCON_HEAD),
    'falcon 40b': Layout(_NEW_FALCON, **_falcon(128, ['ln_attn', 'ln_mlp']), unread=_FALCON_HEAD),
    'falcon 11b': Layout(_FALCON_11B, **{
        **_falcon(128, ['input_layernorm']),
        'rest': {**_FALCON['rest'], 'lm_head.weight': [VOCAB, _H]}}),
    'llava 1.5': Layout(_LLAVA_CONFIG, **_LLAVA),
    'llava 1.5, awq': Layout({**_LLAVA_CONFIG, 'quantization_config': {
        **_AWQ, 'modules_to_not_convert': ['vision_tower']}}, **_LLAVA, quantized='awq'),
}


def _linear(name: str, weight: Tensor, kind: str, dtype: torch.dtype) -> dict[str, Tensor]:
    if not kind:
        return {f'{name}.weight': weight.to(dtype)}
    quantized = quantize_rtn(weight, weight.shape[1] if kind == 'awq of rows' else GROUP)
    if kind != 'packed':
        return awq_gemm_tensors(name, quantized)
    packed = pack_quantized(Codes.of(quantized), symmetric=True)
    packed['weight_scale'] = packed['weight_scale'].to(dtype)
    return {f'{name}.{suffix}': tensor for suffix, tensor in packed.items()}


def _tensors(layout: Layout) -> dict[str, Tensor]:
    """Return what is to be read."""
    generator = torch.Generator().manual_seed(0)

    def random(shape: Sequence[int]) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.2 + (len(shape) == 1)

    tensors = {name: random(shape).to(layout.dtype) for name, shape in layout.rest.items()}
    for prefix in (f'{layout.blocks}.0', f'{layout.blocks}.1'):
        tensors.update({f'{prefix}.{name}': random(shape).to(layout.dtype)
                        for name, shape in layout.vectors.items()})
        for name, shape in layout.linears.items():
            tensors.update(_linear(f'{prefix}.{name}', random(shape), layout.quantized,
                                   layout.dtype))
    return tensors


def _write_shards(path: Path, tensors: Mapping[str, Tensor]) -> None:
    weight_map = {}
    for i in range(2):
        file = f'model-{i + 1:05}-of-00002.safetensors'
        part = dict(sorted(tensors.items())[i::2])
        save_file(part, path / file, metadata={'format': 'pt'})
        weight_map.update(dict.fromkeys(part, file))
    size = sum(tensor.nbytes for tensor in tensors.values())
    (path / 'model.safetensors.index.json').write_text(json.dumps(
        {'metadata': {'total_size': size}, 'weight_map': weight_map}))


def write_layout(path: Path, layout: Layout) -> set[str]:
    """Write a folder and return the names of the tensors that are to be read."""
    tensors = _tensors(layout)
    _write_shards(path, {**tensors, **layout.unread})
    files = {'config.json': layout.config, 'generation_config.json': layout.generation,
             **layout.files}
    for name, content in files.items():
        (path / name).write_text(json.dumps(content))
    (write_processor if 'llava' in layout.config['model_type'] else write_tokenizer)(path)
    return set(tensors)
