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

#if defined(__x86_64__)

#include <immintrin.h>

#include "cpu/w4a8.h"

// On each function and not for the whole file; wna16_avx2.cpp says why.
#define TINYCHAT_VNNI __attribute__((target("avx512f,avx512bw,avx512vnni")))
#define TINYCHAT_VNNI_INLINE TINYCHAT_VNNI __attribute__((always_inline)) inline

namespace tinychat {
namespace {

// sums[16] += 4 products each: the codes' unsigned bytes times the 4 signed bytes at x. As an
// intrinsic, g++ 12 copied and spilled the sums of 24 tokens around it, at half the speed.
TINYCHAT_VNNI_INLINE void add_fours(__m512i& sums, __m512i codes, const uint8_t* x) {
  asm("vpdpbusd %2%{1to16%}, %1, %0"
      : "+v"(sums)
      : "v"(codes), "m"(*reinterpret_cast<const uint8_t(*)[4]>(x)));
}

template <int kTokens>
TINYCHAT_VNNI void multiply_tokens(const uint8_t* tile, const uint8_t* x, int64_t blocks,
                                   int64_t block, float* total) {
  const __m512i low_nibbles = _mm512_set1_epi8(15);
  for (int t = 0; t < kTokens; ++t) _mm512_storeu_ps(total + t * kTileRows, _mm512_setzero_ps());
  for (int64_t b = 0; b < blocks; ++b) {
    const uint8_t* scales = x + block * kTokens;
    const __m512i zeros = _mm512_cvtepu8_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(tile + wna16_zeros_offset(4, block))));
    __m512i sums[kTokens];
#pragma GCC unroll 24
    for (int t = 0; t < kTokens; ++t) {
      int32_t negative_sum;
      __builtin_memcpy(&negative_sum, scales + (kTokens + t) * 4, 4);
      sums[t] = _mm512_madd_epi16(zeros, _mm512_set1_epi32(negative_sum));
    }
    for (int64_t k = 0; k < block; k += 8) {
      const __m512i packed = _mm512_loadu_si512(tile);
      const __m512i low = _mm512_and_si512(packed, low_nibbles);
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low_nibbles);
#pragma GCC unroll 24
      for (int t = 0; t < kTokens; ++t) add_fours(sums[t], low, x + t * 4);
#pragma GCC unroll 24
      for (int t = 0; t < kTokens; ++t) add_fours(sums[t], high, x + (kTokens + t) * 4);
      tile += kSetBytes;
      x += 8 * kTokens;
    }
    const __m512 row_scales =
        _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile)));
#pragma GCC unroll 24
    for (int t = 0; t < kTokens; ++t) {
      float scale;
      __builtin_memcpy(&scale, scales + t * 4, 4);
      const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[t]), row_scales);
      float* token = total + t * kTileRows;
      _mm512_storeu_ps(
          token, _mm512_fmadd_ps(scaled, _mm512_set1_ps(scale), _mm512_loadu_ps(token)));
    }
    tile += 48;
    x += 8 * kTokens;
  }
}

using ByTokens = void (*)(const uint8_t*, const uint8_t*, int64_t, int64_t, float*);

TINYCHAT_VNNI void multiply(const uint8_t* tiles, const uint8_t* strip, int64_t blocks,
                            int64_t block, int64_t tokens, float* total) {
  constexpr ByTokens kByTokens[] = {
      multiply_tokens<1>,  multiply_tokens<2>,  multiply_tokens<3>,  multiply_tokens<4>,
      multiply_tokens<5>,  multiply_tokens<6>,  multiply_tokens<7>,  multiply_tokens<8>,
      multiply_tokens<9>,  multiply_tokens<10>, multiply_tokens<11>, multiply_tokens<12>,
      multiply_tokens<13>, multiply_tokens<14>, multiply_tokens<15>, multiply_tokens<16>,
      multiply_tokens<17>, multiply_tokens<18>, multiply_tokens<19>, multiply_tokens<20>,
      multiply_tokens<21>, multiply_tokens<22>, multiply_tokens<23>, multiply_tokens<24>};
  kByTokens[tokens - 1](tiles, strip, blocks, block, total);
}

}  // namespace

const W4A8Body kW4A8Avx512Vnni = {24, multiply};

}  // namespace tinychat

#endif
