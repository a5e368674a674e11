#include <fmt/format.h>

#include <memory>

#include "apps/cli/command.h"
#include "apps/cli/input.h"
#include "apps/cli/options.h"
#include "apps/cli/report.h"

namespace ei::cli {
namespace {

class Tokenize {
 public:
  explicit Tokenize(CLI::App& command) : model_(command) {
    auto* text = command.add_option("TEXT", text_, "Without it and --file: standard input");
    command.add_option("--file", file_, "File with the text")->option_text("F|-")->excludes(text);
    command.add_flag("--chat", chat_, "As a question in the model's chat template");
    command.add_flag("--json", json_, "One JSON object: tokens, pieces, count");
  }

  int operator()() {
    const std::string text = file_ ? read_text(*file_) : text_ ? *text_ : read_stdin();
    const Engine engine = model_.load();
    const Message message{"user", {text}};
    const std::vector<int32_t> tokens =
        chat_ ? engine.tokenize({&message, 1}) : engine.tokenize(text);

    std::vector<std::string> pieces;
    for (const int32_t token : tokens) pieces.push_back(engine.detokenize({&token, 1}));
    if (json_) {
      print_json({{"tokens", tokens}, {"pieces", pieces}, {"count", tokens.size()}});
      return kExitOk;
    }
    std::string lines;
    for (size_t i = 0; i < tokens.size(); ++i)
      lines += fmt::format("{:>7}  {}\n", tokens[i], dump(pieces[i]));
    print(lines);
    return kExitOk;
  }

 private:
  ModelOptions model_;
  std::optional<std::string> text_, file_;
  bool chat_ = false, json_ = false;
};

}  // namespace

Command add_tokenize(CLI::App& program) {
  CLI::App* command = program.add_subcommand("tokenize", "Text as the model's tokens");
  return {command, [tokenize = std::make_shared<Tokenize>(*command)] { return (*tokenize)(); }};
}

}  // namespace ei::cli
