#include "ei/policy/named.h"

namespace ei {
namespace {

template <class Policy>
const Policy* find(std::span<const Named<Policy>> all, std::string_view name) {
  for (const Named<Policy>& named : all)
    if (named.name == name) return &named.policy;
  return nullptr;
}

}  // namespace

std::span<const Named<PrefillPolicy>> prefill_policies() {
  static const Named<PrefillPolicy> named[] = {{"entropy", PrefillPolicy::sketch()},
                                               {"dense", PrefillPolicy::dense()},
                                               {"paper", {}},
                                               {"reference", PrefillPolicy::reference()},
                                               {"criti", PrefillPolicy::criti()},
                                               {"xattention", PrefillPolicy::xattention()},
                                               {"flashprefill", PrefillPolicy::flashprefill()}};
  return named;
}

std::span<const Named<DecodePolicy>> decode_policies() {
  static const Named<DecodePolicy> named[] = {{"latent", {}},
                                              {"full", DecodePolicy::full()},
                                              {"snapkv", DecodePolicy::snapkv()},
                                              {"adakv", DecodePolicy::adakv()},
                                              {"latent-adakv", DecodePolicy::latent_adakv()},
                                              {"pyramidkv", DecodePolicy::pyramidkv()},
                                              {"streaming", DecodePolicy::streaming()},
                                              {"expected", DecodePolicy::expected()},
                                              {"kvzip", DecodePolicy::kvzip()},
                                              {"kvzip-plus", DecodePolicy::kvzip_plus()}};
  return named;
}

const PrefillPolicy* find_prefill(std::string_view name, bool on_gpu) {
  static const PrefillPolicy later = [] {
    PrefillPolicy policy = PrefillPolicy::sketch();
    policy.threshold_len = 8192;
    return policy;
  }();
  return on_gpu && name == "entropy" ? &later : find(prefill_policies(), name);
}

const DecodePolicy* find_decode(std::string_view name) { return find(decode_policies(), name); }

std::string_view name_of(const PrefillPolicy& policy) {
  if (policy.is_dense()) return "dense";
  switch (policy.estimate) {
    case Estimate::kSketch:
      return "entropy";
    case Estimate::kAntidiagonals:
      return "xattention";
    case Estimate::kMeanKeys:
      return "flashprefill";
    case Estimate::kBounds:
      break;
  }
  return policy.fusion > 0 ? "criti" : policy.budget.rigid_whole_prompt ? "reference" : "paper";
}

std::string_view name_of(const DecodePolicy& policy) {
  if (policy.is_full()) return "full";
  if (policy.voter == Voter::kExpected) return "expected";
  if (policy.voter == Voter::kRepeat) return policy.by_output ? "kvzip-plus" : "kvzip";
  switch (policy.split) {
    case Split::kStreaming:
      return "streaming";
    case Split::kPyramid:
      return "pyramidkv";
    case Split::kAdaptive:
      return policy.gap == -1 ? "adakv" : "latent-adakv";
    case Split::kGlobal:
    case Split::kEven:
      break;
  }
  return policy.gap == -1 ? "snapkv" : "latent";
}

}  // namespace ei
