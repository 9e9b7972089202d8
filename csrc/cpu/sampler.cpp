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

#include <algorithm>
#include <cmath>
#include <iterator>
#include <vector>

#include "cpu/ops.h"
#include "philox.h"

namespace tinychat::cpu {
namespace {

constexpr float kLowestTemperature = 1e-6f;  // As in engine/sampler.py.

// A token that may be drawn.
struct Candidate {
  int32_t token;
  float distance;  // How far its logit lies below the best one.
  uint32_t mass;   // Its probability, of which the best one's is 2^31.
};

// Kept from call to call.
struct Workspace {
  std::vector<Candidate> candidates;
  std::vector<Candidate> ordered;
};

// The logits after the repetition penalty.
struct Logits {
  const float* logits;
  const uint8_t* seen;
  float penalty;
  int32_t vocab;

  float operator[](int32_t token) const {
    const float logit = logits[token];
    if (penalty == 1.0f || seen[token] == 0) return logit;
    return logit > 0.0f ? logit / penalty : logit * penalty;
  }
};

// The first of the best, or -1 where it is not finite; NaN is better than any number.
int32_t best_token(const Logits& logits) {
  int32_t best = -1;
  float top = -INFINITY;
  for (int32_t token = 0; token < logits.vocab; ++token) {
    const float logit = logits[token];
    if (!(logit <= top)) {
      if (!(logit < INFINITY)) return -1;
      best = token;
      top = logit;
    }
  }
  return best;
}

bool closer(const Candidate& a, const Candidate& b) { return a.distance < b.distance; }

void keep(float limit, std::vector<Candidate>& candidates) {
  const auto farther = [limit](const Candidate& c) { return c.distance > limit; };
  candidates.erase(std::remove_if(candidates.begin(), candidates.end(), farther),
                   candidates.end());
}

// All tokens that have a mass.
void find_candidates(const Logits& logits, float top, float inverse_temperature,
                     std::vector<Candidate>& candidates) {
  const float farthest = 22.2f / inverse_temperature;  // exp(-22.2) * 2^31 rounds to 0.
  candidates.clear();
  for (int32_t token = 0; token < logits.vocab; ++token) {
    const float distance = top - logits[token];
    if (distance > farthest) continue;
    const float ratio = std::exp(-distance * inverse_temperature);
    const auto mass = static_cast<uint32_t>(ratio * 0x1p31f + 0.5f);
    candidates.push_back({token, distance, mass});
  }
}

uint64_t total_mass(const std::vector<Candidate>& candidates) {
  uint64_t mass = 0;
  for (const Candidate& c : candidates) mass += c.mass;
  return mass;
}

// The distance of the last of the top k; those as far as it stay too.
float top_k_limit(int32_t top_k, Workspace& workspace) {
  const auto& candidates = workspace.candidates;
  if (top_k == 0 || static_cast<size_t>(top_k) >= candidates.size()) return INFINITY;
  auto& ordered = workspace.ordered;
  ordered = candidates;
  const auto last = ordered.begin() + (top_k - 1);
  std::nth_element(ordered.begin(), last, ordered.end(), closer);
  return last->distance;
}

// The distance at which the masses, added from the best on, reach top_p of all.
float top_p_limit(float top_p, Workspace& workspace) {
  if (top_p >= 1.0f) return INFINITY;
  const auto& candidates = workspace.candidates;
  const uint64_t total = total_mass(candidates);
  const double reached = std::ceil(static_cast<double>(top_p) * static_cast<double>(total));
  uint64_t rest = std::max(static_cast<uint64_t>(reached), uint64_t{1});
  // All that are smaller hold less than total - rest: they are not needed, and not sorted.
  const uint64_t smallest = (total - rest) / candidates.size();
  auto& ordered = workspace.ordered;
  ordered.clear();
  std::copy_if(candidates.begin(), candidates.end(), std::back_inserter(ordered),
               [smallest](const Candidate& c) { return c.mass >= smallest; });
  std::sort(ordered.begin(), ordered.end(), closer);
  auto last = ordered.begin();
  for (; last->mass < rest; ++last) rest -= last->mass;
  return last->distance;
}

// Inverts the cumulated probabilities in the order of the tokens.
int32_t draw(const std::vector<Candidate>& candidates, uint32_t random) {
  const uint64_t total = total_mass(candidates);
  // total * random / 2^32 by halves, since the product may not fit.
  uint64_t rest = (total >> 32) * random + ((total & UINT32_MAX) * random >> 32);
  auto drawn = candidates.begin();
  for (; drawn->mass <= rest; ++drawn) rest -= drawn->mass;
  return drawn->token;
}

int32_t draw(const Logits& logits, float top, const SamplingState& params, int32_t step) {
  static thread_local Workspace workspace;
  const float inverse_temperature = 1.0f / std::max(params.temperature, kLowestTemperature);
  auto& candidates = workspace.candidates;
  find_candidates(logits, top, inverse_temperature, candidates);
  keep(top_k_limit(params.top_k, workspace), candidates);
  keep(top_p_limit(params.top_p, workspace), candidates);
  // exp(-distance / temperature) >= min_p; with 0 it is infinity.
  keep(std::fabs(-std::log(params.min_p) / inverse_temperature), candidates);
  return draw(candidates, philox(step, params.seed_low, params.seed_high));
}

}  // namespace

void sample(const float* logits, const SamplingState* params, uint8_t* seen, StepState* state,
            uint64_t* ring, int ring_size, int64_t vocab) {
  const Logits penalized = {logits, seen, params->repetition_penalty,
                            static_cast<int32_t>(vocab)};
  const int32_t step = state->step;
  int32_t token = best_token(penalized);
  if (token >= 0 && params->temperature != 0.0f) {
    token = draw(penalized, penalized[token], *params, step);
  }
  if (token >= 0) seen[token] = 1;
  state->token = token;
  state->position += 1;
  state->step = step + 1;
  const uint64_t entry = static_cast<uint64_t>(step + 1) << 32 | static_cast<uint32_t>(token);
  __atomic_store_n(&ring[step % ring_size], entry, __ATOMIC_RELEASE);
}

}  // namespace tinychat::cpu
