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
#include "cpu/w4a16.h"

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

// Writes q - zero as [k][row].
void unpack(const uint8_t* tile, int64_t block, float* unpacked) {
  const uint8_t* all_zeros = tile + w4a16_zeros_offset(block);
  for (int quarter = 0; quarter < kQuarters; ++quarter) {
    const uint8_t* zero = all_zeros + quarter * kLanes;
    const Ints zeros = {zero[0], zero[1], zero[2], zero[3]};
    for (int64_t chunk = 0; chunk < block / 8; ++chunk) {
      const Ints words = load<Ints>(tile + chunk * 64 + quarter * sizeof(Ints));
      float* low = unpacked + chunk * 8 * kTileRows + quarter * kLanes;
      float* high = low + 4 * kTileRows;
      for (int i = 0; i < 4; ++i) {
        const Ints q_low = words >> (8 * i) & 15;
        const Ints q_high = words >> (8 * i + 4) & 15;
        store(low + i * kTileRows, __builtin_convertvector(q_low - zeros, Floats));
        store(high + i * kTileRows, __builtin_convertvector(q_high - zeros, Floats));
      }
    }
  }
}

Floats load_scales(const uint8_t* tile, int64_t block, int quarter) {
  uint16_t halves[kLanes];
  std::memcpy(halves, tile + w4a16_scales_offset(block) + quarter * sizeof(halves),
              sizeof(halves));
  return Floats{half_to_float(halves[0]), half_to_float(halves[1]), half_to_float(halves[2]),
                half_to_float(halves[3])};
}

void multiply(const uint8_t* tile, int64_t block, const float* unpacked, const float* x,
              int64_t x_stride, int64_t rows, float* total) {
  for (; rows > 0; --rows, x += x_stride, total += kTileRows) {
    Floats sum[kQuarters] = {};
    for (int64_t k = 0; k < block; ++k) {
      for (int quarter = 0; quarter < kQuarters; ++quarter) {
        const float* weights = unpacked + k * kTileRows + quarter * kLanes;
        sum[quarter] += x[k] * load<Floats>(weights);
      }
    }
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      float* quarter_total = total + quarter * kLanes;
      store(quarter_total,
            load<Floats>(quarter_total) + sum[quarter] * load_scales(tile, block, quarter));
    }
  }
}

void dot(const uint8_t* tile, int64_t block, const float* x, float* total) {
  float unpacked[kMaxBlock * kTileRows];
  unpack(tile, block, unpacked);
  multiply(tile, block, unpacked, x, block, 1, total);
}

}  // namespace

const W4A16Body kW4A16Generic = {dot, unpack, multiply};

}  // namespace tinychat
