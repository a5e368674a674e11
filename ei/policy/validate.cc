#include <type_traits>

#include "ei/base/fail.h"
#include "ei/policy/decode_policy.h"
#include "ei/policy/prefill_policy.h"
#include "ei/policy/sampling.h"
#include "ei/policy/split.h"

namespace ei {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 30;

template <class T>
void in_range(const char* name, T value, std::type_identity_t<T> min, std::type_identity_t<T> max) {
  require(value >= min && value <= max, "{} is {}, expected {} to {}", name, value, min, max);
}

}  // namespace

void validate(const PrefillPolicy& p) {
  in_range("segment", p.segment, 1, 65536);
  in_range("block", p.block, 1, p.segment);
  require(p.segment % p.block == 0, "block {} does not divide segment {}", p.block, p.segment);
  const bool has_budget = p.estimate == Estimate::kBounds;
  in_range("base-budget", p.budget.base, has_budget ? static_cast<float>(p.block) : 0, 0x1p30f);
  in_range("e-t", p.budget.e_t, 0, 1e6);
  in_range("delta-t", p.budget.delta_t, 0, 1e6);
  in_range("alpha", p.budget.alpha, 0, 1e6);
  in_range("max-factor", p.budget.max_factor, 1, 1e6);
  if (!p.is_dense()) in_range("threshold", p.threshold_len, 0, kMaxTokens);
  in_range("dense-layers", p.dense_layers, 0, 1000000);
  in_range("dense-tail", p.dense_tail, 0, kMaxTokens);
  in_range("sink", p.sink, 0, kMaxTokens);
  in_range("local", p.local, 0, kMaxTokens);
  in_range("fusion", p.fusion, 0, 1);
  in_range("mass", p.mass, 0, 1);
  in_range("share", p.share, 0, 1);
  in_range("stride", p.stride, 1, 65536);
  require(p.estimate != Estimate::kAntidiagonals || p.block % p.stride == 0,
          "stride {} does not divide block {}", p.stride, p.block);
}

void validate(const DecodePolicy& p) {
  if (p.is_full()) return;
  in_range("window", p.window, 1, 65536);
  in_range("budget", p.budget, p.split == Split::kStreaming ? kStreamingSinks + 1 : 1, kMaxTokens);
  require(p.split == Split::kStreaming || p.budget > p.kept_window(),
          "budget {} leaves nothing beside the window of {}; raise the budget", p.budget, p.window);
  const bool by_window = p.voter == Voter::kWindow;
  require(by_window || (p.gap != kAutoGap && p.scope == KvScope::kKvHead),
          "decode-gap auto and kv-scope query go by the votes of the window; set voter window");
  require(
      p.voter != Voter::kRepeat || (p.gap == -1 && p.regrow == 0),
      "the prompt votes by being repeated (voter repeat) once, when it was read; set decode-gap "
      "-1 and regrow 0");
  if (p.gap != kAutoGap) in_range("decode-gap", p.gap, -1, kMaxTokens);
  require(p.gap != kAutoGap || p.split != Split::kStreaming,
          "decode-gap auto goes by votes, a streaming split has none; give a number");
  in_range("kernel", p.kernel, 1, 4095);
  require(p.kernel % 2 == 1, "kernel is {}, expected an odd number", p.kernel);
  in_range("regrow", p.regrow, 0, kMaxTokens);
  in_range("floor", p.floor, 0, 1);
  in_range("pyramid-beta", p.pyramid_beta, 1, 1000000);
}

void validate(const SamplingParams& p) {
  in_range("temperature", p.temperature, 0, 100);
  in_range("top-k", p.top_k, -1, INT32_MAX);
  in_range("top-p", p.top_p, 0, 1);
  in_range("min-p", p.min_p, 0, 1);
  in_range("repetition-penalty", p.repetition_penalty, 0.01f, 100);
  in_range("presence-penalty", p.presence_penalty, -2, 2);
  in_range("frequency-penalty", p.frequency_penalty, -2, 2);
}

}  // namespace ei
