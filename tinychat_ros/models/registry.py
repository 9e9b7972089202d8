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
"""Which class runs which ``model_type`` of config.json."""

from __future__ import annotations

from typing import Type

from tinychat_ros.errors import UnsupportedModelError
from tinychat_ros.models.llama import LlamaModel

MODELS = {
    'llama': LlamaModel,
}


def model_class(model_type: str) -> Type[LlamaModel]:
    """
    Return the class of a model type.

    :raises UnsupportedModelError: when there is none, naming those there are.
    """
    if model_type not in MODELS:
        raise UnsupportedModelError(
            f"config.json: model_type: expected one of {', '.join(sorted(MODELS))}, "
            f'got {model_type!r}')
    return MODELS[model_type]
