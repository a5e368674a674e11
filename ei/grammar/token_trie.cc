#include "ei/grammar/token_trie.h"

#include <algorithm>
#include <numeric>

namespace ei::grammar {

TokenTrie::TokenTrie(std::span<const std::string> bytes, std::vector<int32_t> ends)
    : bytes_(bytes.begin(), bytes.end()), ends_(std::move(ends)) {
  constexpr size_t kMaxBytes = 1024;  // of a token: longer ones are left out
  std::vector<int32_t> order;
  for (size_t id = 0; id < bytes_.size(); ++id)
    if (!bytes_[id].empty() && bytes_[id].size() <= kMaxBytes)
      order.push_back(static_cast<int32_t>(id));
  std::ranges::sort(order, [&](int32_t a, int32_t b) {
    const int order = this->bytes(a).compare(this->bytes(b));
    return order != 0 ? order < 0 : a < b;
  });
  std::vector<uint32_t> open;  // the nodes that the last token passed
  const auto close = [&](size_t depth) {
    for (; open.size() > depth; open.pop_back())
      nodes_[open.back()].skip = static_cast<uint32_t>(nodes_.size());
  };
  std::string_view last;
  for (const int32_t id : order) {
    const std::string& text = this->bytes(id);
    size_t same = 0;
    while (same < last.size() && same < text.size() && last[same] == text[same]) ++same;
    // Of tokens with the same bytes each has a last node of its own.
    same = std::min(same, text.size() - 1);
    close(same);
    for (size_t at = same; at < text.size(); ++at) {
      open.push_back(static_cast<uint32_t>(nodes_.size()));
      nodes_.push_back({.token = at + 1 == text.size() ? id : -1,
                        .depth = static_cast<uint16_t>(at),
                        .byte = static_cast<uint8_t>(text[at])});
    }
    max_depth_ = std::max(max_depth_, text.size());
    last = text;
  }
  close(0);
}

}  // namespace ei::grammar
