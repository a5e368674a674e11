#pragma once

#include <histedit.h>

#include <optional>
#include <string>

namespace ei::cli {

// Lines typed on a terminal, with editing and a history. Ctrl-C empties the line.
class LineEditor {
 public:
  explicit LineEditor(std::string prompt);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  // A line without its end; nullopt at the end of input (Ctrl-D). A line that ends in a backslash
  // goes on in the next.
  std::optional<std::string> read();

 private:
  std::string prompt_;
  bool continued_ = false;
  EditLine* editor_;
  History* history_;
};

}  // namespace ei::cli
