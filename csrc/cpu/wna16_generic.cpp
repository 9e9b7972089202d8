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

// The body for processors without one of their own, in the compilers' portable 128-bit vectors.
// Written as plain loops it ran at a quarter of this speed: g++ 12 did not vectorize them.

#include "common.h"
#include "cpu/wna16.h"

namespace tinychat {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the tiles' words are little endian");

// A tile's rows are four quarters of 4 lanes.
constexpr int kLanes = 4;
constexpr int kQuarters = kTileRows / kLanes;
typedef int32_t Ints __attribute__((vector_size(16)));
typedef float Floats __attribute__((vector_size(16)));

template <typename Vector>
Vector load(const void* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}

void store(float* to, Floats vector) { std::memcpy(to, &vector, sizeof(vector)); }

// The codes of 4 rows in the low bits of their bytes, for the lower 4 of 8 k and for the higher 4.
struct Words {
  Ints low;
  Ints high;
};

// `rows` points at the tile's first word of these rows; `octet` counts the tile's k in eights.
template <int kBits>
Words load_words(const uint8_t* rows, int64_t octet) {
  if (kBits == 3 && octet % 4 == 3) {
    const uint8_t* chunk = rows + octet / 4 * 3 * kSetBytes;
    const Ints top = load<Ints>(chunk + 2 * kSetBytes);
    const Ints low = load<Ints>(chunk) >> 6 & 0x03030303;
    const Ints high = load<Ints>(chunk + kSetBytes) >> 6 & 0x03030303;
    return {low | (top >> 4 & 0x04040404), high | (top >> 5 & 0x04040404)};
  }
  const int64_t set = kBits == 3 ? octet - octet / 4 : octet;
  const Ints packed = load<Ints>(rows + set * kSetBytes);
  return {packed, packed >> kBits};
}

// Writes q - zero as [k][row].
template <int kBits>
void unpack(const uint8_t* tile, int64_t block, float* unpacked) {
  constexpr int32_t kMask = (1 << kBits) - 1;
  const uint8_t* all_zeros = tile + wna16_zeros_offset(kBits, block);
  for (int quarter = 0; quarter < kQuarters; ++quarter) {
    const uint8_t* zero = all_zeros + quarter * kLanes;
    const Ints zeros = {zero[0], zero[1], zero[2], zero[3]};
    for (int64_t octet = 0; octet < block / 8; ++octet) {
      const Words words = load_words<kBits>(tile + quarter * sizeof(Ints), octet);
      float* low = unpacked + octet * 8 * kTileRows + quarter * kLanes;
      float* high = low + 4 * kTileRows;
      for (int i = 0; i < 4; ++i) {
        const Ints q_low = words.low >> (8 * i) & kMask;
        const Ints q_high = words.high >> (8 * i) & kMask;
        store(low + i * kTileRows, __builtin_convertvector(q_low - zeros, Floats));
        store(high + i * kTileRows, __builtin_convertvector(q_high - zeros, Floats));
      }
    }
  }
}

Floats load_scales(const uint8_t* scales, int quarter) {
  uint16_t halves[kLanes];
  std::memcpy(halves, scales + quarter * sizeof(halves), sizeof(halves));
  return Floats{half_to_float(halves[0]), half_to_float(halves[1]), half_to_float(halves[2]),
                half_to_float(halves[3])};
}

void multiply(const uint8_t* scales, int64_t block, const float* unpacked, const float* x,
              int64_t x_stride, int64_t rows, float* total) {
  for (; rows > 0; --rows, x += x_stride, total += kTileRows) {
    Floats sum[kQuarters] = {};
    // Four k at a time: a shorter loop ran up to a quarter slower, depending on its address.
    for (int64_t k = 0; k < block; k += 4) {
      for (int i = 0; i < 4; ++i) {
        for (int quarter = 0; quarter < kQuarters; ++quarter) {
          const float* weights = unpacked + (k + i) * kTileRows + quarter * kLanes;
          sum[quarter] += x[k + i] * load<Floats>(weights);
        }
      }
    }
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      float* quarter_total = total + quarter * kLanes;
      store(quarter_total,
            load<Floats>(quarter_total) + sum[quarter] * load_scales(scales, quarter));
    }
  }
}

template <int kBits>
void dot(const uint8_t* tile, int64_t block, const float* x, float* total) {
  float unpacked[kMaxBlock * kTileRows];
  unpack<kBits>(tile, block, unpacked);
  multiply(tile + wna16_scales_offset(kBits, block), block, unpacked, x, block, 1, total);
}

}  // namespace

const WNA16Body kWNA16Generic[2] = {{dot<3>, unpack<3>, multiply}, {dot<4>, unpack<4>, multiply}};

}  // namespace tinychat
