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

#include "cpu/isa.h"

#if defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <atomic>

namespace tinychat {
namespace {

#if defined(__aarch64__)
// HWCAP_ASIMDDP and HWCAP2_I8MM. The headers of Ubuntu 20.04 do not have the second.
constexpr unsigned long kDotprod = 1ul << 20;
constexpr unsigned long kI8mm = 1ul << 13;
#endif

#if defined(TINYCHAT_AVXVNNI)
// __builtin_cpu_supports does not know its name in all compilers that have it.
bool has_avxvnni() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}
#endif

std::vector<std::string> detect_isas() {
  std::vector<std::string> isas;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni")) {
      isas.emplace_back("avx512vnni");
    }
#if defined(TINYCHAT_AVXVNNI)
    if (has_avxvnni()) isas.emplace_back("avxvnni");
#endif
    isas.emplace_back("avx2");
  }
#endif
#if defined(__aarch64__)
  if (getauxval(AT_HWCAP) & kDotprod) {
    if (getauxval(AT_HWCAP2) & kI8mm) isas.emplace_back("i8mm");
    isas.emplace_back("dotprod");
  }
#endif
  isas.emplace_back("generic");
  return isas;
}

std::atomic<size_t>& default_index() {
  static std::atomic<size_t> index{0};
  return index;
}

}  // namespace

const std::vector<std::string>& supported_isas() {
  static const std::vector<std::string> isas = detect_isas();
  return isas;
}

std::string default_isa() { return supported_isas()[default_index()]; }

void set_default_isa(const std::string& isa) {
  const auto& isas = supported_isas();
  default_index() = std::find(isas.begin(), isas.end(), isa) - isas.begin();
}

}  // namespace tinychat
