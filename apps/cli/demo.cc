#include <fmt/format.h>

#include <memory>

#include "apps/cli/command.h"
#include "apps/cli/limits.h"
#include "apps/cli/options.h"
#include "apps/cli/progress.h"
#include "apps/cli/report.h"
#include "apps/cli/table.h"
#include "apps/cli/units.h"
#include "apps/eval/document.h"

namespace ei::cli {
namespace {

// One question over a long made-up document, answered with dense attention and a full cache, then
// as the policy options say.
class Demo {
 public:
  explicit Demo(CLI::App& command) : model_(command), policy_(command, model_.device()) {
    command.add_option("--length", spec_.n_tokens, "Tokens of the document")
        ->transform(count(1000, int64_t{1} << 24))
        ->option_text(fmt::format("N [{}]", spec_.n_tokens));
    command.add_option("--seed", spec_.seed, "Another seed, another document")
        ->option_text(fmt::format("N [{}]", spec_.seed));
    command.add_option("--save", save_, "Write the document to this file, for `run --file`")
        ->option_text("F");
  }

  int operator()() {
    const Policies policies = policy_.policies();
    Engine engine = model_.load();
    const eval::Document document = eval::make_document(spec_, [&](std::string_view text) {
      return static_cast<int64_t>(engine.tokenize(text).size());
    });
    const eval::Needle& needle = document.needles[document.needles.size() / 3];
    if (!save_.empty()) save(save_, document.text);
    print(fmt::format("question  {}\ntruth     {}\n", needle.question(), needle.value));

    Request request;
    request.messages = {{"user", {document.text, needle.question()}}};
    request.sampling = SamplingParams{};
    request.max_tokens = 64;
    request.prefill = PrefillPolicy::dense();
    request.decode = DecodePolicy::full();
    const Generation dense = answer("dense", engine, request);
    request.prefill = policies.prefill;
    request.decode = policies.decode;
    const Generation entropy = answer("entropy", engine, request);

    print("\n" + compare(dense, entropy, needle.value));
    return right(dense, needle.value) && right(entropy, needle.value) ? kExitOk : kExitError;
  }

 private:
  // Ctrl-C ends the program: there is nothing here to be kept.
  static Generation answer(const std::string& name, Engine& engine, const Request& request) {
    Session session(engine);
    ProgressBar progress(name);
    const Generation generation = session.generate(request, watch(progress));
    progress.clear();
    print(fmt::format("{:8} {}\n", name, generation.text));
    return generation;
  }

  static bool right(const Generation& generation, const std::string& value) {
    return generation.text.find(value) != std::string::npos;
  }

  static std::string compare(const Generation& dense, const Generation& entropy,
                             const std::string& value) {
    const double faster = dense.timings.prefill_ms / entropy.timings.prefill_ms;
    Table table({"", "dense", "entropy"});
    const auto row = [&](const char* name, auto&& cell) {
      table.add({name, cell(dense), cell(entropy)});
    };
    row("prompt tokens", [](const Generation& g) { return grouped(g.prompt_tokens); });
    row("answer is right",
        [&](const Generation& g) { return std::string(right(g, value) ? "yes" : "no"); });
    row("time to first token", [](const Generation& g) { return human_ms(g.timings.prefill_ms); });
    row("decode tokens/s", [](const Generation& g) { return human_rate(g.timings.decode_tps); });
    row("density", [](const Generation& g) { return fmt::format("{:.3f}", g.sparsity.density); });
    row("KV cache at the end", [](const Generation& g) { return human_bytes(g.kv.bytes); });
    return table.str() +
           fmt::format("\nentropy is {:.1f} times as fast to the first token\n", faster);
  }

  ModelOptions model_;
  eval::DocumentSpec spec_;
  std::string save_;
  PolicyOptions policy_;
};

}  // namespace

Command add_demo(CLI::App& program) {
  CLI::App* command = program.add_subcommand(
      "demo", "Ask about a long made-up document, dense and by entropy, and compare");
  return {command, [demo = std::make_shared<Demo>(*command)] { return (*demo)(); }};
}

}  // namespace ei::cli
