// Copyright 2026 tinychat_ros developers
//
// Licensed under the Apache License, Version 2.0 (the "License");
// you may not use this file except in compliance with the License.
// You may obtain a copy of the License at
//
//     http://www.apache.org/licenses/LICENSE-2.0
//
// Unless required by applicable law or agreed to in writing, software
// distributed under the License is distributed on an "AS IS" BASIS,
// WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
// See the License for the specific language governing permissions and
// limitations under the License.

// What a .cu file is written against: CUDA under nvcc, its emulation under any other compiler.

#pragma once

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common.h"

// The block's dynamic shared memory. (An `extern __shared__` array has one type in all kernels.)
#define TINYCHAT_DYNAMIC_SHARED(type, name)                            \
  extern __shared__ __align__(128) unsigned char tinychat_shared[]; \
  type* name = reinterpret_cast<type*>(tinychat_shared)

namespace tinychat {

// More than this has to be asked for.
constexpr size_t kDefaultSharedBytes = 48 << 10;

// Starts kernel(arguments...) on a stream. `name` is what an error calls it.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, void* stream, Arguments... arguments) {
  if (shared_bytes > kDefaultSharedBytes) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               name);
  }
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  check_cuda(cudaGetLastError(), name);
}

}  // namespace tinychat

#else
#include "emu/cuda_emu.h"
#endif
