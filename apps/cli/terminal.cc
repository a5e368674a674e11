#include "apps/cli/terminal.h"

#include <termios.h>
#include <unistd.h>

#include <atomic>

namespace ei::cli {
namespace {

termios remembered;
std::atomic<bool> has_terminal = false;

}  // namespace

bool stdin_is_terminal() { return isatty(STDIN_FILENO) != 0; }

void remember_terminal() { has_terminal = tcgetattr(STDIN_FILENO, &remembered) == 0; }

void restore_terminal() {
  // The terminal of a program in the background is not its own.
  if (has_terminal && tcgetpgrp(STDIN_FILENO) == getpgrp())
    tcsetattr(STDIN_FILENO, TCSADRAIN, &remembered);
}

KeysHidden::KeysHidden() {
  termios hidden;
  if (tcgetattr(STDIN_FILENO, &hidden) != 0) return;
  // Without ICANON as well: the next prompt reads single keys, and an end of file that the terminal
  // has already made of Ctrl-D would be lost.
  hidden.c_lflag &= ~static_cast<tcflag_t>(ECHO | ICANON);
  tcsetattr(STDIN_FILENO, TCSADRAIN, &hidden);
}

KeysHidden::~KeysHidden() { restore_terminal(); }

}  // namespace ei::cli
