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

#include "cpu/isa.h"

#if defined(TINYCHAT_AVXVNNI)

#include "cpu/w4a8_avx2.h"

namespace tinychat {
namespace {

// What a tile of 3 bits holds together.
constexpr int64_t kColumns = 32;

// sums[8] += 4 products each: the codes' unsigned bytes times the 4 signed bytes at x. Left
// to load x itself, g++ 12 kept it for the other half of the rows on the stack, and sums with it.
TINYCHAT_AVX2_INLINE void add_fours(__m256i& sums, __m256i codes, const uint8_t* x) {
  __m256i fours;
  asm("vpbroadcastd %3, %1\n\t%{vex%} vpdpbusd %1, %2, %0"
      : "+x"(sums), "=&x"(fours)
      : "x"(codes), "m"(*reinterpret_cast<const uint8_t(*)[4]>(x)));
}

template <int kBits, int kTokens>
TINYCHAT_AVX2 void multiply(const uint8_t* tile, const uint8_t* record, int64_t block,
                            float* total) {
  // A sum waits for its last addition, so that few tokens take two each.
  constexpr int kChains = kTokens <= 2 ? 2 : 1;
  __m256i sums[kChains][kTokens][kHalves];
#pragma GCC unroll 6
  for (int t = 0; t < kTokens; ++t) {
    for (int half = 0; half < kHalves; ++half) {
      sums[0][t][half] = _mm256_setzero_si256();
      sums[kChains - 1][t][half] = _mm256_setzero_si256();
    }
  }
  const uint8_t* x = record;
  for (int64_t k = 0; k < block; k += kColumns, tile += kColumns * kBits * 2) {
#pragma GCC unroll 4
    for (int64_t octet = 0; octet < kColumns / 8; ++octet, x += 8 * kTokens) {
      _mm_prefetch(tile + octet * kSetBytes + kPrefetchBytes, _MM_HINT_T0);
#pragma GCC unroll 2
      for (int half = 0; half < kHalves; ++half) {
        const Codes codes = load_codes<kBits>(tile + half * kSetBytes / 2, octet);
#pragma GCC unroll 6
        for (int t = 0; t < kTokens; ++t) {
          add_fours(sums[0][t][half], codes.low, x + t * 4);
          add_fours(sums[kChains - 1][t][half], codes.high, x + (kTokens + t) * 4);
        }
      }
    }
  }
#pragma GCC unroll 6
  for (int t = 0; t < kTokens && kChains > 1; ++t) {
    for (int half = 0; half < kHalves; ++half) {
      sums[0][t][half] = _mm256_add_epi32(sums[0][t][half], sums[1][t][half]);
    }
  }
  add_to_total(tile, x, sums[0], total);
}

template <int kBits>
constexpr W4A8Body kBody = {
    quantize, 6,
    {multiply<kBits, 1>, multiply<kBits, 2>, multiply<kBits, 3>, multiply<kBits, 4>,
     multiply<kBits, 5>, multiply<kBits, 6>}};

}  // namespace

const W4A8Body kW3A8AvxVnni = kBody<3>;
const W4A8Body kW4A8AvxVnni = kBody<4>;

}  // namespace tinychat

#endif
