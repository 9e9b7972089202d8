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

// Codes of 3 or 4 bits from the tiles that wna16.h draws, for bodies of 256-bit registers.

#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/wna16.h"

// Set on each function and not for the whole file: a standard library template compiled for AVX2
// here could be the copy that the linker keeps for every file.
#define TINYCHAT_AVX2 __attribute__((target("avx2,fma,f16c")))
#define TINYCHAT_AVX2_INLINE TINYCHAT_AVX2 __attribute__((always_inline)) inline

namespace tinychat {
namespace {

// A tile's rows are two halves of 8 lanes.
constexpr int kLanes = 8;
constexpr int kHalves = 2;

// The codes of 8 rows, for the lower 4 of 8 k and for the higher 4, each in the bytes of a word.
struct Codes {
  __m256i low;
  __m256i high;
};

TINYCHAT_AVX2_INLINE __m256i load(const void* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

// The bits of `mask` of each byte, after bit `shift` has become bit 0.
TINYCHAT_AVX2_INLINE __m256i bits_of(__m256i packed, int shift, char mask) {
  return _mm256_and_si256(_mm256_srli_epi16(packed, shift), _mm256_set1_epi8(mask));
}

// `rows` points at the tile's first word of these rows; `octet` counts the tile's k in eights.
template <int kBits>
TINYCHAT_AVX2_INLINE Codes load_codes(const uint8_t* rows, int64_t octet) {
  constexpr char kMask = (1 << kBits) - 1;
  if (kBits == 3 && octet % 4 == 3) {
    const uint8_t* chunk = rows + octet / 4 * 3 * kSetBytes;
    const __m256i top = load(chunk + 2 * kSetBytes);
    return {_mm256_or_si256(bits_of(load(chunk), 6, 3), bits_of(top, 4, 4)),
            _mm256_or_si256(bits_of(load(chunk + kSetBytes), 6, 3), bits_of(top, 5, 4))};
  }
  const int64_t set = kBits == 3 ? octet - octet / 4 : octet;
  __m256i packed = load(rows + set * kSetBytes);
  // One load for both; w4a8_avx512vnni.cpp says why.
  asm("" : "+x"(packed));
  return {bits_of(packed, 0, kMask), bits_of(packed, kBits, kMask)};
}

}  // namespace
}  // namespace tinychat
