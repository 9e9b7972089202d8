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
"""Products with a 4-bit matrix on the CPU, as the kernels and other libraries do them."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, Iterator, Mapping, NamedTuple

from benchmarks.comparison import OURS
import torch
from torch import Tensor

from tinychat_ros.bench.shapes import RandomWeights
from tinychat_ros.kernels import cpu

_GROUP_SIZE = 128
_ZERO = 0x88
_ONNX_OPSET, _ONNX_IR = 17, 10


class Work(NamedTuple):
    """
    Products of tokens [tokens, k] with each of some weights [n, k].

    :param copies: how many weights, which a run goes through.
    """

    n: int
    k: int
    tokens: int
    copies: int
    threads: int


class Product(NamedTuple):
    """
    Work that is ready to be done.

    :param weight_bytes: of one weight, its scales and zeros included.
    """

    run: Callable[[], object]
    weight_bytes: int


def _ours(work: Work) -> Product:
    source = RandomWeights(torch.device('cpu'), torch.float32, _GROUP_SIZE, int8_activations=True)
    weights = [source.linears(['weight'], [work.n], work.k)[0].weight for _ in range(work.copies)]
    x = torch.randn(work.tokens, work.k)
    replay = cpu.record(lambda: [cpu.w4a8(x, tiles) for tiles in weights])
    # The recording has only addresses of these.
    return Product(partial(_run_with, replay, (x, weights)), weights[0].data.nbytes)


def _run_with(run: Callable[[], object], kept: object) -> None:
    run()


def _int4pack(work: Work) -> Product:
    codes = torch.randint(0, 16, (work.n, work.k), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    weights = list(_copies(packed, work.copies))
    # It has no fast kernel for fp32.
    x = torch.randn(work.tokens, work.k, dtype=torch.bfloat16)
    scales = torch.full((work.k // _GROUP_SIZE, work.n, 2), work.k ** -0.5, dtype=torch.bfloat16)
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
    return Product(lambda: [multiply(x, weight, _GROUP_SIZE, scales) for weight in weights],
                   packed.nbytes + scales.nbytes)


def _copies(codes: Tensor, copies: int) -> Iterator[Tensor]:
    """Yield so many tensors of other values, since a library may keep equal ones only once."""
    for i in range(copies):
        yield codes ^ (i % 256)


def _onnxruntime(work: Work, block: int) -> Product:
    """Make one graph of all products, which rounds activations to int8."""
    import onnxruntime
    n, k, blocks = work.n, work.k, work.k // block
    codes = torch.randint(0, 256, (n, blocks, block // 2), dtype=torch.uint8)
    shared = {'scales': torch.full((n, blocks), k ** -0.5),
              'zeros': torch.full((n, -(-blocks // 2)), _ZERO, dtype=torch.uint8)}
    weights = {f'w{i}': weight for i, weight in enumerate(_copies(codes, work.copies))}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = work.threads
    session = onnxruntime.InferenceSession(_onnx_model(work, block, shared, weights), options,
                                           providers=['CPUExecutionProvider'])
    binding = session.io_binding()
    binding.bind_cpu_input('x', torch.randn(work.tokens, k).numpy())
    for output in session.get_outputs():
        binding.bind_ortvalue_output(output.name, onnxruntime.OrtValue.ortvalue_from_numpy(
            torch.zeros(work.tokens, n).numpy()))
    return Product(partial(session.run_with_iobinding, binding),
                   sum(each.nbytes for each in (codes, *shared.values())))


def _onnx_model(work: Work, block: int, shared: Mapping[str, Tensor],
                weights: Mapping[str, Tensor]) -> bytes:
    from onnx import helper, numpy_helper, TensorProto
    nodes = [helper.make_node(
        'MatMulNBits', ['x', weight, *shared], [f'y_{weight}'], domain='com.microsoft', N=work.n,
        K=work.k, bits=4, block_size=block, accuracy_level=4) for weight in weights]
    graph = helper.make_graph(
        nodes, 'products',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, [work.tokens, work.k])],
        [helper.make_tensor_value_info(f'y_{weight}', TensorProto.FLOAT, [work.tokens, work.n])
         for weight in weights],
        [numpy_helper.from_array(tensor.numpy(), name)
         for name, tensor in {**shared, **weights}.items()])
    return helper.make_model(graph, ir_version=_ONNX_IR, opset_imports=[
        helper.make_opsetid('', _ONNX_OPSET), helper.make_opsetid('com.microsoft', 1)],
    ).SerializeToString()


def _openvino(work: Work, activation_group: int) -> Product:
    """Make one model of all products; each has its own input, so that none are joined."""
    import openvino
    from openvino import opset13
    n, k, groups = work.n, work.k, work.k // _GROUP_SIZE
    codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8)
    zeros = torch.full((n * groups // 2,), _ZERO, dtype=torch.uint8)
    scales = torch.full((n, groups, 1), k ** -0.5, dtype=torch.float16)
    weights = list(_copies(codes, work.copies))
    inputs = [opset13.parameter([work.tokens, k]) for _ in weights]
    outputs = [opset13.matmul(x, _openvino_weight(weight, zeros, scales), False, True)
               for x, weight in zip(inputs, weights)]
    compiled = openvino.Core().compile_model(openvino.Model(outputs, inputs), 'CPU', {
        'DYNAMIC_QUANTIZATION_GROUP_SIZE': activation_group, 'NUM_STREAMS': 1,
        'INFERENCE_NUM_THREADS': work.threads})
    request = compiled.create_infer_request()
    x = openvino.Tensor(torch.randn(work.tokens, k).numpy())
    for i in range(work.copies):
        request.set_input_tensor(i, x)
    # A constant may have only addresses of what it was made from.
    return Product(partial(_run_with, request.infer, (weights, zeros, scales)),
                   sum(each.nbytes for each in (codes, zeros, scales)))


def _openvino_weight(codes: Tensor, zeros: Tensor, scales: Tensor) -> Any:
    from openvino import opset13, Shape, Tensor as Data, Type
    n, groups, _ = scales.shape
    packed = [opset13.convert(opset13.constant(Data(each.numpy(), Shape(shape), Type.u4)), 'f16')
              for each, shape in ((codes, [n, groups, _GROUP_SIZE]), (zeros, [n, groups, 1]))]
    weight = opset13.multiply(opset13.subtract(*packed), opset13.constant(scales.numpy()))
    return opset13.convert(
        opset13.reshape(weight, [n, groups * _GROUP_SIZE], special_zero=False), 'f32')


# What the numbers count: columns that share a scale, and values of an activation that do. The
# groups of a weight are of 128 elsewhere.
CONTENDERS: Mapping[str, Callable[[Work], Product]] = {
    OURS: _ours,
    'onnxruntime b128': partial(_onnxruntime, block=128),
    'onnxruntime b32': partial(_onnxruntime, block=32),
    'openvino a32': partial(_openvino, activation_group=32),
    'openvino a128': partial(_openvino, activation_group=128),
    'int4pack': _int4pack,
}


def why_absent(name: str) -> str:
    """Return why a contender cannot run here, or ''."""
    try:
        CONTENDERS[name](Work(256, 256, 1, 1, 1)).run()
    except Exception as error:  # Each library has its own.
        return f'{type(error).__name__}: {error}'[:200]
    return ''
