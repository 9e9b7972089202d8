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

#include "cpu/w4a8.h"

#include <algorithm>
#include <vector>

#include "common.h"
#include "cpu/thread_pool.h"

namespace tinychat {
namespace {

// Bytes of strips taken through all of a thread's tiles before the next: they stay in a
// second-level cache of 1 MiB, beside the row of tiles that each of them is multiplied by.
constexpr int64_t kPassBytes = int64_t{1} << 19;

// Memory comes in pages of 4 KiB, and the first access to one waits for its address. A prefetch in
// each tile, so far ahead, made the product of one token 1.1 times as fast.
constexpr int64_t kPageAhead = int64_t{1} << 16;

// Between the calls of a decode step the pool's workers are awake: a second thread pays from about
// 15 microseconds of work on.
constexpr int64_t kMinProductsPerThread = int64_t{1} << 20;
constexpr int64_t kMinValuesPerThread = int64_t{1} << 16;

struct Problem {
  const W4A8Body& body;
  const float* x;
  const uint8_t* tiles;
  float* out;
  int64_t m;
  int64_t n;
  int64_t k;
  int bits;
  int64_t block;
  int64_t strips;

  int64_t blocks() const { return k / block; }
  // Strips differ by one token at most, since a short one costs almost as much as a full one.
  int64_t first_token(int64_t strip) const { return m * strip / strips; }
  int64_t tile_bytes() const { return wna16_tile_bytes(bits, block); }
  int64_t strip_bytes(int64_t tokens) const { return blocks() * w4a8_record_bytes(block, tokens); }
};

void write_record(const Problem& p, const float* x, int64_t tokens, uint8_t* record) {
  uint8_t* const scales = record + p.block * tokens;
  for (int64_t t = 0; t < tokens; ++t) {
    int8_t q[kMaxBlock];
    const float scale = p.body.quantize(x + t * p.k, p.block, q);
    int32_t negative_sum = 0;
    for (int64_t i = 0; i < p.block; ++i) negative_sum -= q[i];
    for (int64_t i = 0; i < p.block; i += 4) std::memcpy(record + i * tokens + t * 4, q + i, 4);
    std::memcpy(scales + t * 4, &scale, 4);
    std::memcpy(scales + (tokens + t) * 4, &negative_sum, 4);
  }
}

void quantize_strips(const Problem& p, int64_t begin, int64_t end, uint8_t* quantized) {
  for (int64_t strip = begin; strip < end; ++strip) {
    const int64_t token = p.first_token(strip);
    const int64_t tokens = p.first_token(strip + 1) - token;
    uint8_t* record = quantized + p.strip_bytes(token);
    for (int64_t k = 0; k < p.k; k += p.block, record += w4a8_record_bytes(p.block, tokens)) {
      write_record(p, p.x + token * p.k + k, tokens, record);
    }
  }
}

// total[tokens][16] = a strip times a row of tiles.
void multiply_strip(const Problem& p, const uint8_t* record, int64_t tokens, const uint8_t* tile,
                    float* total) {
  const W4A8Multiply multiply = p.body.multiply[tokens - 1];
  std::fill_n(total, tokens * kTileRows, 0.0f);
  for (int64_t k = 0; k < p.k; k += p.block) {
    __builtin_prefetch(tile + kPageAhead, 0, 1);
    multiply(tile, record, p.block, total);
    tile += p.tile_bytes();
    record += w4a8_record_bytes(p.block, tokens);
  }
}

void multiply_tile_row(const Problem& p, const uint8_t* quantized, int64_t strip,
                       int64_t tile_row) {
  const int64_t token = p.first_token(strip);
  const int64_t tokens = p.first_token(strip + 1) - token;
  alignas(64) float total[kW4A8MaxTokens * kTileRows];
  multiply_strip(p, quantized + p.strip_bytes(token), tokens,
                 p.tiles + tile_row * p.blocks() * p.tile_bytes(), total);
  const int64_t row = tile_row * kTileRows;
  for (int64_t t = 0; t < tokens; ++t) {
    std::copy_n(total + t * kTileRows, std::min(kTileRows, p.n - row),
                p.out + (token + t) * p.n + row);
  }
}

void multiply_tile_rows(const Problem& p, const uint8_t* quantized, int64_t begin, int64_t end) {
  const int64_t pass = std::max<int64_t>(1, kPassBytes / p.strip_bytes(p.body.max_tokens));
  for (int64_t first = 0; first < p.strips; first += pass) {
    const int64_t last = std::min(first + pass, p.strips);
    for (int64_t tile_row = begin; tile_row < end; ++tile_row) {
      for (int64_t strip = first; strip < last; ++strip) {
        multiply_tile_row(p, quantized, strip, tile_row);
      }
    }
  }
}

const W4A8Body& body_for([[maybe_unused]] const std::string& isa, int bits) {
#if defined(TINYCHAT_AVXVNNI)
  if (isa == "avxvnni") return bits == 3 ? kW3A8AvxVnni : kW4A8AvxVnni;
#endif
#if defined(__x86_64__)
  if (isa == "avx512vnni") return bits == 3 ? kW3A8Avx512Vnni : kW4A8Avx512Vnni;
  if (isa == "avx2") return bits == 3 ? kW3A8Avx2 : kW4A8Avx2;
#endif
  return bits == 3 ? kW3A8Generic : kW4A8Generic;
}

}  // namespace

void w4a8_gemm(const float* x, const uint8_t* tiles, float* out, int64_t m, int64_t n, int64_t k,
               int bits, int64_t block, int num_threads, const std::string& isa) {
  const W4A8Body& body = body_for(isa, bits);
  const Problem problem{body, x, tiles, out, m, n, k, bits, block, ceil_div(m, body.max_tokens)};
  std::vector<uint8_t> quantized(problem.strip_bytes(m));
  ThreadPool& pool = ThreadPool::instance();
  pool.parallel_for(problem.strips, threads_for(m * k, kMinValuesPerThread, num_threads),
                    [&](int64_t begin, int64_t end) {
                      quantize_strips(problem, begin, end, quantized.data());
                    });
  pool.parallel_for(ceil_div(n, kTileRows),
                    threads_for(m * n * k, kMinProductsPerThread, num_threads),
                    [&](int64_t begin, int64_t end) {
                      multiply_tile_rows(problem, quantized.data(), begin, end);
                    });
}

}  // namespace tinychat
