#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace ei::cli {

struct Finished {
  int exit_code = -1;
  std::string out, err;
};

// Runs the program with `arguments`, as a shell splits them, and `input` on its standard input.
// `before` stands before it in the shell, for instance NAME=value.
Finished run_program(const std::string& arguments, const std::string& input = "",
                     const std::string& before = "");

// The program on a terminal of its own.
class OnTerminal {
 public:
  explicit OnTerminal(const std::vector<std::string>& arguments);
  ~OnTerminal();
  OnTerminal(const OnTerminal&) = delete;

  void type(const std::string& keys);
  // Reads until `text` appears after all that was waited for before, and returns what came up to
  // its end; fails the test when the program ends first.
  std::string wait_for(const std::string& text);
  int wait_for_exit();

 private:
  pid_t pid_ = -1;
  int terminal_ = -1;
  std::string seen_;
};

}  // namespace ei::cli
