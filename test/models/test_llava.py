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
"""LLaVA's logits with images are those of transformers, however the prompt is fed."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_llava import IMAGE_TOKEN_ID, IMAGE_TOKENS, llava_config, llava_model
from tiny_models import linear_shapes, load_folder
import torch
from transformers import LlamaConfig, MistralConfig

from tinychat_ros.checkpoint.loader import num_parameters
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.summary import summarize_layers, weight_bytes_per_token
from tinychat_ros.checkpoint.writer import save_checkpoint
from tinychat_ros.errors import CheckpointError, UnsupportedModelError
from tinychat_ros.kernels.rtn import quantize_rtn
from tinychat_ros.models.kv_cache import KVCache
from tinychat_ros.models.registry import read_config

CONFIGS = {
    'llama': {},
    'mistral with a window': {'text': lambda **fields: MistralConfig(
        **fields, sliding_window=7, head_dim=16)},
    'the class token': {'vision_feature_select_strategy': 'full'},
    'the last layer': {'vision_feature_layer': -1},
    'the first layer': {'vision_feature_layer': 1},
    'no projector bias': {'multimodal_projector_bias': False},
}
# How the tensors of versions of transformers are called, from what is saved now.
NAMES = {
    'saved now': lambda name: name,
    'the first': lambda name: name.replace('vision_tower.', 'vision_tower.vision_model.'),
    'below model': lambda name: 'lm_head.weight' if 'lm_head' in name else 'model.' + name.replace(
        'language_model.model.', 'language_model.'),
}


def _save(path: Path, seed: int = 0, **changes):
    """Write a model of random weights, and return it as transformers has it."""
    model = llava_model(llava_config(**changes), seed)
    model.save_pretrained(path)
    return model


def _rename(path: Path, rename) -> None:
    tensors = load_file(path / 'model.safetensors')
    save_file({rename(name): tensor for name, tensor in tensors.items()},
              path / 'model.safetensors')


def _prompt(images: int, places: int = IMAGE_TOKENS) -> torch.Tensor:
    """Return ids [T] with so many images, each between texts."""
    text = torch.randint(256, (images + 1, 5))
    image = torch.full((places,), IMAGE_TOKEN_ID)
    return torch.cat([part for row in text[:-1] for part in (row, image)] + [text[-1]])


def _expected(model, ids: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids[None], pixel_values=pixel_values).logits[0]


def _logits(path: Path, ids: torch.Tensor, pixel_values: torch.Tensor, piece: int = 1000,
            one_by_one: bool = False) -> torch.Tensor:
    """Return the logits [T, V]; one_by_one feeds what follows the last image so."""
    model = load_folder(path)
    features = torch.cat([model.vision.features(pixels) for pixels in pixel_values])
    cache = KVCache(model.config, 1, len(ids), model.dtype, ids.device)
    ids = torch.where(ids == IMAGE_TOKEN_ID, -1, ids)
    image_end = int((ids < 0).nonzero().max()) + 1
    starts = list(range(0, image_end if one_by_one else len(ids), piece))
    starts += range(image_end, len(ids)) if one_by_one else ()
    hidden, taken = [], 0
    for start, end in zip(starts, [*starts[1:], len(ids)]):
        count = int((ids[start:end] < 0).sum())
        rows = features[taken:taken + count] if count else None
        hidden.append(model.hidden(ids[start:end], cache, 0, start, features=rows))
        taken += count
    return model.logits(torch.cat(hidden))


def _check_that_both_see_alike(path: Path, model) -> None:
    """Assert that a folder and a model of transformers have the same logits with an image."""
    ids, pixels = _prompt(1), torch.randn(1, 3, 12, 12)
    torch.testing.assert_close(_logits(path, ids, pixels), _expected(model, ids, pixels),
                               rtol=0, atol=1e-4)


@pytest.mark.parametrize('changes', CONFIGS.values(), ids=CONFIGS.keys())
def test_logits_with_an_image_are_those_of_transformers(changes, tmp_path):
    model = _save(tmp_path, **changes)
    full = 'vision_feature_select_strategy' in changes
    ids, pixels = _prompt(1, IMAGE_TOKENS + full), torch.randn(1, 3, 12, 12)
    expected = _expected(model, ids, pixels)
    assert expected.abs().max() > 1, 'a model that says nothing proves nothing'
    torch.testing.assert_close(_logits(tmp_path, ids, pixels), expected, rtol=0, atol=1e-4)
    other = _expected(model, ids, pixels.flip(-1))
    assert (other - expected)[-1].abs().max() > 0.1, 'a model that is blind proves nothing'


@pytest.mark.parametrize('piece, one_by_one', [
    (1000, True), (4, False), (7, False), (1, False), (3, True)])
def test_a_prompt_with_two_images_may_be_fed_in_pieces(piece, one_by_one, tmp_path):
    model = _save(tmp_path)
    ids, pixels = _prompt(2), torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(_logits(tmp_path, ids, pixels, piece, one_by_one),
                               _expected(model, ids, pixels), rtol=0, atol=1e-4)


@pytest.mark.parametrize('rename', NAMES.values(), ids=NAMES.keys())
def test_tensors_may_have_the_names_of_any_version(rename, tmp_path):
    model = _save(tmp_path)
    _rename(tmp_path, rename)
    _check_that_both_see_alike(tmp_path, model)


def test_a_tied_head_is_the_embedding(tmp_path):
    model = _save(tmp_path, tie_word_embeddings=True)
    _check_that_both_see_alike(tmp_path, model)


def _quantize(path: Path, model) -> None:
    """Round the linears of the language model, in the file and in the model of transformers."""
    config = json.loads((path / 'config.json').read_text())
    tensors = load_file(path / 'model.safetensors')
    parameters = dict(model.named_parameters())
    for name in linear_shapes(config['text_config']):
        weight = quantize_rtn(tensors.pop(f'language_model.{name}.weight'), 32)
        tensors[f'language_model.{name}'] = weight
        with torch.no_grad():
            inner = name.replace('model.', 'model.language_model.', 1)
            parameters[f'{inner}.weight'].copy_(weight.dequantize())
    save_checkpoint(path, config, tensors, [])


def test_a_language_model_of_4_bits_sees_as_its_rounded_weights_do(tmp_path):
    model = _save(tmp_path)
    _quantize(tmp_path, model)
    _check_that_both_see_alike(tmp_path, model)


def test_a_checkpoint_is_described_without_its_vision_tower_in_the_bytes_of_a_token(tmp_path):
    model = _save(tmp_path)
    _quantize(tmp_path, model)
    with CheckpointReader(tmp_path) as reader:
        formats = {layer.name: layer.format for layer in summarize_layers(reader)}
        read = weight_bytes_per_token(reader)
        stored = load_file(tmp_path / 'model.safetensors')
        assert num_parameters(reader) > 100000
    assert formats['language_model.model.layers.0.mlp.up_proj'] == 'awq-gemm'
    assert formats['language_model.lm_head'] == 'plain'
    assert formats['vision_tower.encoder.layers.0.mlp.fc1'] == 'plain'
    assert formats['multi_modal_projector.linear_1'] == 'plain'
    assert not any(name.endswith('embedding') for name in formats)
    assert read == sum(t.nbytes for name, t in stored.items()
                       if name.startswith('language_model.') and 'embed_tokens' not in name)


def test_a_quantized_tower_is_refused_by_the_name_of_a_tensor(tmp_path):
    _save(tmp_path)
    name = 'vision_tower.encoder.layers.1.mlp.fc1'
    tensors = load_file(tmp_path / 'model.safetensors')
    tensors[name] = quantize_rtn(tensors.pop(f'{name}.weight'), 16)
    save_checkpoint(tmp_path, json.loads((tmp_path / 'config.json').read_text()), tensors, [])
    with pytest.raises(CheckpointError, match=f'{name}.weight, and it is missing'):
        load_folder(tmp_path)


def test_a_config_of_the_hub_leaves_out_what_vicuna_has():
    """The keys of llava-1.5-7b-hf, which its first files hold."""
    config = read_config({
        'model_type': 'llava', 'image_token_index': 32000, 'projector_hidden_act': 'gelu',
        'text_config': {'model_type': 'llama', 'max_position_embeddings': 4096,
                        'rms_norm_eps': 1e-5, 'vocab_size': 32064},
        'vision_config': {'model_type': 'clip_vision_model', 'hidden_size': 1024,
                          'image_size': 336, 'intermediate_size': 4096, 'num_hidden_layers': 24,
                          'num_attention_heads': 16, 'patch_size': 14},
        'vision_feature_layer': -2, 'vision_feature_select_strategy': 'default'})
    vicuna = LlamaConfig()
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (
        vicuna.hidden_size, vicuna.intermediate_size, vicuna.num_hidden_layers)
    assert (config.model_type, config.vocab_size) == ('llava', 32064)
    assert (config.vision.num_hidden_layers, config.vision.image_seq_length) == (23, 576)


@pytest.mark.parametrize('kind, defaults', [
    ('llama', LlamaConfig()), ('mistral', MistralConfig())])
def test_what_a_text_config_leaves_out_is_what_transformers_takes(kind, defaults):
    config = llava_config().to_dict()
    read = read_config({**config, 'text_config': {'model_type': kind}})
    for key in ('vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers',
                'num_attention_heads', 'num_key_value_heads', 'max_position_embeddings'):
        assert getattr(read, key) == getattr(defaults, key), key
    assert set(read.sliding_windows) == {getattr(defaults, 'sliding_window', None) or 0}


@pytest.mark.parametrize('change, named', [
    ({'vision_feature_layer': [-2, -3]}, r'vision_feature_layer.*\[-2, -3\]'),
    ({'vision_config': {'model_type': 'siglip_vision_model'}}, 'siglip_vision_model'),
    ({'vision_config': {'hidden_act': 'gelu'}}, "hidden_act: expected 'quick_gelu'"),
    ({'image_grid_pinpoints': [[336, 672]]}, 'image_grid_pinpoints'),
    ({'projector_hidden_act': 'relu'}, 'projector_hidden_act'),
    ({'vision_feature_select_strategy': 'cls'}, 'vision_feature_select_strategy'),
    ({'text_config': {'model_type': 'qwen2'}}, 'text_config: model_type.*qwen2'),
])
def test_what_is_not_built_is_refused_by_name(change, named):
    config = llava_config().to_dict()
    nested = {key: {**config[key], **value} for key, value in change.items()
              if isinstance(value, dict)}
    with pytest.raises(UnsupportedModelError, match=named):
        read_config({**config, **change, **nested})


@pytest.mark.parametrize('change, named', [
    ({'vision_feature_layer': 4}, 'vision_feature_layer: expected -4 to 3, got 4'),
    ({'vision_config': {'num_attention_heads': 3}}, 'multiple of num_attention_heads = 3, got 16'),
    ({'vision_config': {'patch_size': 13}}, 'patch_size: expected at most image_size = 12'),
])
def test_a_config_that_contradicts_itself_is_refused(change, named):
    config = llava_config().to_dict()
    nested = {key: {**config[key], **value} for key, value in change.items()
              if isinstance(value, dict)}
    with pytest.raises(CheckpointError, match=named):
        read_config({**config, **change, **nested})
