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
"""The vision tower against CLIP of transformers, in the dtypes that checkpoints have."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_llava import llava_config, llava_model
from tiny_models import load_folder
import torch
from torch import Tensor
from transformers import CLIPVisionConfig

from tinychat_ros.errors import CheckpointError
from tinychat_ros.models.clip import VisionTower

# Neither a power of two nor a whole number of patches.
_VISION = CLIPVisionConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=4,
                           num_attention_heads=3, image_size=22, patch_size=5,
                           layer_norm_eps=1e-3)


def write(path: Path, dtype: torch.dtype = torch.float32) -> Tensor:
    """Write a model, and return what transformers makes in fp32 of pixels()."""
    model = llava_model(llava_config(vision_config=_VISION)).to(dtype)
    model.save_pretrained(path)
    with torch.no_grad():
        return model.float().get_image_features(pixels()[None]).pooler_output[0]


def pixels() -> Tensor:
    """Return the pixels of one image."""
    return torch.randn(3, 22, 22, generator=torch.Generator().manual_seed(7))


def tower(path: Path, dtype: torch.dtype = torch.float32) -> VisionTower:
    """Load the tower of a folder."""
    return load_folder(path, dtype).vision


@pytest.mark.parametrize('stored', [torch.float32, torch.float16, torch.bfloat16])
def test_features_are_those_of_transformers(stored, tmp_path):
    expected = write(tmp_path, stored)
    assert expected.shape == (16, 64) and expected.abs().max() > 1
    found = tower(tmp_path).features(pixels())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('dtype, tolerance', [(torch.float16, 0.01), (torch.bfloat16, 0.05)])
def test_features_of_half_activations_stay_near(dtype, tolerance, tmp_path):
    expected = write(tmp_path, dtype)
    found = tower(tmp_path, dtype).features(pixels())
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() < tolerance * expected.abs().max()


def test_a_tower_can_be_interrupted_before_any_of_its_layers(tmp_path):
    write(tmp_path)
    asked = []
    assert tower(tmp_path).features(pixels(), lambda: asked.append(1) or len(asked) == 3) is None
    assert len(asked) == 3


def test_layers_behind_the_one_that_is_projected_are_not_read(tmp_path):
    model = llava_model(llava_config(vision_config=_VISION))
    with torch.no_grad():
        model.model.vision_tower.encoder.layers[-1].mlp.fc1.weight.fill_(torch.nan)
    model.save_pretrained(tmp_path)
    assert tower(tmp_path).features(pixels()).isfinite().all()


def test_a_tower_of_another_size_than_it_says_is_refused_by_name(tmp_path):
    config = llava_config(vision_config=_VISION)
    model = llava_model(config)
    model.config.vision_config.image_size = 27
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r'position_embedding.*\[26, 24\], got \[17, 24\]'):
        tower(tmp_path)
