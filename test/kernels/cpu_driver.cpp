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

// Calls the kernels of csrc/cpu that stdin names, for tests of another processor. A call is a line
// of words, the name and the arguments, in which @ and a number of bytes stand for an array; the
// contents of the arrays follow. All of them go to stdout as the kernel has left them.

#include <sys/mman.h>

#include <functional>
#include <iostream>
#include <list>
#include <map>
#include <sstream>
#include <string>
#include <tuple>
#include <type_traits>

#include "cpu/isa.h"
#include "cpu/ops.h"
#include "cpu/w4a8.h"
#include "cpu/w8a8.h"
#include "cpu/wna16.h"

namespace {

using namespace tinychat;

// Ends where its memory ends, so that an access behind it is a fault.
class Array {
 public:
  explicit Array(size_t bytes) : bytes_(bytes), guard_((bytes + kPage - 1) / kPage * kPage) {
    void* memory = mmap(nullptr, guard_ + kPage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memory_ = static_cast<char*>(memory);
    mprotect(memory_ + guard_, kPage, PROT_NONE);
  }
  Array(const Array&) = delete;
  ~Array() { munmap(memory_, guard_ + kPage); }

  char* data() const { return memory_ + guard_ - bytes_; }
  std::streamsize size() const { return bytes_; }

 private:
  static constexpr size_t kPage = 1 << 16;
  size_t bytes_;
  size_t guard_;
  char* memory_;
};

// The arguments of one call.
class Call {
 public:
  explicit Call(std::istream& words) : words_(words) {}

  template <typename T>
  T next() {
    if constexpr (std::is_pointer_v<T>) {
      return static_cast<T>(next_array());
    } else if constexpr (std::is_enum_v<T>) {
      return static_cast<T>(next<int>());
    } else if constexpr (std::is_same_v<T, cpu::KvCache>) {
      return {next<void*>(), next<void*>(), next<void*>(),
              next<void*>(), next<DType>(), next<int64_t>(),
              next<int64_t>(), next<int64_t>(), next<const StepState*>()};
    } else if constexpr (std::is_same_v<T, cpu::HeadNorm>) {
      return {next<void*>(), next<void*>(), next<DType>(), next<float>()};
    } else if constexpr (std::is_same_v<T, cpu::Scores>) {
      return {next<float>(), next<int64_t>(), next<float>(), next<const float*>()};
    } else {
      T value;
      words_ >> value;
      return value;
    }
  }

  void read_arrays() {
    for (Array& array : arrays_) std::cin.read(array.data(), array.size());
  }

  void write_arrays() {
    for (Array& array : arrays_) std::cout.write(array.data(), array.size());
  }

 private:
  void* next_array() {
    const auto word = next<std::string>();
    if (word == "null") return nullptr;
    return arrays_.emplace_back(std::stoul(word.substr(1))).data();
  }

  std::istream& words_;
  std::list<Array> arrays_;
};

using Kernel = std::function<void(std::istream&)>;

template <typename... Arguments>
Kernel kernel(void (*function)(Arguments...)) {
  return [function](std::istream& words) {
    Call call(words);
    const std::tuple<std::decay_t<Arguments>...> arguments{
        call.next<std::decay_t<Arguments>>()...};
    call.read_arrays();
    std::apply(function, arguments);
    call.write_arrays();
  };
}

void write_isas(std::istream&) {
  for (const std::string& isa : supported_isas()) std::cout << isa << ' ';
  std::cout << '\n';
}

const std::map<std::string, Kernel> kKernels = {
    {"isas", write_isas},
    {"w4a8_gemm", kernel(w4a8_gemm)},
    {"w8a8_gemm", kernel(w8a8_gemm)},
    {"wna16_gemm", kernel(wna16_gemm)},
    {"embedding", kernel(cpu::embedding)},
    {"dense_gemm", kernel(cpu::dense_gemm)},
    {"sample", kernel(cpu::sample)},
    {"rms_norm", kernel(cpu::rms_norm)},
    {"layer_norm", kernel(cpu::layer_norm)},
    {"add", kernel(cpu::add)},
    {"clip", kernel(cpu::clip)},
    {"softcap", kernel(cpu::softcap)},
    {"gate_mul", kernel(cpu::gate_mul)},
    {"activate", kernel(cpu::activate)},
    {"rope_append", kernel(cpu::rope_append)},
    {"attention", kernel(cpu::attention)},
};

}  // namespace

int main() {
  std::ios::sync_with_stdio(false);
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string name;
    words >> name;
    kKernels.at(name)(words);
    std::cout.flush();
  }
}
