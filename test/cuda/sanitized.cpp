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
#include "primitives.h"

namespace tinychat {
namespace {

void run_rms_norm(int64_t tokens, int64_t hidden, DType dtype, int64_t overrun) {
  const size_t bytes = dtype == DType::kFloat32 ? 4 : 2;
  std::vector<char> x(tokens * hidden * bytes), residual(x), y(x), weight(hidden * bytes);
  rms_norm(x.data(), residual.data(), weight.data(), y.data(), tokens, hidden + overrun, 1e-5f,
           dtype, nullptr);
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
  embedding(token_ids.data(), table.data(), x.data(), 3, 5, hidden, DType::kFloat16, nullptr);
}

void run_lm_head(int64_t n, int64_t k, bool int8) {
  std::vector<char> x(k * 2), norm_weight(x), weight(n * k * (int8 ? 1 : 2));
  std::vector<float> scales(n), logits(n);
  std::vector<Candidate> best(ceil_div(n, kCandidateTile));
  lm_head(x.data(), norm_weight.data(), 1e-5f, weight.data(), int8 ? scales.data() : nullptr,
          {logits.data(), best.data()}, n, k, DType::kFloat16, nullptr);
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
  tinychat::run_ends();
  tinychat::run_primitives();
  std::puts("clean");
}
