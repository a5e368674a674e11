#include "apps/eval/comparison.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <optional>

#include "apps/cli/command.h"
#include "apps/cli/progress.h"
#include "apps/cli/report.h"
#include "apps/eval/summary.h"
#include "apps/eval/task.h"
#include "ei/base/fail.h"

namespace ei::eval {

Comparison::Comparison(CLI::App& command, cli::Interrupts& interrupts)
    : interrupts_(interrupts), model_(command), policy_(command, /*with_names=*/false) {
  command
      .add_option("--policies", policies_,
                  "What to compare: PREFILL+DECODE by their names, each with @N for its budget if "
                  "wanted [dense+full,entropy+latent]")
      ->delimiter(',')
      ->option_text("P+D,..");
  command
      .add_option("--out", out_,
                  "Write answers.jsonl and report.html into this folder; an evaluation found there "
                  "goes on")
      ->option_text("DIR");
}

Engine Comparison::load() {
  for (const std::string& name : policies_) compared_.push_back(parse_policies(name, policy_));
  // Those that read a prompt in the same way follow each other: it is read once for them.
  for (auto it = compared_.begin(); it != compared_.end();)
    it = std::stable_partition(it, compared_.end(), [prefill = it->policies.prefill](auto& other) {
      return other.policies.prefill == prefill;
    });
  return model_.load();
}

bool Comparison::known(const Item& item, const NamedPolicies& policy) const {
  return std::any_of(results_.begin(), results_.end(), [&](const Result& result) {
    return result.is_for(item.task, item.length, item.sample, policy.name);
  });
}

bool Comparison::ask(Session& session, const Item& item, Request& request, const Posed& posed,
                     std::stop_token cancel, const std::function<void(Result)>& add) const {
  std::optional<Generation> read;  // the prompt, under the prefill policy at hand
  for (size_t p = 0; p < compared_.size(); ++p) {
    if (p > 0 && !(compared_[p].policies.prefill == compared_[p - 1].policies.prefill))
      read.reset();
    if (known(item, compared_[p])) continue;
    request.prefill = compared_[p].policies.prefill;
    request.decode = compared_[p].policies.decode;
    const Generation answer = session.generate(request, {}, cancel);
    if (answer.finish_reason == FinishReason::kCancelled) return false;
    if (!read) read = answer;
    const auto n_later = double(std::max<int64_t>(1, std::ssize(answer.tokens) - 1));
    add({.task = item.task,
         .length = item.length,
         .sample = item.sample,
         .depth = item.depth,
         .policy = compared_[p].name,
         .expected = posed.expected,
         .answer = answer.text,
         .score = score(posed.expected, answer.text, posed.any),
         .prompt_tokens = answer.prompt_tokens,
         .density = read->sparsity.density,
         .kv_bytes = answer.kv.entry_bytes,
         .kv_bytes_full = answer.kv.entry_bytes_full,
         .prefill_ms = read->timings.prefill_ms,
         .token_ms = answer.timings.decode_ms / n_later});
  }
  return true;
}

int Comparison::run(Engine& engine, nlohmann::ordered_json about, const std::vector<Item>& items,
                    const std::function<Posed(const Item&)>& pose) {
  about["model"] = model_.path().string();
  for (const NamedPolicies& p : compared_) about["policies"][p.name] = policy_.describe(p.policies);
  std::optional<ResultFile> file;
  if (!out_.empty()) {
    std::filesystem::create_directories(out_);
    file.emplace(out_ / "answers.jsonl", about);
    results_ = file->results();
  }
  int64_t n_tokens = 0, n_known = 0, longest = 0;
  for (const Item& item : items)
    for (const NamedPolicies& policy : compared_) {
      n_tokens += item.length;
      if (known(item, policy)) n_known += item.length;
      longest = std::max(longest, item.length);
    }

  Session session(engine, 2 * longest * engine.info().kv_bytes_per_token);
  cli::ProgressBar progress("eval");
  const cli::Interrupts::Scope scope(interrupts_);
  int64_t n_done = n_known;
  for (const Item& item : items) {
    if (std::all_of(compared_.begin(), compared_.end(),
                    [&](const auto& policy) { return known(item, policy); }))
      continue;
    const Posed posed = pose(item);
    Request request;
    if (engine.info().chat_format.empty()) {
      request.tokens = engine.tokenize(fmt::format("{}", fmt::join(posed.parts, "\n\n")));
    } else {
      request.messages = {{"user", posed.parts}};
    }
    request.max_tokens = posed.max_tokens;
    request.sampling = SamplingParams{};
    if (!ask(session, item, request, posed, scope.token(), [&](Result result) {
          if (file) file->add(result);
          results_.push_back(std::move(result));
          progress.update(n_done += item.length, n_tokens, n_known);
        }))
      break;
    session.clear();
  }
  progress.clear();
  if (!out_.empty()) {
    std::ofstream page(out_ / "report.html", std::ios::binary);
    require(bool(page << html(about, results_) << std::flush), "{}: cannot be written",
            (out_ / "report.html").string());
  }
  cli::print(table(summarize(results_)));
  return scope.interrupted() ? cli::kExitInterrupted : cli::kExitOk;
}

}  // namespace ei::eval
