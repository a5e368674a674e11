#pragma once

#include <histedit.h>

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ei::cli {

// Lines typed on a terminal, with editing, completion and a history that lasts. Ctrl-C empties the
// line.
class LineEditor {
 public:
  // What the beginning of a line may become: whole lines.
  using Completer = std::function<std::vector<std::string>(std::string_view line)>;

  // The history is read from `history_file` and written there; where that cannot be done, it is of
  // this run only.
  LineEditor(std::string prompt, Completer completer, std::filesystem::path history_file);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  // A line without its end; nullopt at the end of input (Ctrl-D on an empty line). A line that ends
  // in a backslash goes on in the next. What is pasted is one line, whatever is in it.
  std::optional<std::string> read();

 private:
  static unsigned char complete(EditLine* editor, int key);
  std::optional<std::string> read_line();
  void remember(const std::string& text);

  std::string prompt_;
  Completer completer_;
  std::filesystem::path history_file_;
  bool continued_ = false;
  EditLine* editor_;
  History* history_;
};

}  // namespace ei::cli
