#include "apps/eval/perplexity.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "apps/cli/input.h"
#include "apps/cli/interrupt.h"
#include "apps/cli/options.h"
#include "apps/cli/progress.h"
#include "apps/cli/report.h"
#include "apps/cli/table.h"
#include "apps/cli/units.h"
#include "apps/eval/divergence.h"
#include "apps/eval/policies.h"
#include "ei/base/fail.h"

namespace ei::cli {
namespace {

using eval::Divergence;
using eval::Estimate;

// Pieces of a text: the first half of each is read as a prompt, the second decoded token by token
// and scored, as an answer would be written. Dense attention with the full cache is the base.
class Perplexity {
 public:
  Perplexity(CLI::App& command, Interrupts& interrupts)
      : interrupts_(interrupts), model_(command), policy_(command, /*with_names=*/false) {
    command.add_option("--file", file_, "The text")->required()->option_text("F");
    command
        .add_option_function<std::string>(
            "--ctx", [this](const std::string& n) { n_ctx_ = eval::parse_length(n); },
            "Tokens of a piece: half of them prompt, half scored")
        ->option_text("N [4k]");
    command.add_option("--chunks", n_chunks_, "At most so many pieces; 0: the whole text")
        ->check(CLI::NonNegativeNumber)
        ->option_text("N [0]");
    command
        .add_option("--policies", policies_,
                    "What to compare with dense+full: PREFILL+DECODE by their names, each with @N "
                    "for its budget if wanted")
        ->delimiter(',')
        ->option_text("P+D,.. [entropy+latent]");
    command.add_flag("--json", json_, "One JSON object");
  }

  int operator()() {
    std::vector<eval::NamedPolicies> compared;
    for (const std::string& name : policies_)
      compared.push_back(eval::parse_policies(name, policy_));
    if (n_ctx_ < 8) throw CLI::ValidationError("--ctx: expected 8 or more");
    const std::string text = read_text(file_);

    Engine engine = model_.load();
    const std::vector<int32_t> tokens = engine.tokenize(text);
    int64_t n_pieces = std::ssize(tokens) / n_ctx_;
    require(n_pieces > 0, "{}: has {} tokens, a piece is {}; give a longer text or a smaller --ctx",
            file_, tokens.size(), n_ctx_);
    if (n_chunks_ > 0) n_pieces = std::min(n_pieces, n_chunks_);

    Session session(engine);
    ProgressBar progress("perplexity");
    const Interrupts::Scope scope(interrupts_);
    std::vector<eval::DivergenceMeter> meters(compared.size());
    const int64_t n_steps = n_pieces * (1 + std::ssize(compared)) * n_ctx_;
    int64_t n_done = 0;
    for (int64_t i = 0; i < n_pieces && !scope.interrupted(); ++i) {
      const auto piece =
          std::span(tokens).subspan(static_cast<size_t>(i * n_ctx_), static_cast<size_t>(n_ctx_));
      const int64_t n_prompt = n_ctx_ / 2;
      // Logits for the places from n_prompt on.
      const auto score = [&](const Policies& policies, auto&& take) {
        Request request;
        request.prefill = policies.prefill;
        request.decode = policies.decode;
        session.score(piece, request, n_prompt,
                      {.on_text = {},
                       .on_prefill = {},
                       .on_logits =
                           [&](int64_t at, std::span<const float> logits) {
                             if (at >= n_prompt) take(static_cast<size_t>(at), logits);
                           }},
                      scope.token());
        progress.update(n_done += n_ctx_, n_steps);
      };
      std::vector<std::vector<float>> base(piece.size());
      score({PrefillPolicy::dense(), DecodePolicy::full()},
            [&](size_t at, std::span<const float> logits) {
              base[at].assign(logits.begin(), logits.end());
            });
      for (size_t p = 0; p < compared.size() && !scope.interrupted(); ++p)
        score(compared[p].policies, [&](size_t at, std::span<const float> logits) {
          if (!base[at].empty()) meters[p].add(base[at], logits, piece[at]);
        });
    }
    progress.clear();
    if (scope.interrupted()) return kExitInterrupted;  // half of a comparison is none
    std::vector<Divergence> results;
    for (const eval::DivergenceMeter& meter : meters) results.push_back(meter.result());
    if (json_) {
      nlohmann::ordered_json out = {{"file", file_}, {"ctx", n_ctx_}, {"chunks", n_pieces}};
      for (size_t p = 0; p < results.size(); ++p)
        out["policies"][policies_[p]] = to_json(results[p], policy_.describe(compared[p].policies));
      print_json(out);
    } else {
      print(table(results));
      fmt::print(stderr, "{} tokens scored: the second half of each piece of {}\n",
                 grouped(results[0].n_tokens), grouped(n_ctx_));
    }
    return kExitOk;
  }

 private:
  std::string table(const std::vector<Divergence>& results) const {
    std::vector<std::string> header = {""};
    header.insert(header.end(), policies_.begin(), policies_.end());
    Table table(header);
    const auto row = [&](const std::string& name, auto&& cell) {
      std::vector<std::string> cells = {name};
      for (const Divergence& d : results) cells.push_back(cell(d));
      table.add(cells);
    };
    const auto estimate = [&](const std::string& name, Estimate Divergence::*field, double unit) {
      row(name, [&](const Divergence& d) {
        return fmt::format("{:.5f} ± {:.5f}", unit * (d.*field).value, unit * (d.*field).error);
      });
    };
    estimate("PPL", &Divergence::ppl, 1);
    estimate("PPL of dense+full", &Divergence::ppl_base, 1);
    estimate("PPL ratio", &Divergence::ppl_ratio, 1);
    estimate("Mean KLD", &Divergence::kld, 1);
    for (size_t i = 0; i < std::size(eval::kPercentiles); ++i) {
      const double p = eval::kPercentiles[i];
      row(p == 1     ? "Maximum KLD"
          : p == 0.5 ? "Median KLD"
                     : fmt::format("{:.1f}% KLD", 100 * p),
          [&](const Divergence& d) { return fmt::format("{:.5f}", d.kld_percentiles[i]); });
    }
    estimate("RMS Δp, %", &Divergence::rms_dp, 100);
    estimate("Same top p, %", &Divergence::same_top, 100);
    return table.str();
  }

  static nlohmann::ordered_json to_json(const Divergence& d, const nlohmann::ordered_json& policy) {
    nlohmann::ordered_json out = {{"n_tokens", d.n_tokens}};
    const auto add = [&](const char* name, const Estimate& e) {
      out[name] = {{"value", e.value}, {"error", e.error}};
    };
    add("ppl", d.ppl);
    add("ppl_base", d.ppl_base);
    add("ppl_ratio", d.ppl_ratio);
    add("kld", d.kld);
    for (size_t i = 0; i < std::size(eval::kPercentiles); ++i)
      out["kld_percentiles"][fmt::format("{}", eval::kPercentiles[i])] = d.kld_percentiles[i];
    add("rms_dp", d.rms_dp);
    add("same_top", d.same_top);
    out["policy"] = policy;
    return out;
  }

  Interrupts& interrupts_;
  ModelOptions model_;
  std::string file_;
  int64_t n_ctx_ = 4096, n_chunks_ = 0;
  std::vector<std::string> policies_ = {"entropy+latent"};
  bool json_ = false;
  PolicyOptions policy_;
};

}  // namespace

Command add_perplexity(CLI::App& program, Interrupts& interrupts) {
  CLI::App* command = program.add_subcommand(
      "perplexity",
      "How far policies are from dense attention on a text: perplexity, KL divergence");
  return {command, [perplexity = std::make_shared<Perplexity>(*command, interrupts)] {
            return (*perplexity)();
          }};
}

}  // namespace ei::cli
