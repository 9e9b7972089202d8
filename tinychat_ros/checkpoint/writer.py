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
"""Writes a checkpoint that this engine can load, and but for 3 bits transformers and vLLM too."""

from __future__ import annotations

import json
import os
from pathlib import Path
import shutil
from typing import Any, Callable, Iterable, Mapping

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tinychat_ros.checkpoint.awq_layouts import pack_awq
from tinychat_ros.checkpoint.tinychat_w3 import w3_tensors
from tinychat_ros.kernels.linear import StoredWeight
from tinychat_ros.kernels.packing import Int8Weight, QuantizedWeight, unpack_codes


def save_checkpoint(out_dir: Path, config: Mapping[str, Any],
                    tensors: Mapping[str, StoredWeight],
                    extra_files: Iterable[Path] = ()) -> None:
    """
    Write model.safetensors, config.json and copies of extra files; each file appears whole or not.

    :param config: the contents of config.json.
    :param tensors: a plain tensor under its own name; a quantized weight under its layer's name,
        written as AutoAWQ ``gemm``: ``qweight`` int32 [K, N/8], ``qzeros``, ``scales``, or, of 3
        bits, as ``tinychat-w3``, see :mod:`~tinychat_ros.checkpoint.tinychat_w3`; an int8 weight
        likewise, as compressed-tensors' ``weight`` [N, K] and ``weight_scale`` [N, 1].
    :param extra_files: tokenizer and generation files, copied under their own names.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    save_tensors(out_dir / 'model.safetensors', stored_tensors(tensors), {'format': 'pt'})
    save_config(out_dir, config, extra_files)


def save_config(out_dir: Path, config: Mapping[str, Any], extra_files: Iterable[Path]) -> None:
    """Write what stands beside the weights: copies of extra files, then config.json."""
    for extra in extra_files:
        replace_file(out_dir / extra.name,
                     lambda path, source=extra: shutil.copyfile(source, path))
    # Last, since a reader starts with it.
    save_json(out_dir / 'config.json', config)


def stored_tensors(tensors: Mapping[str, StoredWeight]) -> dict[str, Tensor]:
    """Return each weight as the tensors of its format, by their full names."""
    flat: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if isinstance(value, QuantizedWeight):
            flat.update((w3_tensors if value.bits == 3 else awq_gemm_tensors)(name, value))
        elif isinstance(value, Int8Weight):
            flat.update(w8a8_tensors(name, value))
        else:
            flat[name] = value.contiguous()
    return flat


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """
    Write a safetensors file that appears whole or not at all.

    :raises OSError: it cannot be written, as on a full disk.
    """
    def write(partial: Path) -> None:
        try:
            save_file(dict(tensors), partial, metadata=dict(metadata))
        except SafetensorError as error:
            raise OSError(f'{path}: {error}') from None

    replace_file(path, write)


def save_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file that appears whole or not at all."""
    text = json.dumps(dict(value), indent=2) + '\n'
    replace_file(path, lambda partial: partial.write_text(text))


def awq_gemm_tensors(name: str, weight: QuantizedWeight) -> dict[str, Tensor]:
    """
    Return the three tensors of one layer in AutoAWQ's ``gemm`` order.

    :raises ValueError: N is not a multiple of 8, which the format cannot hold.
    """
    if weight.shape[0] % 8:
        raise ValueError(f'{name}: expected N to be a multiple of 8, got {weight.shape[0]}')
    return {
        f'{name}.qweight': pack_awq(unpack_codes(weight.qweight, 4).t().contiguous()),
        f'{name}.qzeros': pack_awq(weight.zeros.t().contiguous()),
        f'{name}.scales': weight.scales.t().contiguous(),
    }


def w8a8_tensors(name: str, weight: Int8Weight) -> dict[str, Tensor]:
    """Return the two tensors of one layer as compressed-tensors' ``int-quantized`` has them."""
    return {f'{name}.weight': weight.qweight.contiguous(),
            f'{name}.weight_scale': weight.scales[:, None].contiguous()}


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file that appears whole or not at all; a failed write leaves an old one alone."""
    partial = path.with_name(f'.{path.name}.partial')
    try:
        write(partial)
        # safetensors writes files that only their owner may read.
        partial.chmod(0o644)
        # Without it, a power cut can leave an empty file under the new name.
        with open(partial, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
