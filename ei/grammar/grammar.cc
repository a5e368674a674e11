#include "ei/grammar/grammar.h"

#include <algorithm>
#include <array>

#include "ei/base/fail.h"

namespace ei::grammar {

int32_t Grammar::node() {
  constexpr size_t kMaxNodes = 200'000;
  require(nodes.size() < kMaxNodes, "the schema is too large: its automaton has over {} states",
          kMaxNodes);
  nodes.emplace_back();
  return static_cast<int32_t>(nodes.size() - 1);
}

void Grammar::spend() {
  constexpr size_t kMaxEdges = 1'000'000;
  require(++n_spent_ <= kMaxEdges, "the schema is too large: its automaton has over {} edges",
          kMaxEdges);
}

int32_t Grammar::text(std::string_view bytes, int32_t next) {
  while (!bytes.empty()) {
    const auto byte = static_cast<uint8_t>(bytes.back());
    const int32_t first = node();
    edge(first, byte, byte, next);
    next = first;
    bytes.remove_suffix(1);
  }
  return next;
}

int32_t Grammar::called(int32_t rule, int32_t next) {
  const int32_t first = node();
  call(first, rule, next);
  return first;
}

int32_t Grammar::any_of(std::span<const int32_t> choices) {
  const int32_t first = node();
  for (const int32_t choice : choices) free_to(first, choice);
  return first;
}

int32_t Grammar::repeated(int32_t rule, int64_t least, int64_t most, int32_t next) {
  int32_t first = next;
  if (most < 0) {
    first = node();
    call(first, rule, first);
    free_to(first, next);
  }
  for (int64_t i = most; i > least; --i) {
    first = called(rule, first);
    free_to(first, next);
  }
  for (int64_t i = 0; i < least; ++i) first = called(rule, first);
  return first;
}

void Grammar::multibyte(int32_t from, int32_t to) {
  const auto tail = [&](uint8_t low, uint8_t high, int32_t next) {
    const int32_t first = node();
    edge(first, low, high, next);
    return first;
  };
  const int32_t one = tail(0x80, 0xBF, to), two = tail(0x80, 0xBF, one);
  edge(from, 0xC2, 0xDF, one);
  edge(from, 0xE0, 0xE0, tail(0xA0, 0xBF, one));
  edge(from, 0xE1, 0xEC, two);
  edge(from, 0xED, 0xED, tail(0x80, 0x9F, one));
  edge(from, 0xEE, 0xEF, two);
  edge(from, 0xF0, 0xF0, tail(0x90, 0xBF, two));
  edge(from, 0xF1, 0xF3, tail(0x80, 0xBF, two));
  edge(from, 0xF4, 0xF4, tail(0x80, 0x8F, two));
}

void Grammar::edges(int32_t from, const std::bitset<128>& ascii, int32_t to) {
  for (size_t low = 0; low < ascii.size(); ++low) {
    if (!ascii[low]) continue;
    size_t high = low;
    while (high + 1 < ascii.size() && ascii[high + 1]) ++high;
    edge(from, static_cast<uint8_t>(low), static_cast<uint8_t>(high), to);
    low = high;
  }
}

// Nodes are found in the order of their depths, as in Dijkstra's algorithm: what a way needs is
// never less than what its parts do.
void Grammar::prune() {
  const auto index = [](int32_t node) { return static_cast<size_t>(node); };
  struct Use {
    int32_t node;
    Call call;  // or an edge: to `next`, of no rule
  };
  std::vector<std::vector<Use>> uses(nodes.size());
  for (size_t i = 0; i < nodes.size(); ++i) {
    const auto node = static_cast<int32_t>(i);
    const auto edge_to = [&](int32_t next) {
      uses[index(next)].push_back({node, {kEnd, next, false}});
    };
    for (const Edge& edge : nodes[i].edges) edge_to(edge.next);
    for (const int32_t next : nodes[i].free) edge_to(next);
    for (const Call& call : nodes[i].calls) {
      uses[index(call.rule)].push_back({node, call});
      uses[index(call.next)].push_back({node, call});
    }
  }
  constexpr int32_t kNone = -1;  // no end was found
  std::vector<int32_t> depths(nodes.size(), kNone);
  const auto needed = [&](const Call& call) -> int32_t {
    const int32_t rule = depths[index(call.rule)], next = depths[index(call.next)];
    if (rule == kNone || next == kNone) return kNone;
    const int32_t below = rule > 0 && call.next != kEnd ? rule + 1 : rule;
    return std::max({below, next, int32_t{call.shallow}});
  };
  std::array<std::vector<int32_t>, kMaxNesting + 1> open;  // by depth
  open[0].push_back(kEnd);
  for (size_t depth = 0; depth < open.size(); ++depth) {
    while (!open[depth].empty()) {
      const int32_t node = open[depth].back();
      open[depth].pop_back();
      if (depths[index(node)] != kNone) continue;
      depths[index(node)] = static_cast<int32_t>(depth);
      for (const Use& use : uses[index(node)]) {
        const int32_t needs = needed(use.call);
        if (needs == kNone || index(needs) >= open.size()) continue;
        if (depths[index(use.node)] == kNone) open[index(needs)].push_back(use.node);
      }
    }
  }
  const auto ends = [&](int32_t node) { return depths[index(node)] != kNone; };
  require(ends(start), "the schema allows no text that ends within {} levels", kMaxNesting);
  for (size_t i = 0; i < nodes.size(); ++i) {
    Node& node = nodes[i];
    node.depth = std::max(0, depths[i]);
    std::erase_if(node.edges, [&](const Edge& edge) { return !ends(edge.next); });
    std::erase_if(node.free, [&](int32_t next) { return !ends(next); });
    std::erase_if(node.calls,
                  [&](const Call& call) { return !ends(call.rule) || !ends(call.next); });
  }
}

bool Grammar::begins_with(int32_t node, uint8_t byte) const {
  std::vector<bool> seen(nodes.size());
  std::vector<int32_t> open = {node};
  while (!open.empty()) {
    const int32_t from = open.back();
    open.pop_back();
    if (seen[static_cast<size_t>(from)]) continue;
    seen[static_cast<size_t>(from)] = true;
    const Node& one = nodes[static_cast<size_t>(from)];
    for (const Edge& edge : one.edges)
      if (edge.low != byte || edge.high != byte) return false;
    open.insert(open.end(), one.free.begin(), one.free.end());
    for (const Call& call : one.calls) open.push_back(call.rule);
  }
  return true;
}

}  // namespace ei::grammar
