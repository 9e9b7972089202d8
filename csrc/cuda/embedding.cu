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

#include "cuda/dispatch.cuh"
#include "cuda/launchers.h"
#include "cuda/pack.cuh"
#include "cuda/prim.cuh"
#include "cuda/warp.cuh"

namespace tinychat {
namespace {

// One block per token; a row has so many packs.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads)
    embedding_kernel(const int32_t* token_ids, const Pack<T>* table, Pack<T>* x, int64_t vocab,
                     int packs, float scale) {
  grid_dependency_launch();
  grid_dependency_wait();
  const int64_t token = token_ids[blockIdx.x];
  const bool known = token >= 0 && token < vocab;
  for (int i = threadIdx.x; i < packs; i += blockDim.x) {
    Pack<T> pack = {};
    if (known) pack = load(&table[token * packs + i]);
    for (T& value : pack.values) value = T(static_cast<float>(value) * scale);
    x[int64_t{blockIdx.x} * packs + i] = pack;
  }
}

}  // namespace

void embedding(const int32_t* token_ids, const void* table, void* x, int64_t tokens,
               int64_t vocab, int64_t hidden, float scale, DType dtype, void* stream) {
  with_float_type(dtype, [&](auto t) {
    using Row = Pack<decltype(t)>;
    const int packs = static_cast<int>(hidden / Row::kSize);
    launch_dependent("embedding", embedding_kernel<decltype(t)>, static_cast<unsigned>(tokens),
                     threads_for(packs), 0, stream, token_ids, static_cast<const Row*>(table),
                     static_cast<Row*>(x), vocab, packs, scale);
  });
}

}  // namespace tinychat
