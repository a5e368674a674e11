#include "apps/eval/task.h"

#include <algorithm>
#include <cctype>
#include <set>

#include "ei/base/fail.h"
#include "ei/policy/sampling.h"

namespace ei::eval {
namespace {

constexpr int64_t kQuestionTokens = 192;  // of a length: the question and the answer
constexpr size_t kPassageWords = 12, kQuotedWords = 6;

class Random {
 public:
  explicit Random(uint64_t seed) : seed_(seed) {}
  int64_t below(int64_t n) {
    return static_cast<int64_t>(double(uniform(seed_, step_++)) * double(n));
  }

 private:
  uint64_t seed_;
  uint64_t step_ = 0;
};

// Facts in order, each somewhere in a stretch of its own.
std::vector<Placed> spread(const std::vector<std::string>& facts, int64_t n_tokens,
                           Random& random) {
  std::vector<Placed> placed;
  const int64_t n = std::ssize(facts);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t begin = n_tokens * i / n, end = n_tokens * (i + 1) / n;
    placed.push_back({facts[static_cast<size_t>(i)], begin + random.below(end - begin)});
  }
  return placed;
}

std::string list(const std::vector<std::string>& words) {
  std::string out;
  for (size_t i = 0; i < words.size(); ++i)
    out += (i == 0 ? "" : i + 1 == words.size() ? ", and " : ", ") + words[i];
  return out;
}

constexpr std::string_view kAll = "What are all the special magic numbers for ";
constexpr std::string_view kMentioned = " mentioned in the provided text?";

// The first words of text from `at` on, with the blank before each.
std::string words_from(const std::string& text, size_t at, size_t n_words) {
  size_t end = at;
  for (size_t i = 0; i < n_words && end < text.size(); ++i)
    end = std::min(text.find(' ', end + 1), text.size());
  return text.substr(at, end - at);
}

Sample quotation(const std::string& text, const std::string& passage, const std::string& next) {
  Sample sample{text, "Continue this passage from the text:" + passage, {}};
  for (size_t end = next.find(' '); end != std::string::npos; end = next.find(' ', end + 1))
    sample.expected.push_back(next.substr(0, end));
  sample.expected.push_back(next);
  return sample;
}

// A passage near the depth that is in the text once, and what follows it.
Sample quote(const SampleSpec& spec, const std::string& text) {
  auto at = static_cast<size_t>(spec.depth * double(text.size()));
  const size_t room = (kPassageWords + kQuotedWords + 2) * 16;  // bytes, for words of any length
  at = std::min(at, text.size() > room ? text.size() - room : 0);
  for (size_t tries = 0; tries < text.size(); ++tries, at = (at + 1) % text.size()) {
    if (text[at] != ' ') continue;
    const std::string passage = words_from(text, at, kPassageWords);
    const std::string next = words_from(text, at + passage.size(), kQuotedWords);
    if (std::count(next.begin(), next.end(), ' ') == kQuotedWords &&
        text.find(passage) == text.rfind(passage))
      return quotation(text, passage, next.substr(1));
  }
  fail("quote: every passage of the text repeats; give another haystack");
}

}  // namespace

const std::vector<std::string>& task_names() {
  static const std::vector<std::string> names = {"single",       "many-keys", "many-values",
                                                 "several-keys", "chain",     "quote"};
  return names;
}

bool has_depth(const std::string& task) {
  return task == "single" || task == "many-keys" || task == "quote";
}

Sample make_sample(const SampleSpec& spec, const TokenCounter& count) {
  const int64_t n = spec.n_tokens - kQuestionTokens;
  require(n >= 512, "length {} leaves too little text; expected {} or more", spec.n_tokens,
          512 + kQuestionTokens);
  Random random(spec.seed);
  const auto at = static_cast<int64_t>(spec.depth * double(n));
  std::vector<Needle> needles = make_needles(8, spec.seed + 1);
  std::vector<Placed> placed;
  Sample sample;
  if (spec.task == "single") {
    placed = {{needles[0].fact(), at}};
    sample.question = needles[0].question();
    sample.expected = {needles[0].value};
  } else if (spec.task == "many-keys") {
    std::vector<std::string> others;
    for (size_t i = 1; i < needles.size(); ++i) others.push_back(needles[i].fact());
    placed = spread(others, n, random);
    const auto before = std::find_if(placed.begin(), placed.end(),
                                     [&](const Placed& other) { return other.at >= at; });
    placed.insert(before, {needles[0].fact(), at});
    sample.question = needles[0].question();
    sample.expected = {needles[0].value};
  } else if (spec.task == "many-values") {
    std::vector<std::string> facts;
    for (size_t i = 0; i < 4; ++i) {
      needles[i].key = needles[0].key;
      facts.push_back(needles[i].fact());
      sample.expected.push_back(needles[i].value);
    }
    placed = spread(facts, n, random);
    sample.question = std::string(kAll) + needles[0].key + std::string(kMentioned);
  } else if (spec.task == "several-keys") {
    std::vector<std::string> facts, keys;
    for (const Needle& needle : needles) facts.push_back(needle.fact());
    placed = spread(facts, n, random);
    for (const size_t i : {1, 4, 6}) {
      keys.push_back(needles[i].key);
      sample.expected.push_back(needles[i].value);
    }
    sample.question = std::string(kAll) + list(keys) + std::string(kMentioned);
  } else if (spec.task == "chain") {
    std::set<std::string> names;
    while (names.size() < 3) {
      std::string name;
      for (int i = 0; i < 5; ++i) name += static_cast<char>('A' + random.below(26));
      if (names.insert(name).second) sample.expected.push_back(name);
    }
    const std::string value = std::to_string(10000 + random.below(89999));
    std::string from = value;
    std::vector<std::string> facts;
    for (const std::string& name : sample.expected) {
      facts.push_back("VAR " + name + " = " + from + ".");
      from = "VAR " + name;
    }
    placed = spread(facts, n, random);
    sample.question =
        "Find all variables that are assigned the value " + value + " in the text above.";
  } else {
    require(spec.task == "quote", "task {} is not known, expected one of {}", spec.task,
            fmt::join(task_names(), ", "));
  }
  const Sentences sentences = spec.haystack.empty()
                                  ? made_up_sentences(spec.seed + 2)
                                  : sentences_of(spec.haystack, "haystack", spec.seed + 2);
  const std::string text = write_document(n, placed, sentences, count);
  if (spec.task == "quote") return quote(spec, text);
  sample.document = text;
  return sample;
}

double score(const std::vector<std::string>& expected, const std::string& answer, bool any) {
  const auto lower = [](std::string text) {
    for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return text;
  };
  const std::string where = lower(answer);
  const auto found = std::count_if(expected.begin(), expected.end(), [&](const std::string& part) {
    return where.find(lower(part)) != std::string::npos;
  });
  return any ? double(found > 0) : double(found) / double(expected.size());
}

}  // namespace ei::eval
