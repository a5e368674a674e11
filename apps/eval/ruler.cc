#include "apps/eval/ruler.h"

#include <algorithm>
#include <memory>

#include "apps/cli/limits.h"
#include "apps/eval/comparison.h"
#include "apps/eval/json_lines.h"
#include "apps/eval/task.h"
#include "ei/base/fail.h"

namespace ei::eval {
namespace {

RulerLine parse_line(const Json& json, const std::string& task) {
  const Fields fields(json, "line");
  return {.task = task,
          .index = fields.integer("index", 0, INT64_MAX),
          .length = fields.integer("length", 1, int64_t{1} << 40),
          .input = fields.string("input"),
          .outputs = strings(fields, "outputs")};
}

class Ruler {
 public:
  Ruler(CLI::App& command, cli::Interrupts& interrupts) : comparison_(command, interrupts) {
    command.add_option("--data", data_, "Folder of RULER's .jsonl files")
        ->required()
        ->option_text("DIR");
    command.add_option("--samples", n_samples_, "At most so many prompts per task; 0: all")
        ->transform(cli::count(0))
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
          const bool any = item.task.starts_with("qa");
          // RULER's questions, and what their answers begin with, are the last line.
          const size_t end = line->input.rfind('\n');
          const bool split = comparison_.withholds_question() && end != std::string::npos;
          std::vector<std::string> parts = {line->input};
          if (split) parts = {line->input.substr(0, end), line->input.substr(end + 1)};
          return Posed{.parts = parts,
                       .expected = line->outputs,
                       .score = [outputs = line->outputs, any](const std::string& answer) {
                         return score(outputs, answer, any);
                       }};
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
  std::vector<RulerLine> out;
  for (const auto& file : files_in(dir, ".jsonl")) {
    const bool in_folder = file.stem() == "validation" || file.stem() == "test";
    const std::string task = (in_folder ? file.parent_path().filename() : file.stem()).string();
    for_each_line(file, skip_bad,
                  [&](const Json& line, int64_t) { out.push_back(parse_line(line, task)); });
  }
  return out;
}

cli::Command add_ruler(CLI::App& eval, cli::Interrupts& interrupts) {
  CLI::App* command = eval.add_subcommand("ruler", "RULER's own data files, by its string match");
  return {command, [ruler = std::make_shared<Ruler>(*command, interrupts)] { return (*ruler)(); }};
}

}  // namespace ei::eval
