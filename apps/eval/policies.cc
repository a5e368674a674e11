#include "apps/eval/policies.h"

#include <fmt/format.h>

#include "apps/cli/limits.h"

namespace ei::eval {
namespace {

// Takes "@N" off a name: N, or 0 when there is none.
int64_t take_budget(std::string& name, const std::string& where) {
  const size_t at = name.find('@');
  if (at == std::string::npos) return 0;
  const std::string digits = name.substr(at + 1);
  const int64_t budget = cli::parse_count(digits).value_or(0);
  if (budget <= 0 || budget > int64_t{1} << 30)
    throw CLI::ValidationError(
        fmt::format("{}: expected a positive number, found \"{}\"", where, digits));
  name.resize(at);
  if (name == "dense" || name == "full")
    throw CLI::ValidationError(fmt::format("{}: {} has no budget", where, name));
  return budget;
}

}  // namespace

NamedPolicies parse_policies(const std::string& text, const cli::PolicyOptions& options) {
  CLI::App own;
  const Device any = Device::kCpu;  // of no matter without names
  const cli::PolicyOptions settings(own, any, /*with_names=*/false);
  std::vector<std::string> names = CLI::detail::split(text, ':'), flags;
  if (names.empty()) names.emplace_back();
  // CLI11 takes arguments from the end.
  for (size_t i = names.size() - 1; i > 0; --i) flags.push_back("--" + names[i]);
  try {
    own.parse(flags);
  } catch (const CLI::ParseError& error) {
    throw CLI::ValidationError(fmt::format("{}: {}", text, error.what()));
  }
  const size_t plus = names[0].find('+');
  if (plus == std::string::npos)
    throw CLI::ValidationError(fmt::format(
        "policies: \"{}\" is not PREFILL+DECODE, as in entropy+latent or dense+snapkv@256", text));
  std::string prefill = names[0].substr(0, plus), decode = names[0].substr(plus + 1);
  const int64_t base = take_budget(prefill, text), budget = take_budget(decode, text);
  cli::Policies policies = options.policies(prefill, decode);
  if (base > 0 && policies.prefill.estimate != ei::Estimate::kBounds)
    throw CLI::ValidationError(
        fmt::format("{}: {} has no budget in tokens; set its mass, as in {}+{}:mass=0.9", text,
                    prefill, prefill, decode));
  if (base > 0) policies.prefill.budget.base = static_cast<float>(base);
  if (budget > 0) policies.decode.budget = budget;
  settings.apply(policies);
  try {
    validate(policies.prefill);
    validate(policies.decode);
  } catch (const Error& error) {
    throw CLI::ValidationError(fmt::format("{}: {}", text, error.what()));
  }
  return {text, policies};
}

}  // namespace ei::eval
