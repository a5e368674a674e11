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

// What was read of a policy on the way to its settings.
struct Search {
  Effort effort;
  std::vector<double> places;
  std::vector<Reading> readings;
};

struct Row {
  std::string policy;
  PrefillPolicy prefill;
  std::shared_ptr<Search> search;  // of all rows of the policy; null: it cannot read more or less
  double wanted = 0;
  double value = 0;                            // of the setting, once it is found
  std::optional<Reading> reading;              // with it
  std::vector<DivergenceMeter> texts, echoes;  // of each text that was judged
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
      Row row = {.policy = name};
      row.prefill = parse_policies(name.substr(0, colon) + "+full" + name.substr(colon), policy_)
                        .policies.prefill;
      if (row.prefill.is_dense()) {
        rows.push_back(row);
        continue;
      }
      row.prefill.threshold_len = kDense;
      row.search = std::make_shared<Search>(Search{Effort(row.prefill), {}, {}});
      for (const double wanted : times_.empty() ? densities_ : times_) {
        rows.push_back(row);
        rows.back().wanted = wanted;
      }
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
    measure(rows);
    progress.clear();
    if (scope.interrupted())
      for (const Row& row : rows)
        if (row.reading && !is_done(row)) print(row);
    if (json_) cli::print_json(json(rows));
    return scope.interrupted() ? cli::kExitInterrupted : cli::kExitOk;
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

  // Fills in the rows and prints each as soon as it is known: on the last text, the one after the
  // other, when a row's setting is looked for on the first.
  void measure(std::vector<Row>& rows) {
    for (const Text& text : texts_) n_tokens_of_all_ += std::ssize(text.tokens);
    n_searches_ = std::ranges::count_if(rows, [](const Row& row) { return row.search != nullptr; });
    n_judged_ = n_tokens_of_all_ * (1 + n_searches_) * (echo_ ? 2 : 1);
    for (const Text& text : texts_) {
      judge(text, rows, &Row::texts);
      if (echo_) judge(text.echo(), rows, &Row::echoes);
    }
  }

  // The density and time of reading the texts under a policy; nothing when it was interrupted.
  std::optional<Reading> read_all(const PrefillPolicy& prefill) {
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
      if (cancel_.stop_requested()) return std::nullopt;
      mean.density += read.sparsity.density / double(texts_.size());
      mean.ms += read.timings.prefill_ms / double(texts_.size());
      n_done_ += std::ssize(text.tokens);
    }
    return mean;
  }

  // So many more readings for the row at hand.
  void expect(int64_t n_tries) {
    n_expected_ = n_done_ + n_tokens_of_all_ * (n_tries + kTries * n_searches_) + n_judged_;
  }

  // Looks for the setting of a row that comes nearest to what is wanted. Without an answer it was
  // interrupted.
  void find(Row& row) {
    if ((!row.search || !times_.empty()) && !dense_) {
      expect(1);
      dense_ = read_all(PrefillPolicy::dense());
      if (!dense_) return;
    }
    if (!row.search) {
      row.reading = dense_;
      return;
    }
    --n_searches_;
    auto& [effort, places, readings] = *row.search;
    const double goal = times_.empty() ? row.wanted : row.wanted * dense_->ms;
    std::vector<Try> tries;
    for (int n = 0;; ++n) {
      tries.clear();
      for (size_t i = 0; i < places.size(); ++i)
        tries.push_back({places[i], times_.empty() ? readings[i].density : readings[i].ms});
      const std::optional<double> at = next_try(tries, goal, effort);
      if (!at || n == kMostTries) break;
      expect(std::max(1, kTries - n));
      const std::optional<Reading> reading = read_all(effort.policy(*at));
      if (!reading) return;
      places.push_back(*at);
      readings.push_back(*reading);
    }
    expect(0);
    const size_t best = nearest(tries, goal);
    row.value = effort.value(places[best]);
    row.prefill = effort.policy(places[best]);
    row.reading = readings[best];
  }

  // How far every row is from dense attention on a text: a meter for each.
  void judge(const Text& text, std::vector<Row>& rows, std::vector<DivergenceMeter> Row::*meters) {
    const auto n = std::ssize(text.tokens);
    const auto score = [&](const PrefillPolicy& prefill, auto&& take) {
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
      n_judged_ -= n;
    };
    std::vector<PackedLogits> base(text.tokens.size());
    DivergenceMeter unchanged;
    const auto compare = [&](DivergenceMeter& meter, int64_t at, std::span<const float> logits) {
      const auto i = static_cast<size_t>(at);
      if (!base[i].empty()) meter.add(base[i], logits, text.tokens[i]);
    };
    expect(0);
    if (!cancel_.stop_requested())
      score(PrefillPolicy::dense(), [&](int64_t at, std::span<const float> logits) {
        if (at % places_apart(n - text.first, std::ssize(logits)) == 0)
          base[static_cast<size_t>(at)] = pack(logits);
        compare(unchanged, at, logits);
      });
    for (Row& row : rows) {
      if (!cancel_.stop_requested() && !row.reading) find(row);
      if (cancel_.stop_requested()) return;
      DivergenceMeter meter = row.search ? DivergenceMeter() : unchanged;
      if (row.search)
        score(row.prefill,
              [&](int64_t at, std::span<const float> logits) { compare(meter, at, logits); });
      if (cancel_.stop_requested()) return;  // half of a comparison is none
      (row.*meters).push_back(std::move(meter));
      if (is_done(row)) print(row);
    }
  }

  bool is_done(const Row& row) const {
    return row.texts.size() == texts_.size() && row.echoes.size() == (echo_ ? texts_.size() : 0);
  }

  void show(int64_t done) { progress_->update(n_done_ + done, n_expected_); }

  std::string wanted() const { return times_.empty() ? "wanted_density" : "wanted_time"; }

  nlohmann::ordered_json json(const std::vector<Row>& rows) const {
    nlohmann::ordered_json out = {{"model", model_.model().path().string()}};
    for (const Text& text : texts_)
      out["texts"].push_back({{"file", text.file},
                              {"tokens", text.tokens.size()},
                              {"compared", {text.first, std::ssize(text.tokens) - kApart}}});
    if (cancel_.stop_requested()) out["interrupted"] = true;
    out["rows"] = nlohmann::ordered_json::array();
    for (const Row& row : rows) {
      if (!row.reading) continue;
      nlohmann::ordered_json r = {{"policy", row.policy}};
      if (row.search) {
        r[wanted()] = row.wanted;
        r[row.search->effort.setting()] = row.value;
      }
      r["density"] = row.reading->density;
      if (!row.texts.empty()) {
        const Divergence d = all(row.texts).result();
        r.update({{"kl", d.kld.value},
                  {"kl_se", d.kld.error},
                  {"same_top", d.same_top.value},
                  {"nll_delta", d.nll_change.value},
                  {"nll_delta_se", d.nll_change.error}});
      }
      r["prefill_ms"] = row.reading->ms;
      const auto of_text = [](const DivergenceMeter& meter) {
        const Estimate kld = meter.result().kld;
        return nlohmann::ordered_json{{"kl", kld.value}, {"kl_se", kld.error}};
      };
      if (!row.echoes.empty()) r["echo"] = of_text(all(row.echoes));
      for (size_t i = 0; i < row.texts.size(); ++i) {
        r["texts"].push_back(of_text(row.texts[i]));
        if (i < row.echoes.size()) r["texts"].back()["echo"] = of_text(row.echoes[i]);
      }
      out["rows"].push_back(r);
    }
    return out;
  }

  // A line of the table, below its head if it is the first: on stdout if the table is what is
  // wanted, beside the progress otherwise. Of a row that is not done, what there is.
  void print(const Row& row) {
    progress_->clear();
    const std::string line = table_ ? table_->line(cells(row)) : [&] {
      make_table();
      return table_->head() + table_->line(cells(row));
    }();
    if (json_) {
      fmt::print(stderr, "{}", line);
    } else {
      cli::print(line);
    }
  }

  void make_table() {
    size_t longest = 0;
    for (const std::string& policy : policies_) longest = std::max(longest, policy.size());
    const size_t of_texts = texts_.size() > 1 ? std::string_view(" (1 of 2 texts)").size() : 0;
    std::vector<std::string> header = {
        "policy",   times_.empty() ? "wanted density" : "wanted time",
        "setting",  "density",
        "KL ± SE",  "same top, %",
        "NLL ± SE", "prefill ms"};
    std::vector<size_t> widths = {longest + of_texts, 5, 18, 5, 15, 5, 16, 7};
    if (echo_) {
      header.insert(header.begin() + 5, "KL in echo");
      widths.insert(widths.begin() + 5, widths[4]);
    }
    table_.emplace(std::move(header), std::move(widths));
  }

  std::vector<std::string> cells(const Row& row) const {
    const auto with_error = [](const Estimate& e) {
      return fmt::format("{:.4f} ± {:.4f}", e.value, e.error);
    };
    const std::string judged =
        is_done(row) ? "" : fmt::format(" ({} of {} texts)", row.texts.size(), texts_.size());
    std::vector<std::string> cells = {
        row.policy + judged,
        row.search ? fmt::format("{:.3f}", row.wanted) : "",
        row.search ? fmt::format("{} {:.4g}", row.search->effort.setting(), row.value) : "",
        fmt::format("{:.3f}", row.reading->density),
        "",
        "",
        "",
        fmt::format("{:.0f}", row.reading->ms)};
    if (!row.texts.empty()) {
      const Divergence d = all(row.texts).result();
      cells[4] = with_error(d.kld);
      cells[5] = fmt::format("{:.1f}", 100 * d.same_top.value);
      cells[6] = with_error(d.nll_change);
    }
    if (echo_)
      cells.insert(cells.begin() + 5,
                   row.echoes.empty() ? "" : with_error(all(row.echoes).result().kld));
    return cells;
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
  std::optional<cli::Table> table_;  // once there is a row
  std::optional<Reading> dense_;
  int64_t n_searches_ = 0;  // that are still to be made
  // Tokens: of a reading of all texts, read so far, still to be read to judge, and expected in all.
  int64_t n_tokens_of_all_ = 0, n_done_ = 0, n_judged_ = 0, n_expected_ = 0;
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
