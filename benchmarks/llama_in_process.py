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
"""llama.cpp in this process, through the package llama-cpp-python, timed as llama-bench does."""

from __future__ import annotations

from contextlib import contextmanager
import time
from typing import Any, Iterator, Mapping, Sequence

from benchmarks.llama_bench import Phase

from tinychat_ros.errors import ConfigError


class LlamaCppPython:
    """
    The package llama-cpp-python.

    :raises ImportError: it is missing.
    """

    # Whether weights are laid out anew as they are loaded.
    settings: Mapping[str, bool] = {'repacked': True, 'as stored': False}

    def __init__(self) -> None:
        import llama_cpp
        self._library = llama_cpp
        # The library holds no reference to what it calls.
        self._silence = llama_cpp.llama_log_callback(lambda *message: None)
        llama_cpp.llama_log_set(self._silence, None)

    def speeds(self, gguf: str, setting: str, phases: Sequence[Phase],
               threads: int) -> dict[Phase, float]:
        """Return the tokens per second of each phase, measured once behind a warm-up."""
        positions = max(phase.prompt + phase.generated for phase in phases)
        with self._context(gguf, setting, positions, threads) as context:
            return {phase: self._speed(context, phase) for phase in phases}

    @contextmanager
    def _context(self, gguf: str, setting: str, positions: int, threads: int) -> Iterator[Any]:
        library = self._library
        params = library.llama_model_default_params()
        params.use_extra_bufts = self.settings[setting]
        model = library.llama_model_load_from_file(gguf.encode(), params)
        if not model:
            raise ConfigError(f'llama.cpp: expected it to load {gguf}, and it does not')
        params = library.llama_context_default_params()
        params.n_ctx = params.n_batch = positions
        params.n_threads = params.n_threads_batch = threads
        context = library.llama_init_from_model(model, params)
        try:
            yield context
        finally:
            library.llama_free(context)
            library.llama_model_free(model)

    def _speed(self, context: Any, phase: Phase) -> float:
        at_once, times = (phase.prompt, 1) if phase.prompt else (1, phase.generated)
        self._decode(context, at_once, 1)
        return at_once * times / self._decode(context, at_once, times)

    def _decode(self, context: Any, at_once: int, times: int) -> float:
        """Run tokens through an empty context and return the seconds that it took."""
        library = self._library
        library.llama_memory_clear(library.llama_get_memory(context), True)
        tokens = (library.llama_token * at_once)(*range(at_once))
        begin = time.perf_counter()
        for _ in range(times):
            status = library.llama_decode(context, library.llama_batch_get_one(tokens, at_once))
            if status:
                raise ConfigError(f'llama.cpp: expected it to run {at_once} tokens, '
                                  f'got status {status}')
            library.llama_synchronize(context)
        return time.perf_counter() - begin
