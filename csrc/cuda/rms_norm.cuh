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

// RMSNorm as the reference rounds it, for all kernels that have one.

#pragma once

#include "cuda/pack.cuh"

namespace tinychat {

// Of what the values are more than `mean`.
template <typename T, int kSize>
__device__ float sum_of_squares(const Pack<T, kSize>& pack, float mean = 0.0f) {
  float sum = 0.0f;
  for (int i = 0; i < kSize; ++i) {
    const float value = static_cast<float>(pack.values[i]) - mean;
    sum += value * value;
  }
  return sum;
}

// `scale` is 1 / sqrt(mean(x^2) + eps).
template <typename T, int kSize>
__device__ Pack<T, kSize> scaled(const Pack<T, kSize>& x, float scale,
                                 const Pack<T, kSize>& weight) {
  Pack<T, kSize> y;
  for (int i = 0; i < kSize; ++i) {
    const T normalized = T(static_cast<float>(x.values[i]) * scale);
    y.values[i] = T(static_cast<float>(normalized) * static_cast<float>(weight.values[i]));
  }
  return y;
}

}  // namespace tinychat
