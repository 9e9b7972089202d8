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

// In front of a loop whose index picks registers.
#define TINYCHAT_UNROLL _Pragma("unroll")

namespace tinychat {

template <typename Kernel>
cudaFuncAttributes attributes_of(const char* name, Kernel* kernel) {
  cudaFuncAttributes attributes;
  check_cuda(cudaFuncGetAttributes(&attributes, kernel), name);
  return attributes;
}

// Lets a kernel have more dynamic shared memory than it may without asking. The limit never goes
// down: launches that were recorded earlier need theirs.
template <typename Kernel>
void allow_shared_bytes(const char* name, Kernel* kernel, size_t bytes) {
  const int allowed = attributes_of(name, kernel).maxDynamicSharedSizeBytes;
  if (bytes <= static_cast<size_t>(allowed)) return;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes)),
             name);
}

// Whether all that a stream was given has ended. Throws what it failed with.
inline bool stream_ended(void* stream) {
  const cudaError_t status = cudaStreamQuery(static_cast<cudaStream_t>(stream));
  if (status == cudaErrorNotReady) {
    cudaGetLastError();  // Others would take it for theirs.
    return false;
  }
  check_cuda(status, "stream");
  return true;
}

// What the current device has of something.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device, value;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

// What a block can have.
inline int max_shared_bytes() {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

// How many blocks of a kernel the device runs at a time.
template <typename... Parameters>
int resident_blocks(const char* name, void (*kernel)(Parameters...), int threads,
                    size_t shared_bytes) {
  allow_shared_bytes(name, kernel, shared_bytes);
  int blocks;
  check_cuda(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes), name);
  return blocks * multiprocessors();
}

// Returns why a kernel cannot run on the current device, or ''.
template <typename Kernel>
std::string kernel_problem(Kernel* kernel) {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
  if (status == cudaSuccess) return "";
  cudaGetLastError();  // It would be the next launch's.
  return cudaGetErrorString(status);
}

template <typename... Parameters, typename... Arguments>
void launch_with(cudaLaunchAttribute* attribute, const char* name, void (*kernel)(Parameters...),
                 dim3 grid, dim3 block, size_t shared_bytes, void* stream,
                 Arguments... arguments) {
  allow_shared_bytes(name, kernel, shared_bytes);
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attribute;
  config.numAttrs = attribute == nullptr ? 0 : 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

// Starts kernel(arguments...) on a stream. `name` is what an error calls it.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, void* stream, Arguments... arguments) {
  launch_with(nullptr, name, kernel, grid, block, shared_bytes, stream, arguments...);
}

// As launch, but on Hopper and later the kernel may start before the one in front of it ends
// (programmatic dependent launch). Each of its threads calls grid_dependency_wait; before it, it
// reads only what no kernel writes, and writes nothing. (Weights that the kernel right in front
// has just written have to be waited for by the host.)
template <typename... Parameters, typename... Arguments>
void launch_dependent(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                      size_t shared_bytes, void* stream, Arguments... arguments) {
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  // What was compiled for less has no wait in it, on whatever GPU it runs.
  const bool waits = attributes_of(name, kernel).ptxVersion >= 90;
  launch_with(waits ? &overlap : nullptr, name, kernel, grid, block, shared_bytes, stream,
              arguments...);
}

}  // namespace tinychat

#else
#include "emu/cuda_emu.h"
#endif
