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
"""
Finds the compiled module ``tinychat_kernels``, and says why when there is none.

``setup.py`` builds it from ``csrc/``: the CPU kernels with any C++17 compiler, the CUDA kernels
only where nvcc is found. Its ``build_info()['cuda']`` says whether they are in.
"""

from __future__ import annotations

from functools import lru_cache
import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_HOW_TO_BUILD = ('to build it, run `python3 setup.py build_ext --inplace` in the source tree, '
                 "with a C++17 compiler, Python's headers and pybind11 installed")


def load() -> ModuleType | None:
    """Return the compiled module, or None when it is absent or does not fit this package."""
    return _find()[0]


def why_absent() -> str:
    """Return in one line why :func:`load` gives None and what to do; empty when it does not."""
    reason = _find()[1]
    return f'{reason}; {_HOW_TO_BUILD}' if reason else ''


def cuda(device: torch.device) -> ModuleType | None:
    """Return the module where it has CUDA kernels for the tensors of a device, or None."""
    return None if why_no_cuda(device) else load()


def why_no_cuda(device: torch.device) -> str:
    """Return in one line why :func:`cuda` gives None; empty when it does not."""
    if device.type != 'cuda':
        return f'no kernel for {device.type}'
    if load() is None:
        return why_absent()
    return _why_not_on_gpu()


@lru_cache(maxsize=1)
def _find() -> tuple[ModuleType | None, str]:
    """Return (module, '') or (None, reason)."""
    try:
        # Imported here, since packing imports torch, and a broken torch is a reason as well.
        from tinychat_ros.kernels.packing import LAYOUT_VERSION
        module = importlib.import_module('tinychat_kernels')
        built_for = module.build_info()['layout_version']
    # What a stale or foreign module raises cannot be foreseen, and the package works without it.
    except Exception as error:
        return None, f'tinychat_kernels: {type(error).__name__}: {_one_line(error)}'
    if built_for != LAYOUT_VERSION:
        return None, (f'tinychat_kernels: expected weight layout {LAYOUT_VERSION}, and the module '
                      f'in {module.__file__} was built for {built_for}')
    return module, ''


@lru_cache(maxsize=1)
def _why_not_on_gpu() -> str:
    info = load().build_info()
    if not info['cuda']:
        return 'tinychat_kernels: built without nvcc; install the CUDA toolkit and build anew'
    problem = load().device_problem()
    return problem and (
        f"tinychat_kernels: built for {info['cuda_architectures']}, and on this GPU: {problem}; "
        'build anew with its compute capability, such as TINYCHAT_CUDA_ARCHITECTURES=89')


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())
