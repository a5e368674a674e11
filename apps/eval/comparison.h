#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
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
  int64_t length = 0;  // of the prompt in tokens, about; 0: prompts of all lengths are one group
  int64_t sample = 0;
  double depth = -1;      // as in Result
  int64_t n_tokens = 0;   // of this prompt, about; 0: `length`
  int64_t document = -1;  // prompts that begin with the same text and follow each other; -1: none
};

// What is asked.
struct Posed {
  std::vector<std::string> parts;  // of a user's message; the last is the question
  bool chat = true;                // in the model's chat format, if it has one
  std::vector<std::string> expected;
  std::function<double(const std::string& answer)> score;  // 0 to 1
  int64_t max_tokens = 128;
};

// What evaluations of answers have in common: model, policies, where answers go; every document is
// read once per prefill policy, and nothing is asked of a policy that has answered it.
class Comparison {
 public:
  Comparison(CLI::App& command, cli::Interrupts& interrupts);
  Comparison(const Comparison&) = delete;

  // Whether caches are compressed before the question is known.
  bool withholds_question() const { return withhold_question_; }
  // Throws CLI::ValidationError for policies that are none.
  Engine load();
  // `about`: what decides on the prompts. Prints the table and returns the exit code.
  int run(Engine& engine, nlohmann::ordered_json about, const std::vector<Item>& items,
          const std::function<Posed(const Item&)>& pose);

 private:
  bool known(const Item& item, const NamedPolicies& policy) const;
  Request make_request(const Engine& engine, const Posed& posed) const;
  // All that is still to be asked of one document. False when it was interrupted.
  bool ask(Engine& engine, Session& session, std::span<const Item> items,
           const std::function<Posed(const Item&)>& pose, std::stop_token cancel,
           const std::function<void(const Item&, Result)>& add) const;

  cli::Interrupts& interrupts_;
  cli::ModelOptions model_;
  std::vector<std::string> policies_ = {"dense+full", "entropy+latent"};
  std::filesystem::path out_;
  bool withhold_question_ = false;
  cli::PolicyOptions policy_;
  std::vector<NamedPolicies> compared_;
  std::vector<Result> results_;
};

}  // namespace ei::eval
