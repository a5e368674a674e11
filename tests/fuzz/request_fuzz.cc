#include "apps/server/request.h"

// A request body, read as each endpoint does it.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  ei::server::RequestDefaults defaults;
  defaults.tools = true;
  const auto read = [&](auto parse) {
    try {
      parse(body, defaults);
    } catch (const ei::server::ApiError& error) {
      if (error.status != 400 || error.what()[0] == '\0') __builtin_trap();
    }
  };
  read(ei::server::parse_chat_request);
  read(ei::server::parse_completion_request);
  read(ei::server::parse_messages_request);
  read(ei::server::parse_count_tokens_request);
  read(ei::server::parse_responses_request);
  read(ei::server::parse_conversation_request);
  read(ei::server::parse_text_request);
  read(ei::server::parse_tokens_request);
  return 0;
}
