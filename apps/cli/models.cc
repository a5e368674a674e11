// What is fetched from a hub and kept: pull, list, rm.
#include <fmt/format.h>

#include <memory>

#include "apps/cli/command.h"
#include "apps/cli/model_argument.h"
#include "apps/cli/report.h"
#include "apps/cli/table.h"
#include "apps/cli/units.h"
#include "apps/hub/hub.h"

namespace ei::cli {
namespace {

// The argument NAME.
class NameArgument {
 public:
  NameArgument(CLI::App& command, const std::string& help) {
    command.add_option("NAME", text_, help)
        ->required()
        ->check([](const std::string& text) {
          return hub::parse_name(text)
                     ? std::string()
                     : fmt::format(
                           "{} is not the name of a model, as org/repo, org/repo:Q4_K_M or "
                           "org/repo@revision",
                           text);
        })
        ->option_text("ORG/REPO[@REVISION][:TAG]");
  }

  hub::ModelName name() const { return *hub::parse_name(text_); }

 private:
  std::string text_;
};

int list() {
  Table table({"model", "size", ""});
  for (const hub::CachedModel& model : hub::list(hub::Hub::from_environment()))
    table.add({model.name, human_bytes(model.n_bytes), model.complete ? "" : "incomplete"});
  print(table.str());
  return kExitOk;
}

}  // namespace

Command add_pull(CLI::App& program) {
  CLI::App* command =
      program.add_subcommand("pull", "Fetch a model, or what is new of it, and print its path");
  auto name = std::make_shared<NameArgument>(
      *command, "A model of Hugging Face's hub; TAG: which of its GGUF files, as Q4_K_M");
  return {command, [name] {
            FetchProgress progress;
            const hub::Hub hub = hub::Hub::from_environment();
            const std::filesystem::path path = hub::pull(hub, name->name(), progress.reporter());
            progress.clear();
            print(path.string() + "\n");
            return kExitOk;
          }};
}

Command add_list(CLI::App& program) {
  return {program.add_subcommand("list", "Models that were fetched"), list};
}

Command add_rm(CLI::App& program) {
  CLI::App* command = program.add_subcommand("rm", "Delete a model that was fetched");
  auto name = std::make_shared<NameArgument>(*command, "As `list` calls it");
  return {command, [name] {
            const int64_t n_bytes = hub::remove(hub::Hub::from_environment(), name->name());
            print(fmt::format("{}: {} freed\n", name->name().str(), human_bytes(n_bytes)));
            return kExitOk;
          }};
}

}  // namespace ei::cli
