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
Install tinychat_ros, and compile its kernels where that is possible.

Environment: with TINYCHAT_REQUIRE_EXT=1 it fails where kernels do not compile, or spill registers.
TINYCHAT_CUDA_ARCHITECTURES names the GPUs that the CUDA kernels are compiled for, such as "90" or
"87;90", which is the default; later GPUs than the last compile its PTX.
"""

from concurrent.futures import ThreadPoolExecutor
from glob import glob
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

PACKAGE = 'tinychat_ros'

# With `colcon build --symlink-install` this file runs from the build folder, where csrc/ is not.
CSRC = Path(__file__).resolve().parent / 'csrc'

# Jetson Orin, then data center GPUs.
CUDA_ARCHITECTURES = '87;90'

NVCC_FLAGS = ['-O3', '-std=c++17', '-Xcompiler=-fPIC,-fvisibility=hidden']


def sources(*patterns):
    """List the files of csrc/ that match."""
    return sorted(str(path) for pattern in patterns for path in CSRC.glob(pattern))


def report(message):
    """Say on stderr, which pip -v and colcon show, what was built and what was not."""
    print(f'{PACKAGE}: {message}', file=sys.stderr)


def pybind11_include_dirs():
    """Ask the Python package; Ubuntu's pybind11-dev has none, its headers are the compiler's."""
    try:
        import pybind11
    except ImportError:
        return []
    return [pybind11.get_include()]


def find_nvcc():
    """Return the path of nvcc, or None; JetPack installs it where PATH does not lead."""
    cuda_home = os.environ.get('CUDA_HOME', '/usr/local/cuda')
    return shutil.which('nvcc') or shutil.which('nvcc', path=os.path.join(cuda_home, 'bin'))


def cuda_architectures():
    """Return the compute capabilities to compile for, the lowest first."""
    return os.environ.get('TINYCHAT_CUDA_ARCHITECTURES', CUDA_ARCHITECTURES).split(';')


def code_options(architectures):
    """Return nvcc's options for machine code of each architecture and for PTX of the last."""
    codes = [(name, f'sm_{name}') for name in architectures]
    codes.append((architectures[-1], f'compute_{architectures[-1]}'))
    return [f'-gencode=arch=compute_{name},code={code}' for name, code in codes]


def spill_options():
    """
    Return the options about kernels that spill registers, which wait for memory in their loops.

    Where they are developed that is an error. Another nvcc may spill a few bytes, and its kernels
    are better than none.
    """
    strict = ',-Werror' if os.environ.get('TINYCHAT_REQUIRE_EXT') == '1' else ''
    return [f'-Xptxas=-warn-spills{strict}']


def cuda_library_dirs(nvcc, source):
    """Ask nvcc, which may be a wrapper script, where its libraries are."""
    dry_run = subprocess.run([nvcc, '--dryrun', source], stderr=subprocess.PIPE, text=True)
    line = re.search(r'^#\$ LIBRARIES=(.*)$', dry_run.stderr, re.MULTILINE)
    return re.findall(r'"-L([^"]+)"', line.group(1)) if line else []


class BuildKernels(build_ext):
    """Compile the kernels; without them the package runs, slowly, on its torch reference."""

    def build_extensions(self):
        """Compile, or leave the module out and say why."""
        try:
            for extension in self.extensions:
                extension.include_dirs += pybind11_include_dirs()
                self.add_cuda(extension)
            super().build_extensions()
        # A missing compiler, header or library each has an exception of its own in each version
        # of setuptools, and none of them may stop the installation.
        except Exception as error:
            self.leave_out(error)

    def leave_out(self, error):
        """Go on without the compiled module, unless the environment forbids it."""
        if os.environ.get('TINYCHAT_REQUIRE_EXT') == '1':
            raise error
        for extension in self.extensions:
            stale = Path(self.get_ext_fullpath(extension.name))
            stale.unlink(missing_ok=True)
        self.extensions = []
        report(f'the compiled kernels are left out, generation will be slow: {error} '
               "(needed: a C++17 compiler, Python's headers and pybind11)")

    def add_cuda(self, extension):
        """Compile the CUDA sources, where there are any and nvcc is found."""
        cuda_sources = sources('cuda/*.cu')
        nvcc = find_nvcc()
        if not cuda_sources or nvcc is None:
            reason = 'nvcc is not found' if cuda_sources else 'csrc/cuda holds no sources'
            report(f'the CUDA kernels are not built: {reason}')
            return
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            extension.extra_objects += pool.map(
                lambda source: self.compile_cuda(nvcc, source, extension.depends), cuda_sources)
        extension.depends += extension.extra_objects
        extension.sources += sources('bindings_cuda.cpp')
        extension.define_macros += [
            ('TINYCHAT_WITH_CUDA', '1'),
            ('TINYCHAT_CUDA_ARCHITECTURES', '"%s"' % ';'.join(cuda_architectures()))]
        extension.library_dirs += cuda_library_dirs(nvcc, cuda_sources[0])
        # Static, so that the module runs beside whatever CUDA runtime torch brings.
        extension.libraries += ['cudart_static', 'dl', 'rt']

    def compile_cuda(self, nvcc, source, depends):
        """Compile one CUDA source, unless its object is newer than all that it may depend on."""
        architectures = cuda_architectures()
        folder = Path(self.build_temp) / f"cuda-{'-'.join(architectures)}"
        target = folder / (Path(source).stem + '.o')
        newest = max(os.path.getmtime(path) for path in depends)
        if self.force or not target.exists() or target.stat().st_mtime < newest:
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.check_call(
                [nvcc, *NVCC_FLAGS, *spill_options(), *code_options(architectures), f'-I{CSRC}',
                 '-c', source, '-o', str(target)])
        return str(target)


kernels = Extension(
    'tinychat_kernels',
    sources=sources('bindings.cpp', 'bindings_cpu.cpp', 'cpu/*.cpp'),
    depends=sources('*.cpp', '*.h', 'cpu/*', 'cuda/*'),
    include_dirs=[str(CSRC)],
    extra_compile_args=['-O3', '-std=c++17', '-pthread', '-fvisibility=hidden'],
    extra_link_args=['-pthread'],
    language='c++',
)

setup(
    name=PACKAGE,
    version='0.1.0',
    description='Runs a 4-bit large language model on the robot itself, behind ROS 2 topics.',
    maintainer='tinychat_ros developers',
    maintainer_email='tinychat_ros@example.com',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    package_data={
        f'{PACKAGE}.demo_model': ['*.json', '*.safetensors'],
        f'{PACKAGE}.engine.chat_templates': ['*.jinja'],
        f'{PACKAGE}.quantization': ['*.html', '*.jsonl'],
    },
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
        (f'share/{PACKAGE}/launch', sorted(glob('launch/*.launch.py'))),
        (f'share/{PACKAGE}/config', sorted(glob('config/*'))),
    ],
    ext_modules=[kernels],
    cmdclass={'build_ext': BuildKernels},
    zip_safe=False,
    install_requires=[
        'jinja2', 'pillow', 'safetensors', 'sentencepiece', 'tokenizers', 'torch', 'tqdm'],
    # colcon runs pytest only where this names it.
    extras_require={'report': ['matplotlib'], 'test': ['pytest']},
    entry_points={
        'console_scripts': [
            f'tinychat = {PACKAGE}.cli:main',
            f'chat_node = {PACKAGE}.nodes.chat_node:main',
            *(f'{name} = {PACKAGE}.examples.{name}:main'
              for name in ('prompt_publisher', 'speech_client', 'dispatcher')),
        ],
    },
)
