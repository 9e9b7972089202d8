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

// The rows of a KV cache, and the types that its kernels are compiled for.

#pragma once

#include "cuda/dispatch.cuh"
#include "cuda/launchers.h"

namespace tinychat {

constexpr int kMaxHeadDim = 256;

// The keys, or the values, of one KV head.
template <typename Kv>
struct KvRows {
  Kv* values;    // [max_seq_len, head_dim]
  half* scales;  // [max_seq_len], with int8 values
  int skew;      // How many scales the first one is behind a multiple of 16 bytes.
  int head_dim;
};

template <typename Kv>
__device__ KvRows<Kv> kv_rows(const KvCache& cache, void* values, void* scales, int kv_head) {
  const int64_t first = (cache.state->slot * cache.kv_heads + kv_head) * cache.max_seq_len;
  half* row_scales = static_cast<half*>(scales) + first;
  const auto skew = reinterpret_cast<uintptr_t>(row_scales) / sizeof(half) % 8;
  return {static_cast<Kv*>(values) + first * cache.head_dim, row_scales, static_cast<int>(skew),
          static_cast<int>(cache.head_dim)};
}

// Calls run with a T and a Kv, each a value of its type.
template <typename Run>
void with_cache_types(const char* launcher, const KvCache& cache, DType dtype, Run run) {
  const int64_t head_dim = cache.head_dim;
  require(head_dim >= 8 && head_dim <= kMaxHeadDim && head_dim % 8 == 0, launcher,
          "a head_dim that is a multiple of 8 up to 256", head_dim);
  with_half_type(launcher, dtype, [&](auto t) {
    cache.k_scale != nullptr ? run(t, int8_t()) : run(t, t);
  });
}

}  // namespace tinychat
