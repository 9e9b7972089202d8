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

// The inner loops of rows.cpp. Included as simd.h says.

#pragma once

#include "cpu/ops_bodies.h"
#include "cpu/simd.h"

namespace tinychat::cpu {
namespace {

// The sum over n elements of what step(i, left) gives for the vector at i, of which `left` count.
template <typename Step>
inline float sum_of(int64_t n, Step step) {
  Floats sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) sums[j] += step(i + j * kLanes, kLanes);
  }
  for (; i < n; i += kLanes) sums[0] += step(i, n - i);
  return total(sums);
}

inline float sum_of_squares(const float* x, int64_t n) {
  return sum_of(n, [x](int64_t i, int64_t left) {
    const Floats values = load(x + i, left);
    return values * values;
  });
}

// Of the mean of squares.
inline float inverse_root(float squares, int64_t n, float eps) {
  return 1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps);
}

void widen_row(const void* from, DType dtype, int64_t n, float scale, float* to) {
  with_type(dtype, from, [&](const auto* values) {
    for (int64_t i = 0; i < n; i += kLanes) store(to + i, load(values + i, n - i) * scale, n - i);
  });
}

void rms_norm_row(const float* x, const void* weight, DType dtype, int64_t n, float eps,
                  float* y) {
  const float scale = inverse_root(sum_of_squares(x, n), n, eps);
  with_type(dtype, weight, [&](const auto* weights) {
    for (int64_t i = 0; i < n; i += kLanes) {
      store(y + i, load(x + i, n - i) * scale * load(weights + i, n - i), n - i);
    }
  });
}

void layer_norm_row(const float* x, const void* weight, const void* bias, DType dtype, int64_t n,
                    float eps, float* y) {
  const float sum = sum_of(n, [x](int64_t i, int64_t left) { return load(x + i, left); });
  const float mean = sum / static_cast<float>(n);
  for (int64_t i = 0; i < n; i += kLanes) store(y + i, load(x + i, n - i) - mean, n - i);
  const float scale = inverse_root(sum_of_squares(y, n), n, eps);
  with_type(dtype, weight, [&](const auto* weights) {
    const auto* biases = static_cast<decltype(weights)>(bias);
    for (int64_t i = 0; i < n; i += kLanes) {
      const Floats scaled = load(y + i, n - i) * scale * load(weights + i, n - i);
      store(y + i, biases == nullptr ? scaled : scaled + load(biases + i, n - i), n - i);
    }
  });
}

void add_row(float* x, const float* residual, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    store(x + i, load(x + i, n - i) + load(residual + i, n - i), n - i);
  }
}

void clip_row(float* x, int64_t n, float limit) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const Floats value = load(x + i, n - i);
    store(x + i, value > limit ? all(limit) : value < -limit ? all(-limit) : value, n - i);
  }
}

void softcap_row(float* x, int64_t n, float cap) {
  for (int64_t i = 0; i < n; i += kLanes) {
    store(x + i, softcapped(load(x + i, n - i), cap), n - i);
  }
}

// The reference rounds each product. y may be x.
void rotate_row(const float* x, const float* cos, const float* sin, int64_t half, float* y) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t left = half - i;
    const Floats low = load(x + i, left);
    const Floats high = load(x + half + i, left);
    const Floats c = load(cos + i, left);
    const Floats s = load(sin + i, left);
    store(y + i, rounded(low * c) - rounded(high * s), left);
    store(y + half + i, rounded(high * c) + rounded(low * s), left);
  }
}

// NaN is the largest: the bits of magnitudes are ordered as the magnitudes are.
inline float largest_magnitude(const float* x, int64_t n) {
  Ints largest = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    const Ints bits = as_ints(load(x + i, n - i)) & INT32_MAX;
    largest = bits > largest ? bits : largest;
  }
  int32_t found = 0;
  for (int lane = 0; lane < kLanes; ++lane) found = largest[lane] > found ? largest[lane] : found;
  return load_as<float>(&found);
}

// As reference.quantize_kv.
void append_int8(const float* x, int64_t n, int8_t* codes, uint16_t* row_scale) {
  const Shorts half_scale = narrow(all(largest_magnitude(x, n) / 127.0f));
  const Floats scale = widen(half_scale);
  const bool usable = scale[0] > 0.0f && scale[0] < kInfinity;
  *row_scale = half_scale[0];
  for (int64_t i = 0; i < n; i += kLanes) {
    Floats code = load(x + i, n - i) / scale;
    code = code > 127.0f ? all(127.0f) : code < -127.0f ? all(-127.0f) : code;
    const Ints whole = __builtin_convertvector(code + kRound - kRound, Ints);
    store(codes + i, usable ? __builtin_convertvector(whole, Bytes) : Bytes{}, n - i);
  }
}

void append_row(const float* x, int64_t n, const KvDestination& to) {
  if (to.scale != nullptr) return append_int8(x, n, static_cast<int8_t*>(to.values), to.scale);
  if (to.dtype == DType::kFloat32) {
    __builtin_memcpy(to.values, x, n * sizeof(float));
    return;
  }
  auto* halves = static_cast<uint16_t*>(to.values);
  for (int64_t i = 0; i < n; i += kLanes) store(halves + i, narrow(load(x + i, n - i)), n - i);
}

}  // namespace
}  // namespace tinychat::cpu
