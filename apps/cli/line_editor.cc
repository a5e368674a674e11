#include "apps/cli/line_editor.h"

#include <clocale>
#include <cstdio>

#include "ei/base/fail.h"

namespace ei::cli {
namespace {

unsigned char empty_line(EditLine* editor, int) {
  const LineInfo* line = el_line(editor);
  el_cursor(editor, static_cast<int>(line->lastchar - line->cursor));
  el_deletestr(editor, static_cast<int>(line->lastchar - line->buffer));
  return CC_REDISPLAY;
}

}  // namespace

LineEditor::LineEditor(std::string prompt) : prompt_(std::move(prompt)) {
  std::setlocale(LC_CTYPE, "");  // so that the editor moves by characters of UTF-8
  editor_ = el_init("entropyinfer", stdin, stdout, stderr);
  history_ = history_init();
  if (!editor_ || !history_) fail("the terminal cannot be edited; give the prompt by --prompt");
  HistEvent event;
  history(history_, &event, H_SETSIZE, 1000);
  el_set(editor_, EL_CLIENTDATA, this);
  el_set(
      editor_, EL_PROMPT, +[](EditLine* editor) -> char* {
        void* self = nullptr;
        el_get(editor, EL_CLIENTDATA, &self);
        static char more[] = "... ";
        auto* line_editor = static_cast<LineEditor*>(self);
        return line_editor->continued_ ? more : line_editor->prompt_.data();
      });
  el_set(editor_, EL_HIST, history, history_);
  el_set(editor_, EL_EDITOR, "emacs");
  // While a line is edited Ctrl-C is a key like any other; at other times the terminal makes it a
  // signal.
  el_set(editor_, EL_SETTY, "-d", "-isig", nullptr);
  el_set(editor_, EL_ADDFN, "empty-line", "Empties the line", empty_line);
  el_set(editor_, EL_BIND, "^C", "empty-line", nullptr);
}

LineEditor::~LineEditor() {
  el_end(editor_);
  history_end(history_);
}

std::optional<std::string> LineEditor::read() {
  std::string text;
  for (continued_ = false;; continued_ = true) {
    // Before the prompt shows: el_gets() itself does it later, and a Ctrl-D typed in between is
    // lost.
    el_set(editor_, EL_PREP_TERM, 1);
    int n = 0;
    const char* line = el_gets(editor_, &n);
    if (!line || n <= 0) return std::nullopt;
    text.append(line, static_cast<size_t>(n));
    if (text.ends_with('\n')) text.pop_back();
    if (!text.ends_with('\\')) break;
    text.back() = '\n';
  }
  HistEvent event;
  if (!text.empty()) history(history_, &event, H_ENTER, text.c_str());
  return text;
}

}  // namespace ei::cli
