#include "apps/eval/perplexity.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "apps/cli/input.h"
#include "apps/cli/interrupt.h"
#include "apps/cli/limits.h"
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
using eval::DivergenceMeter;
using eval::Estimate;

// What is compared apart: tokens whose queries chose blocks, the prompt's end, which policies read
// densely but which sees what was made of the text before, and tokens that are decoded one by one
// as an answer would be, once every policy has compressed its cache.
enum Part { kRead, kLastSegment, kWritten, kParts };
struct PartName {
  const char *json, *text;
};
constexpr PartName kPartNames[kParts] = {
    {"read", "Read sparsely"}, {"last_segment", "The prompt's end"}, {"written", "Written"}};

// Where the parts of a piece begin, in tokens.
struct Parts {
  int64_t begin[kParts];
  int64_t n_prompt, n_tokens;

  Parts(int64_t n, const std::vector<eval::NamedPolicies>& compared) : n_tokens(n) {
    constexpr int64_t kMostWritten = 256;  // at least: the prompt is whole segments
    int64_t segment = 1, sparse_from = INT64_MAX;
    for (const auto& [name, policies] : compared) {
      const PrefillPolicy& read = policies.prefill;
      segment = std::max(segment, read.segment);
      if (!read.is_dense())
        sparse_from = std::min(
            sparse_from, (read.threshold_len + read.segment - 1) / read.segment * read.segment);
    }
    n_prompt = (n - std::min(kMostWritten, n / 2)) / segment * segment;
    if (n_prompt == 0) n_prompt = n / 2;
    begin[kWritten] = n_prompt;
    begin[kLastSegment] = std::max<int64_t>(0, n_prompt - segment);
    for (const auto& [name, policies] : compared) {
      const PrefillPolicy& read = policies.prefill;
      if (!read.is_dense())
        begin[kLastSegment] =
            std::min(begin[kLastSegment], std::max<int64_t>(0, n_prompt - read.dense_tail) /
                                              read.segment * read.segment);
      if (!policies.decode.is_full())
        begin[kWritten] = std::max(begin[kWritten], n_prompt + policies.decode.longest_gap());
    }
    begin[kRead] = std::min(sparse_from, begin[kLastSegment]);
  }
  // Of the token at a position, whose logits the one before it makes; kParts: none.
  Part part_of(int64_t at) const {
    const int64_t row = at - 1;
    return row >= begin[kWritten]       ? kWritten
           : row >= n_prompt            ? kParts
           : row >= begin[kLastSegment] ? kLastSegment
           : row >= begin[kRead]        ? kRead
                                        : kParts;
  }
};

// Pieces of a text: most of each is read as a prompt, the rest decoded. Dense attention with the
// full cache is the base.
class Perplexity {
 public:
  Perplexity(CLI::App& command, Interrupts& interrupts)
      : interrupts_(interrupts),
        model_(command),
        policy_(command, model_.device(), /*with_names=*/false) {
    command.add_option("--file", file_, "The text")->required()->option_text("F|-");
    command
        .add_option("--length", length_,
                    "Tokens of a piece; the last 256 or more, at most half, are written")
        ->transform(count(8, int64_t{1} << 24))
        ->option_text("N [8k]");
    command.add_option("--chunks", n_chunks_, "At most so many pieces; 0: the whole text")
        ->transform(count(0))
        ->option_text("N [0]");
    command
        .add_option("--policies", policies_,
                    "What to compare with dense+full: PREFILL+DECODE by their names, each with @N "
                    "for its budget if wanted")
        ->delimiter(',')
        ->option_text("P+D,.. [entropy+latent]");
    command
        .add_option("--against", against_,
                    "Also by how much the KL divergence of each is above that of this one, "
                    "token by token")
        ->option_text("P+D");
    command.add_flag("--json", json_, "One JSON object");
  }

  int operator()() {
    if (!against_.empty() && std::ranges::find(policies_, against_) == policies_.end())
      policies_.push_back(against_);
    std::vector<eval::NamedPolicies> compared;
    for (const std::string& name : policies_)
      compared.push_back(eval::parse_policies(name, policy_));
    const Parts parts(length_, compared);
    check_readable(file_);

    Engine engine = model_.load();
    const std::vector<int32_t> tokens = engine.tokenize(read_text(file_));
    int64_t n_pieces = std::ssize(tokens) / length_;
    require(n_pieces > 0,
            "{}: has {} tokens, a piece is {}; give a longer text or a smaller --length", file_,
            tokens.size(), length_);
    if (n_chunks_ > 0) n_pieces = std::min(n_pieces, n_chunks_);
    const bool sparse = std::ranges::any_of(
        compared, [](const auto& named) { return !named.policies.prefill.is_dense(); });
    if (sparse && parts.begin[kRead] == parts.begin[kLastSegment])
      print_warning(fmt::format(
          "nothing is read sparsely: of a piece, the prompt's dense end begins at token {}; "
          "give a longer --length or a smaller --threshold",
          parts.begin[kLastSegment]));

    Session session(engine);
    ProgressBar progress("comparing");
    const Interrupts::Scope scope(interrupts_);
    std::vector<Compared> results(compared.size());
    const int64_t n_steps = n_pieces * (1 + std::ssize(compared)) * length_;
    int64_t n_done = 0;
    const int64_t every =
        eval::places_apart(length_ - parts.begin[kRead], engine.info().vocab_size);
    for (int64_t i = 0; i < n_pieces && !scope.interrupted(); ++i) {
      const auto piece =
          std::span(tokens).subspan(static_cast<size_t>(i * length_), static_cast<size_t>(length_));
      // Logits of the places that are compared.
      const auto score = [&](const Policies& policies, auto&& take, double* density) {
        Request request;
        request.prefill = policies.prefill;
        request.decode = policies.decode;
        session.score(piece, request, parts.n_prompt,
                      {.on_text = {},
                       .on_prefill = [&](int64_t done, int64_t,
                                         int64_t) { progress.update(n_done + done, n_steps); },
                       .on_logits =
                           [&](int64_t at, std::span<const float> logits) {
                             if (at > parts.n_prompt) progress.update(n_done + at, n_steps);
                             if (parts.part_of(at) != kParts && at % every == 0)
                               take(static_cast<size_t>(at), logits);
                           },
                       .on_sparsity =
                           [&](const SparsityStats& stats) {
                             if (density != nullptr) *density += stats.density / double(n_pieces);
                           }},
                      scope.token());
        n_done += length_;
      };
      std::vector<eval::PackedLogits> base(piece.size());
      score(
          {PrefillPolicy::dense(), DecodePolicy::full()},
          [&](size_t at, std::span<const float> logits) { base[at] = eval::pack(logits); },
          nullptr);
      for (size_t p = 0; p < compared.size() && !scope.interrupted(); ++p)
        score(
            compared[p].policies,
            [&](size_t at, std::span<const float> logits) {
              if (!base[at].empty())
                results[p].meters[parts.part_of(int64_t(at))].add(base[at], logits, piece[at]);
            },
            &results[p].density);
    }
    progress.clear();
    if (scope.interrupted()) return kExitInterrupted;  // half of a comparison is none
    if (json_) {
      nlohmann::ordered_json out = {{"file", file_},
                                    {"length", length_},
                                    {"prompt_tokens", parts.n_prompt},
                                    {"chunks", n_pieces}};
      for (size_t p = 0; p < results.size(); ++p)
        out["policies"][policies_[p]] =
            to_json(results[p], against(results), policy_.describe(compared[p].policies));
      print_json(out);
    } else {
      for (const int part : {kRead, kLastSegment, kWritten})
        if (results[0].meters[part].n_tokens() > 1) print(table(results, part, parts));
    }
    return kExitOk;
  }

 private:
  struct Compared {
    DivergenceMeter meters[kParts];
    double density = 0;  // of reading the prompts
  };

  // The one that the others are compared with, null if none was asked for.
  const Compared* against(const std::vector<Compared>& compared) const {
    const auto at = std::ranges::find(policies_, against_) - policies_.begin();
    return against_.empty() ? nullptr : &compared[static_cast<size_t>(at)];
  }

  std::string table(const std::vector<Compared>& compared, int part, const Parts& parts) const {
    std::vector<Divergence> results;
    for (const Compared& c : compared) results.push_back(c.meters[part].result());
    std::vector<std::string> header = {""};
    header.insert(header.end(), policies_.begin(), policies_.end());
    Table table(header);
    const auto row = [&](const std::string& name, auto&& cell) {
      std::vector<std::string> cells = {name};
      for (const Divergence& d : results) cells.push_back(cell(d));
      table.add(cells);
    };
    const auto cell = [](const Estimate& e, double unit) {
      return fmt::format("{:.5f} ± {:.5f}", unit * e.value, unit * e.error);
    };
    const auto estimate = [&](const std::string& name, Estimate Divergence::*field, double unit) {
      row(name, [&](const Divergence& d) { return cell(d.*field, unit); });
    };
    std::vector<std::string> densities = {"Density of reading, %"};
    for (const Compared& c : compared) densities.push_back(fmt::format("{:.1f}", 100 * c.density));
    table.add(densities);
    estimate("PPL", &Divergence::ppl, 1);
    estimate("PPL of dense+full", &Divergence::ppl_base, 1);
    estimate("PPL ratio", &Divergence::ppl_ratio, 1);
    estimate("Mean KLD", &Divergence::kld, 1);
    if (const Compared* other = against(compared)) {
      std::vector<std::string> cells = {"minus that of " + against_};
      for (const Compared& c : compared)
        cells.push_back(cell(c.meters[part].kld_minus(other->meters[part]), 1));
      table.add(cells);
    }
    for (size_t i = 0; i < std::size(eval::kPercentiles); ++i) {
      const double p = eval::kPercentiles[i];
      row(p == 1     ? "Maximum KLD"
          : p == 0.5 ? "Median KLD"
                     : fmt::format("{:.1f}% KLD", 100 * p),
          [&](const Divergence& d) { return fmt::format("{:.5f}", d.kld_percentiles[i]); });
    }
    estimate("RMS Δp, %", &Divergence::rms_dp, 100);
    estimate("Same top p, %", &Divergence::same_top, 100);
    const int64_t end = part == kRead          ? parts.begin[kLastSegment]
                        : part == kLastSegment ? parts.n_prompt
                                               : parts.n_tokens;
    return fmt::format(
        "{}: tokens {} to {} of each piece, {} compared. KLD: from dense+full's distribution of "
        "the "
        "next token, in nats; ± its standard error\n\n{}\n",
        kPartNames[part].text, grouped(parts.begin[part]), grouped(end),
        grouped(results[0].n_tokens), table.str());
  }

  static nlohmann::ordered_json to_json(const Estimate& e) {
    return {{"value", e.value}, {"error", e.error}};
  }

  static nlohmann::ordered_json to_json(const Compared& compared, const Compared* against,
                                        const nlohmann::ordered_json& policy) {
    nlohmann::ordered_json out = {{"density", compared.density}};
    for (int part = 0; part < kParts; ++part) {
      if (compared.meters[part].n_tokens() < 2) continue;
      out[kPartNames[part].json] = to_json(compared.meters[part].result());
      if (against != nullptr)
        out[kPartNames[part].json]["kld_minus_against"] =
            to_json(compared.meters[part].kld_minus(against->meters[part]));
    }
    out["policy"] = policy;
    return out;
  }

  static nlohmann::ordered_json to_json(const Divergence& d) {
    nlohmann::ordered_json out = {{"n_tokens", d.n_tokens}};
    const auto add = [&](const char* name, const Estimate& e) { out[name] = to_json(e); };
    add("ppl", d.ppl);
    add("ppl_base", d.ppl_base);
    add("ppl_ratio", d.ppl_ratio);
    add("kld", d.kld);
    for (size_t i = 0; i < std::size(eval::kPercentiles); ++i)
      out["kld_percentiles"][fmt::format("{}", eval::kPercentiles[i])] = d.kld_percentiles[i];
    add("rms_dp", d.rms_dp);
    add("same_top", d.same_top);
    return out;
  }

  Interrupts& interrupts_;
  ModelOptions model_;
  std::string file_, against_;
  int64_t length_ = 8192, n_chunks_ = 0;
  std::vector<std::string> policies_ = {"entropy+latent"};
  bool json_ = false;
  PolicyOptions policy_;
};

}  // namespace

Command add_perplexity(CLI::App& program, Interrupts& interrupts) {
  CLI::App* command = program.add_subcommand(
      "perplexity",
      "How far policies are from dense attention on a text: perplexity, KL divergence");
  return {
      command,
      [perplexity = std::make_shared<Perplexity>(*command, interrupts)] { return (*perplexity)(); },
      /*on_ranks=*/true};
}

}  // namespace ei::cli
