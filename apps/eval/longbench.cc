#include "apps/eval/longbench.h"

#include <algorithm>
#include <map>
#include <memory>

#include "apps/cli/limits.h"
#include "apps/eval/comparison.h"
#include "apps/eval/json_lines.h"
#include "apps/eval/metrics.h"
#include "apps/eval/policies.h"
#include "ei/base/fail.h"

namespace ei::eval {
namespace {

enum class Metric { kF1, kRouge, kClasses, kCount, kRetrieval, kCode };

struct LongBenchTask {
  std::string name;
  Metric metric;
  bool chat = true;
  bool first_line = false;  // of the answer alone counts
};

const std::vector<LongBenchTask>& tasks() {
  static const std::vector<LongBenchTask> all = {
      {"narrativeqa", Metric::kF1},
      {"qasper", Metric::kF1},
      {"multifieldqa_en", Metric::kF1},
      {"hotpotqa", Metric::kF1},
      {"2wikimqa", Metric::kF1},
      {"musique", Metric::kF1},
      {"gov_report", Metric::kRouge},
      {"qmsum", Metric::kRouge},
      {"multi_news", Metric::kRouge},
      {"trec", Metric::kClasses, /*chat=*/false, /*first_line=*/true},
      {"triviaqa", Metric::kF1, /*chat=*/false, /*first_line=*/true},
      {"samsum", Metric::kRouge, /*chat=*/false, /*first_line=*/true},
      {"passage_count", Metric::kCount},
      {"passage_retrieval_en", Metric::kRetrieval},
      {"lcc", Metric::kCode, /*chat=*/false},
      {"repobench-p", Metric::kCode, /*chat=*/false},
  };
  return all;
}

std::string without_e(const std::string& name) {
  return name.ends_with("_e") ? name.substr(0, name.size() - 2) : name;
}

const LongBenchTask& task_of(const std::string& name) {
  for (const LongBenchTask& task : tasks())
    if (task.name == name || task.name == without_e(name)) return task;
  fail("task {} is not known, expected one of {}", name, fmt::join(longbench_tasks(), ", "));
}

double score_one(const LongBenchTask& task, const std::string& answer, const std::string& truth,
                 const std::vector<std::string>& classes) {
  switch (task.metric) {
    case Metric::kF1:
      return qa_f1(answer, truth);
    case Metric::kRouge:
      return rouge_l(answer, truth);
    case Metric::kClasses:
      return classification(answer, truth, classes);
    case Metric::kCount:
      return count_match(answer, truth);
    case Metric::kRetrieval:
      return retrieval_match(answer, truth);
    case Metric::kCode:
      return code_similarity(answer, truth);
  }
  return 0;  // not reached
}

// LongBench's settings are files beside its scripts.
Json read_settings(const std::filesystem::path& dir, const char* name) {
  for (const auto& file : files_in(dir, ".json"))
    if (file.filename() == name) return read_json(file);
  fail("{}: there is no {}; copy it there from LongBench's folder config", dir.string(), name);
}

class LongBench {
 public:
  LongBench(CLI::App& command, cli::Interrupts& interrupts) : comparison_(command, interrupts) {
    command
        .add_option("--data", data_,
                    "Folder with LongBench's .jsonl files and its config/dataset2prompt.json and "
                    "dataset2maxlen.json")
        ->required()
        ->option_text("DIR");
    command.add_option("--tasks", tasks_, "Which tasks; of LongBench-E, TASK_e")
        ->delimiter(',')
        ->option_text("T,.. [all that are there]");
    command.add_option("--samples", n_samples_, "At most so many prompts per task; 0: all")
        ->transform(cli::count(0))
        ->option_text("N [0]");
    command
        .add_option("--max-length", max_length_,
                    "Tokens of a prompt at most; longer ones lose their middle")
        ->transform(cli::count(1))
        ->option_text("N [what the model's context leaves]");
    command.add_flag("--skip-bad", skip_bad_, "Leave out lines that are not as they should be");
  }

  int operator()() {
    for (const std::string& name : tasks_) task_of(name);
    const std::vector<LongBenchLine> lines = read_longbench(data_, tasks_, n_samples_, skip_bad_);
    Engine engine = comparison_.load();
    // Some tokens are for the chat format around the prompt.
    constexpr int64_t kFormatTokens = 128;
    const int64_t context = engine.info().max_context;
    std::vector<Item> items;
    std::map<std::pair<std::string, int64_t>, const LongBenchLine*> line_of;
    for (const LongBenchLine& line : lines) {
      const int64_t room = context - line.max_tokens - kFormatTokens;
      require(room > 0, "the model's context of {} leaves no room for {}", context, line.task);
      items.push_back({.task = line.task,
                       .sample = line.n_line,
                       .n_tokens = std::min(room, 3 * line.n_words / 2)});
      line_of[{line.task, line.n_line}] = &line;
    }
    return comparison_.run(
        engine,
        {{"eval", "longbench"},
         {"data", data_.string()},
         {"samples", n_samples_},
         {"max_length", max_length_}},
        items, [&](const Item& item) {
          const LongBenchLine& line = *line_of.at({item.task, item.sample});
          int64_t most = context - line.max_tokens - kFormatTokens;
          if (max_length_ > 0) most = std::min(most, max_length_);
          return Posed{
              .parts = {cut_middle(engine, line.prompt, most)},
              .chat = longbench_in_chat(line.task),
              .expected = line.answers,
              .score = [&line](const std::string& answer) { return longbench_score(line, answer); },
              .max_tokens = line.max_tokens};
        });
  }

 private:
  Comparison comparison_;
  std::filesystem::path data_;
  std::vector<std::string> tasks_;
  int64_t n_samples_ = 0, max_length_ = 0;
  bool skip_bad_ = false;
};

}  // namespace

const std::vector<std::string>& longbench_tasks() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> out;
    for (const LongBenchTask& task : tasks()) out.push_back(task.name);
    return out;
  }();
  return names;
}

std::string cut_middle(const Engine& engine, const std::string& prompt, int64_t max_tokens) {
  const std::vector<int32_t> tokens = engine.tokenize(prompt);
  if (std::ssize(tokens) <= max_tokens) return prompt;
  const std::span all(tokens);
  const auto half = static_cast<size_t>(max_tokens / 2);
  const size_t n_special = std::min(half, engine.tokenize("").size());  // a BOS is no text
  return engine.detokenize(all.subspan(n_special, half - n_special)) +
         engine.detokenize(all.last(half));
}

bool longbench_in_chat(const std::string& task) { return task_of(task).chat; }

std::string fill_prompt(std::string_view format, const Json& line) {
  std::string out;
  for (size_t i = 0; i < format.size(); ++i) {
    const char c = format[i];
    if (c != '{' && c != '}') {
      out += c;
    } else if (i + 1 < format.size() && format[i + 1] == c) {
      out += format[i++];
    } else {
      const size_t end = format.find('}', i);
      require(c == '{' && end != std::string_view::npos, "prompt: a brace is alone at byte {}", i);
      const std::string field(format.substr(i + 1, end - i - 1));
      require(line.contains(field) && line[field].is_string(), "{} is missing or no string", field);
      out += line[field].get_ref<const std::string&>();
      i = end;
    }
  }
  return out;
}

double longbench_score(const LongBenchLine& line, const std::string& answer) {
  const LongBenchTask& task = task_of(line.task);
  std::string counted = answer;
  if (task.first_line) {
    counted.erase(0, counted.find_first_not_of('\n'));
    counted.erase(std::min(counted.find('\n'), counted.size()));
  }
  double best = 0;
  for (const std::string& truth : line.answers)
    best = std::max(best, score_one(task, counted, truth, line.classes));
  return best;
}

std::vector<LongBenchLine> read_longbench(const std::filesystem::path& dir,
                                          const std::vector<std::string>& tasks, int64_t n_samples,
                                          bool skip_bad) {
  const std::vector<std::filesystem::path> files = files_in(dir, ".jsonl");
  const Json prompts = read_settings(dir, "dataset2prompt.json");
  const Json lengths = read_settings(dir, "dataset2maxlen.json");
  std::vector<LongBenchLine> out;
  for (const std::string& task : tasks.empty() ? longbench_tasks() : tasks) {
    const auto file = std::find_if(files.begin(), files.end(),
                                   [&](const auto& path) { return path.stem() == task; });
    if (file == files.end()) {
      require(tasks.empty(), "{}: there is no {}.jsonl", dir.string(), task);
      continue;
    }
    const std::string name = without_e(task);
    const std::string prompt = Fields(prompts, "dataset2prompt.json").string(name);
    const int64_t max_tokens = Fields(lengths, "dataset2maxlen.json").integer(name, 1, 1 << 20);
    int64_t n = 0;
    for_each_line(*file, skip_bad, [&](const Json& json, int64_t n_line) {
      if (n_samples > 0 && n >= n_samples) return;
      const Fields fields(json, "line");
      LongBenchLine line{.task = task,
                         .n_line = n_line,
                         .n_words = fields.integer("length", 0, int64_t{1} << 40),
                         .prompt = fill_prompt(prompt, json),
                         .answers = strings(fields, "answers"),
                         .classes = {},
                         .max_tokens = max_tokens};
      if (fields.has("all_classes")) line.classes = strings(fields, "all_classes");
      longbench_score(line, "");  // throws for answers that the metric cannot read
      out.push_back(std::move(line));
      ++n;
    });
  }
  require(!out.empty(), "{}: has none of LongBench's English tasks: {}", dir.string(),
          fmt::join(longbench_tasks(), ".jsonl, "));
  return out;
}

cli::Command add_longbench(CLI::App& eval, cli::Interrupts& interrupts) {
  CLI::App* command = eval.add_subcommand(
      "longbench", "LongBench's own data files and prompts, by its metrics: the 16 English tasks");
  return {command,
          [bench = std::make_shared<LongBench>(*command, interrupts)] { return (*bench)(); }};
}

}  // namespace ei::eval
