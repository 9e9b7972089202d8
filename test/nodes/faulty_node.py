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
"""Starts the node with a fault in it: `faulty_node.py FAULT [--ros-args ...]`."""

from pathlib import Path
import resource
import sys

from tinychat_ros.engine import engine
from tinychat_ros.nodes import chat_node

LONG_PROMPT = 100
# What torch says when the CPU's memory is used up; it has no class of its own.
_TORCH_SAYS = ("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate "
               'memory: you tried to allocate 4294967296 bytes. Error code 12')


def load() -> None:
    """Leave a gibibyte of address space for all that comes."""
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    limit = pages * resource.getpagesize() + 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def prefill() -> None:
    """Fail at the first three long prompts, each time in another way."""
    make_runner = engine.make_runner
    errors = [MemoryError(), RuntimeError(_TORCH_SAYS), RuntimeError('a fault\nof ours')]

    def make_failing(*args):
        runner = make_runner(*args)
        whole = runner.prefill

        def failing(token_ids, *rest):
            if len(token_ids) > LONG_PROMPT and errors:
                raise errors.pop(0)
            return whole(token_ids, *rest)

        runner.prefill = failing
        return runner

    engine.make_runner = make_failing


if __name__ == '__main__':
    {'load': load, 'prefill': prefill}[sys.argv.pop(1)]()
    chat_node.main()
