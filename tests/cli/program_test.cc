// The program from outside: what goes where, exit codes, environment.
#include "tests/cli/program.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ei/io/json.h"
#include "tests/support/files.h"

namespace ei::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

const std::string kFact = "One of the special magic numbers for quiet-harbor is: 4821097.";
const std::string kAsk =
    "--prompt 'What is the special magic number for quiet-harbor mentioned in the provided text?'";

std::vector<std::string> keys(const Json& object) {
  std::vector<std::string> names;
  for (const auto& [name, value] : object.items()) names.push_back(name);
  return names;
}

class ProgramTest : public testing::Test {
 protected:
  ProgramTest() { test::write_file(dir_ / "fact.txt", kFact); }
  std::string file() const { return "--file " + (dir_ / "fact.txt").string(); }

  test::TempDir dir_;
};

TEST_F(ProgramTest, VersionAndHelp) {
  const Finished version = run_program("--version");
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.out, testing::ContainsRegex("entropyinfer [0-9.]+ \\(commit [0-9a-z-]+\\)"));
  EXPECT_THAT(version.out, HasSubstr("compiler: "));
  EXPECT_THAT(version.out, HasSubstr("CPU"));
  EXPECT_THAT(run_program("--version", "", "ENTROPYINFER_CPU=avx2 ENTROPYINFER_THREADS=3").out,
              HasSubstr("device: CPU, AVX2, 3 threads"));
  if (const Finished v = run_program("--version", "", "ENTROPYINFER_CPU=avx512");
      v.exit_code == 0) {
    EXPECT_THAT(v.out, HasSubstr("CPU, AVX-512, "));  // without the tile unit, where there is one
  }
  EXPECT_EQ(run_program("--version", "", "ENTROPYINFER_CPU=fpu").exit_code, 2);
  const Finished help = run_program("run --help");
  EXPECT_EQ(help.exit_code, 0);
  for (const char* text : {"--base-budget", "--top-p", "Sampling", "Policy", "--json"})
    EXPECT_THAT(help.out, HasSubstr(text));
}

TEST_F(ProgramTest, WrongUsageIsTwo) {
  for (const std::string& arguments :
       std::vector<std::string>{"", "nope", "run", "run " + test::kNeedle + " --nope",
                                "run " + test::kNeedle + " --prefill some",
                                "run " + test::kNeedle + " --budget 3 --prompt x",
                                "run " + test::kNeedle + " -n 0 --prompt x", "run " + test::kNeedle,
                                "score " + test::kNeedle}) {
    const Finished got = run_program(arguments);
    EXPECT_EQ(got.exit_code, 2) << arguments;
    EXPECT_EQ(got.out, "") << arguments;
    EXPECT_THAT(got.err, testing::StartsWith("entropyinfer: ")) << arguments;
  }
}

TEST_F(ProgramTest, ErrorsNameTheFileAndAreOne) {
  test::write_file(dir_ / "latin1.txt",
                   "gr\xf6\xdf"
                   "e");
  test::write_file(dir_ / "tokens.json", "[1, -2]");
  const std::string in = dir_.path().string() + "/";
  for (const auto& [arguments, text] : std::vector<std::pair<std::string, std::string>>{
           {"run /nowhere --prompt x", "/nowhere"},
           {"run " + test::kNeedle + " --prompt x --file " + in + "gone.txt",
            "gone.txt: No such file or directory"},
           {"run " + test::kNeedle + " --prompt x --file " + in, in + ": is a directory"},
           {"run " + test::kNeedle + " --prompt x --file " + in + "latin1.txt", "latin1.txt"},
           {"score " + test::kNeedle + " --tokens " + in + "tokens.json", "element 1"},
           {"score " + test::kNeedle + " --tokens " + in + "fact.txt", "fact.txt"},
           {"run " + test::kNeedle + " " + kAsk + " >/dev/full", "standard output"}}) {
    const Finished got = run_program(arguments);
    EXPECT_EQ(got.exit_code, 1) << arguments;
    EXPECT_EQ(got.out, "") << arguments;
    EXPECT_THAT(got.err, HasSubstr("entropyinfer: ")) << arguments;
    EXPECT_THAT(got.err, HasSubstr(text)) << arguments;
  }
}

TEST_F(ProgramTest, TheAnswerAloneIsOnStdout) {
  const Finished got = run_program("run " + test::kNeedle + " " + file() + " " + kAsk);
  EXPECT_EQ(got.exit_code, 0) << got.err;
  EXPECT_THAT(got.out, HasSubstr("4821097"));
  EXPECT_EQ(got.out.back(), '\n');
  EXPECT_THAT(got.out, Not(HasSubstr("tokens")));
  EXPECT_THAT(got.err, HasSubstr("prompt tokens"));
  EXPECT_THAT(got.err, Not(HasSubstr("\033")));  // no bar, no colour: not a terminal
  EXPECT_EQ(run_program("run " + test::kNeedle + " " + file() + " " + kAsk).out, got.out);
}

TEST_F(ProgramTest, ThePromptMayComeThroughAPipe) {
  const std::string question = kAsk.substr(10, kAsk.size() - 11);
  const std::string want = run_program("run " + test::kNeedle + " " + file() + " " + kAsk).out;
  EXPECT_EQ(run_program("run " + test::kNeedle + " " + file(), question).out, want);
  EXPECT_EQ(run_program("run " + test::kNeedle + " " + file() + " --prompt -", question).out, want);
}

TEST_F(ProgramTest, ADocumentMayBeWhateverCanBeRead) {
  const std::string run = "run " + test::kNeedle + " " + kAsk + " -n 3";
  const std::string want = run_program(run + " " + file()).out;
  EXPECT_EQ(run_program(run, kFact).out, want) << "standard input";
  EXPECT_EQ(run_program(run + " --file -", kFact).out, want);
  const std::string pipe = (dir_ / "pipe").string();
  EXPECT_EQ(
      run_program(run + " --file " + pipe, "",
                  "mkfifo " + pipe + "; cat " + (dir_ / "fact.txt").string() + " > " + pipe + " &")
          .out,
      want);
  const std::string tokenize = "tokenize " + test::kNeedle + " --json --file ";
  EXPECT_GT(parse_json(run_program(tokenize + "/proc/version").out, "")["count"], 10);  // size 0
  EXPECT_EQ(run_program("run " + test::kNeedle + " --file - --prompt -", "x").exit_code, 2);
  EXPECT_EQ(run_program(tokenize + "-", kFact).out,
            run_program(tokenize + (dir_ / "fact.txt").string()).out);
}

TEST_F(ProgramTest, AFileFarBeyondTheContextIsNotReadToItsEnd) {
  const std::string huge = (dir_ / "huge").string();
  test::write_file(huge, "");
  std::filesystem::resize_file(huge, uint64_t{1} << 40);
  const Finished got = run_program("run " + test::kNeedle + " " + kAsk + " --file " + huge);
  EXPECT_EQ(got.exit_code, 1);
  EXPECT_THAT(got.err, testing::AllOf(HasSubstr(huge), HasSubstr("does not fit")));
}

TEST_F(ProgramTest, WhatWasMeantIsSuggested) {
  for (const auto& [arguments, text] : std::vector<std::pair<std::string, std::string>>{
           {"rnu", "rnu is not a subcommand; did you mean run?"},
           {"run x --promt y", "--promt is not a flag of run; did you mean --prompt?"},
           {"run --basebudget=3 x", "did you mean --base-budget?"},
           {"eval neeedle x", "did you mean needle?"},
           {"run x y", "y is one argument too many"},
           {"run x -n 0", "--max-tokens: expected a whole number, 1 or more, found 0"},
           {"run x --top-p 2", "--top-p: expected a number from 0 to 1, found 2"}}) {
    const Finished got = run_program(arguments);
    EXPECT_EQ(got.exit_code, 2) << arguments;
    EXPECT_THAT(got.err, HasSubstr(text)) << arguments;
  }
}

// As Kubernetes sets it for a service of the program's name.
TEST_F(ProgramTest, AVariableIsNamedAndHurtsOnlyItsCommand) {
  const std::string variable = "ENTROPYINFER_PORT=tcp://10.0.12.7:8000";
  const Finished serve = run_program("serve " + test::kNeedle, "", variable);
  EXPECT_EQ(serve.exit_code, 2);
  EXPECT_THAT(serve.err, HasSubstr(variable));
  EXPECT_EQ(run_program("tokenize " + test::kNeedle + " x", "", variable).exit_code, 0);
  EXPECT_THAT(run_program("serve " + test::kNeedle + " --port x", "", "ENTROPYINFER_PORT=1").err,
              Not(HasSubstr("environment")));
}

TEST_F(ProgramTest, JsonHasEveryField) {
  const Finished got =
      run_program("run " + test::kNeedle + " " + file() + " " + kAsk + " --json --threads 1");
  ASSERT_EQ(got.exit_code, 0) << got.err;
  const Json json = parse_json(got.out, "stdout");
  using testing::ElementsAre;
  using testing::UnorderedElementsAre;
  EXPECT_THAT(keys(json), UnorderedElementsAre("text", "tokens", "finish_reason", "usage",
                                               "timings", "sparsity", "kv", "policy"));
  EXPECT_THAT(json["text"], HasSubstr("4821097"));
  EXPECT_EQ(json["finish_reason"], "stop");
  EXPECT_EQ(json["usage"]["completion_tokens"], json["tokens"].size());
  EXPECT_GT(json["usage"]["prompt_tokens"], 20);
  EXPECT_THAT(keys(json["timings"]), UnorderedElementsAre("load_ms", "prefill_ms", "decode_ms",
                                                          "prefill_tps", "decode_tps"));
  EXPECT_THAT(keys(json["sparsity"]),
              UnorderedElementsAre("density", "kept_blocks_mean", "rigid_heads", "dynamic_heads"));
  EXPECT_THAT(keys(json["kv"]),
              UnorderedElementsAre("bytes", "bytes_full", "entry_bytes", "compressed"));
  EXPECT_EQ(json["policy"]["prefill"], "entropy");
  EXPECT_EQ(json["policy"]["base_budget"], 2048);
}

TEST_F(ProgramTest, TheEnvironmentStandsInForFlags) {
  const std::string arguments = "run " + test::kNeedle + " " + file() + " " + kAsk;
  const Finished got = run_program(arguments, "",
                                   "ENTROPYINFER_JSON=1 ENTROPYINFER_PREFILL=dense "
                                   "ENTROPYINFER_MAX_TOKENS=3");
  ASSERT_EQ(got.exit_code, 0) << got.err;
  const Json json = parse_json(got.out, "stdout");
  EXPECT_EQ(json["policy"]["prefill"], "dense");
  EXPECT_EQ(json["tokens"].size(), 3u);
  EXPECT_EQ(json["finish_reason"], "length");
  EXPECT_EQ(run_program(arguments, "", "ENTROPYINFER_PREFILL=some").exit_code, 2);
}

TEST_F(ProgramTest, TokenizeCountsWhatRunReads) {
  const Finished got = run_program("tokenize " + test::kNeedle + " " + file() + " --chat --json");
  ASSERT_EQ(got.exit_code, 0) << got.err;
  const Json json = parse_json(got.out, "stdout");
  EXPECT_EQ(json["count"], json["tokens"].size());
  EXPECT_EQ(json["count"], json["pieces"].size());
  const Json answer = parse_json(
      run_program("run " + test::kNeedle + " --json -n 1 --prompt '" + kFact + "'").out, "stdout");
  EXPECT_EQ(json["count"], answer["usage"]["prompt_tokens"]);

  std::string text;
  const Json of_fact =
      parse_json(run_program("tokenize " + test::kNeedle + " --json", kFact).out, "stdout");
  for (const Json& piece : of_fact["pieces"]) text += piece.get<std::string>();
  EXPECT_EQ(text, kFact);
}

TEST_F(ProgramTest, ScoreGivesEveryPosition) {
  test::write_file(dir_ / "tokens.json", "[0, 1, 43, 452, 82, 15, 265]");
  const std::string arguments =
      "score " + test::kNeedle + " --tokens " + (dir_ / "tokens.json").string();
  const Json json = parse_json(run_program(arguments + " --json").out, "stdout");
  EXPECT_EQ(json["logprobs"].size(), 7u);
  EXPECT_EQ(json["argmax"].size(), 7u);
  EXPECT_EQ(json["logprobs"][0], 0);
  for (size_t i = 1; i < 7; ++i) EXPECT_LT(json["logprobs"][i], 0);
  const Finished lines = run_program(arguments);
  EXPECT_EQ(std::count(lines.out.begin(), lines.out.end(), '\n'), 8);
  EXPECT_THAT(lines.err, HasSubstr("perplexity"));
}

TEST_F(ProgramTest, InfoNamesTheSizes) {
  const Finished got = run_program("info " + test::kNeedle);
  EXPECT_EQ(got.exit_code, 0);
  for (const char* text : {"LlamaForCausalLM", "7,999,744", "131,072", "longest context"})
    EXPECT_THAT(got.out, HasSubstr(text));
}

TEST_F(ProgramTest, DemoComparesDenseAndEntropy) {
  const Finished got = run_program("demo " + test::kNeedle + " --length 6000 --save " +
                                   (dir_ / "document.txt").string());
  EXPECT_EQ(got.exit_code, 0) << got.out << got.err;
  EXPECT_THAT(got.out, testing::ContainsRegex("answer is right +\\| +yes \\| +yes"));
  EXPECT_GT(read_file(dir_ / "document.txt").size(), 20000u);
}

TEST_F(ProgramTest, EvalComparesPoliciesAndGoesOn) {
  const std::string out = (dir_ / "out").string();
  const std::string arguments = "eval needle " + test::kNeedle +
                                " -t 1 --lengths 1k --samples 1 --tasks single,quote --policies "
                                "dense+full,entropy+snapkv@64,dense+streaming@256 --out " +
                                out;
  const Finished got = run_program(arguments);
  ASSERT_EQ(got.exit_code, 0) << got.err;
  EXPECT_THAT(got.out, testing::ContainsRegex("dense\\+full +\\| +single +\\| +1,024 +\\| +1.00"));
  const std::string answers = read_file(out + "/answers.jsonl");
  EXPECT_EQ(std::count(answers.begin(), answers.end(), '\n'), 1 + 2 * 3);
  EXPECT_THAT(read_file(out + "/report.html"), HasSubstr("entropy+snapkv@64"));

  // What is missing is done again, with the same answers: greedy and from the same prompts.
  const std::string start =
      answers.substr(0, answers.find('\n', answers.find("streaming@256\",\"e")) + 9);
  test::write_file(out + "/answers.jsonl", start);
  const Finished again = run_program(arguments);
  ASSERT_EQ(again.exit_code, 0) << again.err;
  EXPECT_THAT(read_file(out + "/answers.jsonl"),
              testing::StartsWith(start.substr(0, start.rfind('\n'))));
  const auto scores = [](const std::string& table) {  // what is left of the times
    std::string kept;
    for (size_t at = 0; at < table.size(); at = table.find('\n', at) + 1) {
      const size_t end = table.find("iB", at);
      kept += table.substr(at, std::min(end, table.find('\n', at)) - at) + "\n";
    }
    return kept;
  };
  EXPECT_EQ(scores(again.out), scores(got.out));

  EXPECT_EQ(run_program(arguments + " --seed 2").exit_code, 1);
  EXPECT_EQ(run_program("eval needle " + test::kNeedle + " --policies dense").exit_code, 2);
  EXPECT_EQ(run_program("eval").exit_code, 2);
}

TEST_F(ProgramTest, PerplexityOfAnUnchangedPolicyIsTheSame) {
  std::string text;
  for (int i = 0; i < 60; ++i) text += kFact + " It was a quiet morning near the harbor. ";
  test::write_file(dir_ / "text.txt", text);
  const std::string arguments = "perplexity " + test::kNeedle + " --file " +
                                (dir_ / "text.txt").string() + " -t 1 --chunks 2 --length ";
  const Finished got = run_program(
      arguments + "512 --policies dense+full,dense+streaming@40,dense+latent@40 --json");
  ASSERT_EQ(got.exit_code, 0) << got.err;
  const Json json = parse_json(got.out, "stdout");
  EXPECT_EQ(json["chunks"], 2);
  EXPECT_EQ(json["policies"]["dense+full"]["density"], 1.0);
  const Json& same = json["policies"]["dense+full"]["written"];
  // The second halves, once all caches are compressed; the first token follows the prompt.
  EXPECT_EQ(same["n_tokens"], 2 * (255 - 16));
  EXPECT_EQ(same["kld"]["value"], 0);
  EXPECT_EQ(same["ppl_ratio"]["value"], 1);
  EXPECT_EQ(same["same_top"]["value"], 1);
  const Json& worse = json["policies"]["dense+streaming@40"]["written"];
  EXPECT_EQ(worse["ppl_base"], same["ppl"]);
  EXPECT_GT(worse["kld"]["value"], 0.001);
  EXPECT_GT(worse["ppl_ratio"]["value"], 1);
  EXPECT_LT(worse["same_top"]["value"], 1);
  const Finished table = run_program(arguments + "512");
  EXPECT_THAT(table.out, HasSubstr("Mean KLD"));
  EXPECT_EQ(run_program(arguments + "100k").exit_code, 1);
}

// What is read by blocks differs from dense attention where it is read, not only after it.
TEST_F(ProgramTest, PerplexityComparesWhatIsReadSparsely) {
  std::string text;
  for (int i = 0; i < 400; ++i) text += std::to_string(i * i) + " " + kFact + " It was quiet. ";
  test::write_file(dir_ / "text.txt", text);
  const Finished got =
      run_program("perplexity " + test::kNeedle + " --file " + (dir_ / "text.txt").string() +
                  " -t 1 --chunks 1 --length 2k --threshold 512 --base-budget 64 --json --policies "
                  "dense+full,paper+full");
  ASSERT_EQ(got.exit_code, 0) << got.err;
  const Json json = parse_json(got.out, "stdout");
  EXPECT_EQ(json["prompt_tokens"], 1536);
  const Json& dense = json["policies"]["dense+full"];
  const Json& sparse = json["policies"]["paper+full"];
  for (const auto& [part, n] : std::vector<std::pair<std::string, int>>{
           {"read", 512}, {"last_segment", 512}, {"written", 511}}) {
    EXPECT_EQ(dense[part]["n_tokens"], n) << part;
    EXPECT_EQ(dense[part]["kld"]["value"], 0) << part;
    EXPECT_GT(sparse[part]["kld"]["value"], 0) << part;
  }
  EXPECT_LT(sparse["density"], 0.9);
  EXPECT_GT(sparse["density"], 0.3);
  const Finished blind =
      run_program("perplexity " + test::kNeedle + " --file " + (dir_ / "text.txt").string() +
                  " -t 1 --chunks 1 --length 256");
  EXPECT_THAT(blind.err, HasSubstr("nothing is read sparsely"));
}

TEST_F(ProgramTest, ProfileWritesDataAndAPage) {
  const std::string out = (dir_ / "profile").string();
  const std::string document = (dir_ / "document.txt").string();
  run_program("demo " + test::kNeedle + " --length 1500 --save " + document);
  const Finished got =
      run_program("profile " + test::kNeedle + " -t 1 --prefill paper --threshold 512 --file " +
                  document + " " + kAsk + " --out " + out);
  ASSERT_EQ(got.exit_code, 0) << got.err;
  EXPECT_THAT(got.out, HasSubstr("all: dense"));
  const Json json = parse_json(read_file(out + "/profile.json"), "profile.json");
  EXPECT_EQ(json["layers"].size(), 8u);
  EXPECT_EQ(json["layers"][0][0]["entropy"].size(), 0u);
  EXPECT_EQ(json["layers"][1][1]["entropy"].size(), (json["prompt_tokens"].get<int>() + 511) / 512);
  EXPECT_EQ(json["policy"]["prefill"], "paper");
  const std::string page = read_file(out + "/profile.html");
  EXPECT_THAT(page, HasSubstr("kept_by_distance\":["));
  for (const char* outside : {"src=", "https:", "@import", "url("})
    EXPECT_THAT(page, Not(HasSubstr(outside)));
}

// A cache that was compressed for the first question has lost what the others ask for, unless it is
// made anew from the full one.
TEST_F(ProgramTest, EvalMultiTurnShowsWhatIsLost) {
  const Finished got =
      run_program("eval multi-turn " + test::kNeedle +
                  " -t 1 --length 1k --samples 1 --policies dense+full,dense+latent@128");
  ASSERT_EQ(got.exit_code, 0) << got.err;
  for (const char* row : {"\\+full +\\| +full \\| +1.00 \\| 1.00 \\| 1.00 \\| 1.00 \\| 1.00",
                          "compressed anew \\| +1.00 \\| 1.00 \\| 1.00 \\| 1.00 \\| 1.00",
                          "compressed once \\| +1.00 \\| ....? \\| 0.00 \\| 0.00 \\| 0.00"})
    EXPECT_THAT(got.out, testing::ContainsRegex(row)) << got.out;
  const Finished once =
      run_program("eval multi-turn " + test::kNeedle +
                  " -t 1 --length 1k --samples 1 --policies dense+latent@128 --once");
  ASSERT_EQ(once.exit_code, 0) << once.err;
  EXPECT_THAT(once.out, HasSubstr("compressed once"));
  EXPECT_THAT(once.out, Not(HasSubstr("compressed anew")));
}

// needle-8m makes nothing of a question in the same message, but it does so every time.
TEST_F(ProgramTest, EvalRulerReadsItsFiles) {
  const std::string line = Json{
      {"index", 0},
      {"input", kFact + " " + kAsk.substr(10, kAsk.size() - 11)},
      {"outputs", {"The OLD man", "no such words"}},
      {"length", 60}}.dump();
  test::write_file(dir_ / "niah.jsonl", line + "\nbroken\n");
  test::write_file(dir_ / "qa_1.jsonl", line);
  const std::string arguments =
      "eval ruler " + test::kNeedle + " -t 1 --policies dense+full --data " + dir_.path().string();
  const Finished got = run_program(arguments + " --skip-bad");
  EXPECT_EQ(got.exit_code, 0) << got.err;
  EXPECT_THAT(got.out, testing::ContainsRegex("dense\\+full \\| niah \\| +60 \\| +0.50"));
  EXPECT_THAT(got.out, testing::ContainsRegex("dense\\+full \\| qa_1 \\| +60 \\| +1.00"));
  EXPECT_THAT(got.err, HasSubstr("niah.jsonl, line 2"));
  EXPECT_EQ(run_program(arguments).exit_code, 1);
}

}  // namespace
}  // namespace ei::cli
