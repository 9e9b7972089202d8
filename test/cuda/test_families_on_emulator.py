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
"""Every family with 4-bit weights on the CUDA kernels, emulated, against transformers in fp32."""

from family_models import (
    FAMILIES, load_family, logits_of, quantize_family, token_ids, transformers_model,
    write_family)
import pytest
from tiny_models import run_model
import torch

# These differ from others in the rotary table alone, which is made before.
_SAME_KERNELS = {'llama linear', 'llama dynamic', 'llama yarn mscale', 'llama yarn factor',
                 'qwen2 yarn', 'phi3 short'}


@pytest.mark.parametrize('name', sorted(FAMILIES.keys() - _SAME_KERNELS))
def test_chunks_and_a_token_have_the_logits_of_the_dequantized_weights(name, tmp_path, request):
    folders = quantize_family(write_family(tmp_path, name), tmp_path)
    theirs = transformers_model(folders['plain'])
    ids = token_ids(theirs.config.vocab_size)
    expected = logits_of(theirs, ids)
    request.getfixturevalue('emulated')
    # 13, 13, 13 and 1.
    found = run_model(load_family(folders['awq'], torch.float16), ids, 13)
    # Of the largest logit, as fp16 loses it on the reference too.
    assert (found - expected).abs().max() <= 1e-2 * expected.abs().max()
