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

// The launchers on the emulator, and kernels with faults that it has to report.

#include <pybind11/pybind11.h>

#include "bindings_cuda.h"
#include "cuda/launchers.h"
#include "cuda/prim.cuh"
#include "primitives.h"

namespace py = pybind11;

namespace tinychat {
namespace {

using Address = uintptr_t;

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

__global__ void early_return_kernel(int) {
  if (threadIdx.x == 5) return;
  __syncthreads();
}

__global__ void two_barriers_kernel(int) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void diverging_shuffle_kernel(int) {
  int value = threadIdx.x;
  if (value % 2 == 0) {
    value = __shfl_xor_sync(~0u, value, 2);
  } else {
    value = __shfl_xor_sync(~0u, value, 4);
  }
}

__global__ void lonely_shuffle_kernel(int) {
  if (threadIdx.x != 7) __shfl_xor_sync(~0u, 0, 1);
}

__global__ void half_mask_kernel(int) { __syncwarp(0xffff); }

__global__ void overrun_kernel(int bytes) {
  TINYCHAT_DYNAMIC_SHARED(char, memory);
  if (threadIdx.x == 9 && blockIdx.y == 1) memory[bytes] = 0;
}

__global__ void misaligned_copy_kernel(int) {
  TINYCHAT_DYNAMIC_SHARED(char, memory);
  if (threadIdx.x == 1) cp_async_16(memory + 8, memory);
}

__global__ void nothing_kernel(int) {}

struct Fault {
  const char* name;
  void (*kernel)(int);
};

const Fault kFaults[] = {
    {"early_return", early_return_kernel},         {"two_barriers", two_barriers_kernel},
    {"diverging_shuffle", diverging_shuffle_kernel}, {"lonely_shuffle", lonely_shuffle_kernel},
    {"half_mask", half_mask_kernel},               {"overrun", overrun_kernel},
    {"misaligned_copy", misaligned_copy_kernel},
};

void run_fault(const std::string& name) {
  constexpr int kSharedBytes = 100;
  for (const Fault& fault : kFaults) {
    if (name != fault.name) continue;
    launch(fault.name, fault.kernel, dim3(1, 2), 64, kSharedBytes, nullptr, kSharedBytes);
    return;
  }
  throw std::invalid_argument("no fault is called " + name);
}

__global__ void uninitialized_kernel(float* found) {
  __shared__ float fixed[64];
  TINYCHAT_DYNAMIC_SHARED(float, dynamic);
  const int first = (blockIdx.x * 64 + threadIdx.x) * 2;
  found[first] = fixed[threadIdx.x];
  found[first + 1] = dynamic[threadIdx.x];
  fixed[threadIdx.x] = dynamic[threadIdx.x] = 1.0f;
}

__global__ void count_kernel(int* count, int* order) {
  order[atomicAdd(count, 1)] = blockIdx.x * blockDim.x + threadIdx.x;
}

template <float (*kWiden)(uint16_t)>
void widen(Address from, Address to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    static_cast<float*>(pointer(to))[i] = kWiden(static_cast<const uint16_t*>(pointer(from))[i]);
  }
}

template <uint16_t (*kRound)(float)>
void round_to(Address from, Address to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    static_cast<uint16_t*>(pointer(to))[i] = kRound(static_cast<const float*>(pointer(from))[i]);
  }
}

}  // namespace
}  // namespace tinychat

PYBIND11_MODULE(tinychat_emu, module) {
  using namespace tinychat;
  module.def("set_seed", &emu::set_seed);
  bind_cuda(module);
  module.def("matmul_16", [](Address a, Address b, Address d, int dtype) {
    matmul_16(pointer(a), pointer(b), pointer(d), static_cast<DType>(dtype), nullptr);
  });
  module.def("load_matrices", [](Address matrices, Address fragments, bool transposed) {
    load_matrices(pointer(matrices), pointer(fragments), transposed, nullptr);
  });
  module.def("ring_copy", [](Address in, Address out, int steps) {
    ring_copy(pointer(in), pointer(out), steps, nullptr);
  });
  module.def("copy_and_look", [](Address in, Address before, Address after) {
    copy_and_look(pointer(in), pointer(before), pointer(after), nullptr);
  });
  module.def("handed_over_copy", [](Address in, Address out, int blocks) {
    handed_over_copy(pointer(in), pointer(out), blocks, nullptr);
  });
  module.def("shuffle_32", [](Address in, Address out) {
    shuffle_32(pointer(in), pointer(out), nullptr);
  });
  module.def("run_fault", &run_fault);
  module.def("launch_nothing", [](unsigned grid_y, unsigned threads, size_t shared_bytes) {
    launch("nothing", nothing_kernel, dim3(1, grid_y), threads, shared_bytes, nullptr, 0);
  });
  module.def("uninitialized", [](Address found, unsigned blocks) {
    launch("uninitialized", uninitialized_kernel, blocks, 64, 64 * sizeof(float), nullptr,
           static_cast<float*>(pointer(found)));
  });
  module.def("count", [](Address count, Address order, unsigned blocks, unsigned threads) {
    launch("count", count_kernel, blocks, threads, 0, nullptr, static_cast<int*>(pointer(count)),
           static_cast<int*>(pointer(order)));
  });
  module.def("widen_half", &widen<emu::widen_half>);
  module.def("widen_bfloat16", &widen<emu::widen_bfloat16>);
  module.def("round_to_half", &round_to<emu::round_to_half>);
  module.def("round_to_bfloat16", &round_to<emu::round_to_bfloat16>);
}
