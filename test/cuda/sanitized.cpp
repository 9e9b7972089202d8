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

// All kernels once under AddressSanitizer, on arrays that end where their data does. With an
// argument it makes a row longer than its array, which the sanitizer has to find.

#include <cstdio>
#include <vector>

#include "cuda/launchers.h"
#include "cuda/w4_record.cuh"
#include "primitives.h"

namespace tinychat {
namespace {

void run_rms_norm(int64_t tokens, int64_t hidden, DType dtype, int64_t overrun) {
  const size_t bytes = dtype == DType::kFloat32 ? 4 : 2;
  std::vector<char> x(tokens * hidden * bytes), residual(x), y(x), weight(hidden * bytes);
  rms_norm(x.data(), residual.data(), weight.data(), y.data(), tokens, hidden + overrun, 1e-5f,
           dtype, nullptr);
}

// Keys and values of a cache whose arrays end with its last position.
struct AttentionArrays {
  std::vector<char> k, v, k_scale, v_scale;
  StepState state;

  KvCache cache(int64_t kv_heads, int64_t max_seq_len, int64_t head_dim, bool int8) {
    const size_t rows = kv_heads * max_seq_len;
    k.resize(rows * head_dim * (int8 ? 1 : 2));
    v = k;
    k_scale.resize(rows * 2);
    v_scale = k_scale;
    return {k.data(), v.data(), int8 ? k_scale.data() : nullptr, int8 ? v_scale.data() : nullptr,
            kv_heads, max_seq_len, head_dim, &state};
  }
};

// The positions end behind the cache. All that can be left out is there, or nothing.
void run_attention(int64_t head_dim, bool int8, bool rules, DType dtype) {
  constexpr int kHeads = 3, kKvHeads = 1, kLength = 131, kTokens = 18;
  AttentionArrays arrays;
  const KvCache cache = arrays.cache(kKvHeads, kLength, head_dim, int8);
  const int64_t row = kHeads * head_dim * 2;
  const int64_t qkv_row = (kHeads + 2 * kKvHeads) * head_dim * 2;
  std::vector<char> q(kTokens * row), out(q), qkv(kTokens * qkv_row);
  std::vector<float> cos(kLength * head_dim / 2), sin(cos), slopes(kHeads);
  const std::vector<char> weight(head_dim * 2);
  const HeadNorm norm = {rules ? weight.data() : nullptr, weight.data(), 1e-5f};
  const Rotary rotary = {rules ? nullptr : cos.data(), sin.data()};
  const Scores scores = {1.0f, rules ? 33 : 0, rules ? 50.0f : 0.0f,
                         rules ? slopes.data() : nullptr};
  std::vector<char> workspace(decode_attention_workspace(kHeads, kKvHeads, head_dim, kLength));
  arrays.state = {0, kLength - kTokens + 1, 0, 0};
  rope_append(qkv.data(), false, q.data(), cache, norm, rotary, kTokens, kHeads, dtype, nullptr);
  prefill_attention(q.data(), cache, out.data(), kTokens, kHeads, scores, dtype, nullptr);
  q.resize(row), out.resize(row);
  q.shrink_to_fit(), out.shrink_to_fit();
  arrays.state.position = kLength;
  decode_attention(q.data(), cache, out.data(), workspace.data(), kHeads, scores, dtype, nullptr);
}

void run_layer_norm(int64_t tokens, int64_t hidden, DType dtype) {
  const size_t bytes = dtype == DType::kFloat32 ? 4 : 2;
  std::vector<char> x(tokens * hidden * bytes), y(x), weight(hidden * bytes), bias(weight);
  layer_norm(x.data(), weight.data(), bias.data(), y.data(), tokens, hidden, 1e-5f, dtype,
             nullptr);
}

void run_embedding(int64_t hidden) {
  const std::vector<int32_t> token_ids = {-1, 4, 5};
  std::vector<char> table(5 * hidden * 2), x(3 * hidden * 2);
  embedding(token_ids.data(), table.data(), x.data(), 3, 5, hidden, 2.0f, DType::kFloat16,
            nullptr);
}

void run_lm_head(int64_t n, int64_t k, bool int8) {
  std::vector<char> x(k * 2), norm_weight(x), weight(n * k * (int8 ? 1 : 2));
  std::vector<float> scales(n), logits(n);
  std::vector<Candidate> best(ceil_div(n, kCandidateTile));
  lm_head(x.data(), norm_weight.data(), 1e-5f, weight.data(), int8 ? scales.data() : nullptr,
          {logits.data(), best.data(), 30.0f}, n, k, DType::kFloat16, nullptr);
}

void run_sample(int64_t vocab) {
  std::vector<float> logits(vocab);
  for (int64_t i = 0; i < vocab; ++i) logits[i] = static_cast<float>(i % 61) - 30.0f;
  std::vector<Candidate> best(ceil_div(vocab, kCandidateTile), {30.0f, 60});
  std::vector<uint8_t> seen(vocab, 1);
  std::vector<uint64_t> ring(2);
  StepState state = {};
  for (float temperature : {0.0f, 1.0f}) {
    for (float penalty : {0.9f, 1.0f, 1.1f}) {
      const SamplingState params = {temperature, 0.9f, 0.01f, penalty, 7, 1, 2};
      sample(logits.data(), best.data(), &params, seen.data(), &state, ring.data(), 2, vocab,
             nullptr);
    }
  }
}

void run_ends() {
  for (int hidden : {8, 80, 8200}) run_embedding(hidden);
  for (bool int8 : {false, true}) {
    for (int n : {1, 16, 17, 105}) {
      for (int k : {16, 288, 1040}) run_lm_head(n, k, int8);
    }
  }
  for (int vocab : {61, 64, 105, 1100}) run_sample(vocab);
}

void run_primitives() {
  constexpr int kSteps = 4;
  std::vector<char> in(kSteps * 256 * 16), out(in);
  ring_copy(in.data(), out.data(), kSteps, nullptr);
  handed_over_copy(in.data(), out.data(), kSteps * 2, nullptr);
  std::vector<char> a(16 * 16 * 2), b(a), d(16 * 16 * 4);
  for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    matmul_16(a.data(), b.data(), d.data(), dtype, nullptr);
  }
}

std::vector<char> w4_records(int64_t n, int64_t k, int group) {
  return std::vector<char>(ceil_div(n, kRecordRows) * ceil_div(k, kRecordColumns) *
                           record_bytes(group));
}

void run_w4_gemv(int64_t m, int64_t n, int64_t k, int group, DType dtype) {
  const std::vector<char> x(m * k * 2), bias(n * 2), norm(k * 2);
  const std::vector<char> records = w4_records(n, k, group);
  const W4Input input = {x.data(), records.data(), bias.data(), norm.data(), 1e-5f, m, n, k, group,
                         records.data(), static_cast<int64_t>(records.size()), dtype, nullptr};
  std::vector<char> y(m * n * 2), gate_up(m * n / 2 * 2), q(m * n / 2 * 2);
  w4_gemv(input, LinearOutput{y.data(), y.data()});
  w4_gemv(input, UpOutput{Activation::kGelu, bias.data(), y.data()});
  w4_gemv(input, GateUpOutput{Activation::kGeluTanh, gate_up.data()});
  std::vector<float> logits(n), angles(2 * m * 8);
  std::vector<Candidate> best(ceil_div(n, 16));
  W4Input one = input;
  one.m = 1;
  w4_gemv(one, LogitsOutput{logits.data(), best.data(), 30.0f});
  if (n % 64 != 0) return;
  const StepState state = {1, static_cast<int32_t>(m), 0, 0};
  std::vector<char> keys(2 * (n / 64) * 2 * m * 16 * 2), values(keys);
  const KvCache cache = {keys.data(), values.data(), nullptr, nullptr, n / 64, 2 * m, 16, &state};
  w4_gemv(input, QkvOutput{q.data(), cache, {angles.data(), angles.data()}, n / 32});
}

void run_w4_repack(int64_t n, int64_t k, int64_t source_group) {
  const std::vector<uint8_t> qweight(n * k / 2), zeros(n * (k / source_group));
  const std::vector<uint16_t> scales(zeros.size());
  std::vector<int32_t> rows(ceil_div(n, 16) * 16, -1);
  for (int64_t row = 0; row < n; ++row) rows[row] = static_cast<int32_t>(row);
  std::vector<char> records = w4_records(n, k, source_group < 128 ? source_group : 128);
  w4_repack(qweight.data(), scales.data(), zeros.data(), rows.data(), records.data(),
            ceil_div(n, 16), k, source_group, nullptr);
}

void run_w4() {
  for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    run_w4_gemv(1, 8, 32, 32, dtype);
    run_w4_gemv(3, 40, 200, 128, dtype);
    run_w4_gemv(8, 64, 1152, 64, dtype);
    run_w4_gemv(1, 128, 136, 32, dtype);
  }
  run_w4_repack(8, 32, 32);
  run_w4_repack(40, 192, 64);
  run_w4_repack(24, 200, 200);
}

// One head of 16 for each of q, k and v that n has room for.
void run_w4_gemm(int64_t m, int64_t n, int64_t k, int group_size, DType dtype) {
  std::vector<char> x(m * k * 2), bias(n * 2), y(m * n * 2), half_y(m * n);
  const std::vector<char> records = w4_records(n, k, group_size);
  const W4Input input = {x.data(), records.data(), bias.data(), nullptr, 0.0f, m, n, k, group_size,
                         nullptr, 0, dtype, nullptr};
  w4_gemm(input, LinearOutput{y.data(), y.data()});
  w4_gemm(input, UpOutput{Activation::kGelu, bias.data(), y.data()});
  w4_gemm(input, GateUpOutput{Activation::kSilu, half_y.data()});
  const int64_t heads = n / 48;
  std::vector<char> q(m * heads * 32), keys(m * heads * 32), values(m * heads * 32);
  std::vector<float> angles(m * 8);
  StepState state = {};
  const KvCache cache = {keys.data(), values.data(), nullptr, nullptr, heads, m, 16, &state};
  w4_gemm(input, QkvOutput{q.data(), cache, {angles.data(), angles.data()}, heads});
}

void run_read_bytes() {
  for (int64_t bytes : {16, 65536, 65552, 4 * 65536 + 16}) {
    std::vector<char> data(bytes), sink(4);
    read_bytes(data.data(), bytes, sink.data(), nullptr);
  }
}

}  // namespace
}  // namespace tinychat

int main(int argc, char**) {
  using tinychat::DType;
  for (DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    for (int hidden : {8, 64, 80, 128, 4096, 4104}) {
      for (int tokens : {1, 3}) tinychat::run_rms_norm(tokens, hidden, dtype, argc > 1 ? 8 : 0);
      tinychat::run_layer_norm(3, hidden, dtype);
    }
  }
  // Both 16-bit floats have the same addresses.
  for (int head_dim : {8, 64, 80, 128, 256}) {
    for (bool rules : {false, true}) {
      tinychat::run_attention(head_dim, false, rules, DType::kFloat16);
      tinychat::run_attention(head_dim, true, rules, DType::kBFloat16);
    }
  }
  tinychat::run_ends();
  tinychat::run_primitives();
  tinychat::run_w4();
  tinychat::run_w4_gemm(1, 48, 40, 32, DType::kFloat16);
  tinychat::run_w4_gemm(33, 48, 200, 128, DType::kBFloat16);
  tinychat::run_w4_gemm(130, 144, 96, 32, DType::kFloat16);
  tinychat::run_read_bytes();
  std::puts("clean");
}
