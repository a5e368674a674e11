#pragma once

#include <string>

#include "apps/cli/options.h"

namespace ei::eval {

struct NamedPolicies {
  std::string name;  // as it was asked for
  cli::Policies policies;
};

// Reads PREFILL+DECODE, each with @N for its budget if wanted, and settings of its own by the names
// of their flags: "dense+snapkv@256", "paper@512+latent", "dense+latent@256:kernel=7:window=16".
// Everything else is as `options` has it. Throws CLI::ValidationError.
NamedPolicies parse_policies(const std::string& text, const cli::PolicyOptions& options);

}  // namespace ei::eval
