#pragma once

#include <bitset>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace ei::grammar {

// The node at which a rule ends, and the text where nothing waits.
inline constexpr int32_t kEnd = 0;

// What a text may be, as an automaton over its bytes that may call rules: a node has edges for
// bytes, edges for nothing, and calls that go on at `next` once the rule called has ended. A
// thread of a reader is a node and the nodes that wait for its rule to end.
struct Grammar {
  struct Edge {
    uint8_t low, high;  // bytes, inclusive
    int32_t next;
  };
  struct Call {
    int32_t rule;  // its first node
    int32_t next;
    bool shallow;  // not where kMaxNesting nodes wait already
  };
  struct Node {
    std::vector<Edge> edges;
    std::vector<int32_t> free;
    std::vector<Call> calls;
    // Set by prune(): the shallowest way to the rule's end makes its deepest shallow call in so
    // many levels, counted from the node's own; 0: it needs none.
    int32_t depth = 0;
  };
  static constexpr size_t kMaxNesting = 64;
  // Whether an end can be reached from a node, `level` nodes with it being in a thread.
  bool can_end(int32_t node, size_t level) const {
    const auto depth = static_cast<size_t>(nodes[static_cast<size_t>(node)].depth);
    return depth == 0 || level + depth <= kMaxNesting + 1;
  }

  std::vector<Node> nodes = std::vector<Node>(1);
  int32_t start = kEnd;

  // All throw Error where the grammar becomes too large. They build from the end: what comes first
  // is made with what follows it.
  int32_t node();
  int32_t text(std::string_view bytes, int32_t next);  // exactly these
  void free_to(int32_t from, int32_t to) { spend(), at(from).free.push_back(to); }
  void edge(int32_t from, uint8_t low, uint8_t high, int32_t to) {
    spend();
    at(from).edges.push_back({low, high, to});
  }
  void call(int32_t from, int32_t rule, int32_t next, bool shallow = false) {
    spend();
    at(from).calls.push_back({rule, next, shallow});
  }
  int32_t called(int32_t rule, int32_t next);  // a node that calls
  int32_t any_of(std::span<const int32_t> choices);
  // Between `least` and `most` times the rule, or without end if `most` is negative.
  int32_t repeated(int32_t rule, int64_t least, int64_t most, int32_t next);
  void edges(int32_t from, const std::bitset<128>& ascii, int32_t to);
  void multibyte(int32_t from, int32_t to);  // a character beyond ASCII, as UTF-8 allows

  // Takes away what no text's end can be reached from, and finds how deep the others must go for
  // it. Throws Error where nothing is left.
  void prune();
  // Whether all that a rule allows begins with this byte.
  bool begins_with(int32_t rule, uint8_t byte) const;

 private:
  void spend();  // for an edge or call: their number is bounded as well
  Node& at(int32_t node) { return nodes[static_cast<size_t>(node)]; }

  size_t n_spent_ = 0;
};

}  // namespace ei::grammar
