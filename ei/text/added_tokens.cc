#include "ei/text/added_tokens.h"

#include <algorithm>

#include "ei/base/utf8.h"

namespace ei {
namespace {

size_t previous_char(std::string_view text, size_t end) {
  do --end;
  while (end > 0 && (static_cast<uint8_t>(text[end]) & 0xC0) == 0x80);
  return end;
}

bool word_touches(std::string_view text, size_t begin, size_t end) {
  if (begin > 0 && is_word(decode_utf8(text.substr(previous_char(text, begin))).value)) return true;
  return end < text.size() && is_word(decode_utf8(text.substr(end)).value);
}

}  // namespace

void AddedTokens::add(AddedToken token) {
  if (!token.content.empty()) {
    auto& bucket = by_first_byte_[static_cast<uint8_t>(token.content[0])];
    const auto place = std::find_if(bucket.begin(), bucket.end(), [&](uint32_t i) {
      return tokens_[i].content.size() < token.content.size();
    });
    bucket.insert(place, static_cast<uint32_t>(tokens_.size()));
  }
  tokens_.push_back(std::move(token));
}

const AddedToken* AddedTokens::lookup(std::string_view content) const {
  if (content.empty()) return nullptr;
  for (const uint32_t i : by_first_byte_[static_cast<uint8_t>(content[0])])
    if (tokens_[i].content == content) return &tokens_[i];
  return nullptr;
}

const AddedToken* AddedTokens::longest_at(std::string_view text, size_t at,
                                          size_t specials_end) const {
  for (const uint32_t i : by_first_byte_[static_cast<uint8_t>(text[at])]) {
    const AddedToken& token = tokens_[i];
    if (token.special && at + token.content.size() > specials_end) continue;
    if (text.substr(at).starts_with(token.content)) return &token;
  }
  return nullptr;
}

std::vector<size_t> AddedTokens::special_places(std::string_view text) const {
  std::vector<size_t> places;
  for (size_t at = 0; at < text.size(); ++at) {
    const auto& bucket = by_first_byte_[static_cast<uint8_t>(text[at])];
    if (std::any_of(bucket.begin(), bucket.end(), [&](uint32_t i) {
          return tokens_[i].special && text.substr(at).starts_with(tokens_[i].content);
        }))
      places.push_back(at);
  }
  return places;
}

std::vector<AddedTokens::Match> AddedTokens::find(std::string_view text,
                                                  std::span<const TextRange> literal) const {
  std::vector<Match> matches;
  size_t free = 0;  // where the last match ended
  for (size_t at = 0; at < text.size();) {
    while (!literal.empty() && literal.front().end <= at) literal = literal.subspan(1);
    const AddedToken* token =
        longest_at(text, at, literal.empty() ? text.size() : literal.front().begin);
    if (!token) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + token->content.size();
    at = end;
    if (token->single_word && word_touches(text, begin, end)) continue;
    while (token->lstrip && begin > free) {
      const size_t previous = previous_char(text, begin);
      if (!is_space(decode_utf8(text.substr(previous)).value)) break;
      begin = previous;
    }
    while (token->rstrip && end < text.size()) {
      const Utf8Char next = decode_utf8(text.substr(end));
      if (!is_space(next.value)) break;
      end += next.n_bytes;
    }
    matches.push_back({begin, end, token->id});
    at = free = end;
  }
  return matches;
}

}  // namespace ei
