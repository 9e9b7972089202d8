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

// The body for processors without one of their own: codes and activations as int16, rows one after
// another, because compilers vectorize a sum of products of int16 with the multiply-add that every
// processor has.

#include <algorithm>
#include <cmath>

#include "common.h"
#include "cpu/w4a8.h"

namespace tinychat {
namespace {

// A tile is unpacked once for a strip.
constexpr int64_t kTokens = 8;

// Writes the codes as [row][k].
void unpack(const uint8_t* tile, int64_t block, int16_t* codes) {
  for (int64_t row = 0; row < kTileRows; ++row, codes += block) {
    const uint8_t* word = tile + row * 4;
    for (int64_t k = 0; k < block; k += 8, word += kSetBytes) {
      for (int64_t i = 0; i < 4; ++i) {
        codes[k + i] = word[i] & 15;
        codes[k + 4 + i] = word[i] >> 4;
      }
    }
  }
}

void widen(const uint8_t* record, int64_t block, int64_t tokens, int16_t* q) {
  for (int64_t k = 0; k < block; k += 4, record += tokens * 4) {
    for (int64_t i = 0; i < 4; ++i) q[k + i] = static_cast<int8_t>(record[i]);
  }
}

int32_t dot(const int16_t* codes, const int16_t* q, int64_t block) {
  int32_t sum = 0;
  for (int64_t i = 0; i < block; ++i) sum += codes[i] * q[i];
  return sum;
}

// total[16] += a tile times one token's block.
void add_block(const uint8_t* tile, const int16_t* codes, const int16_t* q, int64_t block,
               float scale, int32_t negative_sum, float* total) {
  const uint8_t* zeros = tile + wna16_zeros_offset(4, block);
  uint16_t scales[kTileRows];
  std::memcpy(scales, tile + wna16_scales_offset(4, block), sizeof(scales));
  for (int64_t row = 0; row < kTileRows; ++row) {
    const int32_t sum = dot(codes + row * block, q, block) + zeros[row] * negative_sum;
    total[row] = std::fma(static_cast<float>(sum) * half_to_float(scales[row]), scale, total[row]);
  }
}

void multiply(const uint8_t* tiles, const uint8_t* strip, int64_t blocks, int64_t block,
              int64_t tokens, float* total) {
  int16_t codes[kTileRows * kMaxBlock];
  int16_t q[kMaxBlock];
  std::fill_n(total, tokens * kTileRows, 0.0f);
  for (int64_t b = 0; b < blocks; ++b) {
    unpack(tiles, block, codes);
    const uint8_t* scales = strip + block * tokens;
    for (int64_t t = 0; t < tokens; ++t) {
      float scale;
      int32_t negative_sum;
      std::memcpy(&scale, scales + t * 4, 4);
      std::memcpy(&negative_sum, scales + (tokens + t) * 4, 4);
      widen(strip + t * 4, block, tokens, q);
      add_block(tiles, codes, q, block, scale, negative_sum, total + t * kTileRows);
    }
    tiles += wna16_tile_bytes(4, block);
    strip += w4a8_record_bytes(block, tokens);
  }
}

}  // namespace

const W4A8Body kW4A8Generic = {kTokens, multiply};

}  // namespace tinychat
