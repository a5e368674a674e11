#include "apps/bench/plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "ei/base/fail.h"
#include "ei/policy/named.h"

namespace ei::bench {
namespace {

std::vector<Case> prefill_cases(const Options& options) {
  std::vector<Case> cases;
  for (const std::string& name : options.prefills) {
    if (name == "dense") {
      cases.push_back({name, "", PrefillPolicy::dense(), DecodePolicy::full()});
      continue;
    }
    const PrefillPolicy* policy = find_prefill(name, options.on_gpu);
    require(policy != nullptr, "policy {} is not known", name);
    if (options.dense_layers.empty()) cases.push_back({name, "", *policy, DecodePolicy::full()});
    for (const int64_t n : options.dense_layers) {
      Case c = {name, "", *policy, DecodePolicy::full()};
      c.prefill.dense_layers = n;
      if (options.dense_layers.size() > 1)
        c.prefill_name += fmt::format(", {} dense layer{}", n, n == 1 ? "" : "s");
      cases.push_back(c);
    }
  }
  return cases;
}

}  // namespace

std::string Work::name() const {
  if (kind == Kind::kRead) return fmt::format("pp{}", n);
  return depth > 0 ? fmt::format("tg{} @ d{}", n, depth) : fmt::format("tg{}", n);
}

std::vector<Group> make_plan(const Options& options) {
  const std::vector<Case> reads = prefill_cases(options);
  std::vector<Case> writes;
  for (const std::string& name : options.decodes) {
    Case c = reads.back();
    c.decode_name = name;
    if (name == "latent") c.decode = DecodePolicy{};
    writes.push_back(c);
  }
  std::vector<Group> plan;
  for (const int64_t n : options.prompts)
    if (n > 0) plan.push_back({{Work::Kind::kRead, n, 0}, reads});
  for (const int64_t depth : options.depths)
    for (const int64_t n : options.answers)
      if (n > 0) plan.push_back({{Work::Kind::kWrite, n, depth}, writes});
  require(!plan.empty(), "nothing to measure: give -p or -n");
  return plan;
}

double rough_cost(const Work& work, const Case& c) {
  const auto n = double(work.prompt_tokens());
  const double dense = std::min(n, double(c.prefill.threshold_len));
  // Weights cost as much as attention over a few thousand tokens.
  return n * 4096 + dense * dense / 2 + (n - dense) * 3072 + double(work.answer_tokens()) * 8192;
}

}  // namespace ei::bench
