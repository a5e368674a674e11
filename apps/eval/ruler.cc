#include "apps/eval/ruler.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "apps/cli/input.h"
#include "apps/eval/comparison.h"
#include "ei/base/fail.h"
#include "ei/io/json.h"

namespace ei::eval {
namespace {

RulerLine parse_line(const std::string& line, const std::string& task) {
  const Json json = parse_json(line, "line");
  RulerLine out{.task = task,
                .index = json.at("index").get<int64_t>(),
                .length = json.at("length").get<int64_t>(),
                .input = json.at("input").get<std::string>(),
                .outputs = json.at("outputs").get<std::vector<std::string>>()};
  require(!out.outputs.empty(), "outputs is empty");
  require(out.length > 0, "length is {}, expected a positive number", out.length);
  return out;
}

class Ruler {
 public:
  Ruler(CLI::App& command, cli::Interrupts& interrupts) : comparison_(command, interrupts) {
    command.add_option("--data", data_, "Folder of RULER's .jsonl files")
        ->required()
        ->option_text("DIR");
    command.add_option("--samples", n_samples_, "At most so many prompts per task; 0: all")
        ->check(CLI::NonNegativeNumber)
        ->option_text("N [0]");
    command.add_flag("--skip-bad", skip_bad_, "Leave out lines that are not as they should be");
  }

  int operator()() {
    Engine engine = comparison_.load();
    std::vector<RulerLine> lines;
    std::vector<Item> items;
    int64_t n = 0;  // of the task
    for (RulerLine& line : read_ruler(data_, skip_bad_)) {
      if (!lines.empty() && lines.back().task != line.task) n = 0;
      if (n_samples_ > 0 && n >= n_samples_) continue;
      ++n;
      items.push_back({.task = line.task, .length = line.length, .sample = line.index});
      lines.push_back(std::move(line));
    }
    return comparison_.run(
        engine, {{"eval", "ruler"}, {"data", data_.string()}, {"samples", n_samples_}}, items,
        [&](const Item& item) {
          const auto line = std::find_if(lines.begin(), lines.end(), [&](const RulerLine& l) {
            return l.task == item.task && l.index == item.sample && l.length == item.length;
          });
          // RULER asks for all strings, but for one of those that answer a question on a text.
          return Posed{.parts = {line->input},
                       .expected = line->outputs,
                       .any = item.task.starts_with("qa")};
        });
  }

 private:
  Comparison comparison_;
  std::filesystem::path data_;
  int64_t n_samples_ = 0;
  bool skip_bad_ = false;
};

}  // namespace

std::vector<RulerLine> read_ruler(const std::filesystem::path& dir, bool skip_bad) {
  require(std::filesystem::is_directory(dir), "{}: is no folder", dir.string());
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(dir))
    if (entry.path().extension() == ".jsonl") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  require(!files.empty(), "{}: has no .jsonl files", dir.string());
  std::vector<RulerLine> out;
  for (const auto& file : files) {
    const bool in_folder = file.stem() == "validation" || file.stem() == "test";
    const std::string task = (in_folder ? file.parent_path().filename() : file.stem()).string();
    const std::string text = cli::read_text(file);
    int64_t n_line = 0;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      const std::string line = text.substr(begin, end - begin);
      begin = end + 1;
      ++n_line;
      if (line.empty()) continue;
      try {
        out.push_back(parse_line(line, task));
      } catch (const std::exception& error) {
        const std::string what =
            fmt::format("{}, line {}: {}", file.string(), n_line, error.what());
        if (!skip_bad) fail("{}", what);
        fmt::print(stderr, "left out: {}\n", what);
      }
    }
  }
  return out;
}

cli::Command add_ruler(CLI::App& eval, cli::Interrupts& interrupts) {
  CLI::App* command = eval.add_subcommand("ruler", "RULER's own data files, by its string match");
  return {command, [ruler = std::make_shared<Ruler>(*command, interrupts)] { return (*ruler)(); }};
}

}  // namespace ei::eval
