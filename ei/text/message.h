#pragma once

#include <string>
#include <vector>

namespace ei {

// One turn of a conversation. `role` is "system", "user" or "assistant". A content of several parts
// (a document, a question) reads as the parts with a blank line between them, unless the chat
// template understands lists of parts.
struct Message {
  std::string role;
  std::vector<std::string> parts;
};

}  // namespace ei
