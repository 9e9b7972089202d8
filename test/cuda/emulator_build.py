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
"""Builds the CUDA kernels with g++ against the emulator."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
import hashlib
from importlib.util import module_from_spec, spec_from_file_location
import os
from pathlib import Path
import subprocess
import sysconfig
from types import ModuleType
from typing import Optional

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / 'build' / 'emu'

# CUDA code casts pointers as it likes, and nvcc does not optimize on their types.
FLAGS = ('-std=c++17', '-fPIC', '-fvisibility=hidden', '-fno-strict-aliasing', '-Wall',
         '-Wno-unknown-pragmas')


def compiler() -> str:
    """Return the name of the C++ compiler."""
    return os.environ.get('CXX', 'g++')


def include_flags() -> list[str]:
    """Return where the headers of Python and of pybind11 are."""
    folders = [sysconfig.get_path('include')]
    try:
        import pybind11
        folders.append(pybind11.get_include())
    except ImportError:
        pass
    return [f'-isystem{folder}' for folder in folders]


def why_impossible() -> str:
    """Return why nothing can be built here, or ''."""
    command = [compiler(), '-E', '-x', 'c++', *include_flags(), '-o', os.devnull, '-']
    try:
        result = subprocess.run(command, input='#include <pybind11/pybind11.h>', text=True,
                                capture_output=True)
    except OSError as error:
        return f'{compiler()}: {error}'
    return result.stderr.strip() if result.returncode else ''


def build(sources: list[Path], name: str, *flags: str) -> Path:
    """
    Compile and link, reusing whatever was built from the same text.

    :param sources: .cpp and .cu files.
    :param name: of the file that is linked.
    :param flags: more options for both steps.
    :returns: the path of the linked file.
    """
    return _link(_objects(sources, flags), name, flags)


def build_module(replaced: Optional[Path] = None, *flags: str) -> ModuleType:
    """
    Return the module tinychat_emu.

    :param replaced: takes the place of the source of its name; its headers are those of its tree.
    :param flags: more options for ``replaced``.
    """
    sources = [*kernel_sources(), ROOT / 'csrc/bindings_cuda.cpp',
               ROOT / 'test/cuda/tinychat_emu.cpp']
    objects = []
    if replaced is not None:
        # Of a function in a header the linker takes the first copy.
        objects = [_compile(replaced, flags)]
        sources = [source for source in sources if source.name != replaced.name]
    objects += _objects(sources, ('-O1',))
    path = _link(objects, 'tinychat_emu.so', ('-shared',))
    # pybind11 keeps what it loaded by name, and each version is to be a module of its own.
    spec = spec_from_file_location(f'{path.parent.name}.tinychat_emu', path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kernel_sources() -> list[Path]:
    """Return the emulator, all CUDA kernels, and those that the tests add."""
    return [ROOT / 'csrc/emu/cuda_emu.cpp', *sorted(ROOT.glob('csrc/cuda/*.cu')),
            ROOT / 'test/cuda/primitives.cu']


def _objects(sources: list[Path], flags: tuple[str, ...]) -> list[Path]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda source: _compile(source, flags), sources))


def _compile(source: Path, flags: tuple[str, ...]) -> Path:
    root = next(folder for folder in source.parents if (folder / 'csrc').is_dir())
    headers = sorted(path for folder in ('csrc', 'test/cuda')
                     for path in (root / folder).rglob('*.*h') if path.is_file())
    options = [*FLAGS, *flags, *include_flags()]
    key = _hash(compiler(), *options, *(path.read_text() for path in [*headers, source]))
    return _run([*options, f'-I{root}/csrc', f'-I{root}/test/cuda', '-c', '-x', 'c++',
                 str(source)], BUILD / f'{source.stem}-{key}.o')


def _link(objects: list[Path], name: str, flags: tuple[str, ...]) -> Path:
    key = _hash(name, *flags, *(path.name for path in objects))
    return _run([*map(str, objects), *flags], BUILD / key / name)


def _run(arguments: list[str], target: Path) -> Path:
    """Call the compiler, unless the file that it would write is there."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f'{target.name}.{os.getpid()}')
        subprocess.run([compiler(), *arguments, '-o', str(partial)], check=True)
        os.replace(partial, target)
    return target


def _hash(*texts: str) -> str:
    return hashlib.sha256('\0'.join(texts).encode()).hexdigest()[:16]
