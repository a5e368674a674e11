#include <cmath>
#include <random>

#include "apps/hub/hub.h"
#include "ei/base/fail.h"
#include "ei/text/chat_template.h"
#include "python/src/model.h"
#include "python/src/watch.h"

namespace ei::python {
namespace {

using Tokens = Array<const int32_t, 1>;

// Tells the package's logger what is fetched, and looks for Ctrl-C.
hub::Reporter reporter() {
  return {
      .say =
          [](const std::string& line) {
            const nb::gil_scoped_acquire lock;
            nb::module_::import_("logging").attr("getLogger")("entropyinfer").attr("info")(line);
          },
      .on_bytes =
          [](int64_t, int64_t) {
            const nb::gil_scoped_acquire lock;
            if (PyErr_CheckSignals() != 0) throw nb::python_error();
          }};
}

void load(Model* self, const std::string& model, const std::string& device, int threads,
          const std::string& pin, const std::string& kv_type, const std::string& math,
          const std::optional<std::string>& weights, int64_t prefix_bytes) {
  EngineOptions options;
  options.device = choose<Device>(
      "device", device, {{"auto", Device::kAuto}, {"cpu", Device::kCpu}, {"cuda", Device::kCuda}});
  options.threads = threads;
  options.pin = pin;
  require(prefix_bytes >= 0, "prefix_bytes is {}, expected 0 or more", prefix_bytes);
  options.kv_type = choose<DType>(
      "kv_type", kv_type,
      {{"bf16", DType::kBF16}, {"f32", DType::kF32}, {"q8_0", DType::kQ8}, {"fp8", DType::kFP8}});
  options.math = choose<Math>("math", math, {{"bf16", Math::kBF16}, {"f32", Math::kF32}});
  if (weights)
    options.weights = choose<WeightFormat>("weights", *weights,
                                           {{"bf16", WeightFormat::kBF16},
                                            {"fp8", WeightFormat::kFP8},
                                            {"q8_0", WeightFormat::kQ8_0},
                                            {"q4_k", WeightFormat::kQ4_K}});
  const nb::gil_scoped_release free;
  new (self) Model(model, options, prefix_bytes);
}

// Messages in OpenAI's form, and what else the chat template sees ("tools", "enable_thinking").
std::vector<int32_t> encode_chat(Model& self, const std::string& messages,
                                 const std::string& variables) {
  ChatOptions options;
  const nb::gil_scoped_release free;
  options.variables = parse_ordered_json(variables, "the chat template's variables");
  return self.engine().chat_template().encode(parse_ordered_json(messages, "messages"), options);
}

struct Sampling {
  std::optional<float> temperature, top_p, min_p, repetition_penalty, presence_penalty,
      frequency_penalty;
  std::optional<int32_t> top_k;
  std::optional<uint64_t> seed;
};

SamplingParams params_of(const Engine& engine, const Sampling& s) {
  SamplingParams p = engine.default_sampling();
  p.temperature = s.temperature.value_or(p.temperature);
  p.top_k = s.top_k.value_or(p.top_k);
  p.top_p = s.top_p.value_or(p.top_p);
  p.min_p = s.min_p.value_or(p.min_p);
  p.repetition_penalty = s.repetition_penalty.value_or(p.repetition_penalty);
  p.presence_penalty = s.presence_penalty.value_or(p.presence_penalty);
  p.frequency_penalty = s.frequency_penalty.value_or(p.frequency_penalty);
  p.seed = s.seed ? *s.seed : std::random_device()();
  return p;
}

Generation generate(Model& self, const Tokens& tokens, const Policy* policy, int64_t max_tokens,
                    const std::vector<std::string>& stop, bool ignore_eos, const Sampling& sampling,
                    const nb::object& on_text, const nb::object& on_prefill) {
  Request request = self.request(tokens, policy);
  request.max_tokens = max_tokens;
  request.stop = stop;
  request.ignore_eos = ignore_eos;
  request.sampling = params_of(self.engine(), sampling);
  return Watch::run(on_text, on_prefill,
                    [&](Watch&, const Callbacks& callbacks, const std::stop_token& cancel) {
                      return self.session().generate(request, callbacks, cancel);
                    });
}

// Log-probabilities and likeliest tokens, float32 and int32 [n]. Each row of logits that on_logits
// gets is an array of its own: the engine's are of a chunk and gone after it.
auto score(Model& self, const Tokens& tokens, const Policy* policy, int64_t n_prefill,
           const nb::object& on_logits, const nb::object& on_prefill) {
  const Request request = self.request(tokens, policy);
  SparsityStats sparsity;
  const auto scores = Watch::run(
      nb::none(), on_prefill,
      [&](Watch& watch, Callbacks callbacks, const std::stop_token& cancel) {
        callbacks.on_sparsity = [&](const SparsityStats& stats) { sparsity = stats; };
        if (!on_logits.is_none())
          callbacks.on_logits = [&](int64_t position, std::span<const float> logits) {
            watch.call([&] {
              on_logits(position, array<float, 1>({logits.begin(), logits.end()}, {logits.size()}));
            });
          };
        return self.session().score({tokens.data(), tokens.size()}, request, n_prefill, callbacks,
                                    cancel);
      });
  std::vector<float> logprobs;
  std::vector<int32_t> argmax;
  for (const TokenScore& token : scores) {
    logprobs.push_back(token.logprob);
    argmax.push_back(token.argmax);
  }
  return nb::make_tuple(array<float, 1>(std::move(logprobs), {scores.size()}),
                        array<int32_t, 1>(std::move(argmax), {scores.size()}), sparsity.density);
}

void bind_results(nb::module_& m) {
  nb::class_<ModelInfo>(m, "ModelInfo", "What a checkpoint is, and what fits this machine.")
      .def_ro("architecture", &ModelInfo::architecture)
      .def_ro("chat_template", &ModelInfo::chat_template, "The file it is in; '': there is none.")
      .def_ro("device", &ModelInfo::device)
      .def_ro("n_parameters", &ModelInfo::n_parameters)
      .def_ro("n_layers", &ModelInfo::n_layers)
      .def_ro("n_heads", &ModelInfo::n_heads)
      .def_ro("n_kv_heads", &ModelInfo::n_kv_heads)
      .def_ro("head_dim", &ModelInfo::head_dim)
      .def_ro("hidden", &ModelInfo::hidden)
      .def_ro("intermediate", &ModelInfo::intermediate)
      .def_ro("vocab_size", &ModelInfo::vocab_size)
      .def_ro("max_context", &ModelInfo::max_context, "Tokens that the checkpoint was made for.")
      .def_ro("longest_context", &ModelInfo::longest_context,
              "Tokens that fit this machine's memory now, at most max_context.")
      .def_ro("weight_bytes", &ModelInfo::weight_bytes)
      .def_ro("kv_bytes_per_token", &ModelInfo::kv_bytes_per_token)
      .def_ro("load_ms", &ModelInfo::load_ms)
      .def_ro("warnings", &ModelInfo::warnings, "What is wrong and ignored, what will be slow.");
  nb::class_<Timings>(m, "Timings", "Of one answer, in ms and tokens per second.")
      .def_ro("prefill_ms", &Timings::prefill_ms, "Time to the first token.")
      .def_ro("decode_ms", &Timings::decode_ms, "Of the tokens after the first.")
      .def_ro("prefill_tps", &Timings::prefill_tps)
      .def_ro("decode_tps", &Timings::decode_tps);
  nb::class_<SparsityStats>(m, "Sparsity", "How much of dense attention reading a prompt took.")
      .def_ro("density", &SparsityStats::density,
              "Attended pairs of query and key over those of dense attention.")
      .def_ro("kept_blocks_mean", &SparsityStats::kept_blocks_mean)
      .def_ro("rigid_heads", &SparsityStats::rigid_heads)
      .def_ro("dynamic_heads", &SparsityStats::dynamic_heads);
  nb::class_<KvStats>(m, "KvStats", "What the cache of keys and values held at the end.")
      .def_ro("bytes", &KvStats::bytes, "In whole pages.")
      .def_ro("bytes_full", &KvStats::bytes_full, "That the same tokens need uncompressed.")
      .def_ro("entry_bytes", &KvStats::entry_bytes, "Of the entries in those pages.")
      .def_ro("entry_bytes_full", &KvStats::entry_bytes_full)
      .def_ro("compressed", &KvStats::compressed);
  nb::class_<Generation>(m, "Generation", "An answer, and how it went.")
      .def_ro("text", &Generation::text)
      .def_ro("tokens", &Generation::tokens)
      .def_prop_ro(
          "finish_reason",
          [](const Generation& self) {
            constexpr const char* kNames[] = {"stop", "length", "cancelled"};
            return kNames[static_cast<int>(self.finish_reason)];
          },
          "'stop', 'length' or 'cancelled'.")
      .def_ro("prompt_tokens", &Generation::prompt_tokens)
      .def_ro("cached_tokens", &Generation::cached_tokens, "Of the prompt, not read again.")
      .def_ro("timings", &Generation::timings)
      .def_ro("sparsity", &Generation::sparsity)
      .def_ro("kv", &Generation::kv)
      .def("__repr__", [](const Generation& self) {
        return fmt::format("<Generation of {} tokens: {}>", self.tokens.size(),
                           std::string(nb::repr(nb::str(self.text.c_str())).c_str()));
      });
}

}  // namespace

Model::Model(const std::string& model, const EngineOptions& options, int64_t prefix_bytes)
    : device_(options.device),
      engine_(hub::resolve(hub::Hub::from_environment(), model, reporter()), options),
      session_(engine_, prefix_bytes),
      vocab_size_(engine_.info().vocab_size) {}

Request Model::request(const Tokens& tokens, const Policy* policy) const {
  Request request;
  request.tokens.assign(tokens.data(), tokens.data() + tokens.size());
  request.prefill = policy != nullptr ? policy->prefill() : default_prefill(device_);
  if (policy != nullptr) request.decode = policy->decode();
  return request;
}

void bind_engine(nb::module_& m) {
  bind_results(m);
  nb::class_<Sampling>(m, "Sampling")
      .def(nb::init<>())
      .def_rw("temperature", &Sampling::temperature)
      .def_rw("top_k", &Sampling::top_k)
      .def_rw("top_p", &Sampling::top_p)
      .def_rw("min_p", &Sampling::min_p)
      .def_rw("repetition_penalty", &Sampling::repetition_penalty)
      .def_rw("presence_penalty", &Sampling::presence_penalty)
      .def_rw("frequency_penalty", &Sampling::frequency_penalty)
      .def_rw("seed", &Sampling::seed);
  nb::class_<Model>(m, "Model", "What entropyinfer.Engine calls.")
      .def("__init__", &load, nb::arg("model"), nb::arg("device"), nb::arg("threads"),
           nb::arg("pin"), nb::arg("kv_type"), nb::arg("math"), nb::arg("weights").none(),
           nb::arg("prefix_bytes"))
      .def("info", [](Model& self) { return self.engine().info(); })
      .def("encode",
           [](Model& self, const std::string& text) {
             const nb::gil_scoped_release free;
             return self.engine().tokenize(text);
           })
      .def("encode_chat", &encode_chat, nb::arg("messages"), nb::arg("variables"))
      .def("decode",
           [](Model& self, const Tokens& tokens) {
             const nb::gil_scoped_release free;
             for (const int32_t id : std::span(tokens.data(), tokens.size()))
               require(id >= 0 && id < self.vocab_size(),
                       "token id {} is not in the vocabulary (0 to {})", id, self.vocab_size() - 1);
             return self.engine().detokenize({tokens.data(), tokens.size()});
           })
      .def("generate", &generate, nb::arg("tokens"), nb::arg("policy").none(),
           nb::arg("max_tokens"), nb::arg("stop"), nb::arg("ignore_eos"), nb::arg("sampling"),
           nb::arg("on_text").none(), nb::arg("on_prefill").none())
      .def("score", &score, nb::arg("tokens"), nb::arg("policy").none(), nb::arg("n_prefill"),
           nb::arg("on_logits").none(), nb::arg("on_prefill").none())
      .def("clear", [](Model& self) {
        const nb::gil_scoped_release free;
        self.session().clear();
      });
}

}  // namespace ei::python
