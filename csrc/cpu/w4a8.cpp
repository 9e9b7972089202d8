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
#include <cstdlib>
#include <memory>

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
  // Where a strip begins, with room for residuals of all tokens before it.
  int64_t strip_offset(int64_t strip) const {
    return 2 * strip_bytes(first_token(strip)) + blocks() * 4 * (strip + first_token(strip));
  }
};

// Puts x[block] into a record of so many tokens as one of them; returns q, and the scale.
float write_token(const Problem& p, const float* x, int64_t token, int64_t tokens, uint8_t* record,
                  int8_t* q) {
  const float scale = p.body.quantize(x, p.block, q);
  int32_t negative_sum = 0;
  for (int64_t i = 0; i < p.block; ++i) negative_sum -= q[i];
  record += token * 4;
  for (int64_t i = 0; i < p.block; i += 4) std::memcpy(record + i * tokens, q + i, 4);
  std::memcpy(record + p.block * tokens, &scale, 4);
  std::memcpy(record + (p.block + 4) * tokens, &negative_sum, 4);
  return scale;
}

bool has_outlier(const int8_t* q, int64_t block) {
  int32_t sum = 0;
  for (int64_t i = 0; i < block; ++i) sum += std::abs(q[i]);
  // It is 0 for a block of zeros, and of NaN or infinity.
  return 0 < sum && sum < 127 + kW4A8OthersMean * block;
}

// Writes the record of a block and, behind it, that of its residuals; returns where they end.
uint8_t* write_records(const Problem& p, const float* x, int64_t tokens, uint8_t* record) {
  int8_t q[kMaxBlock];
  int32_t listed[kW4A8MaxTokens];
  float residuals[kW4A8MaxTokens * kMaxBlock];
  int32_t count = 0;
  for (int64_t t = 0; t < tokens; ++t, x += p.k) {
    const float scale = write_token(p, x, t, tokens, record, q);
    if (!has_outlier(q, p.block)) continue;
    float* const residual = residuals + count * p.block;
    // Products and differences are exact in double, whether a compiler fuses them or not.
    for (int64_t i = 0; i < p.block; ++i) {
      residual[i] = static_cast<float>(x[i] - static_cast<double>(q[i]) * scale);
    }
    listed[count++] = static_cast<int32_t>(t);
  }
  record += w4a8_record_bytes(p.block, tokens);
  std::memcpy(record, &count, 4);
  std::memcpy(record + 4, listed, count * 4);
  record += 4 + count * 4;
  for (int64_t i = 0; i < count; ++i) {
    write_token(p, residuals + i * p.block, i, count, record, q);
  }
  return record + w4a8_record_bytes(p.block, count);
}

void quantize_strips(const Problem& p, int64_t begin, int64_t end, uint8_t* quantized) {
  for (int64_t strip = begin; strip < end; ++strip) {
    const int64_t token = p.first_token(strip);
    const int64_t tokens = p.first_token(strip + 1) - token;
    uint8_t* record = quantized + p.strip_offset(strip);
    for (int64_t k = 0; k < p.k; k += p.block) {
      record = write_records(p, p.x + token * p.k + k, tokens, record);
    }
  }
}

// total += a tile, which is still in the first-level cache, times the residuals of `count` tokens;
// returns where they end.
const uint8_t* multiply_residuals(const Problem& p, const uint8_t* tile, const uint8_t* residuals,
                                  int64_t count, int64_t tokens, float* total) {
  const uint8_t* const record = residuals + count * 4;
  const W4A8Multiply multiply = p.body.multiply[count - 1];
  if (count == tokens) {
    multiply(tile, record, p.block, total);
  } else {
    int32_t listed[kW4A8MaxTokens];
    alignas(64) float some[kW4A8MaxTokens * kTileRows];
    std::memcpy(listed, residuals, count * 4);
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(total + listed[i] * kTileRows, kTileRows, some + i * kTileRows);
    }
    multiply(tile, record, p.block, some);
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(some + i * kTileRows, kTileRows, total + listed[i] * kTileRows);
    }
  }
  return record + w4a8_record_bytes(p.block, count);
}

// total[tokens][16] = a strip times a row of tiles.
void multiply_strip(const Problem& p, const uint8_t* record, int64_t tokens, const uint8_t* tile,
                    float* total) {
  const W4A8Multiply multiply = p.body.multiply[tokens - 1];
  std::fill_n(total, tokens * kTileRows, 0.0f);
  for (int64_t k = 0; k < p.k; k += p.block) {
    __builtin_prefetch(tile + kPageAhead, 0, 1);
    multiply(tile, record, p.block, total);
    record += w4a8_record_bytes(p.block, tokens);
    int32_t count;
    std::memcpy(&count, record, 4);
    record += 4;
    // A branch, which is predicted: an address that waited for the count took 1.04 of the time.
    if (count > 0) record = multiply_residuals(p, tile, record, count, tokens, total);
    tile += p.tile_bytes();
  }
}

void multiply_tile_row(const Problem& p, const uint8_t* quantized, int64_t strip,
                       int64_t tile_row) {
  const int64_t token = p.first_token(strip);
  const int64_t tokens = p.first_token(strip + 1) - token;
  alignas(64) float total[kW4A8MaxTokens * kTileRows];
  multiply_strip(p, quantized + p.strip_offset(strip), tokens,
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
#if defined(__aarch64__)
  if (isa == "i8mm" && bits == 4) return kW4A8I8mm;
  if (isa == "dotprod" && bits == 4) return kW4A8Dotprod;
#endif
  return bits == 3 ? kW3A8Generic : kW4A8Generic;
}

}  // namespace

void w4a8_gemm(const float* x, const uint8_t* tiles, float* out, int64_t m, int64_t n, int64_t k,
                int bits, int64_t block, int num_threads, const std::string& isa) {
  const W4A8Body& body = body_for(isa, bits);
  const Problem problem{body, x, tiles, out, m, n, k, bits, block, ceil_div(m, body.max_tokens)};
  const std::unique_ptr<uint8_t[]> quantized(new uint8_t[problem.strip_offset(problem.strips)]);
  ThreadPool& pool = ThreadPool::instance();
  pool.parallel_for(problem.strips, threads_for(m * k, kMinValuesPerThread, num_threads),
                    [&](int64_t begin, int64_t end) {
                      quantize_strips(problem, begin, end, quantized.get());
                    });
  pool.parallel_for(ceil_div(n, kTileRows),
                    threads_for(m * n * k, kMinProductsPerThread, num_threads),
                    [&](int64_t begin, int64_t end) {
                      multiply_tile_rows(problem, quantized.get(), begin, end);
                    });
}

}  // namespace tinychat
