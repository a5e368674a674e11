// The evaluations, from outside.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ei/io/json.h"
#include "tests/cli/program.h"
#include "tests/support/files.h"

namespace ei::cli {
namespace {

using testing::HasSubstr;

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

// Without the last two columns: times differ from run to run.
std::string without_times(const std::string& table) {
  std::string out;
  for (std::string line : lines_of(table)) {
    for (int i = 0; i < 3; ++i) line.erase(line.rfind('|'));
    out += line + "\n";
  }
  return out;
}

Json without_times(Json result) {
  result.erase("prefill_ms");
  result.erase("token_ms");
  return result;
}

class EvalTest : public testing::Test {
 protected:
  std::string in(const std::string& name) const { return (dir_ / name).string(); }
  test::TempDir dir_;
};

TEST_F(EvalTest, AnInterruptedOneGoesOnToTheSameTable) {
  const std::string needle =
      "eval needle " + test::kNeedle +
      " -t 1 --lengths 1k --samples 2 --tasks single,many-keys,quote"
      " --policies dense+full,entropy+latent@64,dense+snapkv@128:kernel=21 --threshold 512 --out ";
  const Finished whole = run_program(needle + in("whole"));
  ASSERT_EQ(whole.exit_code, 0) << whole.err;
  const std::vector<std::string> want = lines_of(read_file(dir_ / "whole/answers.jsonl"));
  ASSERT_EQ(want.size(), 1 + 2 * 3 * 3u);
  // As a power cut leaves it: in the middle of a document, of one way of reading, and of a line.
  for (const size_t n : {1, 2, 6, 11, 17}) {
    std::string found;
    for (size_t i = 0; i < n; ++i) found += want[i] + "\n";
    const std::string out = "cut" + std::to_string(n);
    std::filesystem::create_directories(dir_ / out);
    test::write_file(dir_ / (out + "/answers.jsonl"), found + want[n].substr(0, 40));
    const Finished rest = run_program(needle + in(out));
    ASSERT_EQ(rest.exit_code, 0) << rest.err;
    EXPECT_EQ(without_times(rest.out), without_times(whole.out)) << n;
    const std::string text = read_file(dir_ / (out + "/answers.jsonl"));
    EXPECT_TRUE(text.starts_with(found)) << "answers were asked for again";
    const std::vector<std::string> got = lines_of(text);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 1; i < got.size(); ++i)
      EXPECT_EQ(without_times(parse_json(got[i], "got")),
                without_times(parse_json(want[i], "want")))
          << n << " " << i;
  }
  const Finished done = run_program(needle + in("whole"));
  EXPECT_EQ(done.out, whole.out);  // times as well: nothing was asked again
  const Finished other = run_program(needle + in("whole") + " --seed 2");
  EXPECT_EQ(other.exit_code, 1);
  EXPECT_THAT(other.err, HasSubstr("answers.jsonl, line 1: it is of another evaluation: seed"));
}

TEST_F(EvalTest, LongBench) {
  std::filesystem::create_directories(dir_ / "data");
  test::write_file(dir_ / "dataset2prompt.json",
                   R"({"trec": "{context} {input}", "passage_count": "{context} {input}"})");
  test::write_file(dir_ / "dataset2maxlen.json", R"({"trec": 4, "passage_count": 6})");
  std::string context;
  for (int i = 0; i < 300; ++i) context += "It rained all day. ";
  const auto line = [&](const std::string& text, const std::string& answer) {
    return Json{{"input", "How many?"},
                {"context", text},
                {"answers", {answer}},
                {"all_classes", {"one", "two"}},
                {"length", 1200}}
               .dump() +
           "\n";
  };
  test::write_file(dir_ / "data/trec.jsonl", line(context, "one"));
  test::write_file(dir_ / "data/passage_count.jsonl",
                   line("Once.", "1") + "{\n" + line(context, "2"));
  const std::string longbench = "eval longbench " + test::kNeedle + " -t 1 --data " + in("") +
                                " --max-length 500 --policies dense+full,entropy+latent --out " +
                                in("out");
  const Finished bad = run_program(longbench);
  EXPECT_EQ(bad.exit_code, 1);
  EXPECT_THAT(bad.err, HasSubstr("passage_count.jsonl, line 2: "));
  EXPECT_THAT(bad.err, HasSubstr("--skip-bad"));
  const Finished got = run_program(longbench + " --skip-bad");
  ASSERT_EQ(got.exit_code, 0) << got.err;
  EXPECT_THAT(got.err, HasSubstr("left out: "));
  EXPECT_EQ(lines_of(got.out).size(), 2 + 3 * 2u) << got.out;  // two tasks and all, two policies
  const std::vector<std::string> answers = lines_of(read_file(dir_ / "out/answers.jsonl"));
  ASSERT_EQ(answers.size(), 1 + 3 * 2u);
  for (size_t i = 1; i < answers.size(); ++i) {
    const Json answer = parse_json(answers[i], "answer");
    const int64_t n = answer["prompt_tokens"];
    if (answer["sample"] == 1 && answer["task"] == "passage_count") {
      EXPECT_LT(n, 20);
    } else {
      EXPECT_GT(n, 490);
      EXPECT_LT(n, 510);
    }
    // <|bos|> alone, or with <|user|> and <|assistant|>.
    EXPECT_EQ(answer["expected"].size(), 1u);
  }
}

TEST_F(EvalTest, AnUnchangedPolicyDivergesNowhere) {
  std::string text;
  for (int i = 0; i < 60; ++i) text += "The " + std::to_string(i) + " of them came to the harbor. ";
  test::write_file(dir_ / "text.txt", text);
  const Finished got =
      run_program("perplexity " + test::kNeedle + " -t 1 --file " + in("text.txt") +
                  " --length 256 --policies dense+full --against dense+streaming@64 --json");
  ASSERT_EQ(got.exit_code, 0) << got.err;
  const Json policies = parse_json(got.out, "stdout")["policies"];
  const Json& same = policies["dense+full"]["written"];
  EXPECT_EQ(same["kld"]["value"], 0.0);
  EXPECT_EQ(same["kld_percentiles"]["1"], 0.0);
  EXPECT_EQ(same["ppl_ratio"]["value"], 1.0);
  EXPECT_EQ(same["rms_dp"]["value"], 0.0);
  EXPECT_EQ(same["same_top"]["value"], 1.0);
  const double off = policies["dense+streaming@64"]["written"]["kld"]["value"];
  EXPECT_GT(off, 0.0);
  EXPECT_NEAR(same["kld_minus_against"]["value"].get<double>(), -off, 1e-12);
}

// Of a text that fills the model's context.
TEST_F(EvalTest, EqualWork) {
  const std::filesystem::path model = dir_ / "model";
  std::filesystem::copy(test::kNeedle, model);
  Json config = parse_json(read_file(model / "config.json"), "config.json");
  config["max_position_embeddings"] = 1600;
  test::write_file(model / "config.json", config.dump());
  std::string text;
  for (int i = 0; i < 400; ++i)
    text += "The " + std::to_string(i) + " of them came to the harbor. ";
  test::write_file(dir_ / "text.txt", text);
  const std::string work = "eval equal-work " + in("model") + " -t 1 --file " + in("text.txt") +
                           " --tokens 1600 --policies paper:segment=64,dense -o ";
  const Finished got = run_program(work + "json --densities .7");
  ASSERT_EQ(got.exit_code, 0) << got.err;
  const Json rows = parse_json(got.out, "stdout")["rows"];
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0]["wanted_density"], 0.7);
  EXPECT_NEAR(rows[0]["density"].get<double>(), 0.7, 0.0141);
  EXPECT_GT(rows[0]["kl"].get<double>(), 0);
  EXPECT_GT(rows[0]["base_budget"].get<double>(), 0);
  EXPECT_EQ(rows[1]["policy"], "dense");
  EXPECT_EQ(rows[1]["density"], 1.0);
  EXPECT_EQ(rows[1]["kl"], 0.0);
  EXPECT_EQ(rows[1]["same_top"], 1.0);
  const Finished table = run_program(work + "md --densities .7");
  ASSERT_EQ(table.exit_code, 0) << table.err;
  const std::vector<std::string> lines = lines_of(table.out);
  ASSERT_EQ(lines.size(), 2 + 2u) << table.out;
  EXPECT_THAT(lines[2], HasSubstr("| paper:segment=64 |"));
  EXPECT_THAT(lines[3], HasSubstr("| dense            |"));
  EXPECT_EQ(without_times(got.err), without_times(table.out));  // beside the progress
  const Finished short_text = run_program(work + "md --echo");
  EXPECT_EQ(short_text.exit_code, 1);
  EXPECT_THAT(short_text.err, HasSubstr("give a longer text or more --tokens"));
  EXPECT_EQ(run_program(work + "md --densities .6 --times .9").exit_code, 2);
}

// What was measured is told: rows that are done, and of the others how far they are.
TEST_F(EvalTest, EqualWorkThatIsInterrupted) {
  std::string text;
  for (int i = 0; i < 400; ++i)
    text += "The " + std::to_string(i) + " of them came to the harbor. ";
  for (const char* name : {"a", "b"}) test::write_file(dir_ / name, text);
  for (const bool json : {false, true}) {
    OnTerminal work({"eval", "equal-work", test::kNeedle, "-t", "1", "--file",
                     in("a") + "," + in("b"), "--tokens", "1600", "--policies",
                     "dense,paper:segment=64,paper:segment=64:block=16", "--densities", ".8", "-o",
                     json ? "json" : "md"});
    work.wait_for("| dense");  // the first row that is done, as soon as the second text is begun
    work.type("\x03");
    if (json) {
      work.wait_for("{\"model\"");
      const Json found = parse_json("{\"model\"" + work.wait_for("}\r\n"), "stdout");
      EXPECT_EQ(found["interrupted"], true);
      const Json& rows = found["rows"];
      ASSERT_EQ(rows.size(), 3u);
      EXPECT_EQ(rows[0]["texts"].size(), 2u);
      EXPECT_EQ(rows[2]["texts"].size(), 1u);
      EXPECT_EQ(rows[2]["kl"], rows[2]["texts"][0]["kl"]);
      EXPECT_NEAR(rows[2]["density"].get<double>(), 0.8, 0.017);
    } else {
      work.wait_for("| paper:segment=64:block=16 (1 of 2 texts)");
    }
    EXPECT_EQ(work.wait_for_exit(), 130);
  }
}

}  // namespace
}  // namespace ei::cli
