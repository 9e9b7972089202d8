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

#include "cuda/launchers.h"
#include "cuda/prim.cuh"
#include "cuda/warp.cuh"

namespace tinychat {
namespace {

// One block per token; `chunks` of 16 bytes make a row.
__global__ void __launch_bounds__(kMaxThreads)
    embedding_kernel(const int32_t* token_ids, const uint4* table, uint4* x, int64_t vocab,
                     int chunks) {
  grid_dependency_launch();
  grid_dependency_wait();
  const int64_t token = token_ids[blockIdx.x];
  const bool known = token >= 0 && token < vocab;
  for (int i = threadIdx.x; i < chunks; i += blockDim.x) {
    x[int64_t{blockIdx.x} * chunks + i] = known ? table[token * chunks + i] : uint4{};
  }
}

}  // namespace

void embedding(const int32_t* token_ids, const void* table, void* x, int64_t tokens,
               int64_t vocab, int64_t hidden, DType dtype, void* stream) {
  const int chunks = static_cast<int>(hidden / (dtype == DType::kFloat32 ? 4 : 8));
  launch_dependent("embedding", embedding_kernel, static_cast<unsigned>(tokens),
                   threads_for(chunks), 0, stream, token_ids, static_cast<const uint4*>(table),
                   static_cast<uint4*>(x), vocab, chunks);
}

}  // namespace tinychat
