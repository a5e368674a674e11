#include "apps/eval/profile.h"

#include <fmt/format.h>

#include <cmath>
#include <memory>

#include "apps/cli/input.h"
#include "apps/cli/interrupt.h"
#include "apps/cli/options.h"
#include "apps/cli/progress.h"
#include "apps/cli/report.h"
#include "apps/cli/table.h"
#include "apps/eval/head_profile.h"
#include "apps/eval/page.h"
#include "ei/io/json.h"

namespace ei::cli {
namespace {

// Six digits are enough for pictures, and a third of the bytes.
double rounded(double x) {
  if (x == 0 || !std::isfinite(x)) return 0;
  const double unit = std::pow(10, 5 - std::floor(std::log10(std::abs(x))));
  return std::round(x * unit) / unit;
}

OrderedJson to_json(const std::vector<double>& values) {
  OrderedJson out = OrderedJson::array();
  for (const double value : values) out.push_back(rounded(value));
  return out;
}

OrderedJson to_json(const eval::Profile::Head& head) {
  OrderedJson entropy = OrderedJson::array(), budget = OrderedJson::array(),
              blocks = OrderedJson::array(), dense = OrderedJson::array();
  for (const eval::Profile::Segment& segment : head.segments) {
    entropy.push_back(rounded(segment.entropy));
    budget.push_back(rounded(segment.budget));
    blocks.push_back(segment.blocks);
    dense.push_back(segment.dense);
  }
  return {{"rigid", head.rigid},
          {"entropy", entropy},
          {"budget", budget},
          {"blocks", blocks},
          {"dense", dense},
          {"kept_by_distance", to_json(head.kept_by_distance)},
          {"votes", to_json(head.votes)}};
}

class Profile {
 public:
  Profile(CLI::App& command, Interrupts& interrupts)
      : interrupts_(interrupts), model_(command), policy_(command, model_.device()) {
    command.add_option("--file", file_, "The document")->required()->option_text("F");
    command.add_option("--prompt", prompt_, "A question on it")->option_text("T");
    command.add_option("--out", out_, "Write profile.json and profile.html into this folder")
        ->required()
        ->option_text("DIR");
  }

  int operator()() {
    const Policies policies = policy_.policies();
    check_readable(file_);
    std::filesystem::create_directories(out_);
    Engine engine = model_.load();
    const std::string text = read_text(file_, engine.info().max_text_bytes);
    Request request;
    if (engine.info().chat_template.empty()) {
      request.tokens = engine.tokenize(prompt_.empty() ? text : text + "\n\n" + prompt_);
    } else {
      request.messages = {{"user", {text}}};
      if (!prompt_.empty()) request.messages[0].parts.push_back(prompt_);
    }
    request.prefill = policies.prefill;
    request.decode = policies.decode;
    request.sampling = SamplingParams{};

    ProgressBar progress("reading");
    const Interrupts::Scope scope(interrupts_);
    const eval::Profile profile = eval::profile(engine, request, watch(progress), scope.token());
    progress.clear();
    if (scope.interrupted()) return kExitInterrupted;

    OrderedJson out = {{"model", model_.model().path().string()},
                       {"file", file_},
                       {"prompt", prompt_},
                       {"prompt_tokens", profile.generation.prompt_tokens},
                       {"density", rounded(profile.generation.sparsity.density)},
                       {"segment", profile.segment},
                       {"block", profile.block},
                       {"policy", policy_.describe()}};
    for (const auto& layer : profile.heads) {
      OrderedJson heads = OrderedJson::array();
      for (const eval::Profile::Head& head : layer) heads.push_back(to_json(head));
      out["layers"].push_back(heads);
    }
    save(out_ / "profile.json", dump(out) + "\n");
    save(out_ / "profile.html", eval::fill_page(eval::kProfilePage, out));
    print(table(profile));
    return kExitOk;
  }

 private:
  static std::string table(const eval::Profile& profile) {
    Table table({"layer", "rigid heads", "mean entropy", "mean budget", "past kept"});
    for (size_t l = 0; l < profile.heads.size(); ++l) {
      int64_t n_rigid = 0;
      double entropy = 0, budget = 0, n = 0, kept = 0, past = 0;
      for (const eval::Profile::Head& head : profile.heads[l]) {
        n_rigid += head.rigid;
        for (size_t s = 1; s < head.segments.size(); ++s) {
          const eval::Profile::Segment& segment = head.segments[s];
          entropy += double(segment.entropy);
          budget += double(segment.budget);
          kept += double(segment.blocks);
          past += double(s) * double(profile.segment / profile.block);
          n += 1;
        }
      }
      if (n == 0) {
        table.add({fmt::format("{}", l), "", "", "", "all: dense"});
        continue;
      }
      table.add({fmt::format("{}", l), fmt::format("{} of {}", n_rigid, profile.heads[l].size()),
                 fmt::format("{:.3g}", entropy / n), fmt::format("{:.0f}", budget / n),
                 fmt::format("{:.1f}%", 100 * kept / past)});
    }
    return table.str();
  }

  Interrupts& interrupts_;
  ModelOptions model_;
  std::string file_, prompt_;
  std::filesystem::path out_;
  PolicyOptions policy_;
};

}  // namespace

Command add_profile(CLI::App& program, Interrupts& interrupts) {
  CLI::App* command = program.add_subcommand(
      "profile", "Pictures of what every layer, head and segment attends to in a document");
  return {command,
          [profile = std::make_shared<Profile>(*command, interrupts)] { return (*profile)(); }};
}

}  // namespace ei::cli
