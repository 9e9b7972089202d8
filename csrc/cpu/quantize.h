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

#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace tinychat {

// Rounds x[count] to q = round(x / s), half to even, and returns the scale s = max |x| / 127. A
// scale that would be subnormal, such as that of zeros, becomes 0, with q = 0; NaN or infinity in
// x give a scale that is not finite, with q = 0. reference.quantize_per_token gives the same bits.
//
// Inlined always, so that a caller compiled for wider vectors quantizes with them.
__attribute__((always_inline)) inline float quantize_int8(const float* x, int64_t count,
                                                          int8_t* q) {
  // The bits of magnitudes are ordered as the magnitudes are, infinity and NaN above all, and a
  // compiler may take the maximum of integers in any order.
  int32_t max_bits = 0;
  for (int64_t i = 0; i < count; ++i) {
    int32_t bits;
    std::memcpy(&bits, x + i, sizeof(bits));
    max_bits = std::max(max_bits, bits & INT32_MAX);
  }
  float scale;
  std::memcpy(&scale, &max_bits, sizeof(scale));
  scale /= 127;
  if (scale < FLT_MIN) scale = 0;
  if (scale == 0 || !std::isfinite(scale)) {
    std::memset(q, 0, count);
    return scale;
  }
  // Added to a small number, it leaves no bits for a fraction: a rounding that vectorizes.
  constexpr float kRound = 0x1.8p23f;
  for (int64_t i = 0; i < count; ++i) q[i] = static_cast<int8_t>(x[i] / scale + kRound - kRound);
  return scale;
}

}  // namespace tinychat
