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
Runs a model by a recorded step, from the embedding to the sampled token.

On a GPU the recording is a CUDA graph, on the CPU a list of kernel calls that one call goes
through. It reads slot, position and token from the device's memory and leaves the next token
there, so that steps follow one another without Python. On a GPU the host keeps one step ahead of
the tokens that it has read. Each token also lands in host memory, beside its number.
"""

from __future__ import annotations

import logging
import struct
from typing import Callable, Iterator, Optional, Sequence, Union

import torch
from torch import Tensor

from tinychat_ros.engine.model_runner import ModelRunner
from tinychat_ros.engine.sampler import not_finite, SamplingParams
from tinychat_ros.errors import KernelError
from tinychat_ros.kernels import cpu, cuda, extension, ops
from tinychat_ros.kernels.operands import Candidates, StepState
from tinychat_ros.models.kv_cache import KVCache
from tinychat_ros.models.causal_lm import CausalLM

_LOGGER = logging.getLogger(__name__)

# Tokens that may be on their way to the host; two are.
_RING_SIZE = 8

# A SamplingState of csrc/step.h.
_PARAMS = struct.Struct('<4fiII')


class _Decode:
    """An answer under way, with its memory where another answer has the device."""

    saved: Sequence[Tensor] = ()


class GraphRunner:
    """
    A model, its KV cache and the device they are on; the interface is that of ModelRunner.

    :raises KernelError: a part of the step has no kernel, and cannot be recorded on the CPU.
    """

    def __init__(self, model: CausalLM, cache: KVCache, device: torch.device) -> None:
        self._model = model
        self._cache = cache
        self._device = device
        self._current: Optional[_Decode] = None
        self._state = torch.zeros(4, dtype=torch.int32, device=device)
        self._params = torch.zeros(_PARAMS.size, dtype=torch.uint8, device=device)
        self._seen = torch.zeros(model.config.vocab_size, dtype=torch.uint8, device=device)
        self._ring = torch.zeros(_RING_SIZE, dtype=torch.int64, pin_memory=device.type == 'cuda')
        # A GPU works on while the host reads; on the CPU a step ahead would only delay the token.
        self._ahead = extension.cuda(device) is not None
        self._replay = (cuda if self._ahead else cpu).record(self._step)

    def prefill(self, token_ids: Sequence[int], slot: int, start: int,
                interrupted: Callable[[], bool] = lambda: False,
                features: Optional[Tensor] = None) -> Optional[Tensor]:
        """See ModelRunner.prefill; what it returns for :meth:`tokens` is [1, H]."""
        ids = torch.tensor(token_ids, dtype=torch.int32).to(self._device)
        x = self._model.hidden(ids, self._cache, slot, start, interrupted, features)
        return None if x is None else x[-1:]

    def tokens(self, last: Tensor, slot: int, position: int, sampling: SamplingParams,
               context: Sequence[int],
               interrupted: Callable[[], bool] = lambda: False) -> Iterator[int]:
        """See ModelRunner.tokens. One step more than was asked for may run, if there is room."""
        mine = self._begin(slot, position, sampling, context)
        self.sample(self._model.candidates(last))
        step = 0
        try:
            while True:
                # The step behind token `step`, whose place is position + step, runs as it is read.
                if self._ahead and position + step < self._cache.max_seq_len:
                    self._replay()
                yield self._read(step)
                self._resume(mine)
                if not self._ahead and not self._replay(interrupted):
                    return
                step += 1
        finally:
            if self._current is mine:
                self._current = None

    def step_at(self, slot: int, position: int) -> Callable[[], None]:
        """Return what runs the recorded step, greedily: at a position, then at those behind it."""
        self._begin(slot, position + 1, SamplingParams(), ())
        return self._replay

    def sample(self, candidates: Candidates) -> None:
        """Draw a token, the last part of a step."""
        ops.sample(self._state, candidates, self._params, self._seen, self._ring)

    def _begin(self, slot: int, position: int, sampling: SamplingParams,
               context: Sequence[int]) -> _Decode:
        """Prepare the device's memory for an answer."""
        self._set_aside()
        self._current = _Decode()
        self._ring.zero_()
        seed = sampling.seed or 0
        params = _PARAMS.pack(sampling.temperature, sampling.top_p, sampling.min_p,
                              sampling.repetition_penalty, sampling.top_k,
                              seed & 0xffffffff, seed >> 32 & 0xffffffff)
        self._params.copy_(torch.frombuffer(bytearray(params), dtype=torch.uint8))
        # The sampler counts position and step on.
        self._state.copy_(torch.tensor([slot, position - 1, 0, 0], dtype=torch.int32))
        self._seen.zero_()
        if sampling.repetition_penalty != 1.0:
            seen = torch.tensor(sorted(set(context)), dtype=torch.int64)
            self._seen[seen.to(self._device)] = 1
        return self._current

    def _resume(self, decode: _Decode) -> None:
        """Go on with an answer, where another one came between."""
        if self._current is decode:
            return
        self._set_aside()
        for tensor, saved in zip(self._memory(), decode.saved):
            tensor.copy_(saved)
        self._current = decode

    def _set_aside(self) -> None:
        # A step that the last answer left behind must not write into the next one's ring.
        cuda.synchronize(self._device)
        if self._current is not None:
            self._current.saved = [tensor.clone() for tensor in self._memory()]

    def _memory(self) -> tuple[Tensor, ...]:
        """Return what belongs to one answer."""
        return self._state, self._params, self._seen, self._ring

    def _step(self) -> None:
        """Run the token of the state and sample the next one, all on the device."""
        x = self._model.hidden(self._state[2:3], self._cache, 0, StepState(self._state))
        self.sample(self._model.candidates(x))

    def _read(self, step: int) -> int:
        """
        Wait for a token.

        :raises CheckpointError: the logits were not numbers.
        """
        if self._ahead:
            token = cuda.wait_for_token(self._ring, step, self._device)
        else:
            token = int(self._ring[step % _RING_SIZE].to(torch.int32))
        if token < 0:
            raise not_finite('NaN or infinity')
        return token


def make_runner(model: CausalLM, cache: KVCache,
                device: torch.device) -> Union[ModelRunner, GraphRunner]:
    """Return the runner for a model: with graphs, where kernels take all that needs a position."""
    refusal = cuda.refusal(device, model.dtype, model.config.head_dim)
    if not refusal:
        return GraphRunner(model, cache, device)
    if device.type == 'cuda':
        _LOGGER.warning('decoding without CUDA graphs, slowly: %s', refusal)
    elif cpu.serves(model.dtype, device):
        try:
            return GraphRunner(model, cache, device)
        except KernelError as error:
            _LOGGER.info('decoding op by op: %s', error)
    return ModelRunner(model, cache, device)
