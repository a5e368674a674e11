#include "apps/eval/metrics.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "ei/base/fail.h"
#include "ei/base/utf8.h"

namespace ei::eval {
namespace {

using Words = std::vector<std::string>;

std::vector<std::string> split_at_spaces(std::string_view text) {
  Words words;
  ei::split_at_spaces(text, -1, [&](std::string_view word) { words.emplace_back(word); });
  return words;
}

Words answer_words(std::string_view text) {
  constexpr std::string_view kPunctuation = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";
  std::string kept, word;
  const auto end_word = [&] {
    kept += word == "a" || word == "an" || word == "the" ? " " : word;
    word.clear();
  };
  for_each_char(lower(text), [&](char32_t c, std::string_view bytes) {
    if (bytes.size() == 1 && kPunctuation.find(bytes[0]) != std::string_view::npos) return;
    if (is_word(c)) {
      word += bytes;
    } else {
      end_word();
      kept += bytes;
    }
  });
  end_word();
  return split_at_spaces(kept);
}

// Lengths of the longest common subsequences of all beginnings: [a.size() + 1, b.size() + 1].
template <class Sequence>
std::vector<int32_t> common_lengths(const Sequence& a, const Sequence& b) {
  const size_t width = b.size() + 1;
  std::vector<int32_t> length((a.size() + 1) * width, 0);
  for (size_t i = 1; i <= a.size(); ++i)
    for (size_t j = 1; j <= b.size(); ++j)
      length[i * width + j] =
          a[i - 1] == b[j - 1] ? length[(i - 1) * width + j - 1] + 1
                               : std::max(length[(i - 1) * width + j], length[i * width + j - 1]);
  return length;
}

// The words of one longest common subsequence: of several, the one found from the ends backwards,
// leaving out words of b first.
void add_common(const Words& a, const Words& b, std::set<std::string>& out) {
  const auto length = common_lengths(a, b);
  const size_t width = b.size() + 1;
  for (size_t i = a.size(), j = b.size(); i > 0 && j > 0;) {
    if (a[i - 1] == b[j - 1]) {
      out.insert(a[i - 1]);
      --i, --j;
    } else if (length[(i - 1) * width + j] > length[i * width + j - 1]) {
      --i;
    } else {
      --j;
    }
  }
}

std::vector<Words> sentences(std::string_view text) {
  std::vector<Words> out;
  split(text, ".", -1, [&](std::string_view sentence) {
    if (sentence.empty()) return;
    out.push_back(split_at_spaces(sentence));
    if (out.back().empty()) out.back().emplace_back();  // blanks make one empty word
  });
  return out;
}

std::set<std::string> different(const std::vector<Words>& sentences) {
  std::set<std::string> words;
  for (const Words& sentence : sentences) words.insert(sentence.begin(), sentence.end());
  return words;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

double share_of_numbers(std::string_view answer, std::string_view right) {
  int64_t n = 0, n_right = 0;
  for (size_t begin = 0; begin < answer.size();) {
    size_t end = begin;
    while (end < answer.size() && is_digit(answer[end])) ++end;
    if (end > begin) {
      ++n;
      if (answer.substr(begin, end - begin) == right) ++n_right;
    }
    begin = end + 1;
  }
  return n == 0 ? 0 : double(n_right) / double(n);
}

std::vector<char32_t> characters(std::string_view text) {
  std::vector<char32_t> out;
  for_each_char(text, [&](char32_t c, std::string_view) { out.push_back(c); });
  return out;
}

}  // namespace

double qa_f1(std::string_view answer, std::string_view truth) {
  const Words got = answer_words(answer), want = answer_words(truth);
  std::map<std::string, int64_t> left;
  for (const std::string& word : want) ++left[word];
  int64_t same = 0;
  for (const std::string& word : got)
    if (left[word]-- > 0) ++same;
  return same == 0 ? 0 : 2 * double(same) / double(got.size() + want.size());
}

double rouge_l(std::string_view answer, std::string_view truth) {
  const std::vector<Words> got = sentences(answer), want = sentences(truth);
  if (got.empty() || want.empty()) return 0;
  std::set<std::string> common;
  for (const Words& right : want)
    for (const Words& sentence : got) add_common(right, sentence, common);
  const double recall = double(common.size()) / double(different(want).size());
  const double precision = double(common.size()) / double(different(got).size());
  return 2 * precision * recall / (precision + recall + 1e-8);
}

double classification(std::string_view answer, std::string_view truth,
                      const std::vector<std::string>& classes) {
  Words named;
  for (const std::string& name : classes)
    if (answer.find(name) != std::string_view::npos) named.push_back(name);
  // Leaving one out moves the next one into its place, which is then passed over.
  for (size_t i = 0; i < named.size(); ++i)
    if (named[i] != truth && truth.find(named[i]) != std::string_view::npos)
      named.erase(std::find(named.begin(), named.end(), std::string(named[i])));
  const bool right = std::find(named.begin(), named.end(), truth) != named.end();
  return right ? 1 / double(named.size()) : 0;
}

double count_match(std::string_view answer, std::string_view truth) {
  return share_of_numbers(answer, truth);
}

double retrieval_match(std::string_view answer, std::string_view truth) {
  constexpr std::string_view kParagraph = "Paragraph ";
  for (size_t at = truth.find(kParagraph); at != std::string_view::npos;
       at = truth.find(kParagraph, at + 1)) {
    const std::string_view rest = truth.substr(at + kParagraph.size());
    const auto n = std::find_if_not(rest.begin(), rest.end(), is_digit) - rest.begin();
    if (n > 0) return share_of_numbers(answer, rest.substr(0, static_cast<size_t>(n)));
  }
  fail("the right answer is \"{}\", expected one that names a \"Paragraph N\"", truth);
}

double code_similarity(std::string_view answer, std::string_view truth) {
  while (answer.starts_with('\n')) answer.remove_prefix(1);
  std::string_view line;
  bool found = false;
  split(answer, "\n", -1, [&](std::string_view candidate) {
    if (found || candidate.find_first_of("`#") != std::string_view::npos ||
        candidate.find("//") != std::string_view::npos)
      return;
    line = candidate;
    found = true;
  });
  const auto a = characters(line), b = characters(truth);
  if (a.empty() && b.empty()) return 1;
  // To the even percent where it is halfway, as Python rounds.
  return std::nearbyint(200 * double(common_lengths(a, b).back()) / double(a.size() + b.size())) /
         100;
}

}  // namespace ei::eval
