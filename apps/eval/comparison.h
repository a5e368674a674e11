#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/cli/interrupt.h"
#include "apps/cli/options.h"
#include "apps/eval/policies.h"
#include "apps/eval/results.h"
#include "ei/engine/engine.h"

namespace ei::eval {

// Which prompt of an evaluation.
struct Item {
  std::string task;
  int64_t length = 0;  // of the prompt in tokens, about
  int64_t sample = 0;
  double depth = -1;  // as in Result
};

// What is asked.
struct Posed {
  std::vector<std::string> parts;  // of a user's message
  std::vector<std::string> expected;
  bool any = false;  // one of what is expected is enough
  int64_t max_tokens = 128;
};

// What evaluations of answers have in common: model, policies, where answers go; every prompt is
// read once per prefill policy, and asked again of nobody who has answered.
class Comparison {
 public:
  Comparison(CLI::App& command, cli::Interrupts& interrupts);
  Comparison(const Comparison&) = delete;

  // Throws CLI::ValidationError for policies that are none.
  Engine load();
  // `about`: what decides on the prompts. Prints the table and returns the exit code.
  int run(Engine& engine, nlohmann::ordered_json about, const std::vector<Item>& items,
          const std::function<Posed(const Item&)>& pose);

 private:
  bool known(const Item& item, const NamedPolicies& policy) const;
  // False when it was interrupted.
  bool ask(Session& session, const Item& item, Request& request, const Posed& posed,
           std::stop_token cancel, const std::function<void(Result)>& add) const;

  cli::Interrupts& interrupts_;
  cli::ModelOptions model_;
  std::vector<std::string> policies_ = {"dense+full", "entropy+latent"};
  std::filesystem::path out_;
  cli::PolicyOptions policy_;
  std::vector<NamedPolicies> compared_;
  std::vector<Result> results_;
};

}  // namespace ei::eval
