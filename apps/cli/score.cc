#include <cmath>
#include <memory>

#include "apps/cli/command.h"
#include "apps/cli/interrupt.h"
#include "apps/cli/limits.h"
#include "apps/cli/options.h"
#include "apps/cli/progress.h"
#include "apps/cli/report.h"
#include "ei/base/fail.h"
#include "ei/io/json.h"

namespace ei::cli {
namespace {

// A JSON list of ids. Ids outside the vocabulary are the engine's to refuse.
std::vector<int32_t> read_tokens(const std::string& file) {
  const Json json = read_json(file);
  require(json.is_array(), "{}: found {}, expected a list of token ids", file, json.type_name());
  std::vector<int32_t> tokens;
  for (const Json& id : json) {
    require(id.is_number_integer() && id >= 0 && id <= INT32_MAX,
            "{}: element {} is {}, expected a token id", file, tokens.size(), id.dump());
    tokens.push_back(id.get<int32_t>());
  }
  return tokens;
}

class Score {
 public:
  Score(CLI::App& command, Interrupts& interrupts)
      : interrupts_(interrupts), model_(command), policy_(command, model_.device()) {
    command.add_option("--tokens", file_, "JSON file with a list of token ids")
        ->required()
        ->option_text("FILE.json");
    command.add_option("--prompt-tokens", n_prompt_, "Read so many as a prompt, decode the others")
        ->transform(count(1))
        ->option_text("N [all]");
    command.add_flag("--json", json_, "One JSON object: logprobs, argmax, policy");
  }

  int operator()() {
    Request request;
    const Policies policies = policy_.policies();
    request.prefill = policies.prefill;
    request.decode = policies.decode;
    const std::vector<int32_t> tokens = read_tokens(file_);

    Engine engine = model_.load();
    Session session(engine);
    ProgressBar progress("scoring");
    const Interrupts::Scope scope(interrupts_);
    const std::vector<TokenScore> scores =
        session.score(tokens, request, n_prompt_, watch(progress), scope.token());
    progress.clear();
    if (json_) {
      nlohmann::ordered_json out = {{"logprobs", nlohmann::json::array()},
                                    {"argmax", nlohmann::json::array()},
                                    {"policy", policy_.describe()}};
      for (const TokenScore& score : scores) {
        out["logprobs"].push_back(score.logprob);
        out["argmax"].push_back(score.argmax);
      }
      print_json(out);
    } else {
      print_lines(tokens, scores);
    }
    return scope.interrupted() ? kExitInterrupted : kExitOk;
  }

 private:
  static void print_lines(const std::vector<int32_t>& tokens,
                          const std::vector<TokenScore>& scores) {
    double sum = 0;
    std::string lines = "  token    logprob   argmax\n";
    for (size_t i = 0; i < scores.size(); ++i) {
      sum += scores[i].logprob;
      lines +=
          fmt::format("{:>7}  {:>9.5f}  {:>7}\n", tokens[i], scores[i].logprob, scores[i].argmax);
    }
    print(lines);
    if (scores.size() > 1)
      fmt::print(stderr, "perplexity {:.4f}\n", std::exp(-sum / double(scores.size() - 1)));
  }

  Interrupts& interrupts_;
  ModelOptions model_;
  std::string file_;
  int64_t n_prompt_ = -1;
  bool json_ = false;
  PolicyOptions policy_;
};

}  // namespace

Command add_score(CLI::App& program, Interrupts& interrupts) {
  CLI::App* command =
      program.add_subcommand("score", "Log-probability and likeliest token at every position");
  return {command, [score = std::make_shared<Score>(*command, interrupts)] { return (*score)(); },
          /*on_ranks=*/true};
}

}  // namespace ei::cli
