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

#include "cpu/w4a8_avx2.h"

namespace tinychat {
namespace {

// A product of two bytes is at most 15 * 127 and an int16 lane takes 2 of them at a time: 8 times
// that, 32 k, stay below 2^15.
constexpr int64_t kColumns = 32;

// The addition is hidden from g++ 12, which added products to each other first and kept sums in
// memory meanwhile: 4 tokens ran at 0.7 of the speed.
TINYCHAT_AVX2_INLINE void add_products(__m256i& pairs, __m256i codes, __m256i four) {
  asm("vpaddw %1, %0, %0" : "+x"(pairs) : "x"(_mm256_maddubs_epi16(codes, four)));
}

// pairs[token][half] += the products of 4 k.
template <int kTokens>
TINYCHAT_AVX2_INLINE void add_fours(__m256i first, __m256i second, const uint8_t* x,
                                    __m256i (&pairs)[kTokens][kHalves]) {
  for (int t = 0; t < kTokens; ++t) {
    const __m256i four = _mm256_set1_epi32(load_scalar<int32_t>(x + t * 4));
    add_products(pairs[t][0], first, four);
    add_products(pairs[t][1], second, four);
  }
}

// sums[token][half] += the products of kColumns k.
template <int kBits, int kTokens>
TINYCHAT_AVX2_INLINE void add_columns(const uint8_t* tile, const uint8_t* x,
                                      __m256i (&sums)[kTokens][kHalves]) {
  __m256i pairs[kTokens][kHalves];
  for (int t = 0; t < kTokens; ++t) pairs[t][0] = pairs[t][1] = _mm256_setzero_si256();
  for (int64_t octet = 0; octet < kColumns / 8; ++octet, x += 8 * kTokens) {
    const Codes first = load_codes<kBits>(tile, octet);
    const Codes second = load_codes<kBits>(tile + kSetBytes / 2, octet);
    _mm_prefetch(tile + octet * kSetBytes + kPrefetchBytes, _MM_HINT_T0);
    add_fours<kTokens>(first.low, second.low, x, pairs);
    add_fours<kTokens>(first.high, second.high, x + 4 * kTokens, pairs);
  }
  const __m256i ones = _mm256_set1_epi16(1);
  for (int t = 0; t < kTokens; ++t) {
    for (int half = 0; half < kHalves; ++half) {
      sums[t][half] = _mm256_add_epi32(sums[t][half], _mm256_madd_epi16(pairs[t][half], ones));
    }
  }
}

template <int kBits, int kTokens>
TINYCHAT_AVX2 void multiply(const uint8_t* tile, const uint8_t* record, int64_t block,
                            float* total) {
  __m256i sums[kTokens][kHalves];
  for (int t = 0; t < kTokens; ++t) sums[t][0] = sums[t][1] = _mm256_setzero_si256();
  for (int64_t k = 0; k < block; k += kColumns) {
    add_columns<kBits>(tile + k * kBits * 2, record + k * kTokens, sums);
  }
  add_to_total(tile + wna16_scales_offset(kBits, block), record + block * kTokens, sums, total);
}

template <int kBits>
constexpr W4A8Body kBody = {
    quantize, 4,
    {multiply<kBits, 1>, multiply<kBits, 2>, multiply<kBits, 3>, multiply<kBits, 4>}};

}  // namespace

const W4A8Body kW3A8Avx2 = kBody<3>;
const W4A8Body kW4A8Avx2 = kBody<4>;

}  // namespace tinychat

#endif
