#include "apps/eval/multi_turn.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "apps/cli/interrupt.h"
#include "apps/cli/limits.h"
#include "apps/cli/options.h"
#include "apps/cli/progress.h"
#include "apps/cli/report.h"
#include "apps/cli/table.h"
#include "apps/eval/policies.h"
#include "apps/eval/summary.h"
#include "ei/base/fail.h"

namespace ei::eval {
namespace {

constexpr int64_t kQuestions = 5;

// With the blank before it that needle-8m begins its answers with.
std::string lead_of(const Needle& needle) {
  return " The special magic number for " + needle.key + " mentioned in the provided text is ";
}

// The first token from `begin` on with which the text since then contains `text`.
int64_t token_of(const Engine& engine, const std::vector<int32_t>& tokens, int64_t begin,
                 const std::string& text) {
  for (int64_t i = begin; i < std::ssize(tokens); ++i) {
    const auto so_far =
        std::span(tokens).subspan(static_cast<size_t>(begin), static_cast<size_t>(i + 1 - begin));
    if (engine.detokenize(so_far).find(text) != std::string::npos) return i;
  }
  fail("multi-turn: the conversation's tokens do not spell \"{}\"", text);
}

// By teacher forcing: whether every token of a value is what the model holds likeliest, given the
// right conversation before it.
class MultiTurn {
 public:
  MultiTurn(CLI::App& command, cli::Interrupts& interrupts)
      : interrupts_(interrupts),
        model_(command),
        policy_(command, model_.device(), /*with_names=*/false) {
    command.add_option("--length", length_, "Tokens of the documents")
        ->transform(cli::count(1, int64_t{1} << 30))
        ->option_text("N [4k]");
    command.add_option("--samples", n_samples_, "Documents")
        ->transform(cli::count(1, 100000))
        ->option_text("N [5]");
    command.add_option("--seed", seed_, "Another seed, other documents")->option_text("N [1]");
    command.add_flag("--once", once_, "Leave out caches that are compressed anew");
    command
        .add_option("--policies", policies_,
                    "What to compare: PREFILL+DECODE by their names, each with @N for its budget "
                    "if wanted")
        ->delimiter(',')
        ->option_text("P+D,.. [dense+full,entropy+latent,dense+snapkv]");
  }

  int operator()() {
    std::vector<NamedPolicies> compared;
    for (const std::string& name : policies_) compared.push_back(parse_policies(name, policy_));
    Engine engine = model_.load();
    Session session(engine);
    cli::ProgressBar progress("eval multi-turn");
    const cli::Interrupts::Scope scope(interrupts_);

    // [policy][kept][question] scores of the documents
    std::vector<std::array<std::array<std::vector<double>, kQuestions>, 2>> right(compared.size());
    const int64_t n_steps = n_samples_ * std::ssize(compared);
    for (int64_t i = 0; i < n_samples_; ++i) {
      const Conversation talk = make_conversation(
          engine,
          make_document({.n_tokens = length_,
                         .n_needles = kQuestions,
                         .seed = 1000003 * seed_ + static_cast<uint64_t>(i)},
                        [&](std::string_view text) { return std::ssize(engine.tokenize(text)); }));
      for (size_t p = 0; p < compared.size(); ++p) {
        Request request;
        request.prefill = compared[p].policies.prefill;
        request.decode = compared[p].policies.decode;
        // Questions from `first` on, after the prompt up to it was read and compressed.
        const auto ask = [&](size_t first, size_t last, auto& scores) {
          const auto n = static_cast<size_t>(talk.turns[last].end);
          const auto got = session.score(std::span(talk.tokens).first(n), request,
                                         talk.turns[first].n_prompt, {}, scope.token());
          for (size_t q = first; q <= last && got.size() == n; ++q) {
            bool all = true;
            for (auto t = static_cast<size_t>(talk.turns[q].begin);
                 t < static_cast<size_t>(talk.turns[q].end); ++t)
              all &= got[t].argmax == talk.tokens[t];
            scores[q].push_back(all ? 1 : 0);
          }
        };
        ask(0, kQuestions - 1, right[p][0]);
        for (size_t q = 0; q < kQuestions && has_anew(compared[p]); ++q) ask(q, q, right[p][1]);
        if (scope.interrupted()) return cli::kExitInterrupted;
        progress.update((i * std::ssize(compared) + static_cast<int64_t>(p) + 1) * length_,
                        n_steps * length_);
      }
    }
    progress.clear();

    cli::Table table({"policy", "cache", "question 1", "2", "3", "4", "5", "2 to 5, 95% interval"});
    for (size_t p = 0; p < compared.size(); ++p)
      for (const size_t kept : {0, 1}) {
        const bool full = compared[p].policies.decode.is_full();
        if (kept == 1 && !has_anew(compared[p])) continue;
        std::vector<std::string> row = {compared[p].name, full   ? "full"
                                                          : kept ? "compressed anew"
                                                                 : "compressed once"};
        std::vector<double> later;
        for (size_t q = 0; q < kQuestions; ++q) {
          const auto& scores = right[p][kept][q];
          row.push_back(fmt::format("{:.2f}", interval(scores).mean));
          if (q > 0) later.insert(later.end(), scores.begin(), scores.end());
        }
        const Interval of_later = interval(later);
        row.push_back(fmt::format("{:.2f} to {:.2f}", of_later.low, of_later.high));
        table.add(row);
      }
    cli::print(table.str());
    return cli::kExitOk;
  }

 private:
  bool has_anew(const NamedPolicies& of) const { return !once_ && !of.policies.decode.is_full(); }

  cli::Interrupts& interrupts_;
  cli::ModelOptions model_;
  int64_t length_ = 4096, n_samples_ = 5;
  uint64_t seed_ = 1;
  bool once_ = false;
  std::vector<std::string> policies_ = {"dense+full", "entropy+latent", "dense+snapkv"};
  cli::PolicyOptions policy_;
};

}  // namespace

Conversation make_conversation(const Engine& engine, const Document& document) {
  std::vector<Message> messages;
  std::vector<std::vector<int32_t>> prompts;
  for (const Needle& needle : document.needles) {
    if (messages.empty()) {
      messages.push_back({"user", {document.text, needle.question()}});
    } else {
      messages.push_back({"user", {needle.question()}});
    }
    prompts.push_back(engine.tokenize(messages));
    messages.push_back({"assistant", {lead_of(needle) + needle.value + "."}});
  }
  messages.push_back({"user", {"Thank you."}});  // so that the last answer is a past one as well
  Conversation talk{engine.tokenize(messages), {}};
  for (size_t i = 0; i < prompts.size(); ++i) {
    const std::vector<int32_t>& prompt = prompts[i];
    require(prompt.size() < talk.tokens.size() &&
                std::equal(prompt.begin(), prompt.end(), talk.tokens.begin()),
            "multi-turn: the model's chat format rewrites earlier turns");
    const Needle& needle = document.needles[i];
    const auto n = std::ssize(prompt);
    talk.turns.push_back(
        {n, token_of(engine, talk.tokens, n, lead_of(needle) + needle.value.substr(0, 1)),
         token_of(engine, talk.tokens, n, lead_of(needle) + needle.value) + 1});
  }
  return talk;
}

cli::Command add_multi_turn(CLI::App& eval, cli::Interrupts& interrupts) {
  CLI::App* command = eval.add_subcommand(
      "multi-turn",
      "Five questions on one document: what a cache that was compressed for the first one still "
      "answers, beside one that is compressed anew from the full cache for each");
  return {command,
          [turns = std::make_shared<MultiTurn>(*command, interrupts)] { return (*turns)(); }};
}

}  // namespace ei::eval
