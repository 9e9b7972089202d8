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

#pragma once

#include <string>
#include <vector>

// Compilers that have AVX-VNNI; the assemblers of their time have it as well.
#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define TINYCHAT_AVXVNNI 1
#endif

namespace tinychat {

// The instruction sets that this build has bodies for and this processor can run, best first.
// 'generic' is always the last.
const std::vector<std::string>& supported_isas();

// The one that kernels use unless a call names another: the best, until one of them is set.
std::string default_isa();
void set_default_isa(const std::string& isa);

}  // namespace tinychat
