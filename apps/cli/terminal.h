#pragma once

namespace ei::cli {

bool stdin_is_terminal();

// Keeps how the terminal on standard input is set, for restore_terminal().
void remember_terminal();
// Sets it so again, for whoever ends the program at once, whatever was going on. May be called in a
// signal handler.
void restore_terminal();

// While it lives, keys do not show: they wait for the next prompt instead of ending up in the
// middle of an answer. Ctrl-C stays a signal.
class KeysHidden {
 public:
  KeysHidden();
  ~KeysHidden();
  KeysHidden(const KeysHidden&) = delete;
  KeysHidden& operator=(const KeysHidden&) = delete;
};

}  // namespace ei::cli
