# Writes a C++ source OUT that holds the file IN as ei::server::kPage. A raw string may be 64 KiB long:
# the page is cut into several, which the compiler joins.
file(READ ${IN} page)
string(LENGTH "${page}" length)
set(parts "")
foreach(begin RANGE 0 ${length} 16000)
  string(SUBSTRING "${page}" ${begin} 16000 part)
  string(APPEND parts "R\"page(${part})page\"\n")
endforeach()
file(WRITE ${OUT} "#include \"apps/server/page.h\"\nnamespace ei::server {\nconst std::string_view kPage =\n${parts};\n}\n")
