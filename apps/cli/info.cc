#include <fmt/format.h>

#include <memory>

#include "apps/cli/command.h"
#include "apps/cli/options.h"
#include "apps/cli/report.h"
#include "apps/cli/table.h"
#include "apps/cli/units.h"

namespace ei::cli {
namespace {

void show(const ModelInfo& info) {
  Table table({"model", info.architecture});
  const auto add = [&](std::string name, std::string value) {
    table.add({std::move(name), std::move(value)});
  };
  add("chat template", info.chat_template.empty() ? "none: use --raw" : info.chat_template);
  add("parameters", grouped(info.n_parameters));
  add("weights", human_bytes(info.weight_bytes));
  for (const auto& [format, bytes] : info.weight_formats) add("  in " + format, human_bytes(bytes));
  add("activations of a chunk", human_bytes(info.activation_bytes));
  add("memory available beside weights", human_bytes(info.available_bytes));
  add("layers", grouped(info.n_layers));
  add("hidden size", grouped(info.hidden));
  add("feed-forward size", grouped(info.intermediate));
  add("query heads / KV heads", fmt::format("{} / {}", info.n_heads, info.n_kv_heads));
  add("head size", grouped(info.head_dim));
  add("vocabulary", grouped(info.vocab_size));
  add("made for a context of", grouped(info.max_context) + " tokens");
  add("KV cache per 1,000 tokens", human_bytes(1000 * info.kv_bytes_per_token));
  add("key bounds per 1,000 tokens", human_bytes(1000 * info.bounds_bytes_per_token));
  add("longest context that fits here",
      fmt::format("{} tokens, in {}", grouped(info.longest_context),
                  human_bytes(info.longest_context_bytes)));
  add("device", info.device);
  add("loaded in", human_ms(info.load_ms));
  print(table.str());
}

}  // namespace

Command add_info(CLI::App& program) {
  CLI::App* command = program.add_subcommand("info", "Sizes of a model and what fits this machine");
  return {command, [model = std::make_shared<ModelOptions>(*command)] {
            show(model->load().info());
            return kExitOk;
          }};
}

}  // namespace ei::cli
