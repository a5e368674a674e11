#include "apps/eval/task.h"

#include <algorithm>
#include <set>

#include "apps/cli/ascii.h"
#include "ei/base/fail.h"
#include "ei/policy/sampling.h"

namespace ei::eval {
namespace {

// Of a length, for the question and the answer. So many that a document's last segment holds little
// of it: that segment is read anew for every policy.
constexpr int64_t kQuestionTokens = 448;
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

// All that a document of several tasks states.
struct Facts {
  std::vector<Needle> needles;      // of one value each: the first stands at the depth asked for,
  std::vector<std::string> others;  // the others are spread over the text
  std::string key_of_values;
  std::vector<std::string> several_values, values;  // of one key, and the sentences that state them
  std::string assigned;  // to all of the variables, the first of them directly
  std::vector<std::string> variables, assignments;
};

Facts make_facts(uint64_t seed, Random& random) {
  Facts facts;
  std::vector<Needle> all = make_needles(12, seed + 1);
  facts.needles.assign(all.begin(), all.begin() + 8);
  for (size_t i = 1; i < 8; ++i) facts.others.push_back(facts.needles[i].fact());
  facts.key_of_values = all[8].key;
  for (size_t i = 8; i < 12; ++i) {
    all[i].key = facts.key_of_values;
    facts.several_values.push_back(all[i].value);
    facts.values.push_back(all[i].fact());
  }
  std::set<std::string> names;
  while (names.size() < 3) {
    std::string name;
    for (int i = 0; i < 5; ++i) name += static_cast<char>('A' + random.below(26));
    if (names.insert(name).second) facts.variables.push_back(name);
  }
  facts.assigned = std::to_string(10000 + random.below(89999));
  std::string from = facts.assigned;
  for (const std::string& name : facts.variables) {
    facts.assignments.push_back("VAR " + name + " = " + from + ".");
    from = "VAR " + name;
  }
  return facts;
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
  const Facts facts = make_facts(spec.seed, random);
  Sample sample;
  std::vector<Placed> placed = {{facts.needles[0].fact(), at}};
  if (spec.task != "single") {
    for (const auto& some : {facts.others, facts.values, facts.assignments})
      for (Placed& fact : spread(some, n, random)) placed.push_back(std::move(fact));
    std::stable_sort(placed.begin(), placed.end(),
                     [](const Placed& a, const Placed& b) { return a.at < b.at; });
  }
  if (spec.task == "single" || spec.task == "many-keys") {
    sample.question = facts.needles[0].question();
    sample.expected = {facts.needles[0].value};
  } else if (spec.task == "many-values") {
    sample.question = std::string(kAll) + facts.key_of_values + std::string(kMentioned);
    sample.expected = facts.several_values;
  } else if (spec.task == "several-keys") {
    std::vector<std::string> keys;
    for (const size_t i : {2, 4, 7}) {
      keys.push_back(facts.needles[i].key);
      sample.expected.push_back(facts.needles[i].value);
    }
    sample.question = std::string(kAll) + list(keys) + std::string(kMentioned);
  } else if (spec.task == "chain") {
    sample.question =
        "Find all variables that are assigned the value " + facts.assigned + " in the text above.";
    sample.expected = facts.variables;
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
  const std::string where = cli::lower_case(answer);
  const auto found = std::count_if(expected.begin(), expected.end(), [&](const std::string& part) {
    return where.find(cli::lower_case(part)) != std::string::npos;
  });
  return any ? double(found > 0) : double(found) / double(expected.size());
}

}  // namespace ei::eval
