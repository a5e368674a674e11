#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace ei::grammar {

// A vocabulary by its bytes: a tree of prefixes in preorder, so that all tokens that begin alike
// are passed over at once.
class TokenTrie {
 public:
  struct Node {
    int32_t token = -1;  // that ends here
    uint32_t skip = 0;   // the next node that is not below this one
    uint16_t depth = 0;  // of its byte, from 0
    uint8_t byte = 0;
  };

  // `bytes` of the tokens by id; those without are in no text. `ends`: the tokens that end one.
  TokenTrie(std::span<const std::string> bytes, std::vector<int32_t> ends);

  std::span<const Node> nodes() const { return nodes_; }
  const std::string& bytes(int32_t token) const { return bytes_[static_cast<size_t>(token)]; }
  std::span<const int32_t> ends() const { return ends_; }
  size_t n_tokens() const { return bytes_.size(); }
  size_t max_depth() const { return max_depth_; }

 private:
  std::vector<std::string> bytes_;
  std::vector<int32_t> ends_;
  std::vector<Node> nodes_;
  size_t max_depth_ = 0;
};

}  // namespace ei::grammar
