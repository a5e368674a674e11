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

uint64_t key(uint32_t node, char c) { return uint64_t{node} << 8 | static_cast<uint8_t>(c); }

bool word_touches(std::string_view text, size_t begin, size_t end) {
  if (begin > 0 && is_word(decode_utf8(text.substr(previous_char(text, begin))).value)) return true;
  return end < text.size() && is_word(decode_utf8(text.substr(end)).value);
}

}  // namespace

void AddedTokens::add(AddedToken token) {
  uint32_t node = 0;
  for (const char c : token.content) {
    const auto fresh = static_cast<uint32_t>(token_of_.size());
    const auto [step, is_new] = next_.try_emplace(key(node, c), fresh);
    if (is_new) token_of_.push_back(-1);
    node = step->second;
  }
  if (node != 0) first_bytes_.set(static_cast<uint8_t>(token.content[0]));
  if (node != 0 && token_of_[node] < 0) token_of_[node] = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(std::move(token));
}

template <class F>
void AddedTokens::for_each_at(std::string_view text, size_t at, F f) const {
  if (at >= text.size() || !first_bytes_[static_cast<uint8_t>(text[at])]) return;
  uint32_t node = 0;
  for (; at < text.size(); ++at) {
    const auto step = next_.find(key(node, text[at]));
    if (step == next_.end()) return;
    node = step->second;
    if (token_of_[node] >= 0) f(tokens_[static_cast<size_t>(token_of_[node])]);
  }
}

const AddedToken* AddedTokens::lookup(std::string_view content) const {
  const AddedToken* found = nullptr;
  for_each_at(content, 0, [&](const AddedToken& token) {
    if (token.content.size() == content.size()) found = &token;
  });
  return found;
}

const AddedToken* AddedTokens::longest_at(std::string_view text, size_t at,
                                          size_t specials_end) const {
  const AddedToken* longest = nullptr;
  for_each_at(text, at, [&](const AddedToken& token) {
    if (!token.special || at + token.content.size() <= specials_end) longest = &token;
  });
  return longest;
}

std::vector<size_t> AddedTokens::special_places(std::string_view text) const {
  std::vector<size_t> places;
  for (size_t at = 0; at < text.size(); ++at)
    for_each_at(text, at, [&](const AddedToken& token) {
      if (token.special && (places.empty() || places.back() != at)) places.push_back(at);
    });
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
