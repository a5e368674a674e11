#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "apps/cli/command.h"
#include "ei/engine/engine.h"
#include "ei/io/json.h"

namespace ei::eval {

// The 16 English tasks of LongBench (v1), in the order of its paper. Of LongBench-E's files, TASK_e
// is a task as well.
const std::vector<std::string>& longbench_tasks();

// One line of LongBench's data: {"input", "context", "answers", "all_classes", "length", ..}.
struct LongBenchLine {
  std::string task;
  int64_t n_line = 0;                // of its file, from 1 on
  int64_t n_words = 0;               // by LongBench's count
  std::string prompt;                // filled in
  std::vector<std::string> answers;  // one of them is enough
  std::vector<std::string> classes;  // of trec
  int64_t max_tokens = 0;            // of the answer
};

// DIR/**/TASK.jsonl of the tasks that are there, at most n_samples of each (0: all), and the
// settings that LongBench publishes beside its data: dataset2prompt.json and dataset2maxlen.json,
// anywhere below DIR. Throws Error naming file and line or field.
std::vector<LongBenchLine> read_longbench(const std::filesystem::path& dir,
                                          const std::vector<std::string>& tasks, int64_t n_samples,
                                          bool skip_bad);

// A prompt with the {fields} of a line in their places; {{ and }} are braces, as in Python's
// str.format(). Throws Error when a field is missing or no string.
std::string fill_prompt(std::string_view format, const Json& line);

// LongBench's way with prompts of more than max_tokens tokens: of their halves at both ends text is
// made again.
std::string cut_middle(const Engine& engine, const std::string& prompt, int64_t max_tokens);

// Whether the task is asked in the model's chat format: those that go on from examples or code are
// not.
bool longbench_in_chat(const std::string& task);

// The best of the task's metric over all right answers; of tasks that go on from examples, only the
// answer's first line counts.
double longbench_score(const LongBenchLine& line, const std::string& answer);

cli::Command add_longbench(CLI::App& eval, cli::Interrupts& interrupts);

}  // namespace ei::eval
