#include "apps/eval/comparison.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "apps/cli/command.h"
#include "apps/cli/progress.h"
#include "apps/cli/ranks.h"
#include "apps/cli/report.h"
#include "apps/eval/summary.h"
#include "ei/base/fail.h"

namespace ei::eval {

Comparison::Comparison(CLI::App& command, cli::Interrupts& interrupts)
    : interrupts_(interrupts),
      model_(command),
      policy_(command, model_.device(), /*with_names=*/false) {
  command
      .add_option("--policies", policies_,
                  "What to compare: PREFILL+DECODE by their names, each with @N for its budget if "
                  "wanted, and settings of its own by the names of their flags, as in "
                  "dense+latent@256:kernel=7 [dense+full,entropy+latent]")
      ->delimiter(',')
      ->option_text("P+D,..");
  command
      .add_option("--out", out_,
                  "Write answers.jsonl and report.html into this folder; an evaluation found there "
                  "goes on")
      ->option_text("DIR");
  command.add_flag("--withhold-question", withhold_question_,
                   "Compress every cache right after the document, before the question is read");
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

Request Comparison::make_request(const Engine& engine, const Posed& posed) const {
  Request request;
  request.thinking = false;  // answers are short
  request.sampling = SamplingParams{};
  request.max_tokens = posed.max_tokens;
  const bool chat = posed.chat && !engine.info().chat_template.empty();
  const auto tokens_of = [&](const std::vector<std::string>& parts) {
    const Message message = {"user", parts};
    return chat ? engine.tokenize({&message, 1}, request.thinking)
                : engine.tokenize(fmt::format("{}", fmt::join(parts, "\n\n")));
  };
  request.tokens = tokens_of(posed.parts);
  if (!withhold_question_) return request;

  // The prompt ends where a prompt without the question would be another.
  require(posed.parts.size() > 1,
          "the question of these prompts stands inside of them and cannot be withheld");
  const std::vector<int32_t> without = tokens_of({posed.parts.begin(), posed.parts.end() - 1});
  const auto end = std::ranges::mismatch(request.tokens, without).in1;
  request.given.assign(end, request.tokens.end());
  request.tokens.erase(end, request.tokens.end());
  request.max_tokens += std::ssize(request.given);
  return request;
}

bool Comparison::ask(Engine& engine, Session& session, std::span<const Item> items,
                     const std::function<Posed(const Item&)>& pose, std::stop_token cancel,
                     const std::function<void(const Item&, Result)>& add) const {
  std::vector<Posed> posed;
  std::vector<Request> requests;
  for (const Item& item : items) {
    posed.push_back(pose(item));
    requests.push_back(make_request(engine, posed.back()));
  }
  for (size_t first = 0, last = 0; first < compared_.size(); first = last) {
    const PrefillPolicy& prefill = compared_[first].policies.prefill;
    while (last < compared_.size() && compared_[last].policies.prefill == prefill) ++last;
    std::optional<Generation> read;  // the document, under this policy
    for (size_t i = 0; i < items.size(); ++i)
      for (size_t p = first; p < last; ++p) {
        const Item& item = items[i];
        if (known(item, compared_[p])) continue;
        requests[i].prefill = prefill;
        requests[i].decode = compared_[p].policies.decode;
        if (withhold_question_ && !requests[i].decode.is_full()) requests[i].decode.gap = -1;
        const Generation answer = session.generate(requests[i], {}, cancel);
        if (answer.finish_reason == FinishReason::kCancelled) return false;
        if (!read) read = answer;
        const auto n_later = double(std::max<int64_t>(1, std::ssize(answer.tokens) - 1));
        add(item, {.task = item.task,
                   .length = item.length,
                   .sample = item.sample,
                   .depth = item.depth,
                   .policy = compared_[p].name,
                   .expected = posed[i].expected,
                   .answer = answer.text,
                   .score = posed[i].score(answer.text),
                   .prompt_tokens = answer.prompt_tokens,
                   .density = read->sparsity.density,
                   .kv_bytes = answer.kv.entry_bytes,
                   .kv_bytes_full = answer.kv.entry_bytes_full,
                   .prefill_ms = read->timings.prefill_ms,
                   .token_ms = answer.timings.decode_ms / n_later});
      }
  }
  return true;
}

int Comparison::run(Engine& engine, nlohmann::ordered_json about, const std::vector<Item>& items,
                    const std::function<Posed(const Item&)>& pose) {
  if (withhold_question_) about["withhold_question"] = true;
  about["model"] = model_.model().path().string();
  for (const NamedPolicies& p : compared_) about["policies"][p.name] = policy_.describe(p.policies);
  std::optional<ResultFile> file;
  if (!out_.empty()) {
    if (cli::has_ranks()) throw CLI::ValidationError("--out is written by one process alone");
    std::filesystem::create_directories(out_);
    file.emplace(out_ / "answers.jsonl", about);
    results_ = file->results();
  }
  const auto size_of = [](const Item& item) { return std::max(item.length, item.n_tokens); };
  int64_t n_tokens = 0, n_known = 0, longest = 0;
  for (const Item& item : items)
    for (const NamedPolicies& policy : compared_) {
      n_tokens += size_of(item);
      if (known(item, policy)) n_known += size_of(item);
      longest = std::max(longest, size_of(item));
    }

  Session session(engine, 2 * longest * engine.info().kv_bytes_per_token);
  cli::ProgressBar progress("eval");
  const cli::Interrupts::Scope scope(interrupts_);
  int64_t n_done = n_known;
  const std::span all(items);
  for (size_t first = 0, last = 0; first < items.size(); first = last) {
    for (last = first + 1; last < items.size() && items[first].document >= 0 &&
                           items[last].document == items[first].document;)
      ++last;
    const auto add = [&](const Item& item, Result result) {
      if (file) file->add(result);
      results_.push_back(std::move(result));
      progress.update(n_done += size_of(item), n_tokens, n_known);
    };
    if (!ask(engine, session, all.subspan(first, last - first), pose, scope.token(), add)) break;
    session.clear();
  }
  progress.clear();
  if (!out_.empty()) cli::save(out_ / "report.html", html(about, results_));
  cli::print(table(summarize(results_)));
  return scope.interrupted() ? cli::kExitInterrupted : cli::kExitOk;
}

}  // namespace ei::eval
