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
"""An emulated ARM processor that runs the CPU kernels, which are cross-compiled for it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import subprocess
from typing import Any

import torch
from torch import Tensor

COMPILER, EMULATOR = 'aarch64-linux-gnu-g++', 'qemu-aarch64'

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / 'csrc'
# As setup.py compiles them, but without a warning.
FLAGS = ['-O3', '-std=c++17', '-pthread', '-Wall', '-Wextra', '-Werror', f'-I{CSRC}']


def build_driver(folder: Path) -> Path:
    """Compile test/kernels/cpu_driver.cpp with all that setup.py compiles from csrc/cpu."""
    sources = [*sorted(CSRC.glob('cpu/*.cpp')), HERE / 'cpu_driver.cpp']
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda source: _compile(source, folder), sources))
    # Static, so that the emulator needs no libraries of that processor.
    subprocess.check_call([COMPILER, '-static', '-pthread', *objects, '-o',
                           str(folder / 'driver')])
    return folder / 'driver'


def _compile(source: Path, folder: Path) -> str:
    target = folder / f'{source.stem}.o'
    result = subprocess.run([COMPILER, *FLAGS, '-c', str(source), '-o', str(target)],
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return str(target)


def known_processors() -> list[str]:
    """Return the processors that the emulator knows."""
    return subprocess.run([EMULATOR, '-cpu', 'help'], capture_output=True,
                          text=True).stdout.split()


class Processor:
    """
    A processor with the driver.

    :param driver: what build_driver returned.
    :param name: one of known_processors().
    """

    def __init__(self, driver: Path, name: str) -> None:
        self._driver = subprocess.Popen([EMULATOR, '-cpu', name, str(driver)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._send('isas')
        self.isas = self._driver.stdout.readline().decode().split()

    def run(self, kernel: str, *arguments: Any, num_threads: int = 1) -> None:
        """Run a kernel with the best instruction set; it writes into tensors among the rest."""
        self.call(kernel, *arguments, num_threads, self.isas[0])

    def call(self, kernel: str, *arguments: Any) -> None:
        """Call a kernel with numbers, words, tensors and None for no tensor."""
        tensors = [a.view(-1).view(torch.uint8) for a in arguments if torch.is_tensor(a)]
        words = ['null' if a is None else f'@{a.nbytes}' if torch.is_tensor(a) else str(a)
                 for a in arguments]
        self._send(' '.join([kernel, *words]), *tensors)
        for tensor in tensors:
            answer = self._driver.stdout.read(len(tensor))
            assert len(answer) == len(tensor), f'{kernel}: the driver ended'
            tensor.copy_(torch.frombuffer(bytearray(answer), dtype=torch.uint8))

    def stop(self) -> None:
        """End the driver."""
        self._driver.communicate()

    def _send(self, line: str, *tensors: Tensor) -> None:
        self._driver.stdin.write(line.encode() + b'\n')
        for tensor in tensors:
            self._driver.stdin.write(tensor.numpy().tobytes())
        self._driver.stdin.flush()
