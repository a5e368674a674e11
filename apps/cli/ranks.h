#pragma once

#include <memory>
#include <string>

#include "ei/base/communicator.h"

namespace ei::cli {

// The ranks among which this process was started and that share its model, once main() has said so;
// null: it was started alone.
const std::shared_ptr<Communicator>& ranks();
void set_ranks(std::shared_ptr<Communicator> ranks);
inline bool has_ranks() { return ranks() && ranks()->size() > 1; }

// Rank 0's text.
std::string of_first_rank(std::string text);

}  // namespace ei::cli
