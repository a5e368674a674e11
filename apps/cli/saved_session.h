#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "ei/engine/engine.h"

namespace ei::cli {

// A conversation in a file: its messages, and all that was read of them (Session::save).
void save_session(Session& session, const std::filesystem::path& file, const Request& request);

// Its messages take the place of the request's. Throws Error naming the file, as Session::load().
void load_session(Session& session, const std::filesystem::path& file, Request& request);

}  // namespace ei::cli
