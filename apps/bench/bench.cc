#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <optional>

#include "apps/bench/measure.h"
#include "apps/bench/prompt.h"
#include "apps/bench/report.h"
#include "apps/cli/command.h"
#include "apps/cli/limits.h"
#include "apps/cli/model_argument.h"
#include "apps/cli/options.h"
#include "apps/cli/report.h"
#include "apps/cli/units.h"
#include "ei/base/fail.h"
#include "ei/engine/make_backend.h"
#include "ei/engine/named_shapes.h"
#include "ei/policy/named.h"

namespace ei::cli {
namespace {

// What runs now, on stderr: one line that changes, or a line each where that is not a terminal.
void announce(const std::string& text) {
  static const bool terminal = isatty(STDERR_FILENO) != 0;
  fmt::print(stderr, "{}{}{}", terminal ? "\r\033[K" : "", text, terminal ? "" : "\n");
  std::fflush(stderr);
}

// Ctrl-C ends the program: there is nothing here to be kept.
class Bench {
 public:
  explicit Bench(CLI::App& command) : model_(command) {
    const CLI::Validator any_count = count(0, int64_t{1} << 24);
    command.add_option("--shape", shape_, "Random weights in the shape of this model instead")
        ->check(CLI::IsMember(shape_names()));
    command.add_flag("--kernels", kernels_,
                     "Every kernel on its own, against the machine's limits");
    command.add_option("--only", kernel_options_.only,
                       "With --kernels: those whose name has this in it");
    const auto list = [&](const char* flag, auto& values, const char* text, const char* help) {
      return command.add_option(flag, values, help)->delimiter(',')->option_text(text);
    };
    list("-p,--prompt", options_.prompts, "N,... [512,8192]",
         "Read prompts of so many tokens; 0: none")
        ->transform(any_count);
    list("-n,--answer", options_.answers, "N,... [32]", "Write so many tokens; 0: none")
        ->transform(any_count);
    list("-d,--depth", options_.depths, "N,... [0]", "Write them after a prompt of so many tokens")
        ->transform(any_count);
    std::vector<std::string> prefills;
    for (const auto& [name, policy] : prefill_policies()) prefills.emplace_back(name);
    list("--prefill", options_.prefills, "P,... [dense,entropy]", "How prompts are read")
        ->check(CLI::IsMember(prefills));
    list("--decode", options_.decodes, "full,latent [full]",
         "The cache that answers are written from")
        ->check(CLI::IsMember({"full", "latent"}));
    list("--dense-layers", options_.dense_layers, "N,... [the policy's]",
         "First layers that are read densely")
        ->transform(count(0, 1000));
    command
        .add_option("-r,--repetitions", options_.repetitions,
                    "Runs of each, after one to warm up; with --kernels: rounds over all")
        ->transform(count(1, 1000))
        ->option_text("N [3]");
    cli::add_hardware(command, engine_options_, "Options");
    command
        .add_option_function<std::string>(
            "-o,--output",
            [this](const std::string& name) {
              format_ = name == "md"    ? bench::Format::kMd
                        : name == "csv" ? bench::Format::kCsv
                                        : bench::Format::kJson;
            },
            "How the table is written")
        ->check(CLI::IsMember({"md", "csv", "json"}))
        ->option_text("md|csv|json [md]");
  }

  int operator()() {
    const std::string text = kernels_ ? kernels() : models();
    if (isatty(STDERR_FILENO)) announce("");
    print(text);
    return kExitOk;
  }

 private:
  std::string kernels() {
    kernel_options_.hardware = engine_options_;
    kernel_options_.hardware.device = Device::kCpu;
    kernel_options_.rounds = options_.repetitions;
    const bench::KernelReport report = bench::bench_kernels(
        kernel_options_, [](const std::string& kernel, const std::string& size) {
          announce(kernel + (size.empty() ? "" : ": " + size));
        });
    return bench::report(bench::facts(bench::this_machine(), report.device), report, format_);
  }

  std::string models() {
    require(model_.empty() != shape_.empty(), "bench: give either MODEL or --shape NAME");
    options_.on_gpu = on_gpu(engine_options_.device);
    const std::vector<bench::Group> plan = bench::make_plan(options_);
    int64_t longest = 0;
    for (const bench::Group& group : plan) longest = std::max(longest, group.work.prompt_tokens());

    if (!model_.empty()) model_.path();  // is fetched before anything else is said
    announce("loading");
    Engine engine = model_.empty() ? Engine::random(shape_, engine_options_)
                                   : Engine(model_.path(), engine_options_);
    const std::vector<int32_t> tokens = model_.empty() ? bench::random_prompt(engine, longest)
                                                       : bench::text_prompt(engine, longest);
    const std::vector<bench::Row> rows = bench::measure(
        engine, plan, options_.repetitions, tokens, [](const std::string& what, double left) {
          announce(left < 0 ? what : fmt::format("{}, {} left", what, clock_time(left)));
        });
    const ModelInfo info = engine.info();
    bench::Facts facts = bench::facts(bench::this_machine(), info.device);
    facts.emplace_back("model", model_.empty() ? shape_ + ", random weights" : model_.name());
    facts.emplace_back("parameters", grouped(info.n_parameters));
    return bench::report(facts, rows, format_);
  }

  ModelArgument model_;
  std::string shape_;
  bool kernels_ = false;
  bench::KernelBenchOptions kernel_options_;
  EngineOptions engine_options_;
  bench::Options options_;
  bench::Format format_ = bench::Format::kMd;
};

}  // namespace

Command add_bench(CLI::App& program) {
  CLI::App* command = program.add_subcommand(
      "bench", "Tokens per second of reading and writing, or the speed of every kernel");
  return {command, [bench = std::make_shared<Bench>(*command)] { return (*bench)(); }};
}

}  // namespace ei::cli
