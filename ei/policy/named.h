#pragma once

#include <span>
#include <string_view>

#include "ei/policy/decode_policy.h"
#include "ei/policy/prefill_policy.h"

namespace ei {

// A policy by the name that the command line, requests and reports give it.
template <class Policy>
struct Named {
  std::string_view name;
  Policy policy;
};

// All there are; the first is the default.
std::span<const Named<PrefillPolicy>> prefill_policies();
std::span<const Named<DecodePolicy>> decode_policies();

// The policy that goes by `name`, nullptr if none does. On a GPU `entropy` begins later to select:
// there attention to a shorter past costs less than the estimate of it.
const PrefillPolicy* find_prefill(std::string_view name, bool on_gpu = false);
const DecodePolicy* find_decode(std::string_view name);

// The name of the policy that these settings are a variation of.
std::string_view name_of(const PrefillPolicy& policy);
std::string_view name_of(const DecodePolicy& policy);

}  // namespace ei
