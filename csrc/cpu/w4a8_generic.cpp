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
// Written as plain loops it ran at a third of this speed: g++ 12 did not vectorize the unpacking.

#include "common.h"
#include "cpu/w4a8.h"

namespace tinychat {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the tiles' words are little endian");

// A tile's rows are four quarters of 4 lanes.
constexpr int kLanes = 4;
constexpr int kQuarters = kTileRows / kLanes;
typedef int16_t Shorts __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));
typedef float Floats __attribute__((vector_size(16)));

// A product is at most 15 * 127, and an int16 lane takes 16 of the 32 in so many columns.
constexpr int64_t kColumns = 32;

template <typename T>
T load(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

void store(float* to, Floats vector) { std::memcpy(to, &vector, sizeof(vector)); }

// 4 values of a token in every lane: those of bytes 0 and 2, and those of bytes 1 and 3.
struct Fours {
  Shorts even;
  Shorts odd;
};

Fours load_fours(const uint8_t* x) {
  const int32_t word = load<int32_t>(x);
  const Shorts bytes = reinterpret_cast<Shorts>(Ints{word, word, word, word});
  return {bytes << 8 >> 8, bytes >> 8};
}

template <int kBits>
Fours codes_of(Shorts bytes) {
  constexpr int16_t kMask = (1 << kBits) - 1;
  return {bytes & kMask, bytes >> 8 & kMask};
}

// The codes of 4 rows, for the lower 4 of 8 k and for the higher 4.
struct Codes {
  Fours low;
  Fours high;
};

// `words` are the first of these rows in 32 k.
template <int kBits>
Codes load_codes(const uint8_t* words, int64_t octet) {
  if (kBits == 3 && octet == 3) {
    const Shorts top = load<Shorts>(words + 2 * kSetBytes);
    const Shorts low = load<Shorts>(words) >> 6 & 0x0303;
    const Shorts high = load<Shorts>(words + kSetBytes) >> 6 & 0x0303;
    return {codes_of<kBits>(low | (top >> 4 & 0x0404)),
            codes_of<kBits>(high | (top >> 5 & 0x0404))};
  }
  const Shorts packed = load<Shorts>(words + octet * kSetBytes);
  return {codes_of<kBits>(packed), codes_of<kBits>(packed >> kBits)};
}

// sums[token] += kColumns of 4 rows times some tokens. `words` are the first of these rows.
template <int kBits, int kTokens>
void add_columns(const uint8_t* words, const Fours (&x)[kColumns / 4][kTokens], Ints* sums) {
  Shorts pairs[kTokens] = {};
  for (int64_t octet = 0; octet < kColumns / 8; ++octet) {
    const auto [low, high] = load_codes<kBits>(words, octet);
    for (int t = 0; t < kTokens; ++t) {
      const Fours& first = x[2 * octet][t];
      const Fours& second = x[2 * octet + 1][t];
      pairs[t] += low.even * first.even + low.odd * first.odd;
      pairs[t] += high.even * second.even + high.odd * second.odd;
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    const Ints words_of_pairs = reinterpret_cast<Ints>(pairs[t]);
    sums[t] += (words_of_pairs << 16 >> 16) + (words_of_pairs >> 16);
  }
}

// total[token] += a quarter's sums, less those of the zero points, times the scales.
template <int kTokens>
void add_to_total(const uint8_t* scales, const uint8_t* zeros, const uint8_t* x_scales,
                  const Ints* sums, float* total) {
  Floats row_scales;
  Ints row_zeros;
  for (int i = 0; i < kLanes; ++i) {
    row_scales[i] = half_to_float(load<uint16_t>(scales + 2 * i));
    row_zeros[i] = zeros[i];
  }
  for (int t = 0; t < kTokens; ++t, total += kTileRows) {
    const int32_t negative_sum = load<int32_t>(x_scales + (kTokens + t) * 4);
    const Ints difference = sums[t] + row_zeros * negative_sum;
    const Floats scaled = __builtin_convertvector(difference, Floats) * row_scales;
    store(total, load<Floats>(total) + scaled * load<float>(x_scales + t * 4));
  }
}

template <int kBits, int kTokens>
void multiply(const uint8_t* tile, const uint8_t* record, int64_t block, float* total) {
  Ints sums[kQuarters][kTokens] = {};
  for (int64_t k = 0; k < block; k += kColumns) {
    Fours x[kColumns / 4][kTokens];
    for (int64_t i = 0; i < kColumns / 4; ++i) {
      for (int t = 0; t < kTokens; ++t) {
        x[i][t] = load_fours(record + (k + i * 4) * kTokens + t * 4);
      }
    }
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      add_columns<kBits>(tile + k * kBits * 2 + quarter * 16, x, sums[quarter]);
    }
  }
  const uint8_t* scales = tile + wna16_scales_offset(kBits, block);
  const uint8_t* zeros = tile + wna16_zeros_offset(kBits, block);
  for (int quarter = 0; quarter < kQuarters; ++quarter) {
    add_to_total<kTokens>(scales + quarter * kLanes * 2, zeros + quarter * kLanes,
                          record + block * kTokens, sums[quarter], total + quarter * kLanes);
  }
}

float quantize(const float* x, int64_t count, int8_t* q) { return quantize_int8(x, count, q); }

template <int kBits>
constexpr W4A8Body kBody = {
    quantize, 4,
    {multiply<kBits, 1>, multiply<kBits, 2>, multiply<kBits, 3>, multiply<kBits, 4>}};

}  // namespace

const W4A8Body kW3A8Generic = kBody<3>;
const W4A8Body kW4A8Generic = kBody<4>;

}  // namespace tinychat
