#include "apps/cli/saved_session.h"

#include <fmt/format.h>

#include "ei/io/json.h"

namespace ei::cli {

void save_session(Session& session, const std::filesystem::path& file, const Request& request) {
  Json messages = Json::array();
  for (const Message& message : request.messages)
    messages.push_back({{"role", message.role}, {"parts", message.parts}});
  session.save(file, request.prefill, messages.dump());
}

void load_session(Session& session, const std::filesystem::path& file, Request& request) {
  const std::string note = session.load(file, request.prefill);
  const std::string where = fmt::format("{}: field \"note\"", file.string());
  const Json saved = parse_json(note, where);
  std::vector<Message> messages;
  for (const Json& message : saved) {
    const Fields fields(message, where);
    Message& read = messages.emplace_back(Message{fields.string("role"), {}});
    for (const Json& part : fields.at("parts")) {
      if (!part.is_string()) throw Error(where + ": \"parts\" are no texts");
      read.parts.push_back(part.get<std::string>());
    }
  }
  request.messages = std::move(messages);
}

}  // namespace ei::cli
