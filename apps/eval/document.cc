#include "apps/eval/document.h"

#include <cctype>
#include <map>
#include <set>
#include <utility>

#include "ei/base/fail.h"
#include "ei/policy/sampling.h"

namespace ei::eval {
namespace {

using Choices = std::vector<std::string_view>;

// $name stands for one of the choices of that name.
const std::map<std::string_view, Choices>& grammar() {
  static const std::map<std::string_view, Choices> rules = {
      {"sentence",
       {"The $trait $person $did the $thing $where.",
        "$When the $person $did the $trait $thing, and the $person $did it again.",
        "$When the $thing lay $where, where no $person could see it.",
        "Nobody in the $place $knew why the $person $did the $trait $thing.",
        "It was a $trait $season, and the $place $where was full of $goods.",
        "If the $person had $done the $thing, the $trait $place would be empty.",
        "The $person $knew the $place well, but the $trait $person did not.",
        "There were $goods and $goods in the $place, and a $trait $thing $where.",
        "\"We have $done the $thing,\" said the $trait $person, and $did the $thing.",
        "Because of the $trait $season, the $person $did the $thing $where.",
        "The $thing of the $person was more $trait than the $thing of the $person.",
        "$When they came to the $place, the $person asked for $goods and a $thing.",
        "Each $season the $person $did a $trait $thing and brought it to the $place.",
        "A $person who sells $goods seldom $knew such a $trait $place.",
        "Slowly the $person $did the $thing, while the $trait $person kept the $goods.",
        "Of all the $goods in the $place, the $trait $person wanted only the $thing."}},
      {"When",
       {"In the morning", "Before noon", "Late at night", "After the rain", "One $season",
        "On the third day", "At last", "Years later", "Soon after", "On the way home",
        "When the bell rang", "During the feast", "As the sun set", "That evening"}},
      {"where",
       {"near the $place", "behind the $place", "on the road to the $place", "under the $thing",
        "beside the $trait $person", "far from the $place", "between the $place and the $place",
        "at the end of the $place", "above the $place", "close to a $trait $thing"}},
      {"season",
       {"spring", "summer", "autumn", "winter", "harvest", "market week", "month", "dry season"}},
      {"person", {"baker",    "sailor",    "farmer",  "teacher", "doctor",  "painter",  "miller",
                  "hunter",   "tailor",    "captain", "widow",   "student", "merchant", "gardener",
                  "soldier",  "singer",    "lawyer",  "servant", "brother", "daughter", "neighbor",
                  "stranger", "carpenter", "weaver",  "printer", "cousin",  "traveler", "judge",
                  "poet",     "fisherman", "nurse",   "clerk"}},
      {"thing",
       {"lantern", "wagon",   "letter",  "basket", "mirror",  "ladder", "blanket", "candle",
        "hammer",  "bottle",  "saddle",  "window", "bucket",  "needle", "barrel",  "carpet",
        "drawer",  "feather", "kettle",  "pillow", "ribbon",  "shovel", "trumpet", "violin",
        "anchor",  "button",  "compass", "engine", "garment", "helmet", "locket",  "teapot"}},
      {"place",
       {"harbor",  "village", "garden", "forest",   "valley",  "market",  "kitchen", "chapel",
        "bridge",  "meadow",  "tower",  "cellar",   "orchard", "library", "stable",  "island",
        "station", "castle",  "school", "mountain", "river",   "theater", "prison",  "quarry",
        "square",  "tavern",  "temple", "tunnel",   "barn",    "cottage", "factory", "lighthouse"}},
      {"goods", {"apples", "books",  "candles", "flour",  "grapes", "herbs", "honey", "linen",
                 "maps",   "nails",  "onions",  "paper",  "pears",  "ropes", "salt",  "shoes",
                 "silk",   "spices", "stones",  "timber", "tools",  "wheat", "wine",  "wool"}},
      {"trait",
       {"quiet",  "golden",  "narrow", "broken",  "ancient", "gentle",  "hidden", "heavy",
        "bright", "simple",  "wooden", "clever",  "silver",  "famous",  "honest", "lonely",
        "modest", "patient", "proud",  "crooked", "secret",  "silent",  "sudden", "tender",
        "yellow", "young",   "rusty",  "careful", "curious", "distant", "empty",  "faithful"}},
      {"did", {"carried",  "found",    "painted", "mended",  "sold",    "dropped",  "lifted",
               "borrowed", "counted",  "covered", "noticed", "opened",  "polished", "returned",
               "buried",   "measured", "washed",  "watched", "wrapped", "forgot"}},
      {"done",
       {"carried", "found", "painted", "mended", "sold", "lifted", "borrowed", "returned",
        "counted", "noticed", "opened", "washed", "buried", "hidden", "kept", "broken"}},
      {"knew",
       {"knew", "remembered", "understood", "guessed", "described", "liked", "trusted", "feared"}},
  };
  return rules;
}

class Writer {
 public:
  explicit Writer(uint64_t seed) : seed_(seed) {}

  int64_t below(int64_t n) {
    return static_cast<int64_t>(double(uniform(seed_, step_++)) * double(n));
  }

  std::string expand(std::string_view text) {
    std::string out;
    while (!text.empty()) {
      const size_t dollar = text.find('$');
      out += text.substr(0, dollar);
      if (dollar == std::string_view::npos) break;
      text.remove_prefix(dollar + 1);
      size_t n = 0;
      while (n < text.size() && std::isalpha(static_cast<unsigned char>(text[n]))) ++n;
      out += one_of(text.substr(0, n));
      text.remove_prefix(n);
    }
    return out;
  }

  std::string one_of(std::string_view name) {
    const Choices& choices = grammar().at(name);
    return expand(choices[static_cast<size_t>(below(static_cast<int64_t>(choices.size())))]);
  }

 private:
  uint64_t seed_;
  uint64_t step_ = 0;
};

std::vector<Needle> make_needles(int64_t n, Writer& writer) {
  std::set<std::string> used;
  std::vector<Needle> needles;
  while (static_cast<int64_t>(needles.size()) < n) {
    Needle needle{writer.expand("$trait-$thing"), std::to_string(1000000 + writer.below(9000000))};
    if (used.insert(needle.key).second && used.insert(needle.value).second)
      needles.push_back(std::move(needle));
  }
  return needles;
}

}  // namespace

std::string Needle::fact() const {
  return "One of the special magic numbers for " + key + " is: " + value + ".";
}

std::string Needle::question() const {
  return "What is the special magic number for " + key + " mentioned in the provided text?";
}

Sentences made_up_sentences(uint64_t seed) {
  return [writer = Writer(seed)]() mutable { return writer.one_of("sentence"); };
}

Sentences sentences_of(std::string_view text, const std::string& name, uint64_t seed) {
  std::vector<std::string> sentences;
  std::string sentence;
  const auto end = [&] {
    if (!sentence.empty()) sentences.push_back(std::exchange(sentence, {}));
  };
  for (const char c : text) {
    const bool blank = std::isspace(static_cast<unsigned char>(c)) != 0;
    if (!blank) {
      sentence += c;
    } else if (!sentence.empty() &&
               std::string_view(".!?").find(sentence.back()) != std::string_view::npos) {
      end();
    } else if (!sentence.empty() && sentence.back() != ' ') {
      sentence += ' ';
    }
  }
  end();
  require(!sentences.empty(), "{}: there is no text in it", name);
  const auto first = static_cast<size_t>(Writer(seed).below(std::ssize(sentences)));
  return [all = std::move(sentences), i = first]() mutable { return all[i++ % all.size()]; };
}

std::vector<Needle> make_needles(int64_t n, uint64_t seed) {
  Writer writer(seed);
  return make_needles(n, writer);
}

std::string write_document(int64_t n_tokens, const std::vector<Placed>& placed,
                           const Sentences& sentences, const TokenCounter& count) {
  std::string text;
  int64_t n = 0;
  size_t next = 0;
  while (n < n_tokens || next < placed.size()) {
    const bool place = next < placed.size() && n >= placed[next].at;
    const std::string piece =
        (text.empty() ? "" : " ") + (place ? placed[next++].sentence : sentences());
    n += count(piece);
    text += piece;
  }
  return text;
}

Document make_document(const DocumentSpec& spec, const TokenCounter& count) {
  Writer writer(spec.seed);
  Document document{"", make_needles(spec.n_needles, writer)};
  std::vector<Placed> placed;
  for (int64_t i = 0; i < spec.n_needles; ++i) {
    const int64_t begin = spec.n_tokens * i / spec.n_needles;
    const int64_t end = spec.n_tokens * (i + 1) / spec.n_needles;
    placed.push_back(
        {document.needles[static_cast<size_t>(i)].fact(), begin + writer.below(end - begin)});
  }
  document.text = write_document(
      spec.n_tokens, placed, [&] { return writer.one_of("sentence"); }, count);
  return document;
}

}  // namespace ei::eval
