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

// What W4A8 bodies of 256-bit registers have in common.

#pragma once

#include "cpu/codes_avx2.h"
#include "cpu/w4a8.h"

namespace tinychat {
namespace {

// total[token] += the sums, less those of the zero points, times the scales: `scales` of the tile,
// `x_scales` of the record.
template <int kTokens>
TINYCHAT_AVX2_INLINE void add_to_total(const uint8_t* scales, const uint8_t* x_scales,
                                       const __m256i (&sums)[kTokens][kHalves], float* total) {
  // Without, g++ 12 keeps the sums in memory through the loops that come before.
#pragma GCC unroll 2
  for (int half = 0; half < kHalves; ++half) {
    const __m256 row_scales = _mm256_cvtph_ps(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + half * kLanes * 2)));
    const __m256i zeros = _mm256_cvtepu8_epi32(_mm_loadl_epi64(
        reinterpret_cast<const __m128i*>(scales + kTileRows * 2 + half * kLanes)));
#pragma GCC unroll 6
    for (int t = 0; t < kTokens; ++t) {
      const __m256i negative_sum =
          _mm256_set1_epi32(load_scalar<int32_t>(x_scales + (kTokens + t) * 4));
      const __m256i difference =
          _mm256_add_epi32(sums[t][half], _mm256_madd_epi16(zeros, negative_sum));
      const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(difference), row_scales);
      const __m256 scale = _mm256_set1_ps(load_scalar<float>(x_scales + t * 4));
      float* lanes = total + t * kTileRows + half * kLanes;
      _mm256_storeu_ps(lanes, _mm256_fmadd_ps(scaled, scale, _mm256_loadu_ps(lanes)));
    }
  }
}

TINYCHAT_AVX2 float quantize(const float* x, int64_t count, int8_t* q) {
  return quantize_int8(x, count, q);
}

}  // namespace
}  // namespace tinychat
