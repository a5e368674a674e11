#include <fmt/format.h>

#include <numeric>

#include "apps/bench/kernel_cases.h"
#include "apps/bench/timed_backend.h"
#include "ei/decode/decode.h"
#include "ei/decode/sampler.h"
#include "ei/engine/named_shapes.h"
#include "ei/prefill/prefill.h"

namespace ei::bench {
namespace {

constexpr const char* kSelection = "profile + allocate + select";
constexpr const char* kSmall = "norms, RoPE, SwiGLU, sampling";
constexpr int64_t kTokens = 32768;
constexpr int64_t kDecoded = 64;

// A model that reads a prompt by entropy and writes a few tokens, its ops timed one by one.
class Step {
 public:
  Step(Backend& backend, const ModelConfig& config)
      : backend_(backend),
        config_(config),
        model_(Model::random(backend_, config, 1)),
        act_(backend_, config, kChunk, 1),
        shape_{.n_layers = config.n_layers,
               .n_kv_heads = config.n_kv_heads,
               .layout = {.head_dim = config.head_dim,
                          .rows = policy_.segment,
                          .block = policy_.block},
               .max_tokens = kTokens + kDecoded},
        pool_(backend_, shape_.layout.bytes()),
        cache_(backend_, pool_, shape_),
        window_(backend_, config.n_layers, 0, config.n_heads * config.head_dim) {}

  void prefill() {
    std::vector<int32_t> tokens(kTokens);
    for (size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = static_cast<int32_t>(i * 7919 % static_cast<size_t>(config_.vocab_size));
    PrefillPlan plan(backend_, policy_,
                     {.n_layers = config_.n_layers,
                      .n_heads = config_.n_heads,
                      .n_kv_heads = config_.n_kv_heads,
                      .head_dim = config_.head_dim,
                      .max_tokens = kTokens,
                      .page = policy_.segment,
                      .chunk = kChunk});
    backend_.reset();
    plan.begin(kTokens, 0);
    while (cache_.n_tokens() < kTokens)
      prefill_chunk(backend_, model_, act_, cache_, window_, plan, tokens, Hidden::kAll);
  }

  void decode() {
    Decoder decoder(backend_, model_, 1);
    Sampler sampler(backend_, config_.vocab_size, 1);
    SamplerState greedy(backend_, {}, {}, kDecoded, {});
    const Sampler::Row row = {.state = &greedy};
    backend_.reset();
    Running running = {&cache_, &window_, 1};
    for (int64_t i = 0; i < kDecoded; ++i) {
      running.token = sampler.draw(decoder.step(act_, {&running, 1}), {&row, 1})[0];
      cache_.advance(1);
    }
  }

  // Seconds since the last reset(), of these ops or of all.
  double seconds_of(std::initializer_list<const char*> ops) const {
    double sum = 0;
    for (const char* op : ops)
      if (const auto it = backend_.seconds().find(op); it != backend_.seconds().end())
        sum += it->second;
    return sum;
  }
  double seconds() const {
    double sum = 0;
    for (const auto& [op, seconds] : backend_.seconds()) sum += seconds;
    return sum;
  }

 private:
  static constexpr int64_t kChunk = 2048;

  TimedBackend backend_;
  ModelConfig config_;
  PrefillPolicy policy_;
  Model model_;
  Activations act_;
  KvShape shape_;
  PagePool pool_;
  KvCache cache_;
  QueryWindow window_;
};

void add(KernelBench& bench, const Step& step, const char* kernel, const std::string& size,
         double times, std::initializer_list<const char*> ops) {
  bench.add({.kernel = kernel,
             .size = size,
             .seconds = step.seconds_of(ops) / times,
             .limit = KernelResult::Limit::kStep,
             .share = step.seconds_of(ops) / step.seconds(),
             .target = 0.05});
}

}  // namespace

void bench_steps(Backend& backend, KernelBench& bench) {
  if (!bench.wants(kSelection) && !bench.wants(kSmall)) return;
  // A few layers of a 1B model: every layer spends the same, but for the dense one in front.
  ModelConfig some_layers = named_shape("llama-3.2-1b");
  some_layers.n_layers = 2;
  const std::pair<const char*, ModelConfig> models[] = {{"needle-8m", named_shape("needle-8m")},
                                                        {"2 layers of a 1B model", some_layers}};
  for (const auto& [name, config] : models) {
    Step step(backend, config);
    const std::string prompt = fmt::format("prompt of {}, {}", kTokens, name);
    bench.announce(kSelection, prompt);
    step.prefill();
    add(bench, step, kSelection, prompt, 1, {"ScoreBlocks", "AllocateBudget", "SelectBlocks"});
    add(bench, step, kSmall, prompt, 1, {"RmsNorm", "RopeAngles", "Rope", "SwiGlu", "Sample"});
    const std::string token = fmt::format("token after {}, {}", kTokens, name);
    bench.announce(kSmall, token);
    step.decode();
    add(bench, step, kSmall, token, double(kDecoded),
        {"RmsNorm", "RopeAngles", "Rope", "SwiGlu", "Sample"});
  }
}

}  // namespace ei::bench
