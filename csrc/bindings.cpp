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

// The Python module: addresses as integers, sizes, and the checks that need no tensor.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "bindings_checks.h"
#include "bindings_cpu.h"
#include "bindings_cuda.h"
#include "common.h"
#include "cpu/isa.h"
#include "cpu/program.h"
#include "cpu/w4a8.h"
#include "cpu/w8a8.h"
#include "cpu/wna16.h"

namespace py = pybind11;

namespace tinychat {
namespace {

// What the products with a weight in the tiles of wna16.h have in common.
void check_tiles_gemm(const Requirement& require, uintptr_t x, uintptr_t tiles, uintptr_t out,
                      int64_t m, int64_t n, int64_t k, int bits, int64_t block,
                      int num_threads) {
  require(x != 0, "x", "an address", "null");
  require(tiles != 0, "tiles", "an address", "null");
  require(out != 0, "out", "an address", "null");
  require(m >= 1, "m", "at least 1", std::to_string(m));
  require(n >= 8 && n % 8 == 0, "n", "a positive multiple of 8", std::to_string(n));
  require(bits == 3 || bits == 4, "bits", "3 or 4", std::to_string(bits));
  require(block == 32 || block == 64 || block == 128, "block", "32, 64 or 128",
          std::to_string(block));
  require(k >= block && k % block == 0, "k",
          "a positive multiple of the block, " + std::to_string(block), std::to_string(k));
  require(num_threads >= 0, "num_threads", "0 (all processors) or more",
          std::to_string(num_threads));
}

void checked_wna16_gemm(uintptr_t x, uintptr_t tiles, uintptr_t out, int64_t m, int64_t n,
                        int64_t k, int bits, int64_t block, int num_threads,
                        const std::string& isa) {
  const Requirement require{"wna16_gemm"};
  check_tiles_gemm(require, x, tiles, out, m, n, k, bits, block, num_threads);
  const std::string chosen = resolve_isa(require, isa);
  Program::run_or_record([=] {
    wna16_gemm(reinterpret_cast<const float*>(x), reinterpret_cast<const uint8_t*>(tiles),
               reinterpret_cast<float*>(out), m, n, k, bits, block, num_threads, chosen);
  });
}

void checked_w4a8_gemm(uintptr_t x, uintptr_t tiles, uintptr_t out, int64_t m, int64_t n,
                       int64_t k, int bits, int64_t block, int num_threads,
                       const std::string& isa) {
  const Requirement require{"w4a8_gemm"};
  check_tiles_gemm(require, x, tiles, out, m, n, k, bits, block, num_threads);
  const std::string chosen = resolve_isa(require, isa);
  Program::run_or_record([=] {
    w4a8_gemm(reinterpret_cast<const float*>(x), reinterpret_cast<const uint8_t*>(tiles),
              reinterpret_cast<float*>(out), m, n, k, bits, block, num_threads, chosen);
  });
}

void checked_w8a8_gemm(uintptr_t x, uintptr_t qweight, uintptr_t scales, uintptr_t out, int64_t m,
                       int64_t n, int64_t k, int num_threads, const std::string& isa) {
  const Requirement require{"w8a8_gemm"};
  require(x != 0, "x", "an address", "null");
  require(qweight != 0, "qweight", "an address", "null");
  require(scales != 0, "scales", "an address", "null");
  require(out != 0, "out", "an address", "null");
  require(m >= 1, "m", "at least 1", std::to_string(m));
  require(n >= 1, "n", "at least 1", std::to_string(n));
  require(k >= 1 && k <= kW8A8MaxK, "k", "1 to " + std::to_string(kW8A8MaxK), std::to_string(k));
  require(num_threads >= 0, "num_threads", "0 (all processors) or more",
          std::to_string(num_threads));
  const std::string chosen = resolve_isa(require, isa);
  Program::run_or_record([=] {
    w8a8_gemm(reinterpret_cast<const float*>(x), reinterpret_cast<const int8_t*>(qweight),
              reinterpret_cast<const float*>(scales), reinterpret_cast<float*>(out), m, n, k,
              num_threads, chosen);
  });
}

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = __VERSION__;
#else
  info["compiler"] = "g++ " __VERSION__;
#endif
#if defined(TINYCHAT_WITH_CUDA)
  info["cuda"] = true;
  info["cuda_architectures"] = TINYCHAT_CUDA_ARCHITECTURES;
#else
  info["cuda"] = false;
#endif
  info["layout_version"] = kLayoutVersion;
  return info;
}

}  // namespace
}  // namespace tinychat

PYBIND11_MODULE(tinychat_kernels, module) {
  module.doc() = "The compiled kernels of tinychat_ros; tinychat_ros.kernels.ops calls them.";
  module.def("wna16_gemm", &tinychat::checked_wna16_gemm, py::arg("x"), py::arg("tiles"),
             py::arg("out"), py::arg("m"), py::arg("n"), py::arg("k"), py::arg("bits"),
             py::arg("block"), py::arg("num_threads"), py::arg("isa") = "auto",
             py::call_guard<py::gil_scoped_release>(),
             "Write out[m, n] = x[m, k] times the transposed 3-bit or 4-bit weight in tiles of\n"
             "16 rows by `block` columns. x and out are fp32, contiguous; x, tiles and out are\n"
             "addresses.");
  module.def("w4a8_gemm", &tinychat::checked_w4a8_gemm, py::arg("x"), py::arg("tiles"),
             py::arg("out"), py::arg("m"), py::arg("n"), py::arg("k"), py::arg("bits"),
             py::arg("block"), py::arg("num_threads"), py::arg("isa") = "auto",
             py::call_guard<py::gil_scoped_release>(),
             "Write out[m, n] = x[m, k], quantized to int8 by blocks of a row, times the\n"
             "transposed 3-bit or 4-bit weight in tiles of 16 rows by `block` columns. x and\n"
             "out are fp32, contiguous; x, tiles and out are addresses.");
  module.def("w8a8_gemm", &tinychat::checked_w8a8_gemm, py::arg("x"), py::arg("qweight"),
             py::arg("scales"), py::arg("out"), py::arg("m"), py::arg("n"), py::arg("k"),
             py::arg("num_threads"), py::arg("isa") = "auto",
             py::call_guard<py::gil_scoped_release>(),
             "Write out[m, n] = x[m, k], quantized to int8 by rows, times the transposed int8\n"
             "qweight[n, k] with scales[n]. x, scales and out are fp32; all are contiguous and\n"
             "given by their addresses.");
  module.def("cpu_isas", &tinychat::supported_isas,
             "List the instruction sets that kernels can use on this processor, best first.");
  module.def(
      "cpu_use_isa",
      [](const std::string& isa) {
        tinychat::set_default_isa(tinychat::resolve_isa({"cpu_use_isa"}, isa));
      },
      py::arg("isa"), "Let kernels use an instruction set unless a call names another.");
  module.def("build_info", &tinychat::build_info,
             "Return the compiler, whether CUDA kernels are in, and the layout version.");
  tinychat::bind_cpu(module);
#if defined(TINYCHAT_WITH_CUDA)
  tinychat::bind_cuda(module);
#endif
}
