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

#include <algorithm>

#include "cpu/ops.h"
#include "cpu/ops_bodies.h"
#include "cpu/thread_pool.h"

namespace tinychat::cpu {
namespace {

// Between the calls of a decode step the pool's workers are awake: of the 4 (RMSNorm) to 10 (SiLU)
// microseconds that these values took, two threads left 0.7 to 0.55.
constexpr int64_t kMinValuesPerThread = int64_t{1} << 16;

// Calls run for each row of `size` values.
template <typename Run>
void for_rows(int64_t rows, int64_t size, int num_threads, Run run) {
  ThreadPool::instance().parallel_for(
      rows, threads_for(rows * size, kMinValuesPerThread, num_threads),
      [&run](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) run(row);
      });
}

// Calls run for pieces of [0, count).
template <typename Run>
void for_pieces(int64_t count, int num_threads, Run run) {
  ThreadPool::instance().parallel_for(
      count, threads_for(count, kMinValuesPerThread, num_threads),
      [&run](int64_t begin, int64_t end) { run(begin, end - begin); });
}

int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// Where a row of one half of the cache goes.
KvDestination destination(const KvCache& cache, void* values, void* scales, int64_t row) {
  if (scales != nullptr) {
    return {static_cast<int8_t*>(values) + row * cache.head_dim,
            static_cast<uint16_t*>(scales) + row, cache.dtype};
  }
  return {static_cast<char*>(values) + row * cache.head_dim * size_of(cache.dtype), nullptr,
          cache.dtype};
}

}  // namespace

void embedding(const int32_t* token_ids, const void* table, float* x, int64_t tokens,
               int64_t vocab, int64_t hidden, DType dtype, float scale, int num_threads,
               const std::string& isa) {
  const Bodies& bodies = bodies_for(isa);
  for_rows(tokens, hidden, num_threads, [=, &bodies](int64_t t) {
    const int64_t id = token_ids[t];
    if (id < 0 || id >= vocab) {
      std::fill_n(x + t * hidden, hidden, 0.0f);
    } else {
      const char* row = static_cast<const char*>(table) + id * hidden * size_of(dtype);
      bodies.widen(row, dtype, hidden, scale, x + t * hidden);
    }
  });
}

void rms_norm(const float* x, const void* weight, float* y, int64_t tokens, int64_t hidden,
              float eps, DType dtype, int num_threads, const std::string& isa) {
  const Bodies& bodies = bodies_for(isa);
  for_rows(tokens, hidden, num_threads, [=, &bodies](int64_t t) {
    bodies.rms_norm(x + t * hidden, weight, dtype, hidden, eps, y + t * hidden);
  });
}

void layer_norm(const float* x, const void* weight, const void* bias, float* y, int64_t tokens,
                int64_t hidden, float eps, DType dtype, int num_threads, const std::string& isa) {
  const Bodies& bodies = bodies_for(isa);
  for_rows(tokens, hidden, num_threads, [=, &bodies](int64_t t) {
    bodies.layer_norm(x + t * hidden, weight, bias, dtype, hidden, eps, y + t * hidden);
  });
}

void add(float* x, const float* residual, int64_t count, int num_threads,
         const std::string& isa) {
  const Bodies& bodies = bodies_for(isa);
  for_pieces(count, num_threads, [=, &bodies](int64_t begin, int64_t size) {
    bodies.add(x + begin, residual + begin, size);
  });
}

void clip(float* x, int64_t count, float limit, int num_threads, const std::string& isa) {
  const Bodies& bodies = bodies_for(isa);
  for_pieces(count, num_threads, [=, &bodies](int64_t begin, int64_t size) {
    bodies.clip(x + begin, size, limit);
  });
}

void softcap(float* x, int64_t count, float cap, int num_threads, const std::string& isa) {
  const Bodies& bodies = bodies_for(isa);
  for_pieces(count, num_threads, [=, &bodies](int64_t begin, int64_t size) {
    bodies.softcap(x + begin, size, cap);
  });
}

void gate_mul(const float* gate_up, float* out, int64_t tokens, int64_t size,
              Activation activation, int num_threads, const std::string& isa) {
  const Bodies& bodies = bodies_for(isa);
  for_rows(tokens, size, num_threads, [=, &bodies](int64_t t) {
    const float* gate = gate_up + t * 2 * size;
    bodies.gate_mul(activation, gate, gate + size, size, out + t * size);
  });
}

void activate(const float* x, const void* scales, float* out, int64_t tokens, int64_t size,
              Activation activation, DType dtype, int num_threads, const std::string& isa) {
  const Bodies& bodies = bodies_for(isa);
  for_rows(tokens, size, num_threads, [=, &bodies](int64_t t) {
    bodies.activate(activation, x + t * size, scales, dtype, size, out + t * size);
  });
}

void rope_append(const float* qkv, float* q, const KvCache& cache, const float* cos,
                 const float* sin, const HeadNorm& norm, int64_t tokens, int64_t heads,
                 int num_threads, const std::string& isa) {
  const Bodies& bodies = bodies_for(isa);
  const int64_t head_dim = cache.head_dim;
  const int64_t half = head_dim / 2;
  const int64_t rows = heads + 2 * cache.kv_heads;
  const StepState state = *cache.state;
  for_rows(tokens * rows, head_dim, num_threads, [&](int64_t item) {
    const int64_t token = item / rows;
    const int64_t head = item % rows;
    const int64_t position = state.position + token;
    if (position >= cache.max_seq_len) return;
    const float* x = qkv + item * head_dim;
    const int64_t kv_head = (head - heads) % cache.kv_heads;
    const int64_t row = (state.slot * cache.kv_heads + kv_head) * cache.max_seq_len + position;
    if (head >= heads + cache.kv_heads) {
      return bodies.append(x, head_dim, destination(cache, cache.v, cache.v_scale, row));
    }
    float key[kMaxHeadDim];
    float* to = head < heads ? q + (token * heads + head) * head_dim : key;
    if (norm.q != nullptr) {
      bodies.rms_norm(x, head < heads ? norm.q : norm.k, norm.dtype, head_dim, norm.eps, to);
      x = to;
    }
    if (cos != nullptr) {
      bodies.rotate(x, cos + position * half, sin + position * half, half, to);
    } else if (x != to) {
      std::copy_n(x, head_dim, to);
    }
    if (head >= heads) {
      bodies.append(key, head_dim, destination(cache, cache.k, cache.k_scale, row));
    }
  });
}

}  // namespace tinychat::cpu
