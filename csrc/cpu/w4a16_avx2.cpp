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

#include "cpu/w4a16.h"

// Set on each function and not for the whole file: a standard library template compiled for AVX2
// here could be the copy that the linker keeps for every file.
#define TINYCHAT_AVX2 __attribute__((target("avx2,fma,f16c")))
#define TINYCHAT_AVX2_INLINE TINYCHAT_AVX2 __attribute__((always_inline)) inline

namespace tinychat {
namespace {

// A tile's rows are two halves of 8 fp32 lanes.
constexpr int kLanes = 8;
constexpr int kHalves = 2;

// Rows of x multiplied at once: 6 rows by 2 halves is 12 accumulators, and of the 16 registers
// two more hold weights and one holds x.
constexpr int64_t kRowsAtOnce = 6;

// q - zero of 8 rows, for the 4 k in the low nibbles of their words and the 4 in the high ones.
// Subtracting the zero point here, in integers, is exact; taking it off afterwards through the sum
// of x would leave rounding errors as large as x where the weights themselves are zero.
struct Words {
  __m256i low;
  __m256i high;
};

TINYCHAT_AVX2_INLINE Words load_words(const uint8_t* words, __m256i zeros) {
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
  const __m256i low = _mm256_and_si256(packed, nibble);
  const __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble);
  return {_mm256_sub_epi8(low, zeros), _mm256_sub_epi8(high, zeros)};
}

// Byte i of each word as a float times 2^24: a byte put at the top of its word needs no sign
// extension, and load_scales() takes the factor back.
TINYCHAT_AVX2_INLINE __m256 byte_to_float(__m256i words, int i) {
  // An index of 0x80 writes a zero.
  const __m256i byte_0_to_top =
      _mm256_setr_epi32(0x00808080, 0x04808080, 0x08808080, 0x0C808080,  //
                        0x00808080, 0x04808080, 0x08808080, 0x0C808080);
  const __m256i byte_i_to_top = _mm256_add_epi32(byte_0_to_top, _mm256_set1_epi32(i << 24));
  return _mm256_cvtepi32_ps(_mm256_shuffle_epi8(words, byte_i_to_top));
}

// The zero points of one half, each repeated in the 4 bytes of its row's word.
TINYCHAT_AVX2_INLINE __m256i load_zeros(const uint8_t* tile, int64_t block, int half) {
  const uint8_t* zeros = tile + w4a16_zeros_offset(block) + half * kLanes;
  const __m256i words =
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros)));
  return _mm256_mullo_epi32(words, _mm256_set1_epi32(0x01010101));
}

TINYCHAT_AVX2_INLINE __m256 load_scales(const uint8_t* tile, int64_t block, int half) {
  const uint8_t* scales = tile + w4a16_scales_offset(block) + half * kLanes * 2;
  const __m256 floats = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
  return _mm256_mul_ps(floats, _mm256_set1_ps(0x1p-24f));
}

// Adds two partial sums, one over the low and one over the high nibbles, to a total. Two sums
// instead of one keep dot() from waiting for the latency of its additions.
TINYCHAT_AVX2_INLINE void add_to_total(__m256 low, __m256 high, __m256 scales, float* total) {
  const __m256 sum = _mm256_add_ps(low, high);
  _mm256_storeu_ps(total, _mm256_fmadd_ps(sum, scales, _mm256_loadu_ps(total)));
}

TINYCHAT_AVX2 void dot(const uint8_t* tile, int64_t block, const float* x, float* total) {
  const __m256i zeros[kHalves] = {load_zeros(tile, block, 0), load_zeros(tile, block, 1)};
  __m256 low[kHalves] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  __m256 high[kHalves] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int64_t chunk = 0; chunk < block / 8; ++chunk, x += 8) {
    const Words words[kHalves] = {load_words(tile + chunk * 64, zeros[0]),
                                  load_words(tile + chunk * 64 + kLanes * 4, zeros[1])};
    for (int i = 0; i < 4; ++i) {
      const __m256 x_low = _mm256_broadcast_ss(x + i);
      const __m256 x_high = _mm256_broadcast_ss(x + i + 4);
      for (int half = 0; half < kHalves; ++half) {
        low[half] = _mm256_fmadd_ps(x_low, byte_to_float(words[half].low, i), low[half]);
        high[half] = _mm256_fmadd_ps(x_high, byte_to_float(words[half].high, i), high[half]);
      }
    }
  }
  for (int half = 0; half < kHalves; ++half) {
    add_to_total(low[half], high[half], load_scales(tile, block, half), total + half * kLanes);
  }
}

// Writes (q - zero) * 2^24 as [k][row].
TINYCHAT_AVX2 void unpack(const uint8_t* tile, int64_t block, float* unpacked) {
  for (int half = 0; half < kHalves; ++half) {
    const __m256i zeros = load_zeros(tile, block, half);
    for (int64_t chunk = 0; chunk < block / 8; ++chunk) {
      const Words words = load_words(tile + chunk * 64 + half * kLanes * 4, zeros);
      float* low = unpacked + chunk * 8 * kTileRows + half * kLanes;
      float* high = low + 4 * kTileRows;
      for (int i = 0; i < 4; ++i) {
        _mm256_storeu_ps(low + i * kTileRows, byte_to_float(words.low, i));
        _mm256_storeu_ps(high + i * kTileRows, byte_to_float(words.high, i));
      }
    }
  }
}

// sum[row][half] = the dot products over the k that lie in one nibble of the chunks' words, in
// the order in which dot() adds them. `unpacked` and `x` point at that nibble's first k.
template <int kRows>
TINYCHAT_AVX2_INLINE void multiply_nibble(const float* unpacked, int64_t block, const float* x,
                                          int64_t x_stride, __m256 (&sum)[kRows][kHalves]) {
  for (int row = 0; row < kRows; ++row) sum[row][0] = sum[row][1] = _mm256_setzero_ps();
  for (int64_t k = 0; k < block; k += 8) {
    for (int i = 0; i < 4; ++i) {
      const float* weights = unpacked + (k + i) * kTileRows;
      const __m256 first = _mm256_loadu_ps(weights);
      const __m256 second = _mm256_loadu_ps(weights + kLanes);
      for (int row = 0; row < kRows; ++row) {
        const __m256 value = _mm256_broadcast_ss(x + row * x_stride + k + i);
        sum[row][0] = _mm256_fmadd_ps(value, first, sum[row][0]);
        sum[row][1] = _mm256_fmadd_ps(value, second, sum[row][1]);
      }
    }
  }
}

template <int kRows>
TINYCHAT_AVX2 void multiply_rows(const uint8_t* tile, int64_t block, const float* unpacked,
                                 const float* x, int64_t x_stride, float* total) {
  __m256 low[kRows][kHalves];
  __m256 high[kRows][kHalves];
  multiply_nibble<kRows>(unpacked, block, x, x_stride, low);
  multiply_nibble<kRows>(unpacked + 4 * kTileRows, block, x + 4, x_stride, high);
  for (int half = 0; half < kHalves; ++half) {
    const __m256 scales = load_scales(tile, block, half);
    for (int row = 0; row < kRows; ++row) {
      add_to_total(low[row][half], high[row][half], scales,
                   total + row * kTileRows + half * kLanes);
    }
  }
}

TINYCHAT_AVX2 void multiply(const uint8_t* tile, int64_t block, const float* unpacked,
                            const float* x, int64_t x_stride, int64_t rows, float* total) {
  constexpr decltype(&multiply_rows<1>) kByRows[kRowsAtOnce] = {
      multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
      multiply_rows<4>, multiply_rows<5>, multiply_rows<6>};
  while (rows > 0) {
    const int64_t now = rows < kRowsAtOnce ? rows : kRowsAtOnce;
    kByRows[now - 1](tile, block, unpacked, x, x_stride, total);
    x += now * x_stride;
    total += now * kTileRows;
    rows -= now;
  }
}

}  // namespace

const W4A16Body kW4A16Avx2 = {dot, unpack, multiply};

}  // namespace tinychat

#endif
