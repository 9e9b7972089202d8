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

// What becomes of a W4 product: for a token, a tile and g = 0 to 7 an epilogue gets the sums of
// rows g and g + 8 of the tile, which is what one lane holds after an mma.

#pragma once

#include "cuda/activation.cuh"
#include "cuda/launchers.h"
#include "cuda/runtime.cuh"
#include "cuda/w4_record.cuh"

namespace tinychat {

template <typename T>
struct Bias {
  const T* bias;
  int64_t n;

  __device__ float operator()(int64_t row, float sum) const {
    return bias == nullptr || row >= n ? sum : sum + static_cast<float>(bias[row]);
  }
};

template <typename T>
struct LinearEpilogue {
  const T* residual;
  T* y;
  int64_t n;
  Activation activation = Activation::kNone;
  const T* scales = nullptr;

  __device__ void operator()(int64_t token, int64_t tile, int g, float low, float high) const {
    store(token, tile * kRecordRows + g, low);
    store(token, tile * kRecordRows + g + 8, high);
  }

  __device__ void store(int64_t token, int64_t row, float value) const {
    if (row >= n) return;
    const int64_t at = token * n + row;
    value = activated(activation, value);
    if (scales != nullptr) value /= static_cast<float>(scales[row]);
    if (residual != nullptr) value += static_cast<float>(residual[at]);
    y[at] = T(value);
  }
};

template <typename T>
struct GateUpEpilogue {
  Activation activation;
  T* y;
  int64_t n;  // of gate and up together

  __device__ void operator()(int64_t token, int64_t tile, int g, float gate, float up) const {
    const int64_t column = tile * 8 + g;
    if (column < n / 2) y[token * (n / 2) + column] = T(activated(activation, gate) * up);
  }
};

template <typename T>
struct QkvEpilogue {
  T* q;
  KvCache cache;
  Rotary rotary;
  int heads;

  __device__ void operator()(int64_t token, int64_t tile, int g, float low, float high) const {
    const int head_dim = static_cast<int>(cache.head_dim);
    const int tiles = head_dim / kRecordRows;
    const int head = static_cast<int>(tile / tiles);
    const int j = static_cast<int>(tile % tiles);
    const int64_t position = cache.state->position + token;
    if (position >= cache.max_seq_len || head >= heads + 2 * cache.kv_heads) return;
    if (head >= heads + cache.kv_heads) {
      T* v = row(cache.v, head - heads - cache.kv_heads, position);
      v[kRecordRows * j + g] = T(low);
      v[kRecordRows * j + g + 8] = T(high);
      return;
    }
    T* to = head < heads ? q + (token * heads + head) * head_dim
                         : row(cache.k, head - heads, position);
    const int at = 8 * j + g;
    const float cos = __ldg(&rotary.cos[position * (head_dim / 2) + at]);
    const float sin = __ldg(&rotary.sin[position * (head_dim / 2) + at]);
    to[at] = T(low * cos - high * sin);
    to[at + head_dim / 2] = T(high * cos + low * sin);
  }

  __device__ T* row(void* values, int64_t kv_head, int64_t position) const {
    const int64_t head = cache.state->slot * cache.kv_heads + kv_head;
    return static_cast<T*>(values) + (head * cache.max_seq_len + position) * cache.head_dim;
  }
};

template <typename T>
LinearEpilogue<T> epilogue_of(const W4Input& input, const LinearOutput& output) {
  return {static_cast<const T*>(output.residual), static_cast<T*>(output.y), input.n};
}

template <typename T>
LinearEpilogue<T> epilogue_of(const W4Input& input, const UpOutput& output) {
  return {nullptr, static_cast<T*>(output.y), input.n, output.activation,
          static_cast<const T*>(output.scales)};
}

template <typename T>
GateUpEpilogue<T> epilogue_of(const W4Input& input, const GateUpOutput& output) {
  return {output.activation, static_cast<T*>(output.y), input.n};
}

template <typename T>
QkvEpilogue<T> epilogue_of(const W4Input&, const QkvOutput& output) {
  return {static_cast<T*>(output.q), output.cache, output.rotary,
          static_cast<int>(output.heads)};
}

}  // namespace tinychat
