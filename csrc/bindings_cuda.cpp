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

#include "bindings_cuda.h"

#include <stdexcept>
#include <string>

#include "cuda/launchers.h"

namespace py = pybind11;

namespace tinychat {
namespace {

using Address = uintptr_t;

template <typename T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

DType dtype_of(int dtype) {
  if (dtype < 0 || dtype > 2) {
    throw std::invalid_argument("dtype: expected 0 (fp16), 1 (bf16) or 2 (fp32), got " +
                                std::to_string(dtype));
  }
  return static_cast<DType>(dtype);
}

Activation activation_of(const std::string& name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  throw std::invalid_argument("activation: expected silu, gelu or gelu_tanh, got " + name);
}

W4Input w4_input(Address x, Address records, Address bias, Address norm_weight, float norm_eps,
                 int64_t m, int64_t n, int64_t k, int group_size, Address next,
                 int64_t next_bytes, int dtype, Address stream) {
  if (m < 1 || n < 8 || n % 8 != 0 || k < 8 || k % 8 != 0) {
    throw std::invalid_argument(
        "W4Input: expected m of 1 or more and n and k that are positive multiples of 8, got " +
        std::to_string(m) + ", " + std::to_string(n) + " and " + std::to_string(k));
  }
  return {pointer(x), pointer(records), pointer(bias), pointer(norm_weight), norm_eps, m, n, k,
          group_size, pointer(next), next_bytes, dtype_of(dtype), pointer(stream)};
}

KvCache kv_cache(Address k, Address v, Address k_scale, Address v_scale, int64_t kv_heads,
                 int64_t max_seq_len, int64_t head_dim, Address state) {
  return {pointer(k), pointer(v), pointer(k_scale), pointer(v_scale), kv_heads, max_seq_len,
          head_dim, pointer<StepState>(state)};
}

Rotary rotary(Address cos, Address sin) { return {pointer<float>(cos), pointer<float>(sin)}; }

HeadNorm head_norm(Address q, Address k, float eps) { return {pointer(q), pointer(k), eps}; }

Scores scores(float scale, int window, float softcap, Address slopes) {
  if (window < 0) {
    throw std::invalid_argument("Scores: window: expected 0 or more, got " +
                                std::to_string(window));
  }
  return {scale, window, softcap, pointer<float>(slopes)};
}

LogitsOutput logits_output(Address logits, Address best, float softcap) {
  return {pointer<float>(logits), pointer<Candidate>(best), softcap};
}

void bind_structures(py::module_& module) {
  py::class_<W4Input>(module, "W4Input", py::module_local())
      .def(py::init(&w4_input), py::kw_only(), py::arg("x"), py::arg("records"),
           py::arg("bias") = 0, py::arg("norm_weight") = 0, py::arg("norm_eps") = 0.0f,
           py::arg("m"), py::arg("n"), py::arg("k"), py::arg("group_size"), py::arg("next") = 0,
           py::arg("next_bytes") = 0, py::arg("dtype"), py::arg("stream"));
  py::class_<KvCache>(module, "KvCache", py::module_local())
      .def(py::init(&kv_cache), py::kw_only(), py::arg("k"), py::arg("v"),
           py::arg("k_scale") = 0, py::arg("v_scale") = 0, py::arg("kv_heads"),
           py::arg("max_seq_len"), py::arg("head_dim"), py::arg("state"));
  py::class_<Rotary>(module, "Rotary", py::module_local())
      .def(py::init(&rotary), py::kw_only(), py::arg("cos") = 0, py::arg("sin") = 0);
  py::class_<HeadNorm>(module, "HeadNorm", py::module_local())
      .def(py::init(&head_norm), py::kw_only(), py::arg("q") = 0, py::arg("k") = 0,
           py::arg("eps") = 0.0f);
  py::class_<Scores>(module, "Scores", py::module_local())
      .def(py::init(&scores), py::kw_only(), py::arg("scale"), py::arg("window") = 0,
           py::arg("softcap") = 0.0f, py::arg("slopes") = 0);
}

void bind_device(py::module_& module) { module.def("device_problem", &device_problem); }

void bind_norms(py::module_& module) {
  module.def(
      "rms_norm",
      [](Address x, Address residual, Address weight, Address y, int64_t tokens, int64_t hidden,
         float eps, int dtype, Address stream) {
        rms_norm(pointer(x), pointer(residual), pointer(weight), pointer(y), tokens, hidden, eps,
                 dtype_of(dtype), pointer(stream));
      },
      py::kw_only(), py::arg("x"), py::arg("residual") = 0, py::arg("weight"), py::arg("y"),
      py::arg("tokens"), py::arg("hidden"), py::arg("eps"), py::arg("dtype"), py::arg("stream"));
  module.def(
      "layer_norm",
      [](Address x, Address weight, Address bias, Address y, int64_t tokens, int64_t hidden,
         float eps, int dtype, Address stream) {
        layer_norm(pointer(x), pointer(weight), pointer(bias), pointer(y), tokens, hidden, eps,
                   dtype_of(dtype), pointer(stream));
      },
      py::kw_only(), py::arg("x"), py::arg("weight"), py::arg("bias") = 0, py::arg("y"),
      py::arg("tokens"), py::arg("hidden"), py::arg("eps"), py::arg("dtype"), py::arg("stream"));
}

// A GEMV or a GEMM, each for the same outputs.
template <typename Output>
void w4(bool gemv, const W4Input& input, const Output& output) {
  if (gemv) {
    w4_gemv(input, output);
  } else {
    w4_gemm(input, output);
  }
}

void bind_w4(py::module_& module) {
  module.def(
      "w4_linear",
      [](const W4Input& input, bool gemv, Address residual, Address y) {
        w4(gemv, input, LinearOutput{pointer(residual), pointer(y)});
      },
      py::arg("input"), py::kw_only(), py::arg("gemv"), py::arg("residual") = 0, py::arg("y"));
  module.def(
      "w4_gate_up",
      [](const W4Input& input, bool gemv, const std::string& activation, Address y) {
        w4(gemv, input, GateUpOutput{activation_of(activation), pointer(y)});
      },
      py::arg("input"), py::kw_only(), py::arg("gemv"), py::arg("activation"), py::arg("y"));
  module.def(
      "w4_up",
      [](const W4Input& input, bool gemv, const std::string& activation, Address scales,
         Address y) {
        w4(gemv, input, UpOutput{activation_of(activation), pointer(scales), pointer(y)});
      },
      py::arg("input"), py::kw_only(), py::arg("gemv"), py::arg("activation"),
      py::arg("scales") = 0, py::arg("y"));
  module.def(
      "w4_qkv",
      [](const W4Input& input, const KvCache& cache, const Rotary& rotary, bool gemv, Address q,
         int64_t heads) {
        w4(gemv, input, QkvOutput{pointer(q), cache, rotary, heads});
      },
      py::arg("input"), py::arg("cache"), py::arg("rotary"), py::kw_only(), py::arg("gemv"),
      py::arg("q"), py::arg("heads"));
  module.def(
      "w4_logits",
      [](const W4Input& input, Address logits, Address best, float softcap) {
        w4_gemv(input, logits_output(logits, best, softcap));
      },
      py::arg("input"), py::kw_only(), py::arg("logits"), py::arg("best"),
      py::arg("softcap") = 0.0f);
  module.def(
      "w4_repack",
      [](Address qweight, Address scales, Address zeros, Address rows, Address records,
         int64_t tiles, int64_t k, int64_t source_group, Address stream) {
        w4_repack(pointer<uint8_t>(qweight), pointer(scales), pointer<uint8_t>(zeros),
                  pointer<int32_t>(rows), pointer(records), tiles, k, source_group,
                  pointer(stream));
      },
      py::kw_only(), py::arg("qweight"), py::arg("scales"), py::arg("zeros"), py::arg("rows"),
      py::arg("records"), py::arg("tiles"), py::arg("k"), py::arg("source_group"),
      py::arg("stream"));
}

void bind_attention(py::module_& module) {
  module.def(
      "rope_append",
      [](const KvCache& cache, const HeadNorm& norm, const Rotary& rotary, Address qkv,
         bool permuted, Address q, int64_t tokens, int64_t heads, int dtype, Address stream) {
        rope_append(pointer(qkv), permuted, pointer(q), cache, norm, rotary, tokens, heads,
                    dtype_of(dtype), pointer(stream));
      },
      py::arg("cache"), py::arg("norm"), py::arg("rotary"), py::kw_only(), py::arg("qkv"),
      py::arg("permuted") = false, py::arg("q"), py::arg("tokens"), py::arg("heads"),
      py::arg("dtype"), py::arg("stream"));
  module.def("decode_attention_workspace", &decode_attention_workspace, py::kw_only(),
             py::arg("heads"), py::arg("kv_heads"), py::arg("head_dim"), py::arg("max_seq_len"));
  module.def(
      "decode_attention",
      [](const KvCache& cache, const Scores& scores, Address q, Address out, Address workspace,
         int64_t heads, int dtype, Address stream) {
        decode_attention(pointer(q), cache, pointer(out), pointer(workspace), heads, scores,
                         dtype_of(dtype), pointer(stream));
      },
      py::arg("cache"), py::arg("scores"), py::kw_only(), py::arg("q"), py::arg("out"),
      py::arg("workspace"), py::arg("heads"), py::arg("dtype"), py::arg("stream"));
  module.def(
      "prefill_attention",
      [](const KvCache& cache, const Scores& scores, Address q, Address out, int64_t tokens,
         int64_t heads, int dtype, Address stream) {
        prefill_attention(pointer(q), cache, pointer(out), tokens, heads, scores, dtype_of(dtype),
                          pointer(stream));
      },
      py::arg("cache"), py::arg("scores"), py::kw_only(), py::arg("q"), py::arg("out"),
      py::arg("tokens"), py::arg("heads"), py::arg("dtype"), py::arg("stream"));
}

void bind_ends(py::module_& module) {
  module.def(
      "embedding",
      [](Address token_ids, Address table, Address x, int64_t tokens, int64_t vocab,
         int64_t hidden, float scale, int dtype, Address stream) {
        embedding(pointer<int32_t>(token_ids), pointer(table), pointer(x), tokens, vocab, hidden,
                  scale, dtype_of(dtype), pointer(stream));
      },
      py::kw_only(), py::arg("token_ids"), py::arg("table"), py::arg("x"), py::arg("tokens"),
      py::arg("vocab"), py::arg("hidden"), py::arg("scale") = 1.0f, py::arg("dtype"),
      py::arg("stream"));
  module.def(
      "lm_head",
      [](Address x, Address norm_weight, float norm_eps, Address weight, Address scales,
         Address logits, Address best, float softcap, int64_t n, int64_t k, int dtype,
         Address stream) {
        lm_head(pointer(x), pointer(norm_weight), norm_eps, pointer(weight),
                pointer<float>(scales), logits_output(logits, best, softcap), n, k,
                dtype_of(dtype), pointer(stream));
      },
      py::kw_only(), py::arg("x"), py::arg("norm_weight") = 0, py::arg("norm_eps") = 0.0f,
      py::arg("weight"), py::arg("scales") = 0, py::arg("logits"), py::arg("best"),
      py::arg("softcap") = 0.0f, py::arg("n"), py::arg("k"), py::arg("dtype"),
      py::arg("stream"));
  module.def(
      "sample",
      [](Address logits, Address best, Address params, Address seen, Address state, Address ring,
         int ring_size, int64_t vocab, Address stream) {
        sample(pointer<float>(logits), pointer<Candidate>(best), pointer<SamplingState>(params),
               pointer<uint8_t>(seen), pointer<StepState>(state), pointer<uint64_t>(ring),
               ring_size, vocab, pointer(stream));
      },
      py::kw_only(), py::arg("logits"), py::arg("best"), py::arg("params"), py::arg("seen"),
      py::arg("state"), py::arg("ring"), py::arg("ring_size"), py::arg("vocab"),
      py::arg("stream"));
  module.def(
      "wait_for_token",
      [](Address ring, int ring_size, int64_t step, Address stream) {
        return wait_for_token(pointer<uint64_t>(ring), ring_size, step, pointer(stream));
      },
      py::kw_only(), py::arg("ring"), py::arg("ring_size"), py::arg("step"), py::arg("stream"),
      py::call_guard<py::gil_scoped_release>());
}

void bind_measurement(py::module_& module) {
  module.attr("READ_MARK") = kReadMark;
  module.def(
      "read_bytes",
      [](Address data, int64_t bytes, Address sink, Address stream) {
        read_bytes(pointer(data), bytes, pointer(sink), pointer(stream));
      },
      py::kw_only(), py::arg("data"), py::arg("bytes"), py::arg("sink"), py::arg("stream"));
}

}  // namespace

void bind_cuda(py::module_& module) {
  bind_structures(module);
  bind_device(module);
  bind_norms(module);
  bind_w4(module);
  bind_attention(module);
  bind_ends(module);
  bind_measurement(module);
}

}  // namespace tinychat
