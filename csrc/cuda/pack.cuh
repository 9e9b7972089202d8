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

// Values that one load moves, and those that one register holds.

#pragma once

#include <cstring>
#include <type_traits>

#include "cuda/runtime.cuh"

namespace tinychat {

// What one load moves: 16 bytes, or 8.
template <typename T, int kValues = 16 / sizeof(T)>
struct alignas(kValues * sizeof(T)) Pack {
  static constexpr int kSize = kValues;
  T values[kSize];
};

// Copied as it is, the compiler would load its values one by one.
template <typename T, int kSize>
__device__ Pack<T, kSize> load(const Pack<T, kSize>* address) {
  using Bits = std::conditional_t<sizeof(*address) == sizeof(uint4), uint4, uint2>;
  const Bits bits = *reinterpret_cast<const Bits*>(address);
  Pack<T, kSize> pack;
  memcpy(&pack, &bits, sizeof(pack));
  return pack;
}

template <typename T, int kSize>
__device__ float sum_of(const Pack<T, kSize>& pack) {
  float sum = 0.0f;
  for (int i = 0; i < kSize; ++i) sum += static_cast<float>(pack.values[i]);
  return sum;
}

// Two values of T, half or __nv_bfloat16, in a register.
template <typename T>
using Pair = std::conditional_t<std::is_same_v<T, half>, half2, __nv_bfloat162>;

template <typename T>
__device__ __forceinline__ Pair<T> pair_of(uint32_t bits) {
  Pair<T> pair;
  memcpy(&pair, &bits, sizeof(pair));
  return pair;
}

template <typename AnyPair>
__device__ __forceinline__ uint32_t bits_of(AnyPair pair) {
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

template <typename T>
__device__ uint32_t pack(float low, float high) {
  if constexpr (std::is_same_v<T, half>) {
    return bits_of(__floats2half2_rn(low, high));
  } else {
    return bits_of(__floats2bfloat162_rn(low, high));
  }
}

}  // namespace tinychat
