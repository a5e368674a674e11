#pragma once

namespace ei::cli {

// From now on the program ends with a message and exit code 1 when a mapped file cannot be read any
// more, as when somebody shortens a model's file that is in use; the system would kill it (SIGBUS).
void report_lost_files();

}  // namespace ei::cli
