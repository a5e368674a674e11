#pragma once

#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "apps/server/api_error.h"
#include "ei/io/json.h"

namespace ei::server {

// The endpoints that take JSON.
enum Endpoint : unsigned {
  kChat = 1,
  kCompletions = 2,
  kTokenize = 4,
  kDetokenize = 8,
  kTemplate = 16,
  kMessages = 32,
  kCountTokens = 64,
  kResponses = 128,
  kEmbeddings = 256
};

// What becomes of a field. docs/API.md shows the same table; a test compares the two.
struct FieldRule {
  enum class Use {
    kObeyed,
    kNoEffect,     // tells of the client, or asks for what cannot change an answer here: accepted
    kUnsupported,  // would change the answer: refused, but for values that ask for what is done
  };
  std::string_view name;
  unsigned endpoints;  // that know it
  Use use;
  std::string_view example;   // a JSON value that is obeyed, accepted or refused
  std::string_view accepted;  // of kUnsupported: JSON values beside null, separated by spaces
  std::string_view note;      // for people
};
std::span<const FieldRule> field_rules();

// Throws ApiError (400) naming the first field of a request that would have to be obeyed and is
// not. Returns the fields that nobody knows, to be told to the client.
std::vector<std::string> check_fields(const OrderedJson& request, Endpoint endpoint);

// A field of a chat, and that of another dialect which it was made of.
struct Renamed {
  std::string_view chat, dialect;
};
// The error in the words of that dialect.
ApiError renamed(ApiError error, std::initializer_list<Renamed> names);

}  // namespace ei::server
