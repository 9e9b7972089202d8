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
Calls of the CPU kernels that are not quantized linears, and the recording of all of them.

ops.py decides what comes here. Activations are fp32. T, H, Hq, Hkv, D, V and I as in ops.py.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
import os
import threading
from typing import Any, Callable, Collection, Iterator, Optional, Union

import torch
from torch import Tensor

from tinychat_ros.errors import KernelError
from tinychat_ros.kernels import extension
from tinychat_ros.kernels.operands import AnyNorm, HeadNorm, LayerCache, RotaryTable, Scores
from tinychat_ros.kernels.packing import CpuTiles, Int8Weight

# As the kernels number them.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_ACTIVATIONS = ('silu', 'gelu', 'gelu_tanh')
KV_DTYPES = (torch.float32, torch.float16, torch.int8)
MAX_HEAD_DIM = 256


class _Recording(threading.local):
    """The tensors of the program that this thread records; None where it records none."""

    tensors: Optional[list[Tensor]] = None


_recording = _Recording()


def serves(dtype: torch.dtype, device: torch.device) -> bool:
    """Say whether there are kernels for activations of a dtype on a device."""
    return (dtype == torch.float32 and device.type == 'cpu' and extension.cuda(device) is None
            and extension.load() is not None)


def takes(x: Tensor) -> bool:
    """Say whether there are kernels for activations like these."""
    return serves(x.dtype, x.device) and not x.requires_grad


def takes_weight(weight: Tensor) -> bool:
    """Say whether the kernels, where they take activations, read a plain weight."""
    return weight.dtype in _DTYPES and not weight.requires_grad


def takes_norm(norm: Union[AnyNorm, HeadNorm]) -> bool:
    """Say whether the kernels take a norm, whose weights they read in one dtype."""
    *weights, _ = (weight for weight in norm if weight is not None)
    return all(takes_weight(w) and w.dtype == weights[0].dtype for w in weights)


def attention_refusal(head_dim: int) -> str:
    """Return why the attention kernels cannot take a model's shape, or '' when they can."""
    return '' if head_dim <= MAX_HEAD_DIM else f'head_dim = {head_dim} is more than {MAX_HEAD_DIM}'


def takes_cache(cache: LayerCache) -> bool:
    """Say whether the attention kernels take a cache."""
    return (cache.k.dtype in KV_DTYPES and cache.k.is_contiguous() and cache.v.is_contiguous()
            and not attention_refusal(cache.k.shape[2]) and cache.k.shape[2] % 2 == 0)


def record(step: Callable[[], None]) -> Replay:
    """
    Record the kernels that a step calls.

    :raises KernelError: a part of the step has no kernel.
    """
    program, tensors = extension.load().CpuProgram(), []
    _recording.tensors = tensors
    program.begin()
    try:
        step()
    finally:
        program.end()
        _recording.tensors = None
    return Replay(program, tensors)


class Replay:
    """Recorded kernels, which a call runs anew on the same tensors."""

    def __init__(self, program: Any, tensors: list[Tensor]) -> None:
        self._program = program
        self._tensors = tensors

    def __call__(self, interrupted: Optional[Callable[[], bool]] = None) -> bool:
        """
        Run the kernels and say whether all ran.

        :param interrupted: asked between two kernels, every few milliseconds.
        """
        return self._program.run(interrupted)


def refuse_recording(what: str) -> None:
    """
    Tell a recording that something runs without a kernel, which it would leave out.

    :raises KernelError: a program is recorded.
    """
    if _recording.tensors is not None:
        raise KernelError(f'{what}: expected a kernel, since a recorded step holds nothing else')


def empty(*shape: int) -> Tensor:
    """Return a tensor, fp32, that lives as long as the program that is recorded."""
    tensor = torch.empty(*shape)
    if _recording.tensors is not None:
        _recording.tensors.append(tensor)
    return tensor


@contextmanager
def on_processors(processors: Collection[int]) -> Iterator[None]:
    """
    Keep the calling thread to some processors, and the kernels' workers from now on.

    :param processors: by their numbers; none leaves all as it is.
    """
    if not processors:
        yield
        return
    if extension.load() is not None:
        extension.load().cpu_set_processors(list(processors))
    # A generator may be closed by another thread than the one that it ran on.
    thread, before = threading.get_native_id(), os.sched_getaffinity(0)
    os.sched_setaffinity(thread, processors)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.sched_setaffinity(thread, before)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See reference.rms_norm."""
    x, y = _contiguous(x), empty(*x.shape)
    extension.load().cpu_rms_norm(
        x=x.data_ptr(), weight=weight.data_ptr(), y=y.data_ptr(), tokens=x.shape[0],
        hidden=x.shape[1], eps=eps, dtype=_dtype(weight), num_threads=_threads())
    return y


def layer_norm(x: Tensor, weight: Tensor, bias: Optional[Tensor], eps: float) -> Tensor:
    """See reference.layer_norm; weight and bias are of one dtype."""
    x, y = _contiguous(x), empty(*x.shape)
    extension.load().cpu_layer_norm(
        x=x.data_ptr(), weight=weight.data_ptr(), bias=_address(bias), y=y.data_ptr(),
        tokens=x.shape[0], hidden=x.shape[1], eps=eps, dtype=_dtype(weight),
        num_threads=_threads())
    return y


def embedding(token_ids: Tensor, weight: Tensor, scale: float) -> Tensor:
    """Return the rows token_ids int32 [T] of weight [V, H], scaled."""
    vocab, hidden = weight.shape
    x = empty(len(token_ids), hidden)
    extension.load().cpu_embedding(
        token_ids=token_ids.data_ptr(), table=weight.data_ptr(), x=x.data_ptr(),
        tokens=len(token_ids), vocab=vocab, hidden=hidden, dtype=_dtype(weight), scale=scale,
        num_threads=_threads())
    return x


def w4a8(x: Tensor, tiles: CpuTiles) -> Tensor:
    """Return the linear of x [T, K], rounded to int8 by tiles: [T, N]."""
    x, out = _contiguous(x), empty(x.shape[0], tiles.n)
    extension.load().w4a8_gemm(
        x.data_ptr(), tiles.data.data_ptr(), out.data_ptr(),
        x.shape[0], tiles.n, tiles.k, tiles.bits, tiles.block, _threads())
    return out


def wna16(x: Tensor, tiles: CpuTiles) -> Tensor:
    """Return the linear of x [T, K]: [T, N]."""
    x, out = _contiguous(x), empty(x.shape[0], tiles.n)
    extension.load().wna16_gemm(
        x.data_ptr(), tiles.data.data_ptr(), out.data_ptr(),
        x.shape[0], tiles.n, tiles.k, tiles.bits, tiles.block, _threads())
    return out


def w8a8(x: Tensor, weight: Int8Weight) -> Tensor:
    """Return the linear of x [T, K], rounded to int8 by tokens: [T, N]."""
    (n, k), x, out = weight.shape, _contiguous(x), empty(x.shape[0], weight.shape[0])
    qweight, scales = _contiguous(weight.qweight), _contiguous(weight.scales)
    extension.load().w8a8_gemm(
        x.data_ptr(), qweight.data_ptr(), scales.data_ptr(), out.data_ptr(),
        x.shape[0], n, k, _threads())
    return out


def dense(x: Tensor, weight: Tensor) -> Tensor:
    """Return x [T, K] times the transposed plain weight [N, K]: [T, N]."""
    x, weight, out = _contiguous(x), _contiguous(weight), empty(x.shape[0], weight.shape[0])
    extension.load().cpu_dense_gemm(
        x=x.data_ptr(), weight=weight.data_ptr(), out=out.data_ptr(), m=x.shape[0],
        n=weight.shape[0], k=weight.shape[1], dtype=_dtype(weight), num_threads=_threads())
    return out


def add(x: Tensor, other: Tensor) -> Tensor:
    """Return x, to which another tensor of its size has been added."""
    other = _contiguous(other)
    extension.load().cpu_add(x=x.data_ptr(), residual=other.data_ptr(), count=x.numel(),
                             num_threads=_threads())
    return x


def clip(x: Tensor, limit: float) -> Tensor:
    """Return x, of which -limit and limit have become the bounds."""
    extension.load().cpu_clip(x=x.data_ptr(), count=x.numel(), limit=limit, num_threads=_threads())
    return x


def softcap(x: Tensor, cap: float) -> Tensor:
    """Return x, which has become what reference.softcap gives."""
    extension.load().cpu_softcap(x=x.data_ptr(), count=x.numel(), cap=cap, num_threads=_threads())
    return x


def gate_mul(gate_up: Tensor, activation: str) -> Tensor:
    """See reference.gate_mul."""
    tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = empty(tokens, size)
    extension.load().cpu_gate_mul(
        gate_up=gate_up.data_ptr(), out=out.data_ptr(), tokens=tokens, size=size,
        activation=_ACTIVATIONS.index(activation), num_threads=_threads())
    return out


def activate(x: Tensor, activation: str, scales: Optional[Tensor]) -> Tensor:
    """Return x [T, I], which has become what reference.activate gives."""
    scaled = {} if scales is None else {'scales': scales.data_ptr(), 'dtype': _dtype(scales)}
    extension.load().cpu_activate(
        x=x.data_ptr(), out=x.data_ptr(), tokens=x.shape[0], size=x.shape[1],
        activation=_ACTIVATIONS.index(activation), num_threads=_threads(), **scaled)
    return x


def rope_append(heads: Tensor, rope: Optional[RotaryTable], cache: LayerCache, state: Tensor,
                norm: Optional[HeadNorm]) -> Tensor:
    """
    Normalize and rotate heads [T, Hq + 2 Hkv, D], where there is a norm and a rotation.

    Keys and values are appended to the cache.

    :returns: the queries [T, Hq, D].
    """
    tokens, all_heads, head_dim = heads.shape
    query_heads = all_heads - 2 * cache.k.shape[0]
    q = empty(tokens, query_heads, head_dim)
    rotated = {} if rope is None else {'cos': rope.cos.data_ptr(), 'sin': rope.sin.data_ptr()}
    normed = {} if norm is None else {
        'q_norm': norm.q.data_ptr(), 'k_norm': norm.k.data_ptr(), 'norm_dtype': _dtype(norm.q),
        'eps': norm.eps}
    extension.load().cpu_rope_append(
        _cache(cache, state), qkv=heads.data_ptr(), q=q.data_ptr(), **rotated, **normed,
        tokens=tokens, heads=query_heads, num_threads=_threads())
    return q


def attention(q: Tensor, cache: LayerCache, state: Tensor, scores: Scores) -> Tensor:
    """Attend causally from q [T, Hq, D] over the cache: [T, Hq, D]."""
    q = _contiguous(q)
    tokens, heads, head_dim = q.shape
    out = empty(tokens, heads, head_dim)
    extension.load().cpu_attention(
        _cache(cache, state), q=q.data_ptr(), out=out.data_ptr(), tokens=tokens, heads=heads,
        scale=scores.scale, window=scores.window, softcap=scores.softcap,
        slopes=_address(scores.slopes), num_threads=_threads())
    return out


def sample(state: Tensor, logits: Tensor, params: Tensor, seen: Tensor, ring: Tensor) -> None:
    """Draw a token from logits [V]; the rest as in cuda.sample."""
    extension.load().cpu_sample(
        logits=logits.data_ptr(), params=params.data_ptr(), seen=seen.data_ptr(),
        state=state.data_ptr(), ring=ring.data_ptr(), ring_size=len(ring), vocab=len(logits))


def read(data: Tensor) -> None:
    """Read a tensor and do nothing with it, to find out how fast memory is."""
    extension.load().cpu_read(data=data.data_ptr(), bytes=data.nbytes, num_threads=_threads())


def checksum(data: Tensor) -> int:
    """Return a number of 64 bits that tells whether a tensor's bytes are still the same."""
    return extension.load().cpu_checksum(data=data.data_ptr(), bytes=data.nbytes,
                                         num_threads=_threads())


def _contiguous(x: Tensor) -> Tensor:
    if x.is_contiguous():
        return x
    refuse_recording('a tensor that is not contiguous')
    return x.contiguous()


def _cache(cache: LayerCache, state: Tensor) -> Any:
    kv_heads, max_seq_len, head_dim = cache.k.shape
    scales = {} if cache.k_scale is None else {'k_scale': cache.k_scale.data_ptr(),
                                               'v_scale': cache.v_scale.data_ptr()}
    dtype = torch.float32 if cache.k_scale is not None else cache.k.dtype
    return extension.load().CpuKvCache(
        k=cache.k.data_ptr(), v=cache.v.data_ptr(), dtype=_DTYPES.index(dtype),
        kv_heads=kv_heads, max_seq_len=max_seq_len, head_dim=head_dim, state=state.data_ptr(),
        **scales)


def _address(tensor: Optional[Tensor]) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _dtype(weight: Tensor) -> int:
    return _DTYPES.index(weight.dtype)


def _threads() -> int:
    return torch.get_num_threads()
