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

#include "bindings_cpu.h"

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "bindings_checks.h"
#include "cpu/ops.h"
#include "cpu/program.h"
#include "cpu/thread_pool.h"

namespace py = pybind11;

namespace tinychat::cpu {
namespace {

using Address = uintptr_t;
using Released = py::call_guard<py::gil_scoped_release>;

template <typename T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

struct NamedAddress {
  const char* name;
  Address address;
};

struct Size {
  const char* name;
  int64_t value;
};

// Checks the arguments of one kernel.
class Arguments {
 public:
  Arguments(const char* kernel, std::initializer_list<NamedAddress> addresses,
            std::initializer_list<Size> sizes)
      : require_{kernel} {
    for (const auto& [name, address] : addresses) {
      require_(address != 0, name, "an address", "null");
    }
    for (const auto& [name, value] : sizes) {
      require_(value >= 1, name, "at least 1", std::to_string(value));
    }
  }

  DType dtype(int dtype) const {
    require_(dtype >= 0 && dtype <= 2, "dtype", "0 (fp16), 1 (bf16) or 2 (fp32)",
             std::to_string(dtype));
    return static_cast<DType>(dtype);
  }

  DType cache_dtype(int dtype) const {
    require_(dtype == 0 || dtype == 2, "dtype", "0 (fp16) or 2 (fp32)", std::to_string(dtype));
    return static_cast<DType>(dtype);
  }

  void both_or_neither(Address first, const NamedAddress& second) const {
    require_((first != 0) == (second.address != 0), second.name, first ? "an address" : "null",
             second.address ? "an address" : "null");
  }

  Activation activation(int activation) const {
    require_(activation >= 0 && activation <= 2, "activation", "0 (SiLU), 1 or 2 (GELU)",
             std::to_string(activation));
    return static_cast<Activation>(activation);
  }

  void head_dim(int64_t head_dim) const {
    require_(head_dim >= 2 && head_dim <= kMaxHeadDim && head_dim % 2 == 0, "head_dim",
             "an even number, 2 to " + std::to_string(kMaxHeadDim), std::to_string(head_dim));
  }

  void window(int64_t window) const {
    require_(window >= 0, "window", "0 or more", std::to_string(window));
  }

  void heads(int64_t heads, const KvCache& cache) const {
    require_(heads >= 1 && heads % cache.kv_heads == 0, "heads",
             "a positive multiple of kv_heads, " + std::to_string(cache.kv_heads),
             std::to_string(heads));
  }

  std::string isa(int num_threads, const std::string& isa) const {
    require_(num_threads >= 0, "num_threads", "0 (all processors) or more",
             std::to_string(num_threads));
    return resolve_isa(require_, isa);
  }

 private:
  Requirement require_;
};

KvCache kv_cache(Address k, Address v, Address k_scale, Address v_scale, int dtype,
                 int64_t kv_heads, int64_t max_seq_len, int64_t head_dim, Address state) {
  const Arguments arguments("CpuKvCache", {{"k", k}, {"v", v}, {"state", state}},
                            {{"kv_heads", kv_heads}, {"max_seq_len", max_seq_len}});
  arguments.both_or_neither(k_scale, {"v_scale", v_scale});
  arguments.head_dim(head_dim);
  return {pointer(k), pointer(v), pointer(k_scale), pointer(v_scale),
          arguments.cache_dtype(dtype), kv_heads, max_seq_len, head_dim,
          pointer<StepState>(state)};
}

void bind_program(py::module_& module) {
  py::class_<Program>(module, "CpuProgram", py::module_local(),
                      "Kernel calls, recorded between begin() and end() on one thread.")
      .def(py::init<>())
      .def("begin", &Program::begin)
      .def("end", &Program::end)
      .def(
          "run",
          [](const Program& program, const std::function<bool()>& interrupted) {
            return program.run([&] { return interrupted && interrupted(); });
          },
          py::arg("interrupted") = py::none(), Released(),
          "Make the calls, until interrupted() says so; return whether all were made.");
}

void bind_threads(py::module_& module) {
  module.def(
      "cpu_set_processors",
      [](const std::vector<int>& processors) {
        const Requirement require{"cpu_set_processors"};
        for (const int processor : processors) {
          require(processor >= 0 && processor < CPU_SETSIZE, "processors",
                  "0 to " + std::to_string(CPU_SETSIZE - 1), std::to_string(processor));
        }
        ThreadPool::instance().set_processors(processors);
      },
      py::arg("processors"), "Keep the workers of all CPU kernels to these processors.");
}

void bind_ends(py::module_& module) {
  module.def(
      "cpu_embedding",
      [](Address token_ids, Address table, Address x, int64_t tokens, int64_t vocab,
         int64_t hidden, int dtype, float scale, int num_threads, const std::string& isa) {
        const Arguments arguments("cpu_embedding",
                                  {{"token_ids", token_ids}, {"table", table}, {"x", x}},
                                  {{"tokens", tokens}, {"vocab", vocab}, {"hidden", hidden}});
        const std::string chosen = arguments.isa(num_threads, isa);
        const DType type = arguments.dtype(dtype);
        Program::run_or_record([=] {
          embedding(pointer<int32_t>(token_ids), pointer(table), pointer<float>(x), tokens,
                    vocab, hidden, type, scale, num_threads, chosen);
        });
      },
      py::kw_only(), py::arg("token_ids"), py::arg("table"), py::arg("x"), py::arg("tokens"),
      py::arg("vocab"), py::arg("hidden"), py::arg("dtype"), py::arg("scale") = 1.0f,
      py::arg("num_threads"), py::arg("isa") = "auto", Released());
  module.def(
      "cpu_dense_gemm",
      [](Address x, Address weight, Address scales, Address out, int64_t m, int64_t n, int64_t k,
         int dtype, int num_threads, const std::string& isa) {
        const Arguments arguments("cpu_dense_gemm", {{"x", x}, {"weight", weight}, {"out", out}},
                                  {{"m", m}, {"n", n}, {"k", k}});
        const std::string chosen = arguments.isa(num_threads, isa);
        const DType type = arguments.dtype(dtype);
        Program::run_or_record([=] {
          dense_gemm(pointer<float>(x), pointer(weight), pointer<float>(scales),
                     pointer<float>(out), m, n, k, type, num_threads, chosen);
        });
      },
      py::kw_only(), py::arg("x"), py::arg("weight"), py::arg("scales") = 0, py::arg("out"),
      py::arg("m"), py::arg("n"), py::arg("k"), py::arg("dtype"), py::arg("num_threads"),
      py::arg("isa") = "auto", Released());
  module.def(
      "cpu_sample",
      [](Address logits, Address params, Address seen, Address state, Address ring, int ring_size,
         int64_t vocab) {
        const Arguments arguments("cpu_sample",
                                  {{"logits", logits}, {"params", params}, {"seen", seen},
                                   {"state", state}, {"ring", ring}},
                                  {{"ring_size", ring_size}, {"vocab", vocab}});
        Program::run_or_record([=] {
          sample(pointer<float>(logits), pointer<SamplingState>(params), pointer<uint8_t>(seen),
                 pointer<StepState>(state), pointer<uint64_t>(ring), ring_size, vocab);
        });
      },
      py::kw_only(), py::arg("logits"), py::arg("params"), py::arg("seen"), py::arg("state"),
      py::arg("ring"), py::arg("ring_size"), py::arg("vocab"), Released());
}

void bind_norms(py::module_& module) {
  module.def(
      "cpu_rms_norm",
      [](Address x, Address weight, Address y, int64_t tokens, int64_t hidden, float eps,
         int dtype, int num_threads, const std::string& isa) {
        const Arguments arguments("cpu_rms_norm", {{"x", x}, {"weight", weight}, {"y", y}},
                                  {{"tokens", tokens}, {"hidden", hidden}});
        const std::string chosen = arguments.isa(num_threads, isa);
        const DType type = arguments.dtype(dtype);
        Program::run_or_record([=] {
          rms_norm(pointer<float>(x), pointer(weight), pointer<float>(y), tokens, hidden, eps,
                   type, num_threads, chosen);
        });
      },
      py::kw_only(), py::arg("x"), py::arg("weight"), py::arg("y"), py::arg("tokens"),
      py::arg("hidden"), py::arg("eps"), py::arg("dtype"), py::arg("num_threads"),
      py::arg("isa") = "auto", Released());
  module.def(
      "cpu_layer_norm",
      [](Address x, Address weight, Address bias, Address y, int64_t tokens, int64_t hidden,
         float eps, int dtype, int num_threads, const std::string& isa) {
        const Arguments arguments("cpu_layer_norm", {{"x", x}, {"weight", weight}, {"y", y}},
                                  {{"tokens", tokens}, {"hidden", hidden}});
        const std::string chosen = arguments.isa(num_threads, isa);
        const DType type = arguments.dtype(dtype);
        Program::run_or_record([=] {
          layer_norm(pointer<float>(x), pointer(weight), pointer(bias), pointer<float>(y),
                     tokens, hidden, eps, type, num_threads, chosen);
        });
      },
      py::kw_only(), py::arg("x"), py::arg("weight"), py::arg("bias") = 0, py::arg("y"),
      py::arg("tokens"), py::arg("hidden"), py::arg("eps"), py::arg("dtype"),
      py::arg("num_threads"), py::arg("isa") = "auto", Released());
}

void bind_elementwise(py::module_& module) {
  module.def(
      "cpu_add",
      [](Address x, Address residual, int64_t count, int num_threads, const std::string& isa) {
        const Arguments arguments("cpu_add", {{"x", x}, {"residual", residual}},
                                  {{"count", count}});
        const std::string chosen = arguments.isa(num_threads, isa);
        Program::run_or_record([=] {
          add(pointer<float>(x), pointer<float>(residual), count, num_threads, chosen);
        });
      },
      py::kw_only(), py::arg("x"), py::arg("residual"), py::arg("count"), py::arg("num_threads"),
      py::arg("isa") = "auto", Released());
  module.def(
      "cpu_clip",
      [](Address x, int64_t count, float limit, int num_threads, const std::string& isa) {
        const Arguments arguments("cpu_clip", {{"x", x}}, {{"count", count}});
        const std::string chosen = arguments.isa(num_threads, isa);
        Program::run_or_record(
            [=] { clip(pointer<float>(x), count, limit, num_threads, chosen); });
      },
      py::kw_only(), py::arg("x"), py::arg("count"), py::arg("limit"), py::arg("num_threads"),
      py::arg("isa") = "auto", Released());
  module.def(
      "cpu_softcap",
      [](Address x, int64_t count, float cap, int num_threads, const std::string& isa) {
        const Arguments arguments("cpu_softcap", {{"x", x}}, {{"count", count}});
        const std::string chosen = arguments.isa(num_threads, isa);
        Program::run_or_record(
            [=] { softcap(pointer<float>(x), count, cap, num_threads, chosen); });
      },
      py::kw_only(), py::arg("x"), py::arg("count"), py::arg("cap"), py::arg("num_threads"),
      py::arg("isa") = "auto", Released());
}

void bind_activations(py::module_& module) {
  module.def(
      "cpu_gate_mul",
      [](Address gate_up, Address out, int64_t tokens, int64_t size, int activation,
         int num_threads, const std::string& isa) {
        const Arguments arguments("cpu_gate_mul", {{"gate_up", gate_up}, {"out", out}},
                                  {{"tokens", tokens}, {"size", size}});
        const std::string chosen = arguments.isa(num_threads, isa);
        const Activation kind = arguments.activation(activation);
        Program::run_or_record([=] {
          gate_mul(pointer<float>(gate_up), pointer<float>(out), tokens, size, kind, num_threads,
                   chosen);
        });
      },
      py::kw_only(), py::arg("gate_up"), py::arg("out"), py::arg("tokens"), py::arg("size"),
      py::arg("activation"), py::arg("num_threads"), py::arg("isa") = "auto", Released());
  module.def(
      "cpu_activate",
      [](Address x, Address scales, Address out, int64_t tokens, int64_t size, int activation,
         int dtype, int num_threads, const std::string& isa) {
        const Arguments arguments("cpu_activate", {{"x", x}, {"out", out}},
                                  {{"tokens", tokens}, {"size", size}});
        const std::string chosen = arguments.isa(num_threads, isa);
        const Activation kind = arguments.activation(activation);
        const DType type = arguments.dtype(dtype);
        Program::run_or_record([=] {
          activate(pointer<float>(x), pointer(scales), pointer<float>(out), tokens, size, kind,
                   type, num_threads, chosen);
        });
      },
      py::kw_only(), py::arg("x"), py::arg("scales") = 0, py::arg("out"), py::arg("tokens"),
      py::arg("size"), py::arg("activation"), py::arg("dtype") = 2, py::arg("num_threads"),
      py::arg("isa") = "auto", Released());
}

void bind_memory(py::module_& module) {
  module.def(
      "cpu_read",
      [](Address data, int64_t bytes, int num_threads, const std::string& isa) {
        const Arguments arguments("cpu_read", {{"data", data}}, {{"bytes", bytes}});
        read(pointer<uint8_t>(data), bytes, num_threads, arguments.isa(num_threads, isa));
      },
      py::kw_only(), py::arg("data"), py::arg("bytes"), py::arg("num_threads"),
      py::arg("isa") = "auto", Released());
  module.def(
      "cpu_checksum",
      [](Address data, int64_t bytes, int num_threads, const std::string& isa) {
        const Arguments arguments("cpu_checksum", {{"data", data}}, {{"bytes", bytes}});
        return checksum(pointer<uint8_t>(data), bytes, num_threads,
                        arguments.isa(num_threads, isa));
      },
      py::kw_only(), py::arg("data"), py::arg("bytes"), py::arg("num_threads"),
      py::arg("isa") = "auto", Released());
}

void bind_attention(py::module_& module) {
  py::class_<KvCache>(module, "CpuKvCache", py::module_local())
      .def(py::init(&kv_cache), py::kw_only(), py::arg("k"), py::arg("v"),
           py::arg("k_scale") = 0, py::arg("v_scale") = 0, py::arg("dtype"), py::arg("kv_heads"),
           py::arg("max_seq_len"), py::arg("head_dim"), py::arg("state"));
  module.def(
      "cpu_rope_append",
      [](const KvCache& cache, Address qkv, Address q, Address cos, Address sin, Address q_norm,
         Address k_norm, int norm_dtype, float eps, int64_t tokens, int64_t heads,
         int num_threads, const std::string& isa) {
        const Arguments arguments("cpu_rope_append", {{"qkv", qkv}, {"q", q}},
                                  {{"tokens", tokens}});
        arguments.heads(heads, cache);
        arguments.both_or_neither(cos, {"sin", sin});
        arguments.both_or_neither(q_norm, {"k_norm", k_norm});
        const std::string chosen = arguments.isa(num_threads, isa);
        const HeadNorm norm = {pointer(q_norm), pointer(k_norm), arguments.dtype(norm_dtype), eps};
        Program::run_or_record([=] {
          rope_append(pointer<float>(qkv), pointer<float>(q), cache, pointer<float>(cos),
                      pointer<float>(sin), norm, tokens, heads, num_threads, chosen);
        });
      },
      py::arg("cache"), py::kw_only(), py::arg("qkv"), py::arg("q"), py::arg("cos") = 0,
      py::arg("sin") = 0, py::arg("q_norm") = 0, py::arg("k_norm") = 0, py::arg("norm_dtype") = 2,
      py::arg("eps") = 0.0f, py::arg("tokens"), py::arg("heads"), py::arg("num_threads"),
      py::arg("isa") = "auto", Released());
  module.def(
      "cpu_attention",
      [](const KvCache& cache, Address q, Address out, int64_t tokens, int64_t heads, float scale,
         int64_t window, float softcap, Address slopes, int num_threads, const std::string& isa) {
        const Arguments arguments("cpu_attention", {{"q", q}, {"out", out}},
                                  {{"tokens", tokens}});
        arguments.heads(heads, cache);
        arguments.window(window);
        const std::string chosen = arguments.isa(num_threads, isa);
        const Scores scores = {scale, window, softcap, pointer<float>(slopes)};
        Program::run_or_record([=] {
          attention(pointer<float>(q), cache, pointer<float>(out), tokens, heads, scores,
                    num_threads, chosen);
        });
      },
      py::arg("cache"), py::kw_only(), py::arg("q"), py::arg("out"), py::arg("tokens"),
      py::arg("heads"), py::arg("scale"), py::arg("window") = 0, py::arg("softcap") = 0.0f,
      py::arg("slopes") = 0, py::arg("num_threads"), py::arg("isa") = "auto", Released());
}

}  // namespace
}  // namespace tinychat::cpu

namespace tinychat {

void bind_cpu(py::module_& module) {
  cpu::bind_program(module);
  cpu::bind_threads(module);
  cpu::bind_ends(module);
  cpu::bind_norms(module);
  cpu::bind_elementwise(module);
  cpu::bind_activations(module);
  cpu::bind_memory(module);
  cpu::bind_attention(module);
}

}  // namespace tinychat
