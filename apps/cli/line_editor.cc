#include "apps/cli/line_editor.h"

#include <algorithm>
#include <clocale>
#include <cstdio>
#include <system_error>

#include "ei/base/fail.h"

namespace ei::cli {
namespace {

unsigned char empty_line(EditLine* editor, int) {
  const LineInfo* line = el_line(editor);
  el_cursor(editor, static_cast<int>(line->lastchar - line->cursor));
  el_deletestr(editor, static_cast<int>(line->lastchar - line->buffer));
  return CC_REDISPLAY;
}

// Ctrl-D does what it does where lines are not edited: it ends the line, and an empty one is the
// end of input. Within a line it deletes a character.
unsigned char end_line(EditLine* editor, int) {
  const LineInfo* line = el_line(editor);
  if (line->lastchar == line->buffer) return CC_EOF;
  if (line->cursor == line->lastchar) return CC_NEWLINE;
  el_cursor(editor, 1);
  el_deletestr(editor, 1);
  return CC_REFRESH;
}

// The terminal puts marks around what is pasted once it was told to: a newline between them does
// not end the line.
constexpr const char* kMarkPastes = "\033[?2004h";
constexpr const char* kMarkNoPastes = "\033[?2004l";
constexpr const char* kPasteBegin = "\033[200~";
constexpr std::wstring_view kPasteEnd = L"\033[201~";

unsigned char paste(EditLine* editor, int) {
  std::wstring text;
  for (wchar_t c = 0; !text.ends_with(kPasteEnd) && el_wgetc(editor, &c) == 1;)
    text += c == L'\r' ? L'\n' : c;
  if (text.ends_with(kPasteEnd)) text.resize(text.size() - kPasteEnd.size());
  while (text.ends_with(L'\n')) text.pop_back();
  std::erase_if(text, [](wchar_t c) { return c < L' ' && c != L'\n' && c != L'\t'; });
  el_winsertstr(editor, text.c_str());
  return CC_REFRESH;
}

}  // namespace

LineEditor::LineEditor(std::string prompt, Completer completer, std::filesystem::path history_file)
    : prompt_(std::move(prompt)),
      completer_(std::move(completer)),
      history_file_(std::move(history_file)) {
  std::setlocale(LC_CTYPE, "");  // so that the editor moves by characters of UTF-8
  editor_ = el_init("entropyinfer", stdin, stdout, stderr);
  history_ = history_init();
  if (!editor_ || !history_) fail("the terminal cannot be edited; give the prompt by --prompt");
  HistEvent event;
  history(history_, &event, H_SETSIZE, 1000);
  history(history_, &event, H_SETUNIQUE, 1);
  history(history_, &event, H_LOAD, history_file_.c_str());
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
  el_set(editor_, EL_ADDFN, "end-line", "Ends the line", end_line);
  el_set(editor_, EL_BIND, "^D", "end-line", nullptr);
  el_set(editor_, EL_ADDFN, "paste", "Takes what is pasted", paste);
  el_set(editor_, EL_BIND, kPasteBegin, "paste", nullptr);
  el_set(editor_, EL_ADDFN, "complete", "Completes the line", complete);
  el_set(editor_, EL_BIND, "^I", "complete", nullptr);
}

LineEditor::~LineEditor() {
  el_end(editor_);
  history_end(history_);
}

std::optional<std::string> LineEditor::read() {
  std::string text;
  for (continued_ = false;; continued_ = true) {
    const std::optional<std::string> line = read_line();
    if (!line && !continued_) return std::nullopt;
    text += line.value_or("");
    if (!line || !text.ends_with('\\')) break;
    text.back() = '\n';
  }
  while (text.ends_with('\n')) text.pop_back();
  if (!text.empty()) remember(text);
  return text;
}

std::optional<std::string> LineEditor::read_line() {
  // Before the prompt shows: el_gets() itself does it later, and a Ctrl-D typed in between is lost.
  el_set(editor_, EL_PREP_TERM, 1);
  el_resize(editor_);
  std::fputs(kMarkPastes, stdout);
  int n = 0;
  const char* line = el_gets(editor_, &n);
  const bool is_end = !line || n <= 0;
  std::string text = is_end ? "" : std::string(line, static_cast<size_t>(n));
  std::fputs(kMarkNoPastes, stdout);
  if (!text.ends_with('\n')) std::fputs("\n", stdout);  // Ctrl-D leaves the cursor where it was
  std::fflush(stdout);
  if (is_end) return std::nullopt;
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

void LineEditor::remember(const std::string& text) {
  HistEvent event;
  history(history_, &event, H_ENTER, text.c_str());
  std::error_code error;  // no history is no reason to end a conversation
  std::filesystem::create_directories(history_file_.parent_path(), error);
  const std::string whole = history_file_.string() + ".new";
  if (history(history_, &event, H_SAVE, whole.c_str()) >= 0)
    std::filesystem::rename(whole, history_file_, error);
}

unsigned char LineEditor::complete(EditLine* editor, int) {
  void* self = nullptr;
  el_get(editor, EL_CLIENTDATA, &self);
  const LineInfo* info = el_line(editor);
  const std::string line(info->buffer, info->cursor);
  const std::vector<std::string> lines = static_cast<LineEditor*>(self)->completer_(line);
  if (lines.empty()) return CC_REFRESH_BEEP;
  std::string common = lines.front();
  for (const std::string& other : lines)
    common.erase(std::mismatch(common.begin(), common.end(), other.begin(), other.end()).first,
                 common.end());
  if (common.size() > line.size() && common.starts_with(line)) {
    el_insertstr(editor, common.c_str() + line.size());
    return CC_REFRESH;
  }
  if (lines.size() == 1) return CC_REFRESH_BEEP;
  std::fputs("\n", stdout);
  for (const std::string& other : lines) std::fprintf(stdout, "%s\n", other.c_str());
  return CC_REDISPLAY;
}

}  // namespace ei::cli
