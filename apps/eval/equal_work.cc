#include "apps/eval/equal_work.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "apps/cli/input.h"
#include "apps/cli/interrupt.h"
#include "apps/cli/limits.h"
#include "apps/cli/options.h"
#include "apps/cli/progress.h"
#include "apps/cli/report.h"
#include "apps/cli/table.h"
#include "apps/eval/divergence.h"
#include "apps/eval/effort.h"
#include "apps/eval/policies.h"
#include "ei/base/fail.h"

namespace ei::eval {
namespace {

// Compared are tokens that follow these positions: every policy reads the first kDense densely, and
// the last kApart are where most do so again.
constexpr int64_t kDense = 1024, kApart = 512;
constexpr int kTries = 3, kMostTries = 8;  // as a rule, and at most, for one row

struct Text {
  std::string file;
  std::vector<int32_t> tokens;
  int64_t first = kDense;  // compared from here on

  // The same, its end replaced by its beginning: what is wanted there lies far back.
  Text echo() const {
    Text text{file, tokens, std::ssize(tokens) - std::ssize(tokens) * 2 / 15};
    std::copy_n(tokens.begin(), std::ssize(tokens) - text.first, text.tokens.begin() + text.first);
    return text;
  }
};

// Means over the texts.
struct Reading {
  double density = 0, ms = 0;
};

struct Row {
  std::string policy;
  std::optional<double> wanted;  // none for a policy that cannot read more or less
  std::string setting;
  double value = 0;
  PrefillPolicy prefill;
  Reading reading;
  std::vector<DivergenceMeter> texts, echoes;  // of each text
};

DivergenceMeter all(const std::vector<DivergenceMeter>& texts) {
  DivergenceMeter meter;
  for (const DivergenceMeter& text : texts) meter.add(text);
  return meter;
}

class EqualWork {
 public:
  EqualWork(CLI::App& command, cli::Interrupts& interrupts)
      : interrupts_(interrupts),
        model_(command),
        policy_(command, model_.device(), /*with_names=*/false) {
    const auto list = [&](const char* flag, auto& values, const char* text, const char* help) {
      return command.add_option(flag, values, help)->delimiter(',')->option_text(text);
    };
    list("--file", files_, "F,..", "The texts; of each, the beginning")->required();
    command.add_option("--tokens", n_tokens_, "Of each text at most")
        ->transform(cli::count(kDense + kApart + 2, int64_t{1} << 24))
        ->option_text("N [8k]");
    list("--policies", policies_, "P,.. [entropy,paper,xattention,flashprefill,dense]",
         "How the texts are read: policies by their names, with settings of their own by the names "
         "of their flags, as in entropy:segment=64");
    CLI::Option* densities = list("--densities", densities_, "X,.. [.2,.31,.38]",
                                  "Attended query-key pairs wanted, of those of dense attention")
                                 ->check(cli::between(0.001, 1));
    list("--times", times_, "X,..", "Instead: time wanted, of dense reading's")
        ->check(cli::between(0.001, 1))
        ->excludes(densities);
    command.add_flag("--echo", echo_,
                     "Also the KL divergence inside a repetition: the last 2/15 of each text "
                     "replaced by its beginning");
    command
        .add_option_function<std::string>(
            "-o,--output", [this](const std::string& name) { json_ = name == "json"; },
            "How the table is written")
        ->check(CLI::IsMember({"md", "json"}))
        ->option_text("md|json [md]");
  }

  int operator()() {
    std::vector<Row> rows;
    for (const std::string& name : policies_) {
      const size_t colon = std::min(name.find(':'), name.size());
      rows.push_back({.policy = name});
      rows.back().prefill =
          parse_policies(name.substr(0, colon) + "+full" + name.substr(colon), policy_)
              .policies.prefill;
      if (!rows.back().prefill.is_dense()) rows.back().prefill.threshold_len = kDense;
    }
    for (const std::string& file : files_) cli::check_readable(file);
    Engine engine = model_.load();
    for (const std::string& file : files_) read(engine, file);

    Session session(engine);
    cli::ProgressBar progress("eval equal-work");
    const cli::Interrupts::Scope scope(interrupts_);
    session_ = &session;
    progress_ = &progress;
    cancel_ = scope.token();
    rows = find(rows);
    for (size_t i = 0; i < texts_.size(); ++i) {
      judge(texts_[i], rows, &Row::texts);
      if (echo_) judge(texts_[i].echo(), rows, &Row::echoes);
    }
    progress.clear();
    if (scope.interrupted()) return cli::kExitInterrupted;  // half of a comparison is none
    if (json_) {
      cli::print_json(json(rows));
    } else {
      cli::print(table(rows));
    }
    return cli::kExitOk;
  }

 private:
  void read(const Engine& engine, const std::string& file) {
    Text text{file, engine.tokenize(cli::read_text(file))};
    if (std::ssize(text.tokens) > n_tokens_) text.tokens.resize(static_cast<size_t>(n_tokens_));
    const auto n = std::ssize(text.tokens);
    const int64_t first = echo_ ? text.echo().first : text.first;
    require(first + kApart + 2 <= n,
            "{}: has {} tokens; of the last {} none are compared, so that nothing is left after "
            "token {}; give a longer text or more --tokens",
            file, n, kApart, first);
    texts_.push_back(std::move(text));
  }

  // The density and time of reading the texts under a policy.
  Reading measure(const PrefillPolicy& prefill) {
    Reading mean;
    for (const Text& text : texts_) {
      Request request;
      request.tokens = text.tokens;
      request.prefill = prefill;
      request.decode = DecodePolicy::full();
      request.sampling = SamplingParams{};
      request.max_tokens = 0;  // a text may fill the model's context
      session_->clear();       // nothing is known of the text
      const Generation read =
          session_->generate(request,
                             {.on_text = {},
                              .on_prefill = [&](int64_t done, int64_t, int64_t) { show(done); },
                              .on_logits = {},
                              .on_sparsity = {}},
                             cancel_);
      mean.density += read.sparsity.density / double(texts_.size());
      mean.ms += read.timings.prefill_ms / double(texts_.size());
      n_done_ += std::ssize(text.tokens);
    }
    return mean;
  }

  // For every policy, the settings that come nearest to what is wanted.
  std::vector<Row> find(const std::vector<Row>& policies) {
    int64_t n_tokens = 0;
    for (const Text& text : texts_) n_tokens += std::ssize(text.tokens);
    const auto n_wanted = std::ssize(times_.empty() ? densities_ : times_);
    int64_t n_searches = 0;
    for (const Row& row : policies) n_searches += row.prefill.is_dense() ? 0 : n_wanted;
    const int64_t n_judged = n_tokens * (1 + n_searches) * (echo_ ? 2 : 1);
    const auto expect = [&](int64_t n_tries) {
      n_expected_ = n_done_ + n_tokens * (n_tries + kTries * n_searches) + n_judged;
    };
    expect(1);
    std::optional<Reading> dense;
    const auto of_dense = [&]() -> const Reading& {
      if (!dense) dense = measure(PrefillPolicy::dense());
      return *dense;
    };
    std::vector<Row> rows;
    for (const Row& policy : policies) {
      if (policy.prefill.is_dense()) {
        rows.push_back(policy);
        rows.back().reading = of_dense();
        continue;
      }
      const Effort effort(policy.prefill);
      std::vector<double> places;
      std::vector<Reading> readings;
      for (const double wanted : times_.empty() ? densities_ : times_) {
        const double goal = times_.empty() ? wanted : wanted * of_dense().ms;
        std::vector<Try> tries;
        --n_searches;
        for (int n = 0; !cancel_.stop_requested(); ++n) {
          tries.clear();
          for (size_t i = 0; i < places.size(); ++i)
            tries.push_back({places[i], times_.empty() ? readings[i].density : readings[i].ms});
          const std::optional<double> at = next_try(tries, goal, effort);
          if (!at || n == kMostTries) break;
          expect(std::max(1, kTries - n));
          places.push_back(*at);
          readings.push_back(measure(effort.policy(*at)));
        }
        if (cancel_.stop_requested()) return rows;
        const size_t best = nearest(tries, goal);
        rows.push_back(policy);
        rows.back().wanted = wanted;
        rows.back().setting = effort.setting();
        rows.back().value = effort.value(places[best]);
        rows.back().prefill = effort.policy(places[best]);
        rows.back().reading = readings[best];
      }
    }
    expect(0);
    return rows;
  }

  // How far every row is from dense attention on a text: a meter for each.
  void judge(const Text& text, std::vector<Row>& rows, std::vector<DivergenceMeter> Row::*meters) {
    const auto n = std::ssize(text.tokens);
    const auto score = [&](const PrefillPolicy& prefill, auto&& take) {
      if (cancel_.stop_requested()) return;
      Request request;
      request.prefill = prefill;
      request.decode = DecodePolicy::full();
      session_->score(text.tokens, request, -1,
                      {.on_text = {},
                       .on_prefill = [&](int64_t done, int64_t, int64_t) { show(done); },
                       .on_logits =
                           [&](int64_t at, std::span<const float> logits) {
                             if (at > text.first && at < n - kApart) take(at, logits);
                           },
                       .on_sparsity = {}},
                      cancel_);
      n_done_ += n;
    };
    for (Row& row : rows) (row.*meters).emplace_back();
    std::vector<PackedLogits> base(text.tokens.size());
    const auto compare = [&](Row& row, int64_t at, std::span<const float> logits) {
      const auto i = static_cast<size_t>(at);
      if (!base[i].empty()) (row.*meters).back().add(base[i], logits, text.tokens[i]);
    };
    score(PrefillPolicy::dense(), [&](int64_t at, std::span<const float> logits) {
      if (at % places_apart(n - text.first, std::ssize(logits)) == 0)
        base[static_cast<size_t>(at)] = pack(logits);
      for (Row& row : rows)
        if (row.prefill.is_dense()) compare(row, at, logits);
    });
    for (Row& row : rows)
      if (!row.prefill.is_dense())
        score(row.prefill,
              [&](int64_t at, std::span<const float> logits) { compare(row, at, logits); });
  }

  void show(int64_t done) { progress_->update(n_done_ + done, n_expected_); }

  std::string wanted() const { return times_.empty() ? "wanted_density" : "wanted_time"; }

  nlohmann::ordered_json json(const std::vector<Row>& rows) const {
    nlohmann::ordered_json out = {{"model", model_.model().path().string()}};
    for (const Text& text : texts_)
      out["texts"].push_back({{"file", text.file},
                              {"tokens", text.tokens.size()},
                              {"compared", {text.first, std::ssize(text.tokens) - kApart}}});
    for (const Row& row : rows) {
      nlohmann::ordered_json r = {{"policy", row.policy}};
      if (row.wanted) {
        r[wanted()] = *row.wanted;
        r[row.setting] = row.value;
      }
      const Divergence d = all(row.texts).result();
      r.update({{"density", row.reading.density},
                {"kl", d.kld.value},
                {"kl_se", d.kld.error},
                {"same_top", d.same_top.value},
                {"nll_delta", d.nll_change.value},
                {"nll_delta_se", d.nll_change.error},
                {"prefill_ms", row.reading.ms}});
      const auto of_text = [](const DivergenceMeter& meter) {
        const Estimate kld = meter.result().kld;
        return nlohmann::ordered_json{{"kl", kld.value}, {"kl_se", kld.error}};
      };
      if (echo_) r["echo"] = of_text(all(row.echoes));
      for (size_t i = 0; i < texts_.size(); ++i) {
        r["texts"].push_back(of_text(row.texts[i]));
        if (echo_) r["texts"].back()["echo"] = of_text(row.echoes[i]);
      }
      out["rows"].push_back(r);
    }
    return out;
  }

  std::string table(const std::vector<Row>& rows) const {
    std::vector<std::string> header = {
        "policy",   times_.empty() ? "wanted density" : "wanted time",
        "setting",  "density",
        "KL ± SE",  "same top, %",
        "NLL ± SE", "prefill ms"};
    if (echo_) header.insert(header.begin() + 5, "KL in echo");
    cli::Table table(header);
    const auto with_error = [](const Estimate& e) {
      return fmt::format("{:.4f} ± {:.4f}", e.value, e.error);
    };
    for (const Row& row : rows) {
      const Divergence d = all(row.texts).result();
      std::vector<std::string> cells = {
          row.policy,
          row.wanted ? fmt::format("{:.3f}", *row.wanted) : "",
          row.wanted ? fmt::format("{} {:.4g}", row.setting, row.value) : "",
          fmt::format("{:.3f}", row.reading.density),
          with_error(d.kld),
          fmt::format("{:.1f}", 100 * d.same_top.value),
          with_error(d.nll_change),
          fmt::format("{:.0f}", row.reading.ms)};
      if (echo_) cells.insert(cells.begin() + 5, with_error(all(row.echoes).result().kld));
      table.add(cells);
    }
    return table.str();
  }

  cli::Interrupts& interrupts_;
  cli::ModelOptions model_;
  std::vector<std::string> files_,
      policies_ = {"entropy", "paper", "xattention", "flashprefill", "dense"};
  std::vector<double> densities_ = {0.2, 0.31, 0.38}, times_;
  int64_t n_tokens_ = 8192;
  bool echo_ = false, json_ = false;
  cli::PolicyOptions policy_;

  std::vector<Text> texts_;
  Session* session_ = nullptr;
  cli::ProgressBar* progress_ = nullptr;
  std::stop_token cancel_;
  int64_t n_done_ = 0, n_expected_ = 0;  // tokens
};

}  // namespace

cli::Command add_equal_work(CLI::App& eval, cli::Interrupts& interrupts) {
  CLI::App* command = eval.add_subcommand(
      "equal-work",
      "What sparse reading costs at equal density, or in equal time: KL divergence of the next "
      "token from dense attention's, where segments were read sparsely");
  return {command,
          [work = std::make_shared<EqualWork>(*command, interrupts)] { return (*work)(); }};
}

}  // namespace ei::eval
