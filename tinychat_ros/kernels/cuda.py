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
Calls of the CUDA kernels: outputs allocated, tensors turned into addresses.

ops.py decides what comes here. Everything runs on torch's current stream of the tensors' device,
so that a decode step can be recorded as a CUDA graph. T, H, Hq, Hkv, D and I as in ops.py.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from types import ModuleType
from typing import Any, Callable, Optional, TypeVar, Union

import torch
from torch import Tensor

from tinychat_ros.kernels import extension
from tinychat_ros.kernels.operands import (
    AnyNorm, Candidates, HeadNorm, LayerCache, LayerNorm, Norm, RotaryTable, Scores)
from tinychat_ros.kernels.packing import (
    CudaTiles, Int8Weight, QuantizedWeight, record_bytes, RECORD_COLUMNS, record_group,
    RECORD_ROWS, TileOrder)

DTYPES = (torch.float16, torch.bfloat16)

# A GEMV reads the weights once for so many tokens; more of them are for a GEMM.
GEMV_TOKENS = 8

MAX_HEAD_DIM = 256


_Function = TypeVar('_Function', bound=Callable[..., Any])


def _on_its_device(function: _Function) -> _Function:
    """Make the device of the first argument current: kernels start on the current device."""
    @wraps(function)
    def guarded(x: Any, *args: Any, **kwargs: Any) -> Any:
        with _current(x.device):
            return function(x, *args, **kwargs)

    return guarded  # type: ignore[return-value]


def _current(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == 'cuda' else nullcontext()


def takes(x: Tensor) -> bool:
    """Say whether there are kernels for activations like these."""
    return x.dtype in DTYPES and extension.cuda(x.device) is not None


def refusal(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Return why the kernels cannot take what depends on a position, or '' when they can."""
    if extension.cuda(device) is None:
        return extension.why_no_cuda(device)
    if dtype not in DTYPES:
        return f'no CUDA kernel for {dtype} activations'
    return attention_refusal(head_dim)


def attention_refusal(head_dim: int) -> str:
    """Return why the attention kernels cannot take a shape, or '' when they can."""
    if head_dim % 8 or head_dim > MAX_HEAD_DIM:
        return f'head_dim = {head_dim} is not a multiple of 8 up to {MAX_HEAD_DIM}'
    return ''


def pack_tiles(weight: QuantizedWeight, order: TileOrder) -> CudaTiles:
    """Repack a weight on its device."""
    (n, k), group = weight.shape, record_group(weight)
    device = weight.qweight.device
    tiles = len(order.rows) // RECORD_ROWS
    records = torch.empty(tiles, -(-k // RECORD_COLUMNS), record_bytes(group),
                          dtype=torch.uint8, device=device)
    rows, qweight = order.rows.to(device), weight.qweight.contiguous()
    scales, zeros = weight.scales.half().contiguous(), weight.zeros.contiguous()
    with _current(device):
        extension.cuda(device).w4_repack(
            qweight=qweight.data_ptr(), scales=scales.data_ptr(), zeros=zeros.data_ptr(),
            rows=rows.data_ptr(), records=records.data_ptr(), tiles=tiles, k=k,
            source_group=weight.group_size, stream=_stream(device))
    return CudaTiles(records, n, k, group, order.name)


@_on_its_device
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See reference.rms_norm."""
    y = torch.empty_like(x)
    extension.cuda(x.device).rms_norm(
        x=x.data_ptr(), weight=weight.data_ptr(), y=y.data_ptr(), tokens=x.shape[0],
        hidden=x.shape[1], eps=eps, dtype=_dtype(x), stream=_stream(x.device))
    return y


@_on_its_device
def layer_norm(x: Tensor, weight: Tensor, bias: Optional[Tensor], eps: float) -> Tensor:
    """See reference.layer_norm."""
    y = torch.empty_like(x)
    extension.cuda(x.device).layer_norm(
        x=x.data_ptr(), weight=weight.data_ptr(), bias=_address(bias), y=y.data_ptr(),
        tokens=x.shape[0], hidden=x.shape[1], eps=eps, dtype=_dtype(x), stream=_stream(x.device))
    return y


def normalize(x: Tensor, norm: AnyNorm) -> Tensor:
    """Apply a norm of either kind to x [T, H]."""
    return (layer_norm if isinstance(norm, LayerNorm) else rms_norm)(x, *norm)


@_on_its_device
def embedding(token_ids: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
    """Return the rows token_ids int32 [T] of weight [V, H] times a scale."""
    vocab, hidden = weight.shape
    x = torch.empty(len(token_ids), hidden, dtype=weight.dtype, device=weight.device)
    extension.cuda(x.device).embedding(
        token_ids=token_ids.data_ptr(), table=weight.data_ptr(), x=x.data_ptr(),
        tokens=x.shape[0], vocab=vocab, hidden=hidden, scale=scale, dtype=_dtype(x),
        stream=_stream(x.device))
    return x


@_on_its_device
def linear(x: Tensor, tiles: CudaTiles, bias: Optional[Tensor] = None,
           norm: Optional[AnyNorm] = None, residual: Optional[Tensor] = None) -> Tensor:
    """Return the linear of x, normalized first, plus the residual: [T, N]."""
    y = torch.empty(x.shape[0], tiles.n, dtype=x.dtype, device=x.device)
    call = _W4(x, tiles, bias, norm)
    extension.cuda(x.device).w4_linear(
        call.input, gemv=call.gemv, residual=_address(residual), y=y.data_ptr())
    return y


@_on_its_device
def gate_up(x: Tensor, tiles: CudaTiles, bias: Optional[Tensor], norm: AnyNorm,
            activation: str) -> Tensor:
    """Return activation(gate) * up of tiles in the order GATE_UP: [T, I]."""
    y = torch.empty(x.shape[0], tiles.n // 2, dtype=x.dtype, device=x.device)
    call = _W4(x, tiles, bias, norm)
    extension.cuda(x.device).w4_gate_up(
        call.input, gemv=call.gemv, activation=activation, y=y.data_ptr())
    return y


@_on_its_device
def up(x: Tensor, tiles: CudaTiles, bias: Optional[Tensor], norm: AnyNorm, activation: str,
       scales: Optional[Tensor]) -> Tensor:
    """Return activation(up) / scales of tiles: [T, I]."""
    y = torch.empty(x.shape[0], tiles.n, dtype=x.dtype, device=x.device)
    call = _W4(x, tiles, bias, norm)
    extension.cuda(x.device).w4_up(
        call.input, gemv=call.gemv, activation=activation, scales=_address(scales),
        y=y.data_ptr())
    return y


@_on_its_device
def qkv(x: Tensor, tiles: CudaTiles, bias: Optional[Tensor], norm: AnyNorm, rope: RotaryTable,
        cache: LayerCache, state: Tensor) -> Tensor:
    """Project by tiles in the order ROTARY, rotate, and append to a cache that is not int8."""
    head_dim = cache.k.shape[2]
    heads = tiles.n // head_dim - 2 * cache.k.shape[0]
    q = torch.empty(x.shape[0], heads, head_dim, dtype=x.dtype, device=x.device)
    call = _W4(x, tiles, bias, norm)
    module = extension.cuda(x.device)
    module.w4_qkv(call.input, _cache(cache, state), _rotary(module, rope), gemv=call.gemv,
                  q=q.data_ptr(), heads=heads)
    return q


@_on_its_device
def rope_append(heads: Tensor, permuted: bool, rope: Optional[RotaryTable], cache: LayerCache,
                state: Tensor, norm: Optional[HeadNorm] = None) -> Tensor:
    """
    Normalize and rotate queries and keys of heads [T, Hq + 2 Hkv, D]; append keys and values.

    :param permuted: the dimensions of the heads stand as in tiles of the order ROTARY.
    :returns: the rotated queries [T, Hq, D].
    """
    heads = heads.contiguous()
    tokens, all_heads, head_dim = heads.shape
    query_heads = all_heads - 2 * cache.k.shape[0]
    q = torch.empty(tokens, query_heads, head_dim, dtype=heads.dtype, device=heads.device)
    module = extension.cuda(q.device)
    module.rope_append(
        _cache(cache, state), _head_norm(module, norm), _rotary(module, rope),
        qkv=heads.data_ptr(), permuted=permuted, q=q.data_ptr(), tokens=tokens,
        heads=query_heads, dtype=_dtype(q), stream=_stream(q.device))
    return q


def attention_workspace(heads: int, kv_heads: int, head_dim: int, max_seq_len: int,
                        device: torch.device) -> Optional[Tensor]:
    """Return the zeros that :func:`attention` of one token needs, or None without kernels."""
    module = extension.cuda(device)
    if module is None or attention_refusal(head_dim):
        return None
    with _current(device):
        size = module.decode_attention_workspace(
            heads=heads, kv_heads=kv_heads, head_dim=head_dim, max_seq_len=max_seq_len)
    return torch.zeros(size, dtype=torch.uint8, device=device)


@_on_its_device
def attention(q: Tensor, cache: LayerCache, state: Tensor, scores: Scores) -> Tensor:
    """Attend causally from q [T, Hq, D] over the cache: [T, Hq, D]."""
    tokens, heads, _ = q.shape
    q, out = q.contiguous(), torch.empty_like(q, memory_format=torch.contiguous_format)
    module = extension.cuda(q.device)
    structures = (_cache(cache, state), _scores(module, scores))
    shared = {'q': q.data_ptr(), 'out': out.data_ptr(), 'heads': heads, 'dtype': _dtype(q),
              'stream': _stream(q.device)}
    if tokens == 1:
        module.decode_attention(*structures, workspace=cache.workspace.data_ptr(), **shared)
    else:
        module.prefill_attention(*structures, tokens=tokens, **shared)
    return out


@_on_its_device
def lm_head(x: Tensor, weight: Union[Tensor, Int8Weight, CudaTiles], norm: AnyNorm,
            softcap: float = 0.0) -> Candidates:
    """Return the logits after x [1, H] by a head of tiles; of another kind, H % 16 = 0."""
    device, vocab = x.device, weight.shape[0]
    logits = torch.empty(vocab, dtype=torch.float32, device=device)
    best = torch.empty(-(-vocab // RECORD_ROWS), 2, dtype=torch.int32, device=device)
    outputs = {'logits': logits.data_ptr(), 'best': best.data_ptr(), 'softcap': softcap}
    if isinstance(weight, CudaTiles):
        call = _W4(x, weight, None, norm)
        extension.cuda(device).w4_logits(call.input, **outputs)
    else:
        if isinstance(norm, LayerNorm):
            x, norm = layer_norm(x, *norm), None
        rows, scales = ((weight.qweight, weight.scales) if isinstance(weight, Int8Weight)
                        else (weight, None))
        extension.cuda(device).lm_head(
            x=x.data_ptr(), weight=rows.data_ptr(), scales=_address(scales), n=vocab,
            k=x.shape[1], dtype=_dtype(x), stream=_stream(device), **_norm(norm), **outputs)
    return Candidates(logits, best)


@_on_its_device
def sample(state: Tensor, candidates: Candidates, params: Tensor, seen: Tensor,
           ring: Tensor) -> None:
    """
    Draw a token; csrc/cuda/launchers.h says what is written where.

    :param state: int32 [4], a StepState.
    :param params: uint8 [28], a SamplingState.
    :param seen: uint8 [V].
    :param ring: int64 [R], in host memory that the device can write.
    """
    extension.cuda(state.device).sample(
        logits=candidates.logits.data_ptr(), best=candidates.best.data_ptr(),
        params=params.data_ptr(), seen=seen.data_ptr(), state=state.data_ptr(),
        ring=ring.data_ptr(), ring_size=len(ring), vocab=len(candidates.logits),
        stream=_stream(state.device))


def wait_for_token(ring: Tensor, step: int, device: torch.device) -> int:
    """
    Wait until :func:`sample` has put its token of a step into the ring, and return it.

    :raises RuntimeError: the stream failed or ended without it.
    """
    with _current(device):
        return extension.cuda(device).wait_for_token(
            ring=ring.data_ptr(), ring_size=len(ring), step=step, stream=_stream(device))


@_on_its_device
def read(data: Tensor) -> None:
    """Read a tensor of 16 bytes or a multiple, for nothing but to measure how long that takes."""
    sink = torch.empty(4, dtype=torch.uint8, device=data.device)
    extension.cuda(data.device).read_bytes(
        data=data.data_ptr(), bytes=data.nbytes, sink=sink.data_ptr(),
        stream=_stream(data.device))


def record(step: Callable[[], object]) -> Callable[[], None]:
    """Record what a step launches on the current device as a CUDA graph; return its replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # Libraries set themselves up on their first call, which cannot be recorded.
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph.replay


def synchronize(device: torch.device) -> None:
    """Wait for all that runs on torch's current stream of a device."""
    if device.type == 'cuda':
        torch.cuda.current_stream(device).synchronize()


class _W4:
    """The input of a W4 linear: a GEMV with its RMSNorm in it, or what comes behind a norm."""

    def __init__(self, x: Tensor, tiles: CudaTiles, bias: Optional[Tensor],
                 norm: Optional[AnyNorm]) -> None:
        tokens = x.shape[0]
        self.gemv = tokens <= GEMV_TOKENS
        if norm is not None and not (self.gemv and isinstance(norm, Norm)):
            x, norm = normalize(x, norm), None
        # The launcher is given addresses: what they are of lives until the call is made.
        self._x = x.contiguous()
        following = tiles.next
        self.input = extension.cuda(x.device).W4Input(
            x=self._x.data_ptr(), records=tiles.records.data_ptr(), bias=_address(bias),
            m=tokens, n=tiles.n, k=tiles.k, group_size=tiles.group_size,
            next=_address(following), next_bytes=0 if following is None else following.nbytes,
            dtype=_dtype(x), stream=_stream(x.device), **_norm(norm))


def _norm(norm: Optional[Norm]) -> dict[str, Any]:
    """Return the RMSNorm of a kernel that has one in it, or none."""
    return {} if norm is None else {'norm_weight': norm.weight.data_ptr(), 'norm_eps': norm.eps}


def _cache(cache: LayerCache, state: Tensor) -> Any:
    kv_heads, max_seq_len, head_dim = cache.k.shape
    return extension.cuda(cache.k.device).KvCache(
        k=cache.k.data_ptr(), v=cache.v.data_ptr(), k_scale=_address(cache.k_scale),
        v_scale=_address(cache.v_scale), kv_heads=kv_heads, max_seq_len=max_seq_len,
        head_dim=head_dim, state=state.data_ptr())


def _rotary(module: ModuleType, rope: Optional[RotaryTable]) -> Any:
    if rope is None:
        return module.Rotary()
    return module.Rotary(cos=rope.cos.data_ptr(), sin=rope.sin.data_ptr())


def _head_norm(module: ModuleType, norm: Optional[HeadNorm]) -> Any:
    if norm is None:
        return module.HeadNorm()
    return module.HeadNorm(q=norm.q.data_ptr(), k=norm.k.data_ptr(), eps=norm.eps)


def _scores(module: ModuleType, scores: Scores) -> Any:
    return module.Scores(scale=scores.scale, window=scores.window, softcap=scores.softcap,
                         slopes=_address(scores.slopes))


def _address(tensor: Optional[Tensor]) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _dtype(x: Tensor) -> int:
    return DTYPES.index(x.dtype)


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == 'cuda' else 0
