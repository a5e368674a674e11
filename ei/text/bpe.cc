#include "ei/text/bpe.h"

#include <algorithm>
#include <cstddef>
#include <queue>
#include <tuple>

namespace ei {
namespace {

constexpr int32_t kGone = -1;

uint64_t pair_of(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

}  // namespace

size_t BpeMerges::slot(uint64_t pair) const {
  const size_t mask = rules_.size() - 1;
  size_t i = static_cast<size_t>((pair * 0x9E3779B97F4A7C15u) >> 20) & mask;
  while (rules_[i].pair != kNoPair && rules_[i].pair != pair) i = (i + 1) & mask;
  return i;
}

void BpeMerges::grow() {
  std::vector<Rule> old(std::max<size_t>(1024, rules_.size() * 2));
  old.swap(rules_);
  for (const Rule& rule : old)
    if (rule.pair != kNoPair) rules_[slot(rule.pair)] = rule;
}

void BpeMerges::add(int32_t left, int32_t right, int32_t rank, int32_t merged) {
  if (n_rules_ * 2 >= rules_.size()) grow();
  Rule& rule = rules_[slot(pair_of(left, right))];
  n_rules_ += rule.pair == kNoPair;
  rule = {pair_of(left, right), rank, merged};
}

const BpeMerges::Rule* BpeMerges::find(int32_t left, int32_t right) const {
  const Rule& rule = rules_[slot(pair_of(left, right))];
  return rule.pair == kNoPair ? nullptr : &rule;
}

void BpeMerges::apply(std::vector<int32_t>& symbols) const {
  constexpr size_t kShort = 48;  // where the heap begins to win
  if (rules_.empty()) return;
  symbols.size() <= kShort ? apply_short(symbols) : apply_long(symbols);
}

void BpeMerges::apply_short(std::vector<int32_t>& symbols) const {
  std::vector<const Rule*> rules;  // [i] merges symbols i and i + 1
  for (size_t i = 0; i + 1 < symbols.size(); ++i) rules.push_back(find(symbols[i], symbols[i + 1]));
  while (true) {
    const Rule* best = nullptr;
    size_t at = 0;
    for (size_t i = 0; i < rules.size(); ++i)
      if (rules[i] && (!best || rules[i]->rank < best->rank)) best = rules[at = i];
    if (!best) return;
    symbols[at] = best->merged;
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(at) + 1);
    rules.erase(rules.begin() + static_cast<ptrdiff_t>(at));
    if (at > 0) rules[at - 1] = find(symbols[at - 1], symbols[at]);
    if (at < rules.size()) rules[at] = find(symbols[at], symbols[at + 1]);
  }
}

void BpeMerges::apply_long(std::vector<int32_t>& symbols) const {
  struct Node {
    int32_t previous, next;  // -1 at the ends
  };
  struct Candidate {
    int32_t rank, at, left, right, merged;
    bool operator>(const Candidate& other) const {
      return std::tie(rank, at) > std::tie(other.rank, other.at);
    }
  };
  const auto n = static_cast<int32_t>(symbols.size());
  std::vector<Node> nodes(symbols.size());
  const auto symbol = [&](int32_t i) -> int32_t& { return symbols[static_cast<size_t>(i)]; };
  const auto node = [&](int32_t i) -> Node& { return nodes[static_cast<size_t>(i)]; };

  std::vector<Candidate> found;
  found.reserve(symbols.size());
  for (int32_t i = 0; i < n; ++i) {
    node(i) = {i - 1, i + 1 < n ? i + 1 : -1};
    if (i + 1 == n) break;
    if (const Rule* rule = find(symbol(i), symbol(i + 1)))
      found.push_back({rule->rank, i, symbol(i), symbol(i + 1), rule->merged});
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue(std::greater<>{},
                                                                               std::move(found));
  const auto offer = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    if (const Rule* rule = find(symbol(left), symbol(right)))
      queue.push({rule->rank, left, symbol(left), symbol(right), rule->merged});
  };
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    const int32_t right = node(top.at).next;
    // Either of them may have been merged with another neighbour meanwhile.
    if (symbol(top.at) != top.left || right < 0 || symbol(right) != top.right) continue;
    symbol(top.at) = top.merged;
    symbol(right) = kGone;
    node(top.at).next = node(right).next;
    if (node(right).next >= 0) node(node(right).next).previous = top.at;
    offer(node(top.at).previous, top.at);
    offer(top.at, node(top.at).next);
  }
  std::erase(symbols, kGone);
}

}  // namespace ei
